"""Channel-dependency groups of a body, and pruning them for real."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from tailorbird.errors import GraphError
from tailorbird.graph.cutters import CUTTERS, Cut, Place
from tailorbird.graph.dataflow import walk
from tailorbird.graph.flow import Flow, RawCut, Tag


@dataclass(frozen=True)
class Group:
    """Channels of one or more layers that are cut together, position by position.

    Args:
        index: the group's number in ``Channels.groups``.
        size: how many positions it has.
        span: how many channels of a layer one position stands for, at least: those of a whole head
            of attention, say.
        layers: the layers that make its channels; ``"input"`` stands for the body's input.
        reason: why it can't be pruned; empty if it can.
        exact: pruning equals masking. Not so where a norm over channels reads the group.
        at_input: the body's input carries channels of the group.
        at_output: the body's output carries channels of the group.
    """

    index: int
    size: int
    span: int
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
        parts: the places of parts that tensors are split into; nor can these.
        cuts: what has to follow a cut.
        readers: the layers that mix channels, at which a removed channel counts as zero.
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
    parts: tuple[tuple[str, tuple[Place, ...]], ...]
    cuts: tuple[Cut, ...]
    readers: tuple[Reader, ...]
    masked: frozenset[Place]

    @property
    def kept(self) -> tuple[tuple[str, tuple[Place, ...]], ...]:
        """Of each of these, by its layer, one place at least stays."""
        return self.producers + self.parts

    def free(self, group: Group) -> bool:
        """Whether some of a group's channels can go, with nothing but them and exactly."""
        return group.prunable and group.exact and group.interior and group.size > 1

    def share(self) -> tuple[int, int]:
        """How many channels can be cut, of those that layers make (but for the output's)."""
        made = [p for name, places in self.producers if name != "input" for p in places]
        inner = [group for group, _ in made if not self.groups[group].at_output]
        return sum(self.free(self.groups[group]) for group in inner), len(inner)


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
        >>> from torch import nn
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
        return Cut(
            kind=raw.kind,
            path=raw.path,
            rows=located(raw.rows),
            columns=located(raw.columns),
            dim=raw.dim,
            node=raw.node,
            where=raw.where,
            sizes=raw.sizes,
        )

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
        parts=tuple((name, located(ids)) for name, ids in flow.sections),
        cuts=tuple(cut(raw) for raw in flow.cuts.values()),
        readers=tuple(reader(raw.path, raw.tag) for raw in flow.readers),
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
    spans: dict[int, int] = {}
    for layer, ids in flow.batches:
        counts = Counter(places[flow.find(item)] for item in ids if layer)
        for (group, _), count in counts.items():
            spans[group] = min(count, spans.get(group, count))
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
            span=spans.get(g, 1),
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
        >>> from torch import nn
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
            CUTTERS[cut.kind](student, cut, rows, columns)
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
    for layer, places in channels.kept:
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
