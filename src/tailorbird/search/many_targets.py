"""All limits at once: one population, one archive, one screen serve every set of limits.

1. A random sample, whose quality is computed, trains a linear model of quality over one-hot genes;
   the best trades of modelled quality against cost seed the whole front.
2. Generations: children of the winners and of the runners-up near each limit, by crossover between
   members with limits close to each other and by mutation of one to a few genes. Costs are cheap
   and come first; the model then predicts which children could most improve the winner of the
   tightest limits that they keep, and only these have their quality computed. The model learns from
   them, and forgets the sample bit by bit, so that it stays good where the winners are.
3. Polish: all changes of one gene of each winner, until none is better.

Limits are binned into bands along the front, and evaluations are shared out evenly over the bands,
so that limits where gains are easy don't starve the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.errors import ConfigError
from tailorbird.family import Estimated, Floats
from tailorbird.progress import Progress, Silent
from tailorbird.search.polish import Seen, polish
from tailorbird.search.reach import reachable
from tailorbird.search.strategy import Archive, Evaluator, Limits, SearchResult, Session
from tailorbird.search.surrogate import LinearModel, trades
from tailorbird.space import Genomes
from tailorbird.threads import one_thread

_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class AllAtOnce:
    """Search for hundreds of limits at a few times the price of one.

    Evaluations are about ``sample + generations * evaluated`` at most, whatever k, the number of
    limits, and the number of genes, and then those of the polish, which grow with k: it looks at
    all changes of one gene of each different winner that it meets. In a space of 46 genes with 106
    such changes the evolution takes 25,000 for any k above a few, the polish 700 for 10 limits,
    44,000 for 500, and 121,000 for 1,000 on four devices; ``polish`` bounds it. Beyond evaluations
    a generation costs ``children`` x genes steps to make, price and screen children, and log k per
    child; limits that combine metrics cost k per child instead. Memory is k x genes plus
    ``children`` x genes. With f values in all genes, a generation also takes ``evaluated`` x f^2 +
    f^3 / 3 multiplications to fit the model.

    Args:
        sample: random members evaluated first; ``None``: 1,000, or twice f where that is more.
        generations: how often children are made.
        children: made per generation.
        evaluated: children per generation whose quality is computed.
        elite: runners-up kept per band of limits, at least; few limits keep more.
        bands: into which the limits are binned.
        mutation: genes changed on average in a mutant, one of these per generation.
        touch: genes changed on average after a crossover.
        span: how far apart mates are, in bands.
        decay: what older evaluations weigh in the model per generation.
        polish: evaluations that the polish takes at most, ``None`` for as many as it needs.

    Raises:
        ConfigError: for parameters that are not positive, all at once.
    """

    sample: int | None = None
    generations: int = 60
    children: int = 1200
    evaluated: int = 400
    elite: int = 7
    bands: int = 40
    mutation: tuple[float, ...] = (1.0, 2.0, 4.0)
    touch: float = 0.7
    span: float = 1.0
    decay: float = 0.95
    polish: int | None = None
    name: str = "all-at-once"

    def __post_init__(self) -> None:
        whole = ("generations", "children", "evaluated", "elite", "bands")
        problems = [
            f"{name}: expected 1 or more, got {getattr(self, name)}"
            for name in whole
            if getattr(self, name) < 1
        ]
        if self.sample is not None and self.sample < 1:
            problems.append(f"sample: expected 1 or more, got {self.sample}")
        if self.polish is not None and self.polish < 0:
            problems.append(f"polish: expected 0 or more evaluations, got {self.polish}")
        if not self.mutation or min(self.mutation) <= 0:
            problems.append(f"mutation: expected genes above 0, got {self.mutation}")
        if not 0 < self.decay <= 1:
            problems.append(f"decay: expected above 0 and at most 1, got {self.decay}")
        if self.touch < 0 or self.span <= 0:
            problems.append(
                f"touch, span: expected 0 or more and above 0, got {self.touch}, {self.span}"
            )
        if problems:
            raise ConfigError(problems)

    @one_thread()
    def search(
        self,
        family: Estimated,
        limits: Sequence[Limits],
        *,
        seed: int,
        progress: Progress = _SILENT,
    ) -> SearchResult:
        """The best member found for each of ``limits``; see :class:`Strategy`.

        Ctrl-C ends it with the best so far, which keep the limits like all winners.
        """
        session = Session(self.name, family, limits, seed=seed)
        run = _Run(self, session.judge, limits, np.random.default_rng(seed))
        with session.task(progress, self.generations + 1) as task:
            for _ in run.generations():
                quality = run.archive.quality
                task.advance(note=f"mean quality {quality.mean():.4f}")
            polish(run.evaluator, run.archive, seen=run.seen, budget=self.polish)
            task.advance()
        return session.result(run.archive.winners(run.evaluator))


class _Run:
    """One search under way; its archive holds a member for every set of limits from the start."""

    def __init__(
        self,
        settings: AllAtOnce,
        evaluator: Evaluator,
        limits: Sequence[Limits],
        rng: np.random.Generator,
    ) -> None:
        self.settings, self.rng = settings, rng
        self.evaluator = evaluator
        self.space = evaluator.space
        genes = len(self.space.sizes)
        self.archive = Archive(limits, genes=genes)
        self.seen = Seen(genes, rng)
        self.model = LinearModel(self.space)
        self.bands = min(settings.bands, len(limits))
        self.elite = max(settings.elite, -(-50 // self.bands))
        self.pool = np.zeros((0, genes), dtype=np.int64)
        self.pool_quality = np.empty(0)
        self.pool_cost: dict[str, Floats] = {}
        starts = np.unique(reachable(evaluator.family, limits, rng), axis=0)
        self._evaluate(starts, self.evaluator.cost(starts))

    def generations(self) -> Iterator[None]:
        """Sample and seed, then one generation after the other."""
        values = int(self.space.sizes.sum())
        sample = self.space.sample(self.settings.sample or max(1000, 2 * values), self.rng)
        if self.space.conflicts is not None:
            # A random member has few genes that differ from 0: look at each alone, too.
            alone, _ = self.space.neighbours(np.zeros_like(sample[:1]))
            sample = np.concatenate([alone, sample])
        sample = sample[self.seen.new(sample)]
        costs = self.evaluator.cost(sample)
        models = {metric: LinearModel(self.space) for metric in costs}
        for metric, model in models.items():
            model.add(sample, costs[metric])
            model.fit()
        self._evaluate(sample, costs)
        directions = self._directions({m: model.weights for m, model in models.items()})
        for generation in range(self.settings.generations):
            self.model.fit()
            # Where genes conflict the first front is worth its time: later ones start there.
            exact = generation == 0 and self.space.conflicts is not None
            count = max(8, (32 if exact else 128) // len(directions))
            seeds = [
                trades(self.space, self.model.weights, cost, count=count, exact=exact)
                for cost in directions
            ]
            bred = self._breed(seeds)
            bred = bred[self.seen.new(bred)]
            costs = self.evaluator.cost(bred)
            chosen = self._screen(bred, costs)
            self._evaluate(bred[chosen], {m: c[chosen] for m, c in costs.items()})
            yield

    def _directions(self, weights: dict[str, Floats]) -> list[Floats]:
        """What to trade quality against: each limited metric, and those limited together."""
        kinds = dict.fromkeys(tuple(sorted(bounds)) for bounds in self.archive.limits)
        alone = dict.fromkeys(metric for kind in kinds for metric in kind)
        together = []
        for kind in [kind for kind in kinds if len(kind) > 1]:
            sets = [bounds for bounds in self.archive.limits if tuple(sorted(bounds)) == kind]
            typical = {m: float(np.median([bounds[m] for bounds in sets])) for m in kind}
            together.append(np.sum([weights[m] / typical[m] for m in kind], axis=0))
        return [*(weights[metric] for metric in alone), *together]

    def _breed(self, seeds: list[Genomes]) -> Genomes:
        """Children (n, genes) of winners and runners-up, and the model's own proposals."""
        rng, settings, space = self.rng, self.settings, self.space
        winners, _ = self.archive.distinct()
        parents = np.concatenate([winners, self.pool])
        place, _ = self.archive.aim(self.evaluator.cost(parents))
        parents = parents[np.argsort(place, kind="stable")]
        half, genes = settings.children // 2, parents.shape[1]
        mutants = space.mutate(
            parents[rng.integers(len(parents), size=settings.children - half)],
            rng,
            rate=min(1.0, rng.choice(settings.mutation) / genes),
        )
        width = max(1, round(settings.span * len(parents) / self.bands))
        left = rng.integers(len(parents), size=half)
        right = np.clip(left + rng.integers(-width, width + 1, size=half), 0, len(parents) - 1)
        crossed = space.crossover(parents[left], parents[right], rng)
        crossed = space.mutate(crossed, rng, rate=min(1.0, settings.touch / genes))
        return np.concatenate([*seeds, mutants, crossed])

    def _screen(self, genomes: Genomes, costs: dict[str, Floats]) -> Genomes:
        """Rows worth evaluating: those that could gain most, shared out over the bands."""
        place, floor = self.archive.aim(costs)
        gain = self.model.predict(genomes) - floor
        order, rank = self._by_band(place, gain)
        kept = order[np.argsort(rank, kind="stable")]
        return np.sort(kept[place[kept] >= 0][: self.settings.evaluated])

    def _evaluate(self, genomes: Genomes, costs: dict[str, Floats]) -> None:
        """Compute quality; tell the archive, the model and the pool of runners-up."""
        quality = self.evaluator.quality(genomes)
        self.archive.update(genomes, quality, costs)
        self.seen.note(genomes)
        self.model.add(genomes, quality, decay=self.settings.decay)
        genomes = np.concatenate([self.pool, genomes])
        quality = np.concatenate([self.pool_quality, quality])
        costs = {m: np.append(self.pool_cost.get(m, []), c) for m, c in costs.items()}
        place, floor = self.archive.aim(costs)
        order, rank = self._by_band(place, quality - floor)
        kept = order[(rank < self.elite) & (place[order] >= 0)]
        self.pool, self.pool_quality = genomes[kept], quality[kept]
        self.pool_cost = {metric: cost[kept] for metric, cost in costs.items()}

    def _by_band(self, place: Genomes, gain: Floats) -> tuple[Genomes, Genomes]:
        """Rows ordered by band and falling gain, and the rank of each within its band."""
        band = place * self.bands // len(self.archive.limits)
        order = np.lexsort((-gain, band))
        first = np.flatnonzero(np.diff(band[order], prepend=-2))
        lengths = np.diff(np.append(first, len(order)))
        return order, np.arange(len(order)) - np.repeat(first, lengths)
