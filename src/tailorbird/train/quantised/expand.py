"""Layers and functions taken apart into those that files are quantised between."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F


def expand(graph: fx.GraphModule) -> None:
    """Take a graph's layers and functions apart, **in place**; it computes the same.

    A linear layer becomes a product and a sum, as it is in a file where the two are rounded apart;
    SiLU and Hardswish a gate and a product; attention its products and the softmax between them.
    What is called in a way that is not known stays whole.

    Example:
        >>> graph = fx.symbolic_trace(nn.Sequential(nn.SiLU()))
        >>> expand(graph)
        >>> [node.name for node in graph.graph.nodes]
        ['input_1', 'sigmoid', 'mul', 'output']
    """
    for node in list(graph.graph.nodes):
        if (way := _way(graph, node)) is None:
            continue
        with graph.graph.inserting_before(node):
            made = way(graph, node)
        if made is not None:
            node.replace_all_uses_with(made)
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


_Way = Callable[[fx.GraphModule, fx.Node], fx.Node | None]


def _way(graph: fx.GraphModule, node: fx.Node) -> _Way | None:
    if node.op == "call_module":
        return _LAYERS.get(type(graph.get_submodule(str(node.target))))
    return _FUNCTIONS.get(node.target) if node.op == "call_function" else None


def _linear(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    path = str(node.target)
    weight = graph.graph.get_attr(f"{path}.weight")
    made = graph.graph.call_function(F.linear, (node.all_input_nodes[0], weight))
    if graph.get_submodule(path).bias is not None:
        bias = graph.graph.get_attr(f"{path}.bias")
        made = graph.graph.call_function(operator.add, (made, bias))
    return made


def _gated(gate: Callable[..., object]) -> _Way:
    """A function that is its argument times a gate of it."""

    def way(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        (read,) = node.all_input_nodes
        if len(read.users) > 1 and _writes(graph, node):
            return None
        return graph.graph.call_function(
            operator.mul, (read, graph.graph.call_function(gate, (read,)))
        )

    return way


def _writes(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it overwrites what it reads."""
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    return len(node.args) > 1 or bool(node.kwargs.get("inplace"))


def _attention(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    given: dict[str, Any] = dict(zip(_ATTENTION, node.args, strict=False)) | dict(node.kwargs)
    plain = not any(given.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))
    if not plain or given.keys() - set(_ATTENTION):
        return None
    scope = fx.proxy.GraphAppendingTracer(graph.graph)
    query, key, value = (fx.Proxy(given[name], scope) for name in _ATTENTION[:3])
    scale = given.get("scale")
    width: Any = query.size(-1)
    root = width**-0.25 if scale is None else scale**0.5
    scores = (query * root) @ (key.transpose(-2, -1) * root)
    if (mask := given.get("attn_mask")) is not None:
        scores = scores + fx.Proxy(mask, scope)
    made: fx.Node = (scores.softmax(-1) @ value).node
    return made


_ATTENTION = (
    *("query", "key", "value", "attn_mask"),
    *("dropout_p", "is_causal", "scale", "enable_gqa"),
)
_LAYERS: dict[type, _Way] = {
    nn.Linear: _linear,
    nn.SiLU: _gated(torch.sigmoid),
    nn.Hardswish: _gated(F.hardsigmoid),
}
_FUNCTIONS: dict[object, _Way] = {
    F.silu: _gated(torch.sigmoid),
    F.hardswish: _gated(F.hardsigmoid),
    F.scaled_dot_product_attention: _attention,
}
