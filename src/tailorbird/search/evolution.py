"""Evolution under hard limits: one run per limit, or warm starts along sorted limits.

`Independent` is the search of once-for-all networks (Cai et al., ICLR 2020): one evolution for each
limit. `TopDown` and `BottomUp` (Kumar and Szidon, "Efficient Incorporation of Multiple Latency
Targets in the Once-For-All Network") walk the limits in order and start each from what the one
before it found, so that n generations are needed once and about sqrt(n) from then on.

What differs from the authors' code, and why: children of the last generation count; the best of an
earlier limit is never overwritten by its pruned copy; a child that keeps the limit is drawn a
bounded number of times, and a population that can't be filled at random is filled with a member
known to keep the limit. So no call hangs, and nothing over its limit is ever returned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError
from tailorbird.family import Estimated, Floats
from tailorbird.progress import Progress, Silent, Task
from tailorbird.search.reach import excess, reachable
from tailorbird.search.strategy import (
    Archive,
    Evaluator,
    Limits,
    SearchResult,
    Session,
    wrong_settings,
)
from tailorbird.space import Genomes, Space
from tailorbird.threads import one_thread

_SILENT = Silent()
_ROUNDS = 6
"""A child is drawn 1, 2, 4 ... times over, 63 times in all, before its parent stays instead."""
_FILLS = 64
"""Random populations that are drawn to find one that keeps the limit."""


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """An evolution whose members all keep one set of limits.

    Each generation keeps the best ``parents`` of the population and adds ``population`` children:
    ``mutated`` of them by mutation, the others by uniform crossover of two parents.

    Args:
        population: children per generation, and size of the first population.
        generations: how many generations.
        parents: share of the population that breeds.
        mutated: share of children made by mutation.
        rate: probability that a mutation redraws a gene.

    Raises:
        ConfigError: listing every setting outside its range.
    """

    population: int = 100
    generations: int = 500
    parents: float = 0.25
    mutated: float = 0.5
    rate: float = 0.1

    def __post_init__(self) -> None:
        whole = {"population": 2, "generations": 0}
        if problems := wrong_settings(self, whole=whole, shares=("parents", "mutated", "rate")):
            raise ConfigError(problems)

    def populate(
        self, judge: Evaluator, limits: Limits, start: Genomes, rng: np.random.Generator
    ) -> Genomes:
        """A first population (population, genes) within ``limits``.

        Args:
            judge: prices genomes.
            limits: what all members keep.
            start: (1, genes) a member within the limits; its copies fill what can't be drawn.
            rng: where randomness comes from.
        """
        found = np.empty((0, start.shape[1]), dtype=np.int64)
        for _ in range(_FILLS):
            drawn = judge.family.space.sample(self.population, rng)
            found = np.concatenate([found, drawn[within(judge, limits, drawn)]])
            if len(found) >= self.population:
                return found[: self.population]
        return np.concatenate([found, np.repeat(start, self.population - len(found), axis=0)])

    def run(
        self,
        judge: Evaluator,
        limits: Limits,
        genomes: Genomes,
        rng: np.random.Generator,
        *,
        keep: Callable[[Genomes, Floats], None],
        task: Task,
        generations: int | None = None,
    ) -> Genomes:
        """Evolve the population ``genomes`` (n, genes), all of them within ``limits``.

        Args:
            judge: prices and judges genomes.
            limits: what all members keep.
            genomes: the first population.
            rng: where randomness comes from.
            keep: told of every member and its quality.
            task: advanced by one each generation.
            generations: how many, where it differs from the setting.

        Returns:
            The last population, last children included.
        """
        quality = judge.quality(genomes)
        keep(genomes, quality)
        breeding = max(1, round(self.parents * self.population))
        for _ in range(self.generations if generations is None else generations):
            best = np.argsort(-quality, kind="stable")[:breeding]
            children = self._children(judge, limits, genomes[best], rng)
            of_children = judge.quality(children)
            keep(children, of_children)
            genomes = np.concatenate([genomes[best], children])
            quality = np.concatenate([quality[best], of_children])
            task.advance(note=f"{quality.max():.4f}")
        return genomes

    def _children(
        self, judge: Evaluator, limits: Limits, parents: Genomes, rng: np.random.Generator
    ) -> Genomes:
        """(population, genes) children within ``limits``, drawn from the same parents until so."""
        space = judge.family.space
        first, second = parents[rng.integers(0, len(parents), (2, self.population))]
        mutants = round(self.mutated * self.population)
        children: Genomes = first.copy()
        missing = np.arange(self.population)
        for doubling in range(_ROUNDS):
            slots = np.repeat(missing, 2**doubling)
            split = int(np.searchsorted(slots, mutants))
            by_mutation, by_crossover = slots[:split], slots[split:]
            drawn = np.concatenate(
                [
                    space.mutate(first[by_mutation], rng, rate=self.rate),
                    space.crossover(first[by_crossover], second[by_crossover], rng),
                ]
            )
            fits = np.flatnonzero(within(judge, limits, drawn))
            filled, earliest = np.unique(slots[fits], return_index=True)
            children[filled] = drawn[fits[earliest]]
            missing = np.setdiff1d(missing, filled, assume_unique=True)
            if not len(missing):
                break
        return children


class _Walks:
    """What the strategies have in common: walks along limits, each limit started from the last."""

    evolution: Evolution
    warm_generations: int | None = None
    name: str

    def __post_init__(self) -> None:
        given = self.warm_generations
        if given is not None and (given != int(given) or given < 0):
            raise ConfigError(
                f"warm_generations: expected a whole number of 0 or more, got {given!r}"
            )

    def _walks(self, limits: Sequence[Limits]) -> Sequence[Sequence[int]]:
        """The rows of ``limits`` that follow each other, walk by walk."""
        raise NotImplementedError

    def _warmed(self, run: _Run, before: int, row: int, last: Genomes) -> Genomes:
        """What limits ``row`` start from, given the last population of limits ``before``."""
        raise NotImplementedError

    @one_thread()
    def search(
        self,
        family: Estimated,
        limits: Sequence[Limits],
        *,
        seed: int,
        progress: Progress = _SILENT,
    ) -> SearchResult:
        """See `Strategy.search`."""
        run, evolution = _Run(self.name, family, limits, seed), self.evolution
        walks, warm = self._walks(run.limits), self.warm_generations
        if warm is None:
            warm = round(math.sqrt(evolution.generations))
        steps = sum(evolution.generations + warm * (len(rows) - 1) for rows in walks)
        with run.session.task(progress, steps) as task:
            for rows in walks:
                genomes = _cold(run, rows[0], evolution, task)
                for before, row in pairwise(rows):
                    genomes = self._warmed(run, before, row, genomes)
                    genomes = run.evolve(row, evolution, genomes, task, generations=warm)
        return run.result()


@dataclass(frozen=True, kw_only=True)
class Independent(_Walks):
    """One evolution from scratch for each distinct set of limits: the original search.

    Args:
        evolution: what is run for each.

    Example:
        >>> from tailorbird.space import Choice
        >>> class Squares:
        ...     space = Space(tuple(Choice(name, (0, 1, 2, 3)) for name in "abc"))
        ...     def cost(self, genomes):
        ...         return {"macs": 1.0 + (genomes**2).sum(axis=1)}
        ...     def quality(self, genomes):
        ...         return genomes @ np.array([1.0, 2.0, 3.5])
        >>> strategy = Independent(evolution=Evolution(population=20, generations=20))
        >>> result = strategy.search(Squares(), [{"macs": 6.0}, {"macs": 28.0}], seed=0)
        >>> [winner.genome.tolist() for winner in result.winners]
        [[0, 1, 2], [3, 3, 3]]
    """

    evolution: Evolution = Evolution()
    name: str = "independent"

    def _walks(self, limits: Sequence[Limits]) -> Sequence[Sequence[int]]:
        return [[row] for row in range(len(limits))]


@dataclass(frozen=True, kw_only=True)
class TopDown(_Walks):
    """Limits from the loosest to the tightest, each started from the one before, pruned.

    The warm population is copies of the earlier limit's best, lowered by `prune` until it keeps the
    limit. Where pruning ends before that, as it may where genes have no order of cost, single-gene
    changes at random among those that come nearer to the limit go on; where these end too, a member
    known to keep the limit takes their place. Sets that limit different metrics are walked
    separately, by the product of their bounds.

    Args:
        evolution: what is run for each; its generations are those of a walk's first limit.
        warm_generations: of each further limit; the rounded square root of the first's if ``None``.
        unpruned: dimensions that pruning leaves alone; the authors leave the resolution.

    Raises:
        ConfigError: when ``warm_generations`` is negative.
    """

    evolution: Evolution = Evolution()
    warm_generations: int | None = None
    unpruned: tuple[str, ...] = ("r",)
    name: str = "top-down"

    def _walks(self, limits: Sequence[Limits]) -> Sequence[Sequence[int]]:
        return [rows[::-1] for rows in _ascending(limits)]

    def _warmed(self, run: _Run, before: int, row: int, last: Genomes) -> Genomes:
        del last
        return np.repeat(self._best(run, before, row), self.evolution.population, axis=0)

    def _best(self, run: _Run, before: int, row: int) -> Genomes:
        """(1, genes) the best of limits ``before``, made to keep limits ``row``."""
        limits, rng = run.limits[row], run.rngs[row]
        path = prune(
            run.archives[before].genomes[0], run.judge.family.space, rng, unpruned=self.unpruned
        )
        kept = within(run.judge, limits, path)
        if kept.any():
            return path[kept][:1]
        nearest = path[int(np.argmin(excess(run.judge.cost(path), limits)))][None]
        nearer = _descend(run.judge, limits, nearest, rng)
        return run.archives[row].genomes.copy() if nearer is None else nearer


@dataclass(frozen=True, kw_only=True)
class BottomUp(_Walks):
    """Limits from the tightest to the loosest; the population is carried over.

    Sets that limit different metrics are walked separately, by the product of their bounds; members
    that don't keep the next set, as may be where sets combine metrics, are dropped.

    Args:
        evolution: what is run for each; its generations are those of a walk's first limit.
        warm_generations: of each further limit; the rounded square root of the first's if ``None``.

    Raises:
        ConfigError: when ``warm_generations`` is negative.
    """

    evolution: Evolution = Evolution()
    warm_generations: int | None = None
    name: str = "bottom-up"

    def _walks(self, limits: Sequence[Limits]) -> Sequence[Sequence[int]]:
        return _ascending(limits)

    def _warmed(self, run: _Run, before: int, row: int, last: Genomes) -> Genomes:
        del before
        carried = last[within(run.judge, run.limits[row], last)]
        if len(carried) < len(last):
            carried = np.concatenate([carried, run.archives[row].genomes])
        return carried


def prune(
    genome: npt.NDArray[np.int64],
    space: Space,
    rng: np.random.Generator,
    *,
    unpruned: tuple[str, ...] = (),
) -> Genomes:
    """The members (steps + 1, genes) that ``genome`` (genes,) passes on its way to the least one.

    Genes form dimensions by the letters that their names begin with: ``k1_2`` belongs to ``k``.
    Each step draws one dimension uniformly and lowers its next element to its next lower value,
    from left to right, one level at a time; a dimension at its least no longer takes part.

    Args:
        genome: where to start; comes first in what is returned.
        space: the genome's space.
        rng: draws the dimensions.
        unpruned: dimensions to leave alone.

    Example:
        >>> from tailorbird.space import Choice
        >>> space = Space((Choice("k1", (3, 5, 7)), Choice("k2", (3, 5, 7)), Choice("r", (1, 2))))
        >>> prune(np.array([2, 2, 1]), space, np.random.default_rng(0), unpruned=("r",)).tolist()
        [[2, 2, 1], [1, 2, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]]
    """
    dimensions: dict[str, list[int]] = {}
    for gene, choice in enumerate(space.choices):
        letters = re.match(r"[A-Za-z]*", choice.name)
        dimensions.setdefault(letters[0] if letters else "", []).append(gene)
    groups = [np.array(genes) for name, genes in dimensions.items() if name not in unpruned]
    path = [genome]
    while groups := [genes for genes in groups if path[-1][genes].any()]:
        lowered = path[-1].copy()
        genes = groups[rng.integers(len(groups))]
        lowered[genes[np.argmax(lowered[genes])]] -= 1
        path.append(space.canonical(lowered[None])[0])
    return np.stack(path)


def within(judge: Evaluator, limits: Limits, genomes: Genomes) -> npt.NDArray[np.bool_]:
    """Mask (n,) of the ``genomes`` (n, genes) that keep all of ``limits``."""
    cost = judge.cost(genomes)
    return np.asarray(np.all([cost[metric] <= bound for metric, bound in limits.items()], axis=0))


class _Run:
    """The state of one search: an archive and a random stream for each distinct set of limits."""

    def __init__(
        self, strategy: str, family: Estimated, limits: Sequence[Limits], seed: int
    ) -> None:
        self.session = Session(strategy, family, limits, seed=seed)
        self.judge = self.session.judge
        distinct = {tuple(sorted(bounds.items())): bounds for bounds in limits}
        self.limits = list(distinct.values())
        row_of = {key: row for row, key in enumerate(distinct)}
        self._rows = [row_of[tuple(sorted(bounds.items()))] for bounds in limits]
        first, *self.rngs = np.random.default_rng(seed).spawn(len(self.limits) + 1)
        starts = reachable(family, self.limits, first)
        self.archives = [Archive([bounds], genes=starts.shape[1]) for bounds in self.limits]
        self._share(starts, self.judge.quality(starts))

    def keep(self, row: int, genomes: Genomes, quality: Floats) -> None:
        """Take in the best of ``genomes`` for limits ``row``."""
        best = slice(top := int(np.argmax(quality)), top + 1)
        if quality[top] > self.archives[row].quality[0]:
            cost = self.judge.cost(genomes[best])
            self.archives[row].update(genomes[best], quality[best], cost)

    def evolve(
        self,
        row: int,
        evolution: Evolution,
        genomes: Genomes,
        task: Task,
        *,
        generations: int | None = None,
    ) -> Genomes:
        """Evolve ``genomes`` under limits ``row``; the last population."""
        return evolution.run(
            self.judge,
            self.limits[row],
            genomes,
            self.rngs[row],
            keep=lambda members, quality: self.keep(row, members, quality),
            task=task,
            generations=generations,
        )

    def result(self) -> SearchResult:
        """What was found; where ctrl-C came, limits share what is there."""
        if self.session.stopped:
            held = np.concatenate([archive.genomes for archive in self.archives])
            self._share(held, np.concatenate([archive.quality for archive in self.archives]))
        winners = [archive.winners(self.judge)[0] for archive in self.archives]
        return self.session.result([winners[row] for row in self._rows])

    def _share(self, genomes: Genomes, quality: Floats) -> None:
        cost = self.judge.cost(genomes)
        for archive in self.archives:
            archive.update(genomes, quality, cost)


def _cold(run: _Run, row: int, evolution: Evolution, task: Task) -> Genomes:
    """Evolve from scratch under limits ``row``; the last population."""
    start = run.archives[row].genomes
    genomes = evolution.populate(run.judge, run.limits[row], start, run.rngs[row])
    return run.evolve(row, evolution, genomes, task)


def _ascending(limits: Sequence[Limits]) -> list[list[int]]:
    """Rows of ``limits`` from the tightest to the loosest, one list per set of limited metrics."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, bounds in enumerate(limits):
        groups.setdefault(tuple(sorted(bounds)), []).append(row)
    return [
        sorted(rows, key=lambda row: sum(map(math.log, limits[row].values())))
        for rows in groups.values()
    ]


def _descend(
    judge: Evaluator, limits: Limits, genome: Genomes, rng: np.random.Generator
) -> Genomes | None:
    """(1, genes) within ``limits`` after single-gene changes that each come nearer to them.

    ``None`` where no change comes nearer. Each step lowers the excess, so that the walk ends.
    """
    over = float(excess(judge.cost(genome), limits)[0])
    while not within(judge, limits, genome)[0]:
        near, _ = judge.family.space.neighbours(genome)
        others = excess(judge.cost(near), limits)
        nearer = np.flatnonzero(others < over)
        if not len(nearer):
            return None
        pick = nearer[rng.integers(len(nearer))]
        genome, over = near[pick : pick + 1], float(others[pick])
    return genome
