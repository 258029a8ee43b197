"""Channel-dependency groups of a body, and pruning them for real."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.dataflow import walk
from tailorbird.graph.flow import Flow, RawCut, Tag

Place = tuple[int, int]
"""One channel of a body: (group index, position in the group)."""


@dataclass(frozen=True)
class Group:
    """Channels of one or more layers that are cut together, position by position.

    Args:
        index: the group's number in ``Channels.groups``.
        size: how many positions it has.
        layers: the layers that make its channels; ``"input"`` stands for the body's input.
        reason: why it can't be pruned; empty if it can.
        exact: pruning equals masking. Not so where a norm over channels reads the group.
        at_input: the body's input carries channels of the group.
        at_output: the body's output carries channels of the group.
    """

    index: int
    size: int
    layers: tuple[str, ...]
    reason: str
    exact: bool
    at_input: bool
    at_output: bool

    @property
    def prunable(self) -> bool:
        """Whether all that carries these channels can follow a cut."""
        return not self.reason

    @property
    def interior(self) -> bool:
        """Whether the group touches neither input nor output."""
        return not (self.at_input or self.at_output)


@dataclass(frozen=True)
class Cut:
    """What follows a cut; ``rows`` is its output side, ``columns`` its input side."""

    kind: str
    path: str
    rows: tuple[Place, ...]
    columns: tuple[Place, ...]
    dim: int
    node: int


@dataclass(frozen=True)
class Reader:
    """A layer that mixes the channels of its input; ``zero`` marks those surely zero there."""

    path: str
    axis: int
    places: tuple[Place, ...]
    zero: tuple[bool, ...]


@dataclass(frozen=True)
class Channels:
    """What ``analyse`` finds. Shapes and axes are without the batch dimension.

    Args:
        groups: the channel-dependency groups.
        input: the place of each input channel.
        output: the place of each output channel.
        in_shape: the body's input shape.
        out_shape: the body's output shape.
        in_axis: which axis of the input holds the channels.
        out_axis: which axis of the output holds them.
        producers: the places that each layer makes; a layer can't lose them all.
        cuts: what has to follow a cut.
        readers: the layers that mix channels, at which a removed channel counts as zero.
        output_zero: which output channels are surely zero.
        masked: places that some ``ChannelMask`` sets to zero.
    """

    groups: tuple[Group, ...]
    input: tuple[Place, ...]
    output: tuple[Place, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    in_axis: int
    out_axis: int
    producers: tuple[tuple[str, tuple[Place, ...]], ...]
    cuts: tuple[Cut, ...]
    readers: tuple[Reader, ...]
    output_zero: tuple[bool, ...]
    masked: frozenset[Place]


def analyse(body: fx.GraphModule, in_shape: Sequence[int]) -> Channels:
    """Find which channels of ``body`` have to be cut together, and which can't be.

    Ids flow from the layers that make channels through those that hand them on; additions and
    the like unite them. Layers without a rule pin their channels, with the reason. The body is
    run once at batch 2 in eval mode on a copy.

    Args:
        body: one input, one output tensor.
        in_shape: shape of the input without batch.

    Raises:
        GraphError: if the body can't run at ``in_shape``.

    Example:
        >>> body = fx.symbolic_trace(nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
        >>> [(g.size, g.layers, g.interior) for g in analyse(body, (3, 8, 8)).groups]
        [(3, ('input',), False), (8, ('0',), True), (4, ('2',), False)]
    """
    flow, given, result, out_shape = walk(body, in_shape)
    places, members = _places(flow)

    def located(ids: Sequence[int]) -> tuple[Place, ...]:
        return tuple(places[flow.find(item)] for item in ids)

    def cut(raw: RawCut) -> Cut:
        return Cut(raw.kind, raw.path, located(raw.rows), located(raw.columns), raw.dim, raw.node)

    def reader(path: str, tag: Tag) -> Reader:
        return Reader(path, tag.axis, located(tag.ids), tag.zero)

    inputs, outputs = located(given.ids), located(result.ids)
    return Channels(
        groups=_groups(flow, places, members, inputs, outputs),
        input=inputs,
        output=outputs,
        in_shape=tuple(in_shape),
        out_shape=out_shape,
        in_axis=given.axis - 1,
        out_axis=result.axis - 1,
        producers=tuple((layer, located(ids)) for layer, ids in flow.batches if layer),
        cuts=tuple(cut(raw) for raw in flow.cuts.values()),
        readers=tuple(reader(raw.path, raw.tag) for raw in flow.readers),
        output_zero=result.zero,
        masked=frozenset(located(sorted(flow.masked))),
    )


def _places(flow: Flow) -> tuple[dict[int, Place], list[list[int]]]:
    """Number the classes: a group joins the classes that some layer makes together."""
    groups = Flow(parent=list(range(len(flow.parent))))
    for _, ids in flow.batches:
        roots = [flow.find(item) for item in ids]
        groups.unite(roots[:1] * len(roots), roots)
    members: dict[int, list[int]] = {}
    for item in range(len(flow.parent)):
        if flow.find(item) == item:
            members.setdefault(groups.find(item), []).append(item)
    listed = list(members.values())
    return {root: (g, p) for g, roots in enumerate(listed) for p, root in enumerate(roots)}, listed


def _groups(
    flow: Flow,
    places: Mapping[int, Place],
    members: Sequence[Sequence[int]],
    inputs: Sequence[Place],
    outputs: Sequence[Place],
) -> tuple[Group, ...]:
    layers: list[dict[str, None]] = [{} for _ in members]
    for layer, ids in flow.batches:
        for item in ids[:1] if layer else ():
            layers[places[flow.find(item)][0]][layer] = None
    reasons = [""] * len(members)
    for item, reason in flow.pins.items():
        group = places[flow.find(item)][0]
        reasons[group] = reasons[group] or reason
    inexact = {places[flow.find(item)][0] for item in flow.inexact}
    at_input, at_output = {g for g, _ in inputs}, {g for g, _ in outputs}
    return tuple(
        Group(
            index=g,
            size=len(roots),
            layers=tuple(layers[g]),
            reason=reasons[g],
            exact=g not in inexact,
            at_input=g in at_input,
            at_output=g in at_output,
        )
        for g, roots in enumerate(members)
    )


def prune(
    body: fx.GraphModule, in_shape: Sequence[int], keep: Mapping[int, Sequence[int]]
) -> fx.GraphModule:
    """A narrower copy of ``body`` that keeps only the positions ``keep`` of each group.

    Equal, in eval mode, to ``body`` with zeros in place of the removed channels at the input of
    every convolution and linear layer (exact groups; a norm over channels sees fewer channels
    instead). If the group touches the input or output, these get narrower too.

    Args:
        body: one input, one output tensor; left as it is.
        in_shape: shape of the input without batch.
        keep: group index -> kept positions; groups not named stay whole.

    Raises:
        GraphError: listing unknown groups, groups that can't be pruned, bad positions, and
            layers that would have no channel left.

    Example:
        >>> body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))
        >>> narrow = prune(body, (3, 8, 8), {1: [0, 2, 5]})
        >>> narrow.get_submodule("1").weight.shape
        torch.Size([4, 3, 1, 1])
    """
    channels = analyse(body, in_shape)
    return apply_keep(body, channels, keep)


def apply_keep(
    body: fx.GraphModule, channels: Channels, keep: Mapping[int, Sequence[int]]
) -> fx.GraphModule:
    """``prune`` with the analysis of the same body already at hand."""
    removed = _removed(channels, keep)
    student = copy.deepcopy(body)

    def kept(places: Sequence[Place]) -> list[int]:
        return [j for j, place in enumerate(places) if place not in removed]

    for cut in channels.cuts:
        rows, columns = kept(cut.rows), kept(cut.columns)
        if len(rows) < len(cut.rows) or len(columns) < len(cut.columns):
            _CUTTERS[cut.kind](student, cut, rows, columns)
    for module in [student, *(m for m in student.modules() if isinstance(m, fx.GraphModule))]:
        module.recompile()
    if removed:
        _check(student, channels, kept)
    return student


def _removed(channels: Channels, keep: Mapping[int, Sequence[int]]) -> set[Place]:
    removed: set[Place] = set()
    problems: list[str] = []
    for index, positions in keep.items():
        if not 0 <= index < len(channels.groups):
            problems.append(f"group {index}: there are only {len(channels.groups)}")
            continue
        group = channels.groups[index]
        wanted = set(positions)
        if len(wanted) != len(positions) or not wanted <= set(range(group.size)):
            problems.append(
                f"group {index}: expected distinct positions within 0..{group.size - 1}, "
                f"got {sorted(positions)}"
            )
        elif len(wanted) < group.size and group.reason:
            problems.append(f"group {index} can't be pruned: {group.reason}")
        else:
            removed.update((index, p) for p in range(group.size) if p not in wanted)
    for layer, places in channels.producers:
        if places and all(place in removed for place in places):
            problems.append(f"'{layer}' would have no channel left; keep one at least")
    if problems:
        raise GraphError("can't prune: " + "; ".join(problems))
    return removed


def _check(
    student: fx.GraphModule, channels: Channels, kept: Callable[[Sequence[Place]], list[int]]
) -> None:
    """Run the narrow body once: a wrong cut must never leave this module."""
    given, expected = list(channels.in_shape), list(channels.out_shape)
    given[channels.in_axis] = len(kept(channels.input))
    expected[channels.out_axis] = len(kept(channels.output))
    _, _, _, shape = walk(student, given)
    if shape != tuple(expected):
        raise GraphError(f"pruning should give the output shape {tuple(expected)}, gave {shape}")


# --- one function per kind of cut ----------------------------------------------------------


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
    out_dim, in_dim = (1, 0) if cut.kind == "transposed" else (0, 1)
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


def _cut_depthwise(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    module = student.get_submodule(cut.path)
    for name, tensor in list(module.named_parameters()):
        setattr(module, name, _narrow(tensor, 0, rows))
    sizes = {"out_channels": rows, "in_channels": columns, "groups": columns}
    for name, places in sizes.items():
        setattr(module, name, len(places))


def _cut_vector(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    module = student.get_submodule(cut.path)
    width = len(cut.rows)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.ndim and tensor.numel() == width:
            setattr(module, name, _narrow(tensor, tensor.shape.index(width), rows))
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


def _cut_pad(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    owner = student.get_submodule(cut.path)
    assert isinstance(owner, fx.GraphModule)
    node = list(owner.graph.nodes)[cut.node]
    pads = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    assert isinstance(pads, list | tuple)
    amounts = list(pads)
    amounts[cut.dim : cut.dim + 2] = [len(rows), len(columns)]
    if len(node.args) > 1:
        node.update_arg(1, tuple(amounts))
    else:
        node.update_kwarg("pad", tuple(amounts))


def _cut_literal(
    student: fx.GraphModule, cut: Cut, rows: Sequence[int], columns: Sequence[int]
) -> None:
    """A channel count written into a view or reshape."""
    owner = student.get_submodule(cut.path)
    assert isinstance(owner, fx.GraphModule)
    node = list(owner.graph.nodes)[cut.node]
    if isinstance(node.args[1], list | tuple):
        sizes = list(node.args[1])
        sizes[cut.dim] = len(rows)
        node.update_arg(1, tuple(sizes))
    else:
        node.update_arg(1 + cut.dim, len(rows))


_CUTTERS: Mapping[str, Callable[[fx.GraphModule, Cut, Sequence[int], Sequence[int]], None]] = {
    "dense": _cut_dense,
    "transposed": _cut_dense,
    "depthwise": _cut_depthwise,
    "vector": _cut_vector,
    "parameter": _cut_parameter,
    "pad": _cut_pad,
    "literal": _cut_literal,
}
