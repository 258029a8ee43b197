"""Channel ids that flow through a network: which channels are tied, pinned, read, known zero.

Every layer that makes channels afresh (a convolution, a linear layer, a parameter, the input)
gives each an id. Element-wise layers hand ids on, additions unite them, concatenations join
them. A channel may be cut when every layer that carries its id can follow. What no rule
describes *pins* the ids that it touches: they then stay, with the reason on record.

A view may spread channels over several axes, as (groups, channels per group) for a channel shuffle
or (heads, width) for attention. What is left after a cut must be rectangular again, so one of these
axes carries the cut and the ids along the others are tied: whole heads, or the same channels of
every group. Which one is decided by the first operation that works along one axis only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import fx, nn

Value = object
"""What a node computes: a tensor, an integer, a tuple of those."""


@dataclass(frozen=True)
class Tag:
    """A tensor's channels: the axis (batch is 0), one id each, and which are surely zero."""

    axis: int
    ids: tuple[int, ...]
    zero: tuple[bool, ...]

    def moved(self, axis: int) -> Tag:
        """The same channels on another axis."""
        return Tag(axis, self.ids, self.zero)

    def picked(self, order: Iterable[int]) -> Tag:
        """The channels at these positions, in their order; some perhaps repeatedly."""
        listed = tuple(order)
        ids, zero = tuple(self.ids[j] for j in listed), tuple(self.zero[j] for j in listed)
        return Tag(self.axis, ids, zero)

    def filled(self) -> Tag:
        """The same channels, none of them known zero any more."""
        return Tag(self.axis, self.ids, (False,) * len(self.ids))


@dataclass
class RawCut:
    """One thing that has to follow a cut: a module, a parameter, or numbers of a node.

    ``where`` says which argument of the node, and which item of that; ``sizes`` of which parts.
    """

    kind: str
    path: str
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    dim: int = 0
    node: int = -1
    where: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Axis:
    """One axis that channels were spread over: where it lies now, its size, who follows a cut."""

    at: int
    size: int
    cut: RawCut | None


@dataclass(frozen=True)
class Grid:
    """Channels spread over several axes by a view, in row-major order of ``axes``."""

    axes: tuple[Axis, ...]
    ids: tuple[int, ...]
    zero: tuple[bool, ...]

    def moved(self, to: Callable[[int], int]) -> Grid:
        """The same channels after axis ``i`` has become axis ``to(i)``."""
        return replace(self, axes=tuple(replace(axis, at=to(axis.at)) for axis in self.axes))

    def lines(self, at: int) -> list[list[int]]:
        """Positions in ``ids`` that a cut along axis ``at`` takes together, in order."""
        sizes = [axis.size for axis in self.axes]
        k = [axis.at for axis in self.axes].index(at)
        inner = math.prod(sizes[k + 1 :])
        found: list[list[int]] = [[] for _ in range(sizes[k])]
        for j in range(len(self.ids)):
            found[j // inner % sizes[k]].append(j)
        return found

    def along(self, at: int) -> Tag:
        """The channels as they are if axis ``at`` carries the cut."""
        lines = self.lines(at)
        zero = tuple(all(self.zero[j] for j in line) for line in lines)
        return Tag(at, tuple(self.ids[line[0]] for line in lines), zero)


@dataclass(frozen=True)
class Parts:
    """The parts of a tensor, as a tuple in the graph."""

    states: tuple[Tag, ...]


@dataclass(frozen=True)
class ShapeOf:
    """The shape of a tagged tensor, as a value in the graph."""

    tag: Tag


@dataclass(frozen=True)
class SizeOf:
    """The number of some channels, as an integer in the graph."""

    ids: tuple[int, ...]


State = Tag | Grid | Parts | ShapeOf | SizeOf | None


@dataclass(frozen=True)
class RawReader:
    """A layer that mixes channels: where a removed channel counts as zero."""

    path: str
    tag: Tag


@dataclass
class Call:
    """One node under way: what the rules see."""

    node: fx.Node
    path: str
    module: nn.Module | None
    args: tuple[Value, ...]
    kwargs: dict[str, Value]
    states: list[State]
    value: Value
    prefix: str
    tags: Mapping[fx.Node, State]

    @property
    def name(self) -> str:
        """Class name of the module, or name of the function or method without final ``_``."""
        if self.module is not None:
            return type(self.module).__name__
        target = self.node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        return name.rstrip("_")

    def argument(self, position: int, name: str, default: Value = None) -> Value:
        """An argument by position or keyword, as evaluated."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def tag(self) -> Tag:
        """The first argument's tag; KeyError where it has none (the caller then pins)."""
        state = self.states[0] if self.states else None
        if not isinstance(state, Tag):
            raise KeyError("no channels known")
        return state

    @property
    def tensor(self) -> torch.Tensor:
        """The first argument as a tensor."""
        value = self.args[0]
        if not isinstance(value, torch.Tensor):
            raise TypeError("expected a tensor")
        return value

    @property
    def ranks(self) -> list[int]:
        """Of each argument, how many axes it has; 0 if it is no tensor."""
        return [value.ndim if isinstance(value, torch.Tensor) else 0 for value in self.args]

    @property
    def out(self) -> torch.Tensor:
        """The result as a tensor."""
        if not isinstance(self.value, torch.Tensor):
            raise TypeError("expected a tensor")
        return self.value

    def moved(self, to: Callable[[int], int]) -> State:
        """The first argument's channels after axis ``i`` has become axis ``to(i)``."""
        state = self.states[0]
        return state.moved(to) if isinstance(state, Grid) else self.tag.moved(to(self.tag.axis))

    def again(self, tensor: torch.Tensor) -> torch.Tensor:
        """What the call gives for another first argument."""
        rest = self.args[1:]
        target: Value = self.module if self.module is not None else self.node.target
        if isinstance(target, str):
            return cast(torch.Tensor, getattr(tensor, target)(*rest, **self.kwargs))
        assert callable(target)
        return cast(torch.Tensor, target(tensor, *rest, **self.kwargs))

    def cut(
        self, kind: str, *, where: tuple[int, ...] = (), dim: int = 0, sizes: tuple[int, ...] = ()
    ) -> RawCut:
        """Numbers among this node's arguments that follow a cut."""
        owner = self.prefix.rstrip(".")
        at = position(self.node)
        return RawCut(kind, owner, dim=dim, node=at, where=where, sizes=sizes)


@dataclass
class Flow:
    """Everything found while a network was walked. Ids are integers from 0."""

    parent: list[int] = field(default_factory=list)
    batches: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    pins: dict[int, str] = field(default_factory=dict)
    inexact: set[int] = field(default_factory=set)
    cuts: dict[tuple[object, ...], RawCut] = field(default_factory=dict)
    readers: list[RawReader] = field(default_factory=list)
    masked: set[int] = field(default_factory=set)
    sections: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    owners: dict[int, dict[tuple[object, ...], None]] = field(default_factory=dict)

    def find(self, item: int) -> int:
        """The representative of an id's class (union-find, path halving)."""
        parent = self.parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def unite(self, first: Sequence[int], second: Sequence[int]) -> None:
        """Tie two equally long lists of ids position by position."""
        for a, b in zip(first, second, strict=True):
            low, high = sorted((self.find(a), self.find(b)))
            self.parent[high] = low

    def tie(self, ids: Sequence[int]) -> int:
        """Tie ids to one another; returns the first."""
        self.unite([ids[0]] * len(ids), ids)
        return ids[0]

    def decide(self, grid: Grid, at: int) -> Tag:
        """Let axis ``at`` carry the cut: ties what lies along the other axes."""
        for line in grid.lines(at):
            self.tie([grid.ids[j] for j in line])
        tag = grid.along(at)
        [cut] = (axis.cut for axis in grid.axes if axis.at == at)
        if cut is not None:
            self.follow(cut, tag.ids)
        return tag

    def follow(self, cut: RawCut, ids: tuple[int, ...]) -> None:
        """Note numbers of a node that follow a cut of ``ids``."""
        self.register((cut.kind, cut.path, cut.node, cut.where), replace(cut, rows=ids), ())

    def attribute(self, value: torch.Tensor, path: str, axis: int) -> Tag:
        """The channels of a parameter, which is read with them on ``axis``.

        Read with them on another axis before, those of that axis stay.
        """
        key = ("parameter", id(value))
        known = self.cuts.get(key)
        if known is not None and known.dim == axis:
            return Tag(axis, known.rows, (False,) * len(known.rows))
        if known is not None:
            self.pin(known.rows, f"'{path}' is read along another axis")
            del self.cuts[key]
        tag = self.fresh(value.shape[axis], axis, path)
        self.register(key, RawCut("parameter", path, rows=tag.ids, dim=axis), [value])
        return tag

    def fresh(self, count: int, axis: int, layer: str) -> Tag:
        """A tag of ``count`` new ids made by ``layer``."""
        ids = tuple(range(len(self.parent), len(self.parent) + count))
        self.parent.extend(ids)
        self.batches.append((layer, ids))
        return Tag(axis, ids, (False,) * count)

    def part(self, name: str, tag: Tag) -> Tag:
        """A part of a tensor, which can't lose all of its channels."""
        self.sections.append((name, tag.ids))
        return tag

    def pin(self, ids: Iterable[int], reason: str) -> None:
        """Keep these channels for good."""
        for item in ids:
            self.pins.setdefault(item, reason)

    def pin_states(self, states: Iterable[State], reason: str) -> None:
        """Keep whatever channels these states speak of."""
        for state in states:
            if isinstance(state, Tag | Grid | SizeOf):
                self.pin(state.ids, reason)
            elif isinstance(state, Parts):
                self.pin_states(state.states, reason)
            elif isinstance(state, ShapeOf):
                self.pin(state.tag.ids, reason)

    def pinned(self, value: torch.Tensor, layer: str, reason: str) -> Tag | None:
        """New channels that must stay, on the axis where channels usually are."""
        if value.ndim == 0 or not value.is_floating_point():
            return None
        axis = {1: 0, 2: 1, 3: 2}.get(value.ndim, 1)
        tag = self.fresh(value.shape[axis], axis, layer)
        self.pin(tag.ids, reason)
        return tag

    def register(
        self, key: tuple[object, ...], cut: RawCut, tensors: Iterable[torch.Tensor]
    ) -> RawCut:
        """Note what follows a cut; a second call of one module ties its channels to the first's."""
        known = self.cuts.setdefault(key, cut)
        if known is not cut:
            self.unite(known.rows, cut.rows)
            self.unite(known.columns, cut.columns)
        for tensor in tensors:
            self.owners.setdefault(id(tensor), {})[key] = None
        return known

    def settle(self) -> None:
        """Pin what shares one parameter between different layers: their cuts could differ."""
        for keys in self.owners.values():
            if len(keys) > 1:
                paths = " and ".join(sorted(self.cuts[key].path for key in keys))
                for key in keys:
                    cut = self.cuts[key]
                    self.pin((*cut.rows, *cut.columns), f"{paths} share one parameter")


def need(condition: bool) -> None:
    """Leave a rule that does not cover this use of its layer; ``apply_rule`` notices."""
    if not condition:
        raise ValueError("not covered")


def integer(value: Value) -> int:
    """A value that has to be an integer for a rule to cover it."""
    if not isinstance(value, int):
        raise TypeError("expected an integer")
    return value


def position(node: fx.Node) -> int:
    """The node's place in its graph, which copies share."""
    return list(node.graph.nodes).index(node)
