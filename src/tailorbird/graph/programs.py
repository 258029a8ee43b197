"""Clean-up of a program of ``torch.export``: what it writes in place, where gradients end."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import fx
from torch.export import ExportedProgram

from tailorbird.errors import GraphError
from tailorbird.graph.aten import name_of
from tailorbird.graph.leaf_calls import OPERATOR

_ATEN = torch.ops.aten
_NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_FRESH = frozenset((
    "add", "sub", "mul", "div", "neg", "relu", "relu6", "silu", "gelu", "mish", "sigmoid", "tanh",
    "hardswish", "hardsigmoid", "leaky_relu", "elu", "conv1d", "conv2d", "conv3d", "linear",
    "matmul", "bmm", "cat", "stack", "clone", "batch_norm", "layer_norm", "group_norm", "softmax",
    "mean", "sum", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
))  # fmt: skip
"""Operators whose result never shares memory with what they are given."""


def cleaned(program: ExportedProgram) -> ExportedProgram:
    """The program without in-place writes and regions, for any number of images.

    Raises:
        GraphError: it holds for some numbers of images only.
    """
    _check_batch(program)
    _write_out_regions(program.graph_module)
    for node in reversed(program.graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload) and not node.users and not _writes(node):
            program.graph.erase_node(node)  # checks, and what failed and was caught
    for node in list(program.graph.nodes):
        _make_plain(node)
    if any(_writes(node) or _transforms(node) for node in program.graph.nodes):
        for node in list(program.graph.nodes):
            _select(node)
        program = program.run_decompositions({})
        _check_batch(program)
    return program


def batch_of(program: ExportedProgram) -> torch.SymInt:
    """The number of images.

    Raises:
        GraphError: the program holds for one number alone.
    """
    (name,) = program.graph_signature.user_inputs
    (image,) = (node for node in program.graph.nodes if node.name == name)
    count = image.meta["val"].shape[0]
    if not isinstance(count, torch.SymInt):
        raise GraphError(
            f"the network's code works on {count} images at once and on no other number"
        )
    return count


def _check_batch(program: ExportedProgram) -> None:
    symbol = batch_of(program).node.expr
    bounds = program.range_constraints.get(symbol)
    if not symbol.is_Symbol or (bounds is not None and bounds.upper < 2**31):
        raise GraphError("the network's code works on some numbers of images only")


def _write_out_regions(module: fx.GraphModule) -> None:
    """Write regions with gradients switched off, of which what leaves them is detached, and those
    with autocast switched off into the graph."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is _NO_GRAD:
            enabled, region, *given = cast("tuple[Any, ...]", node.args)
        elif node.target is _AUTOCAST and node.args[2] is False:
            enabled, (region, *given) = True, cast("tuple[Any, ...]", node.args)[4:]
        else:
            continue
        inner = cast(fx.GraphModule, module.get_submodule(region.target))
        _write_out_regions(inner)
        inputs = [n for n in inner.graph.nodes if n.op == "placeholder"]
        with graph.inserting_before(node):
            copied = graph.graph_copy(inner.graph, dict(zip(inputs, given, strict=True)))
            results = list(cast("tuple[fx.Node, ...]", copied))
            if not enabled:
                results = [_detached(graph, result) for result in results]
        for user in list(node.users):
            user.replace_all_uses_with(results[cast(int, user.args[1])])
            graph.erase_node(user)
        graph.erase_node(node)


def _detached(graph: fx.Graph, result: fx.Node) -> fx.Node:
    node: fx.Node = graph.call_function(_ATEN.detach.default, (result,))
    node.meta = dict(result.meta)
    return node


def _make_plain(node: fx.Node) -> None:
    """Write to nothing where what is written to is fresh and read by nobody else."""
    if node.target is _ATEN.detach_.default:  # of constants, which torch detaches on its own
        node.target = _ATEN.detach.default
        return
    if not _writes(node) or not isinstance(node.args[0], fx.Node):
        return
    written = node.args[0]
    if node.target is _ATEN.copy_.default:
        value = node.args[1]
        if (
            isinstance(value, fx.Node)
            and _same_kind(value, written)
            and _is_fresh(written, [node, *_layers_between(value, written)])
        ):
            node.replace_all_uses_with(value)
            node.graph.erase_node(node)
        return
    assert isinstance(node.target, torch._ops.OpOverload)
    packet = getattr(_ATEN, name_of(node.target).removesuffix("_"), None)
    plain = getattr(packet, node.target._overloadname, None)
    if plain is not None and not plain._schema.is_mutable and _is_fresh(written, [node]):
        node.target = plain


def _select(node: fx.Node) -> None:
    """Take single slices: PyTorch carries writes into ``unbind`` back for one batch size only."""
    if node.target is not _ATEN.unbind.int:
        return
    source, axis = (*node.args, 0)[:2]
    for user in list(node.users):
        with node.graph.inserting_before(user):
            part = node.graph.call_function(_ATEN.select.int, (source, axis, user.args[1]))
        part.meta = dict(user.meta)
        user.replace_all_uses_with(part)
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _layers_between(value: fx.Node, written: fx.Node) -> list[fx.Node]:
    """The call of a layer whose result is written over what the layer was given."""
    call = value.args[0] if value.target is operator.getitem else None
    return [call] if isinstance(call, fx.Node) and call.target is OPERATOR else []


def _is_fresh(node: fx.Node, readers: list[fx.Node]) -> bool:
    """Whether a tensor shares memory with no other, and only these read it."""
    source = node.args[0] if node.target is operator.getitem else None
    layer = isinstance(source, fx.Node) and source.target is OPERATOR
    return (layer or name_of(node.target) in _FRESH) and set(node.users) <= set(readers)


def _same_kind(left: fx.Node, right: fx.Node) -> bool:
    one, other = left.meta.get("val"), right.meta.get("val")
    return (
        one is not None
        and other is not None
        and (one.shape, one.dtype)
        == (
            other.shape,
            other.dtype,
        )
    )


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _transforms(node: fx.Node) -> bool:
    """Whether it stands for a step of ``torch.vmap`` and the like."""
    return getattr(node.target, "__module__", "") == "torch._functorch.predispatch"
