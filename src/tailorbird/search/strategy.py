"""What every search for many targets has in common: limits, winners, the archive, the protocol.

A search gets k sets of limits and returns for each the best member found that keeps them. The
archive holds one member per set; whatever keeps a tight limit keeps every looser one, so that one
evaluation serves all k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError, SpaceError
from tailorbird.family import Estimated, Floats
from tailorbird.progress import Progress, Silent, Task
from tailorbird.space import Genomes, Space

Limits = Mapping[str, float]
"""Metric -> upper bound in the metric's unit; a metric is a key of the family's ``cost``."""

_SILENT = Silent()
_CHUNK = 4_000_000
"""Entries of the largest temporary array of the archive."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best member found for one set of limits.

    Args:
        limits: the limits, as given.
        genome: (genes,) the member.
        quality: its predicted quality.
        cost: metric -> its predicted cost, of all metrics of the family.
    """

    limits: Limits
    genome: npt.NDArray[np.int64]
    quality: float
    cost: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a strategy found.

    Args:
        strategy: the strategy's name.
        seed: the seed it was given.
        seconds: wall time of the search.
        evaluations: genomes whose quality was computed.
        winners: one per set of limits, in the order given.
        stopped: whether it was stopped early, by ctrl-C; the winners are the best until then.
    """

    strategy: str
    seed: int
    seconds: float
    evaluations: int
    winners: tuple[Winner, ...]
    stopped: bool = False


class Strategy(Protocol):
    """A way to search. Equal seeds give equal results."""

    @property
    def name(self) -> str:
        """Short name for tables and files."""

    def search(
        self,
        family: Estimated,
        limits: Sequence[Limits],
        *,
        seed: int,
        progress: Progress = _SILENT,
    ) -> SearchResult:
        """The best member of ``family`` for each of ``limits`` (duplicates and any order are fine).

        Raises:
            ConfigError: for limits that make no sense, all faults at once.
            InfeasibleError: where limits lie below the reachable, naming each.
            SpaceError: when the family's quality or cost is not a number.
        """


def check(family: Estimated, limits: Sequence[Limits]) -> None:
    """See to it that ``limits`` can be searched for in ``family``.

    Raises:
        ConfigError: for no limits at all, an unknown metric, or a bound that is not a positive
            number; all faults at once.
    """
    if not limits:
        raise ConfigError("limits: the list is empty; give at least one, such as latency_ms: 20")
    known = tuple(family.cost(family.space.sample(1, np.random.default_rng(0))))
    problems = []
    for row, bounds in enumerate(limits):
        if not bounds:
            problems.append(f"limits[{row}]: no metric is limited; give one of {', '.join(known)}")
        for metric, bound in bounds.items():
            if metric not in known:
                problems.append(
                    f"limits[{row}]: unknown metric {metric!r}; give one of {', '.join(known)}"
                )
            if isinstance(bound, bool) or not (math.isfinite(bound) and bound > 0):
                problems.append(f"limits[{row}]: {metric} has to be above 0, got {bound!r}")
    if problems:
        raise ConfigError(problems)


class Evaluator:
    """A family's cost and quality, checked and counted.

    Args:
        family: what is searched.

    Example:
        >>> from tailorbird.space import Choice, Space
        >>> class Sums:
        ...     space = Space((Choice("a", (0, 1, 2)), Choice("b", (0, 1, 2))))
        ...     def cost(self, genomes):
        ...         return {"macs": 1.0 + genomes.sum(axis=1)}
        ...     def quality(self, genomes):
        ...         return genomes @ np.array([1.0, 2.0])
        >>> evaluator = Evaluator(Sums())
        >>> evaluator.quality(np.array([[1, 2], [0, 1]]))
        array([5., 2.])
        >>> evaluator.evaluations
        2
    """

    def __init__(self, family: Estimated) -> None:
        self.family = family
        self.evaluations = 0

    @property
    def space(self) -> Space:
        """The family's space."""
        return self.family.space

    def cost(self, genomes: Genomes) -> dict[str, Floats]:
        """Metric -> (n,) cost of ``genomes`` (n, genes).

        Raises:
            SpaceError: when a figure is not a number.
        """
        costs = {m: np.asarray(c, np.float64) for m, c in self.family.cost(genomes).items()}
        for metric, values in costs.items():
            _finite(metric, values, genomes)
        return costs

    def quality(self, genomes: Genomes) -> Floats:
        """(n,) quality of ``genomes`` (n, genes); counts them.

        Raises:
            SpaceError: when a figure is not a number.
        """
        if not len(genomes):
            return np.empty(0)
        self.evaluations += len(genomes)
        values = np.asarray(self.family.quality(genomes), np.float64)
        _finite("quality", values, genomes)
        return values


class Session:
    """One call of `Strategy.search`: its clock, its judge, and whether ctrl-C cut it short.

    Args:
        strategy: the strategy's name.
        family, limits, seed: as given to the strategy; see `check` for what is refused.
    """

    def __init__(
        self, strategy: str, family: Estimated, limits: Sequence[Limits], *, seed: int
    ) -> None:
        self._began = perf_counter()
        check(family, limits)
        self.judge = Evaluator(family)
        self._strategy, self._seed = strategy, seed
        self.stopped = False

    @contextmanager
    def task(self, progress: Progress, steps: int) -> Iterator[Task]:
        """A task of ``steps``; ctrl-C inside ends the block and sets ``stopped``."""
        try:
            with progress.task(self._strategy, steps) as task:
                yield task
        except KeyboardInterrupt:
            self.stopped = True

    def result(self, winners: Sequence[Winner]) -> SearchResult:
        """What was found: ``winners`` in the order of the limits."""
        return SearchResult(
            strategy=self._strategy,
            seed=self._seed,
            seconds=perf_counter() - self._began,
            evaluations=self.judge.evaluations,
            winners=tuple(winners),
            stopped=self.stopped,
        )


def wrong_settings(
    settings: object, *, whole: Mapping[str, int], shares: Sequence[str] = ()
) -> list[str]:
    """Faults of a strategy's settings.

    Args:
        settings: holds the settings as attributes.
        whole: those that have to be whole numbers -> the least allowed.
        shares: those that have to lie from 0 to 1.
    """
    given = vars(settings)
    problems = [
        f"{name}: expected a whole number of {least} or more, got {given[name]!r}"
        for name, least in whole.items()
        if not isinstance(given[name], int) or given[name] < least
    ]
    return problems + [
        f"{name}: expected a share from 0 to 1, got {given[name]!r}"
        for name in shares
        if not 0 <= given[name] <= 1
    ]


class Archive:
    """The best genome seen that keeps each of k sets of limits.

    Where sets limit one metric only, an update of n genomes costs n log k; sets that combine
    metrics cost n x k comparisons, taken in chunks. Memory is k x genes.

    Args:
        limits: the k sets.
        genes: length of a genome.

    Attributes:
        genomes: (k, genes), zeros where nothing is held yet.
        quality: (k,), ``-inf`` where nothing is held yet.

    Example:
        >>> archive = Archive([{"macs": 2.0}, {"macs": 5.0}], genes=1)
        >>> archive.update(np.array([[7], [9]]), np.array([0.5, 0.7]), {"macs": np.array([1., 4.])})
        array([ True,  True])
        >>> archive.genomes
        array([[7],
               [9]])
    """

    def __init__(self, limits: Sequence[Limits], *, genes: int) -> None:
        self.limits = tuple(limits)
        self.genomes: Genomes = np.zeros((len(limits), genes), dtype=np.int64)
        self.quality: Floats = np.full(len(limits), -np.inf)
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, bounds in enumerate(limits):
            groups.setdefault(tuple(sorted(bounds)), []).append(row)
        self._groups: list[tuple[tuple[str, ...], Genomes, Floats]] = []
        for metrics, rows in groups.items():
            bounds_of = np.array([[limits[row][m] for m in metrics] for row in rows], np.float64)
            order = np.lexsort(bounds_of.T[::-1])
            self._groups.append((metrics, np.array(rows)[order], bounds_of[order]))

    @property
    def full(self) -> bool:
        """Whether every set of limits has a genome."""
        return bool(np.isfinite(self.quality).all())

    def feasible(self, cost: Mapping[str, Floats]) -> npt.NDArray[np.bool_]:
        """Mask (n,) of the genomes that keep at least one set of limits, given their ``cost``."""
        return np.asarray(self.aim(cost)[1] < np.inf)

    def aim(self, cost: Mapping[str, Floats]) -> tuple[Genomes, Floats]:
        """For each cost the limits that a genome could most gain at, and how good it has to be.

        Returns:
            (n,) place of the set among ``places``, -1 where it keeps none; and the floor (n,), the
            quality held there: ``inf`` where it keeps none.
        """
        count = len(next(iter(cost.values())))
        place, floor = np.full(count, -1, dtype=np.int64), np.full(count, np.inf)
        start = 0
        for metrics, rows, bounds in self._groups:
            held = self.quality[rows]
            for part in _parts(count, len(rows) if len(metrics) > 1 else 1):
                if len(metrics) == 1:
                    # What keeps a limit keeps all looser ones, and these hold no lower quality.
                    where = np.searchsorted(bounds[:, 0], cost[metrics[0]][part])
                    lowest = np.append(held, np.inf)[where]
                else:
                    kept = np.where(_kept(metrics, bounds, cost, part), held, np.inf)
                    where, lowest = kept.argmin(axis=1), kept.min(axis=1)
                lower = lowest < floor[part]
                place[part] = np.where(lower, where + start, place[part])
                floor[part] = np.where(lower, lowest, floor[part])
            start += len(rows)
        return place, floor

    @property
    def places(self) -> Genomes:
        """(k,) the sets of limits so that those of one kind lie together, tightest first."""
        return np.concatenate([rows for _, rows, _ in self._groups])

    def update(
        self, genomes: Genomes, quality: Floats, cost: Mapping[str, Floats]
    ) -> npt.NDArray[np.bool_]:
        """Take in the ``genomes`` (n, genes) that beat what is held; (k,) which sets gained.

        Args:
            genomes: canonical members.
            quality: (n,) of each.
            cost: metric -> (n,) of each; needs the limited metrics.
        """
        gained = np.zeros(len(self.limits), dtype=np.bool_)
        if not len(genomes):
            return gained
        for metrics, rows, bounds in self._groups:
            if len(metrics) == 1:
                best = _best_by_prefix(bounds[:, 0], cost[metrics[0]], quality)
            else:
                best = _best_by_pairs(metrics, bounds, cost, quality)
            found = np.where(best >= 0, quality[best], -np.inf)
            better = found > self.quality[rows]
            self.quality[rows[better]] = found[better]
            self.genomes[rows[better]] = genomes[best[better]]
            gained[rows[better]] = True
        return gained

    def distinct(self) -> tuple[Genomes, Floats]:
        """The different genomes held (u, genes) and their quality (u,), by rising quality."""
        held = np.isfinite(self.quality)
        genomes, first = np.unique(self.genomes[held], axis=0, return_index=True)
        quality = self.quality[held][first]
        order = np.argsort(quality, kind="stable")
        return genomes[order], quality[order]

    def winners(self, family: Estimated) -> tuple[Winner, ...]:
        """One winner per set of limits, its figures computed afresh, within the limits.

        Raises:
            SpaceError: where a set of limits holds nothing; where ``family.cost`` no longer says
                what it said when the genome was taken in, and no other winner keeps the limits.
        """
        evaluator = family if isinstance(family, Evaluator) else Evaluator(family)
        genomes, _ = self.distinct()
        quality, costs = evaluator.quality(genomes), evaluator.cost(genomes)
        fresh = Archive(self.limits, genes=genomes.shape[1])
        fresh.update(genomes, quality, costs)
        if not fresh.full:
            raise SpaceError(
                f"{int(np.isinf(fresh.quality).sum())} of {len(self.limits)} limits hold no "
                "genome that keeps them; has the search run, and does the family's cost depend on "
                "nothing but the genome?"
            )
        row_of = {genome.tobytes(): row for row, genome in enumerate(genomes)}
        rows = [row_of[genome.tobytes()] for genome in fresh.genomes]
        return tuple(
            Winner(
                limits=dict(bounds),
                genome=genomes[row].copy(),
                quality=float(quality[row]),
                cost={metric: float(values[row]) for metric, values in costs.items()},
            )
            for bounds, row in zip(self.limits, rows, strict=True)
        )


def _best_by_prefix(bounds: Floats, cost: Floats, quality: Floats) -> Genomes:
    """For each of the rising ``bounds`` (k,) the best row whose cost keeps it; -1 where none."""
    first = np.searchsorted(bounds, cost)
    order = np.lexsort((-quality, first))
    order = order[np.diff(first[order], prepend=-1) != 0]  # the best of each first bound
    order = order[first[order] < len(bounds)]
    best = np.full(len(bounds), -1, dtype=np.int64)
    best[first[order]] = order
    reached = np.full(len(bounds), -np.inf)
    reached[first[order]] = quality[order]
    # Carry the best so far on to the looser bounds.
    risen = reached > np.concatenate([[-np.inf], np.maximum.accumulate(reached)[:-1]])
    source = np.maximum.accumulate(np.where(risen, np.arange(len(bounds)), -1))
    return np.where(source >= 0, best[source], -1)


def _best_by_pairs(
    metrics: tuple[str, ...], bounds: Floats, cost: Mapping[str, Floats], quality: Floats
) -> Genomes:
    """For each of ``bounds`` (k, m) the best row whose costs keep them all; -1 where none."""
    best = np.full(len(bounds), -1, dtype=np.int64)
    reached = np.full(len(bounds), -np.inf)
    for part in _parts(len(quality), len(bounds)):
        kept = _kept(metrics, bounds, cost, part)
        here = np.where(kept, quality[part][:, None], -np.inf)
        row = here.argmax(axis=0)
        value = here[row, np.arange(len(bounds))]
        better = value > reached
        best[better], reached[better] = row[better] + part.start, value[better]
    return best


def _kept(
    metrics: tuple[str, ...], bounds: Floats, cost: Mapping[str, Floats], part: slice
) -> npt.NDArray[np.bool_]:
    kept = np.ones((part.stop - part.start, len(bounds)), dtype=np.bool_)
    for column, metric in enumerate(metrics):
        kept &= cost[metric][part][:, None] <= bounds[:, column]
    return kept


def _parts(count: int, width: int) -> list[slice]:
    step = max(1, _CHUNK // max(1, width))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _finite(what: str, values: Floats, genomes: Genomes) -> None:
    if values.shape != (len(genomes),):
        raise SpaceError(
            f"{what}: expected one figure for each of {len(genomes)} genomes, got shape "
            f"{values.shape}"
        )
    bad = ~np.isfinite(values)
    if bad.any():
        raise SpaceError(
            f"{what} is not a finite number for {int(bad.sum())} of {len(genomes)} genomes; first: "
            f"{genomes[int(np.argmax(bad))].tolist()}"
        )
