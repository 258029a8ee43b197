"""Which subnets a training step looks at: regions of a space, and samplers that draw from them.

A sampler is one small object; training asks it with the step's number and a generator that was
derived from the run's seed and that number, so that draws repeat whatever happened in between.

One that learns while it is used has a method `observe` too, and keeps what it learnt, numbers and
tensors, in `state`, which checkpoints store. After each step, and before the next one is drawn, it
is told the networks that were trained in its name, and their losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from torch import Tensor

from tailorbird.errors import ConfigError, SpaceError
from tailorbird.family import Floats
from tailorbird.space import Genome, Genomes
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.counts import macs
from tailorbird.train.checkpoint import Json

RESOLUTION = 0
"""Number of the resolution's gene, the first in every space."""

_POOL = 8192
_FRESH = 256
_TILT = 6.0


@dataclass(frozen=True, eq=False)
class Region:
    """The part of a space whose genes are at least ``floor``: what shrinking has opened so far.

    Values of a gene are in ascending order, so the full network belongs to every region, and a
    region grows by lowering its floor.

    Args:
        architectures: the space.
        floor: (genes,) the least index that each gene may take.

    Raises:
        SpaceError: for a floor of another length, or outside the space.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[160])
        >>> Region.opened(space, {"d": 2}).smallest
        array([0, 1, 1, 1, 1, 1])
        >>> Region.whole(space).largest
        array([0, 2, 2, 2, 2, 2])
    """

    architectures: ArchitectureSpace
    floor: Genome

    def __post_init__(self) -> None:
        sizes = self.architectures.space.sizes
        if self.floor.shape != sizes.shape or ((self.floor < 0) | (self.floor >= sizes)).any():
            raise SpaceError(
                f"floor: expected {len(sizes)} indices, each of its gene's values, got "
                f"{self.floor.tolist()}"
            )

    @staticmethod
    def whole(architectures: ArchitectureSpace, *, fixed: tuple[str, ...] = ()) -> Region:
        """All of a space but the genes of the keys ``fixed``, which stay at their largest value.

        Raises:
            ConfigError: for a key that the space's official form doesn't have.
        """
        _check_keys(architectures, fixed)
        floor = np.zeros_like(architectures.space.sizes)
        for key in fixed:
            genes = _genes(architectures, key)
            floor[genes] = architectures.space.sizes[genes] - 1
        return Region(architectures, floor)

    @staticmethod
    def opened(architectures: ArchitectureSpace, opens: Mapping[str, int | None]) -> Region:
        """The full network's surroundings in which some kinds of genes vary.

        Args:
            architectures: the space.
            opens: key of the official form (``ks``, ``e``, ``d``, ``w``) -> how many of its
                largest values are allowed, ``None`` for all; other kinds stay at their largest
                value. A key without genes of its own opens nothing. The resolution is always open
                unless it's named.

        Raises:
            ConfigError: for a key that the space's official form doesn't have, or a count below 1.
        """
        _check_keys(architectures, tuple(opens))
        wrong = {key: count for key, count in opens.items() if count is not None and count < 1}
        if wrong:
            raise ConfigError(f"opens: expected 1 value or more of each kind, got {wrong}")
        sizes = architectures.space.sizes
        floor = sizes - 1
        for key, count in {"r": None, **opens}.items():
            genes = _genes(architectures, key)
            floor[genes] = 0 if count is None else np.maximum(sizes[genes] - count, 0)
        return Region(architectures, floor)

    @property
    def largest(self) -> Genome:
        """The full network (genes,)."""
        return self.architectures.space.sizes - 1

    @property
    def smallest(self) -> Genome:
        """The genome (genes,) at the floor."""
        found: Genome = self.architectures.space.canonical(self.floor[None])[0]
        return found

    def sample(self, count: int, rng: np.random.Generator) -> Genomes:
        """``count`` genomes (count, genes), each gene drawn uniformly from what is open."""
        sizes = self.architectures.space.sizes
        drawn = rng.integers(self.floor, sizes, size=(count, len(sizes)))
        return self.architectures.space.canonical(drawn)

    def spread(self, count: int, rng: np.random.Generator) -> Genomes:
        """``count`` genomes (count, genes) from small to large networks.

        Uniform genes make networks of middling size, nearly always. Here each genome has a tilt t,
        uniform in ``[-6, 6]``, and index j of a gene's n open ones has probability
        ``exp(t j / (n - 1))`` up to a factor. The resolution is drawn uniformly.
        """
        sizes, floor = self.architectures.space.sizes[1:], self.floor[1:]
        index = np.arange(sizes.max(initial=1))
        place = (index - floor[:, None]) / np.maximum(sizes - 1 - floor, 1)[:, None]
        closed = (index < floor[:, None]) | (index >= sizes[:, None])
        tilt = rng.uniform(-_TILT, _TILT, size=(count, 1, 1))
        # The largest of scores plus Gumbel noise falls on j with the probability wanted.
        scores = tilt * place + rng.gumbel(size=(count, *closed.shape))
        genes = np.where(closed, -np.inf, scores).argmax(axis=2)
        resolution = rng.integers(self.floor[0], self.architectures.space.sizes[0], size=(count, 1))
        return self.architectures.space.canonical(np.concatenate([resolution, genes], axis=1))


Memory: TypeAlias = Mapping[str, "Json | Tensor"]
"""What a sampler has learnt: checkpoints store tensors as they are, and the rest as JSON."""

Observe: TypeAlias = Callable[[Genomes, Floats], None]
"""Takes genomes (n, genes) of networks that were trained, and their losses (n,)."""


@runtime_checkable
class Keeper(Protocol):
    """What has a memory: every sampler, and a plan that wants one."""

    def state(self) -> Memory:
        """What it has learnt so far; empty where draws depend on step and generator alone."""

    def restore(self, state: Memory) -> None:
        """Take up what `state` gave; tensors are on the CPU."""


class Sampler(Keeper, Protocol):
    """Draws the subnets of a step. One that learns has a method ``observe`` too, see `observer`."""

    @property
    def name(self) -> str:
        """What it is, with its settings: part of a run's identity."""

    def sample(self, step: int, rng: np.random.Generator) -> Genomes:
        """Genomes (n, genes) for the step with this number; nothing random but ``rng``."""


SamplerOf: TypeAlias = Callable[[Region, int], Sampler]
"""Makes the sampler of a region that gives so many subnets per step: `Uniform` itself, for one."""


def observer(listener: object) -> Observe | None:
    """The ``observe`` of a sampler or plan; None where it has none, and doesn't care for losses.

    Where there is one, it is called after every step with genomes (n, genes) of the networks that
    were trained and their losses (n,), the same in all processes: the mean over the images of the
    sum of the network's terms. To wait for the losses each time costs a GPU some of its speed.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> region = Region.whole(load_space("compofa-mbv3-w1.0"))
        >>> observer(Uniform(region, 4)) is None
        True
    """
    found: Observe | None = getattr(listener, "observe", None)
    return found


class _Stateless:
    """Draws depend on the step's generator alone."""

    def state(self) -> Memory:
        """Nothing to store."""
        return {}

    def restore(self, state: Memory) -> None:
        """Nothing to take up."""


class Uniform(_Stateless):
    """Every open value of every gene with equal chance (Cai et al., Once-for-All, 2020, sec. 3.3).

    Args:
        region: where to draw from.
        count: subnets per step.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> region = Region.whole(load_space("compofa-mbv3-w1.0"))
        >>> Uniform(region, 4).sample(0, np.random.default_rng(0)).shape
        (4, 6)
    """

    def __init__(self, region: Region, count: int) -> None:
        _check_count(count)
        self.region, self.count = region, count

    @property
    def name(self) -> str:
        """``uniform(count)``."""
        return f"uniform({self.count})"

    def sample(self, step: int, rng: np.random.Generator) -> Genomes:
        """Independent draws."""
        return self.region.sample(self.count, rng)


class Sandwich(_Stateless):
    """The smallest subnet and, between it and the full network, others that a sampler draws.

    The sandwich rule trains full, smallest and some random networks at each step: what lies between
    is bounded by the two (Yu & Huang, Universally Slimmable Networks, 2019, sec. 3.1). The full
    network is the schemes' own affair, so it isn't among the draws unless by chance.

    Args:
        region: where to draw from.
        count: subnets per step, the smallest included.
        between: makes the sampler of the rest.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> region = Region.whole(load_space("compofa-mbv3-w1.0"))
        >>> Sandwich(region, 3).sample(0, np.random.default_rng(0))[0].tolist()
        [0, 0, 0, 0, 0, 0]
    """

    def __init__(self, region: Region, count: int, *, between: SamplerOf = Uniform) -> None:
        _check_count(count)
        self.region = region
        self.between = between(region, count - 1) if count > 1 else None

    @property
    def name(self) -> str:
        """``sandwich(what is between)``."""
        return f"sandwich({'' if self.between is None else self.between.name})"

    def sample(self, step: int, rng: np.random.Generator) -> Genomes:
        """The smallest first."""
        smallest = self.region.smallest[None]
        if self.between is None:
            return smallest
        return np.concatenate([smallest, self.between.sample(step, rng)])

    @property
    def observe(self) -> Observe | None:
        """That of the sampler between, which is told of the smallest too; None if it has none."""
        return observer(self.between)

    def state(self) -> Memory:
        """That of the sampler between."""
        return {} if self.between is None else self.between.state()

    def restore(self, state: Memory) -> None:
        """Take up the state of the sampler between."""
        if self.between is not None:
            self.between.restore(state)


class MacsBalanced(_Stateless):
    """Equal chance for each of several equally wide ranges of MACs.

    Uniform genes give middling networks, and the ends of the range are hardly ever trained. Here a
    range is drawn first, then a genome in it. MACs are those at the largest resolution; the
    resolution is drawn by itself. Ranges in which no genome was found are left out: `buckets` holds
    the others' numbers.

    Args:
        region: where to draw from.
        count: subnets per step.
        ranges: how many.
        cost: (n, genes) -> (n,); MACs when None.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> region = Region.whole(load_space("ofa-mbv3-w1.0", resolutions=[224]))
        >>> sampler = MacsBalanced(region, 600, ranges=6)
        >>> drawn = sampler.sample(0, np.random.default_rng(0))
        >>> bool((np.bincount(sampler.bucket(drawn)) > 60).all())
        True
    """

    def __init__(
        self,
        region: Region,
        count: int,
        *,
        ranges: int = 6,
        cost: Callable[[Genomes], Floats] | None = None,
    ) -> None:
        _check_count(count)
        if ranges < 1:
            raise ConfigError(f"ranges: expected 1 or more, got {ranges}")
        self.region, self.count, self.ranges = region, count, ranges
        self._cost = macs(region.architectures).sum if cost is None else cost
        ends = self._costs(np.stack([region.smallest, region.largest]))
        self._edges = np.linspace(ends[0], ends[1], ranges + 1)[1:-1]
        space = region.architectures.space
        # The pool is part of the sampler, not of a run: the same for every seed.
        rng = np.random.default_rng(0)
        few = space.size <= _POOL
        pool = space.enumerate() if few else region.spread(_POOL, rng)
        inside = (pool >= region.floor) | ~space.active(pool)
        self._pool = np.concatenate(
            [region.smallest[None], region.largest[None], pool[inside.all(axis=1)]]
        )
        self._bucket = self.bucket(self._pool)
        self.buckets = np.unique(self._bucket)

    @property
    def name(self) -> str:
        """``macs-balanced(count, ranges)``."""
        return f"macs-balanced({self.count}, {self.ranges})"

    def bucket(self, genomes: Genomes) -> Genome:
        """Which range (n,) genomes (n, genes) lie in, from 0."""
        found: Genome = np.searchsorted(self._edges, self._costs(genomes), side="right")
        return found.astype(np.int64)

    def sample(self, step: int, rng: np.random.Generator) -> Genomes:
        """A range, then a genome in it: a fresh one if some are at hand, else one of the pool."""
        wanted = rng.choice(self.buckets, size=self.count)
        fresh = self.region.spread(_FRESH, rng)
        candidates = np.concatenate([fresh, self._pool])
        where = np.concatenate([self.bucket(fresh), self._bucket])
        rows = np.empty(self.count, dtype=np.int64)
        for place, bucket in enumerate(wanted):
            found = np.flatnonzero(where[:_FRESH] == bucket)
            rows[place] = rng.choice(found if len(found) else np.flatnonzero(where == bucket))
        drawn = candidates[rows]
        first = self.region.floor[RESOLUTION]
        drawn[:, RESOLUTION] = rng.integers(
            first, self.region.largest[RESOLUTION] + 1, size=self.count
        )
        return drawn

    def _costs(self, genomes: Genomes) -> Floats:
        """Costs (n,) at the largest resolution."""
        at_largest = genomes.copy()
        at_largest[:, RESOLUTION] = self.region.largest[RESOLUTION]
        return self._cost(at_largest)


def _genes(architectures: ArchitectureSpace, key: str) -> list[int]:
    """Numbers of the genes that a key of the official form sets."""
    entries = architectures.official.keys[key]
    return sorted({entry.gene for entry in entries if entry.chooses and entry.gene is not None})


def _check_keys(architectures: ArchitectureSpace, keys: tuple[str, ...]) -> None:
    known = architectures.official.keys
    wrong = [key for key in keys if key not in known]
    if wrong:
        raise ConfigError(
            f"space '{architectures.name}': expected kinds of genes among {', '.join(known)}, got "
            f"{', '.join(wrong)}"
        )


def _check_count(count: int) -> None:
    if count < 1:
        raise ConfigError(f"count: expected 1 subnet per step or more, got {count}")
