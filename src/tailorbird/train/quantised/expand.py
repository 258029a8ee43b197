"""Layers and functions taken apart into those that files are quantised between."""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch import fx, nn
from torch.nn import functional as F


def expand(graph: fx.GraphModule, *, whole: Callable[[nn.Linear], bool]) -> None:
    """Take a graph's layers apart, **in place**; it computes the same.

    A linear layer becomes a product and a sum, as it is in a file where the two are rounded apart.

    Args:
        whole: linear layers that stay as they are.
    """
    for node in list(graph.graph.nodes):
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(layer) is nn.Linear and not whole(layer):
            _linear(graph, node)
    graph.graph.lint()
    graph.recompile()


def _linear(graph: fx.GraphModule, node: fx.Node) -> None:
    path = str(node.target)
    layer = graph.get_submodule(path)
    with graph.graph.inserting_before(node):
        weight = graph.graph.get_attr(f"{path}.weight")
        made = graph.graph.call_function(F.linear, (node.all_input_nodes[0], weight))
        if layer.bias is not None:
            bias = graph.graph.get_attr(f"{path}.bias")
            made = graph.graph.call_function(operator.add, (made, bias))
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)
