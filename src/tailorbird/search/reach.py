"""Feasible starts: a member for every set of limits, or one error that names the unreachable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from tailorbird.errors import InfeasibleError
from tailorbird.family import AdditiveProblem, Estimated, Floats, is_additive
from tailorbird.search import exact
from tailorbird.search.selection import within
from tailorbird.search.strategy import Archive, Evaluator, Limits
from tailorbird.search.surrogate import LinearModel, trades
from tailorbird.space import Genomes

_SAMPLE = 512
_STARTS = 4
_TRADES = 32
_SHOWN = 20


def reachable(family: Estimated, limits: Sequence[Limits], rng: np.random.Generator) -> Genomes:
    """One genome (k, genes) within each of the k sets of ``limits``.

    A random sample, and the cheapest members under a linear model of each metric and of each two
    that are limited together, serve most limits. For the others, steepest descent over all changes
    of one gene on the largest ratio of cost to limit, from the nearest members seen. Where a metric
    is a sum over genes its lowest figure is exact; no limit takes more than a few hundred batches.

    Raises:
        InfeasibleError: naming every set of limits that nothing found keeps, with the lowest
            figures found; ``lowest`` holds them per metric.
    """
    finder = _Finder(Evaluator(family), limits, rng)
    for metric in finder.metrics:
        finder.seek({metric: min(bounds[metric] for bounds in limits if metric in bounds)})
    failed: list[int] = []
    for row in sorted(finder.missing(), key=lambda row: finder.nearest(limits[row])[0]):
        tighter = any(_no_looser(limits[row], limits[other]) for other in failed)
        if len(limits[row]) > 1 and not tighter:
            finder.seek(limits[row])
        if not finder.kept(row):
            failed.append(row)
    if failed:
        raise _infeasible(limits, sorted(failed), finder)
    return finder.archive.genomes.copy()


class _Finder:
    """What has been seen so far: a genome per set of limits met, and the cheapest genomes."""

    def __init__(
        self, evaluator: Evaluator, limits: Sequence[Limits], rng: np.random.Generator
    ) -> None:
        self.space = evaluator.space
        self.evaluator = evaluator
        self.archive = Archive(limits, genes=len(self.space.sizes))
        self.metrics = tuple(dict.fromkeys(metric for bounds in limits for metric in bounds))
        self.lowest = dict.fromkeys(self.metrics, np.inf)
        count = max(_SAMPLE, 2 * int(self.space.sizes.sum()))
        sample = self.space.sample(count, rng)
        # Where genes conflict a random member has few that differ from 0: look at each alone, too.
        alone, _ = self.space.neighbours(np.zeros_like(sample[:1]))
        sample = np.concatenate([np.zeros_like(sample[:1]), alone, sample])
        costs = self.price(sample)
        models = {metric: LinearModel(self.space, ridge=1e-3) for metric in self.metrics}
        for metric, model in models.items():
            model.add(sample, costs[metric])
            model.fit()
        together = {pair for bounds in limits for pair in combinations(sorted(bounds), 2)}
        weights = {metric: model.weights for metric, model in models.items()}
        cheap = [trades(self.space, -w, w, count=1, exact=True) for w in weights.values()]
        cheap += [
            trades(self.space, -weights[left], weights[right], count=_TRADES, exact=True)
            for left, right in sorted(together)
        ]
        self.seen = np.concatenate([sample, *cheap])
        self.costs = self.price(self.seen)

    def price(self, genomes: Genomes) -> dict[str, Floats]:
        """Cost of ``genomes``, noted in the archive and the lowest figures."""
        costs = self.evaluator.cost(genomes)
        self.archive.update(genomes, np.zeros(len(genomes)), costs)
        for metric in self.metrics:
            self.lowest[metric] = min(self.lowest[metric], float(costs[metric].min()))
        return costs

    def missing(self) -> list[int]:
        """The sets of limits that nothing seen keeps."""
        return [int(row) for row in np.flatnonzero(np.isinf(self.archive.quality))]

    def kept(self, row: int) -> bool:
        """Whether set ``row`` has a genome."""
        return bool(np.isfinite(self.archive.quality[row]))

    def nearest(self, bounds: Limits) -> tuple[float, Genomes]:
        """The few genomes (s, genes) nearest to the limits, and the first one's largest ratio."""
        ratio = excess(self.costs, bounds)
        order = np.argsort(ratio, kind="stable")[:_STARTS]
        return float(ratio[order[0]]), self.seen[order]

    def seek(self, bounds: Limits) -> None:
        """Descend towards ``bounds`` from the nearest genomes, until met or none is closer."""
        best, genomes = self.nearest(bounds)
        ratio = excess(self.evaluator.cost(genomes), bounds)
        for _ in range(4 * len(self.space.sizes) + 16):
            if best <= 1:
                return
            near, row = self.space.neighbours(genomes)
            if not len(near):
                return
            reached = excess(self.price(near), bounds)
            order = np.lexsort((reached, row))
            first = order[np.diff(row[order], prepend=-1) != 0]  # the best neighbour of each
            closer = first[reached[first] < ratio[row[first]]]
            if not len(closer):
                return
            genomes, ratio = near[closer], reached[closer]
            best = float(ratio.min())


def unreachable(
    family: Estimated, limits: Sequence[Limits], *, seed: int
) -> dict[int, Mapping[str, float]]:
    """Row -> lowest figures per metric, of the ``limits`` that nothing keeps.

    Exact for an additive family; else by `reachable`, in halves.
    """
    if is_additive(family):
        return _beyond(family.problem, limits)
    found: dict[int, Mapping[str, float]] = {}
    waiting = [range(len(limits))]
    while waiting:
        rows = waiting.pop()
        try:
            reachable(family, [limits[row] for row in rows], np.random.default_rng(seed))
        except InfeasibleError as error:
            if len(rows) == 1:
                found[rows[0]] = error.lowest
            else:
                middle = len(rows) // 2
                waiting += [rows[:middle], rows[middle:]]
    return found


def _beyond(problem: AdditiveProblem, limits: Sequence[Limits]) -> dict[int, Mapping[str, float]]:
    """`unreachable` for sums: one solution per metric, and one per set that combines several."""
    metrics = dict.fromkeys(metric for bounds in limits for metric in bounds)
    least = {metric: exact.lowest(problem, metric) for metric in metrics}
    found: dict[int, Mapping[str, float]] = {}
    for row, bounds in enumerate(limits):
        lowest = {metric: least[metric] for metric in bounds}
        if not within(lowest, bounds) or (
            len(bounds) > 1 and not exact.minimise(problem, problem.loss, bounds)
        ):
            found[row] = lowest
    return found


def started(judge: Evaluator, limits: Sequence[Limits], rng: np.random.Generator) -> Archive:
    """An archive with a member at every set of limits, judged.

    Raises:
        InfeasibleError: see `reachable`.
    """
    starts = reachable(judge.family, limits, rng)
    archive = Archive(limits, genes=starts.shape[1])
    archive.update(starts, judge.quality(starts), judge.cost(starts))
    return archive


def excess(costs: Mapping[str, Floats], bounds: Limits) -> Floats:
    """(n,) the largest of cost over limit; above 1 where a limit is not kept."""
    return np.asarray(np.max([costs[metric] / bound for metric, bound in bounds.items()], axis=0))


def _no_looser(bounds: Limits, other: Limits) -> bool:
    return all(metric in bounds and bounds[metric] <= bound for metric, bound in other.items())


def _upwards(figure: float) -> str:
    """A figure in six digits, rounded up, so that a limit of what is printed can be kept.

    Example:
        >>> _upwards(41476224.0), _upwards(9.890351)
        ('41476224', '9.89036')
    """
    if figure >= 1e5:
        return str(math.ceil(figure))
    step = 10.0 ** (math.floor(math.log10(max(figure, 1e-12))) - 5)
    return f"{math.ceil(figure / step) * step:g}"


def _infeasible(limits: Sequence[Limits], failed: list[int], finder: _Finder) -> InfeasibleError:
    lines = []
    for row in failed[:_SHOWN]:
        asked = ", ".join(f"{metric} <= {bound:g}" for metric, bound in limits[row].items())
        lowest = ", ".join(f"{metric} {_upwards(finder.lowest[metric])}" for metric in limits[row])
        alone = all(finder.lowest[metric] <= bound for metric, bound in limits[row].items())
        joint = " (each alone; not all together)" if alone else ""
        lines.append(f"\n  - limits[{row}]: {asked}; the lowest found is {lowest}{joint}")
    if len(failed) > _SHOWN:
        lines.append(f"\n  - and {len(failed) - _SHOWN} more")
    return InfeasibleError(
        f"{len(failed)} of {len(limits)} limits can't be kept; raise them:{''.join(lines)}",
        limits=limits[failed[0]],
        lowest={metric: finder.lowest[metric] for metric in finder.metrics},
    )
