"""Zeros in place of a block: the module, and the sums in which it can be left out.

Where a block ends before the addition that closes its residual branch, leaving it out means that
nothing is added. ``x + 0`` is then ``x``, so neither the zeros nor the addition are computed.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator

import torch
from torch import fx, nn

from tailorbird.graph.blocks import Block
from tailorbird.graph.kinds import CONSTANT, SIZE
from tailorbird.graph.trace import LayerGraph

_ADDITIONS = (operator.add, torch.add, "add")
_PRODUCTS = (operator.mul, torch.mul, torch.multiply, "mul", "multiply")
_KEEPING = ("dropout", "shape", "resize")
"""Kinds of layers that make zeros of zeros, whatever their settings, but for padding."""


def zero_module() -> fx.GraphModule:
    """A module with one placeholder ``x``: (n, ...) -> zeros (n, ...).

    It multiplies by zero: files whose output is a constant are refused by runtimes. Where it is
    timed alone that is its cost; in a network there is none.

    Example:
        >>> zero_module()(torch.ones(2, 1)).tolist()
        [[0.0], [0.0]]
    """
    graph = fx.Graph()
    graph.output(graph.call_function(operator.mul, (graph.placeholder("x"), 0.0)))
    return fx.GraphModule(nn.Module(), graph, "Zero")


def is_zero(module: nn.Module) -> bool:
    """Whether a module is one of ``zero_module``, stored and loaded again perhaps."""
    if not isinstance(module, fx.GraphModule):
        return False
    called = [node for node in module.graph.nodes if node.op.startswith("call")]
    return [(node.target, node.args[1:]) for node in called] == [(operator.mul, (0.0,))]


def addends(graph: LayerGraph, name: str) -> tuple[str, str] | None:
    """The two summands of a node that adds tensors of its own shape, as they are."""
    node = graph.nodes[name]
    if not _calls(node, _ADDITIONS) or node.kwargs or len(node.args) != 2:
        return None
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    layers = [graph.layer(one.name) for one in (left, right)]
    if not all(layer.boundary and layer.shape == graph.layer(name).shape for layer in layers):
        return None
    return left.name, right.name


def summands(graph: LayerGraph, name: str) -> Iterator[str]:
    """A node, and all that it is the sum of: branches may be added side by side."""
    pending, seen = [name], {name}
    while pending:
        name = pending.pop(0)
        yield name
        new = [other for other in addends(graph, name) or () if other not in seen]
        seen.update(new)
        pending += new


def keeps_zero(graph: LayerGraph, name: str) -> bool:
    """Whether a node gives zeros where its first tensor of images is zero, whatever is trained."""
    node, layer = graph.nodes[name], graph.layer(name)
    if layer.kind in _KEEPING:
        return "pad" not in str(getattr(node.target, "__name__", node.target)).lower()
    moving = [one for one in node.all_input_nodes if graph.layer(one.name).kind not in _STILL]
    return len(moving) == 1 and _calls(node, _PRODUCTS)


def sums_of_zeros(
    graph: LayerGraph, blocks: Collection[Block], replaced: Collection[str] = ()
) -> dict[str, str]:
    """What is taken in place of additions when blocks give zeros.

    Scales and stochastic depth between a block and its addition are looked through.

    Args:
        graph: the traced network.
        blocks: those that give zeros.
        replaced: nodes of all blocks that are replaced, of which nothing is known.

    Returns:
        addition -> its other summand; where both are zeros, the second.
    """
    zeros, found = {block.output for block in blocks}, dict[str, str]()
    for layer in graph.layers if zeros else ():
        if layer.name in replaced:
            continue
        pair = addends(graph, layer.name)
        if pair is not None and not zeros.isdisjoint(pair):
            found[layer.name] = pair[1] if pair[0] in zeros else pair[0]
            if zeros.issuperset(pair):
                zeros.add(layer.name)
        elif layer.inputs and layer.inputs[0] in zeros and keeps_zero(graph, layer.name):
            zeros.add(layer.name)
    return found


def left_out_by(graph: LayerGraph, block: Block) -> str:
    """How a block that keeps its input's shape is left out.

    Returns:
        ``"identity"``; ``"zero"`` where its output is added to its input, which would otherwise be
        doubled; ``"nothing"`` where that holds and a normalisation of its own stands in between.
    """
    name, way = block.output, "zero"
    while True:
        readers = [
            one.name for one in graph.layers if name in one.inputs and one.kind not in _STILL
        ]
        if len(readers) != 1 or name == graph.output:
            return "identity"
        pair = addends(graph, readers[0])
        if pair is not None:
            other = pair[0] if pair[1] == name else pair[1]
            return way if block.input in summands(graph, other) else "identity"
        if graph.layer(readers[0]).kind == "norm":
            way = "nothing"
        elif not keeps_zero(graph, readers[0]):
            return "identity"
        name = readers[0]


_STILL = (CONSTANT, SIZE)


def _calls(node: fx.Node, targets: Collection[object]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets
