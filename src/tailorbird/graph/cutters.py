"""Making layers, parameters and the numbers of nodes narrower: one function per kind of cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import fx, nn

Place = tuple[int, int]
"""One channel of a body: (group index, position in the group)."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What follows a cut; ``rows`` is its output side, ``columns`` its input side.

    Args:
        kind: key of ``CUTTERS``.
        path: of the layer, the parameter, or the graph that holds the node.
        dim: of the tensor that is cut.
        node: position in the graph.
        where: which argument of the node, and which item of that.
        sizes: of the parts that a node makes.
    """

    kind: str
    path: str
    rows: tuple[Place, ...]
    columns: tuple[Place, ...]
    dim: int
    node: int
    where: tuple[int, ...]
    sizes: tuple[int, ...]


def _narrow(tensor: torch.Tensor, dim: int, index: Sequence[int]) -> torch.Tensor:
    where = torch.tensor(index, dtype=torch.long, device=tensor.device)
    narrow = tensor.detach().index_select(dim, where)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(narrow, requires_grad=tensor.requires_grad)
    return narrow


def _cut_dense(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    module = student.get_submodule(cut.path)
    out_dim, in_dim = (1, 0) if cut.kind == "dense_transposed" else (0, 1)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    requires_grad = weight.requires_grad
    narrow = _narrow(_narrow(weight, out_dim, rows), in_dim, columns)
    module.weight = nn.Parameter(narrow.detach(), requires_grad=requires_grad)
    if isinstance(module.bias, torch.Tensor):
        module.bias = _narrow(module.bias, 0, rows)
    names = ("out_features", "in_features")
    if not isinstance(module, nn.Linear):
        names = ("out_channels", "in_channels")
    setattr(module, names[0], len(rows))
    setattr(module, names[1], len(columns))


def _cut_grouped(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    """Whole groups of a grouped or depthwise convolution."""
    module = student.get_submodule(cut.path)
    dim = columns if "Transpose" in type(module).__name__ else rows
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter)
    assert isinstance(module.groups, int)
    module.weight = _narrow(weight, 0, dim)
    if isinstance(bias, torch.Tensor):
        module.bias = _narrow(bias, 0, rows)
    sizes = {
        "out_channels": len(rows),
        "in_channels": len(columns),
        "groups": module.groups * len(columns) // len(cut.columns),
    }
    for name, size in sizes.items():
        setattr(module, name, size)


def _cut_even(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    """The same channels of every group of a grouped convolution."""
    module = student.get_submodule(cut.path)
    weight, bias, groups = module.weight, module.bias, module.groups
    assert isinstance(weight, nn.Parameter)
    assert isinstance(groups, int)
    first, second = rows, columns[: len(columns) // groups]
    if cut.kind == "even_transposed":
        first, second = columns, rows[: len(rows) // groups]
    module.weight = _narrow(_narrow(weight, 0, first), 1, second)
    if isinstance(bias, torch.Tensor):
        module.bias = _narrow(bias, 0, rows)
    for name, size in {"out_channels": len(rows), "in_channels": len(columns)}.items():
        setattr(module, name, size)


def _cut_vector(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    module = student.get_submodule(cut.path)
    width = len(cut.rows)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.ndim and tensor.numel() == width:
            setattr(module, name, _narrow(tensor, tensor.shape.index(width), rows))
    groups = getattr(module, "num_groups", 1)
    if groups > 1:
        setattr(module, "num_groups", groups * len(rows) // width)  # noqa: B010 - as below
    sizes = {
        "num_features": len(rows),
        "num_channels": len(rows),
        "num_parameters": len(rows),
        "normalized_shape": (len(rows),),
    }
    for name, size in sizes.items():
        if getattr(module, name, None) in (width, (width,)):
            setattr(module, name, size)


def _cut_parameter(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    path, _, name = cut.path.rpartition(".")
    module = student.get_submodule(path)
    setattr(module, name, _narrow(getattr(module, name), cut.dim, rows))


def _node(student: fx.GraphModule, cut: Cut) -> fx.Node:
    owner = student.get_submodule(cut.path)
    assert isinstance(owner, fx.GraphModule)
    nodes: list[fx.Node] = list(owner.graph.nodes)
    return nodes[cut.node]


def _cut_pad(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    node = _node(student, cut)
    pads = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    assert isinstance(pads, list | tuple)
    amounts = list(pads)
    amounts[cut.dim : cut.dim + 2] = [len(rows), len(columns)]
    if len(node.args) > 1:
        node.update_arg(1, tuple(amounts))
    else:
        node.update_kwarg("pad", tuple(amounts))


def _write(node: fx.Node, where: tuple[int, ...], value: object) -> None:
    """Put a value among a node's arguments, or into one that is a tuple."""
    new = cast(fx.node.Argument, value)
    if len(where) == 2:
        items = list(cast(Sequence[fx.node.Argument], node.args[where[0]]))
        items[where[1]] = new
        new = tuple(items)
    node.update_arg(where[0], new)


def _read(node: fx.Node, where: tuple[int, ...]) -> object:
    value: object = node.args[where[0]]
    return cast(Sequence[object], value)[where[1]] if len(where) == 2 else value


def _cut_literal(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    """A channel count written into a view, reshape or expand."""
    _write(_node(student, cut), cut.where, len(rows))


def _cut_slice(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    """Neighbouring channels by their first and last."""
    node = _node(student, cut)
    item = _read(node, cut.where)
    assert isinstance(item, slice)
    start, stop, _ = item.indices(len(cut.rows))
    ends = (sum(row < start for row in rows), sum(row < stop for row in rows))
    _write(node, cut.where, slice(*ends))


def _cut_split(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    """Split or chunk, which becomes a split with every size written out."""
    node, ends = _node(student, cut), list(accumulate(cut.sizes, initial=0))
    sizes = [sum(low <= row < high for row in rows) for low, high in pairwise(ends)]
    node.target = "split" if node.op == "call_method" else torch.split
    node.args, node.kwargs = (node.args[0], sizes, cut.dim), {}


CUTTERS: Mapping[str, Callable[[fx.GraphModule, Cut, Sequence[int], Sequence[int]], None]] = {
    "dense": _cut_dense,
    "dense_transposed": _cut_dense,
    "grouped": _cut_grouped,
    "even": _cut_even,
    "even_transposed": _cut_even,
    "vector": _cut_vector,
    "parameter": _cut_parameter,
    "pad": _cut_pad,
    "literal": _cut_literal,
    "slice": _cut_slice,
    "split": _cut_split,
}

MIXING = ("dense", "dense_transposed", "even", "even_transposed")
"""Kinds of layers that mix the channels of their input and make new ones."""
