"""Channel ids that flow through a network: which channels are tied, pinned, read, known zero.

Every layer that makes channels afresh (a convolution, a linear layer, a parameter, the input)
gives each an id. Element-wise layers hand ids on, additions unite them, concatenations join
them. A channel may be cut when every layer that carries its id can follow. What no rule here
describes *pins* the ids that it touches: they then stay, with the reason on record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

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

    def filled(self) -> Tag:
        """The same channels, none of them known zero any more."""
        return Tag(self.axis, self.ids, (False,) * len(self.ids))


@dataclass(frozen=True)
class ShapeOf:
    """The shape of a tagged tensor, as a value in the graph."""

    tag: Tag


@dataclass(frozen=True)
class SizeOf:
    """The number of some channels, as an integer in the graph."""

    ids: tuple[int, ...]


State = Tag | ShapeOf | SizeOf | None


@dataclass
class RawCut:
    """One thing that has to follow a cut: a module, a parameter, or a padding node."""

    kind: str
    path: str
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    dim: int = 0
    node: int = -1


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
    def out(self) -> torch.Tensor:
        """The result as a tensor."""
        if not isinstance(self.value, torch.Tensor):
            raise TypeError("expected a tensor")
        return self.value


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

    def fresh(self, count: int, axis: int, layer: str) -> Tag:
        """A tag of ``count`` new ids made by ``layer``."""
        ids = tuple(range(len(self.parent), len(self.parent) + count))
        self.parent.extend(ids)
        self.batches.append((layer, ids))
        return Tag(axis, ids, (False,) * count)

    def pin(self, ids: Iterable[int], reason: str) -> None:
        """Keep these channels for good."""
        for item in ids:
            self.pins.setdefault(item, reason)

    def pin_states(self, states: Iterable[State], reason: str) -> None:
        """Keep whatever channels these states speak of."""
        for state in states:
            if isinstance(state, Tag | SizeOf):
                self.pin(state.ids, reason)
            elif isinstance(state, ShapeOf):
                self.pin(state.tag.ids, reason)

    def pinned(self, value: torch.Tensor, layer: str, reason: str) -> Tag | None:
        """New channels that must stay, on the axis where channels usually are."""
        if value.ndim == 0:
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
