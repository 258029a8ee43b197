"""What every search strategy keeps to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from tailorbird.errors import ConfigError, InfeasibleError, SpaceError
from tailorbird.family import Estimated, Floats
from tailorbird.progress import Silent
from tailorbird.search.strategy import Limits, Strategy
from tailorbird.space import Choice, Condition, Genomes, Space
from tailorbird.testing.raising import refused

GAP = 0.02
"""Quality that a heuristic may miss of the optimum on `SmallSupernet`."""

_CLOSE = 1e-9
_LATENCIES: tuple[Limits, ...] = tuple(
    {"latency_ms": bound} for bound in (11.0, 16.0, 9.0, 13.0, 11.0, 30.0)
)
_MIXED: tuple[Limits, ...] = (
    {"latency_ms": 15.0, "macs": 15e6},
    {"macs": 12e6},
    {"latency_ms": 12.0, "macs": 17e6},
    {"latency_ms": 11.0},
)


class SmallSupernet:
    """3 stages of 1 or 2 blocks, kernels and widths, a resolution; 2 costs. 148,176 members.

    Example:
        >>> f"{SmallSupernet().space.size:,}"
        '148,176'
    """

    space: Space

    def __init__(self) -> None:
        choices: list[Choice] = [Choice("r", (128, 160))]
        conditions: dict[int, Condition] = {}
        for stage in range(3):
            depth = len(choices)
            choices.append(Choice(f"d{stage}", (1, 2)))
            for block in range(2):
                for letter, values in (("k", (3, 5)), ("e", (3, 4, 6))):
                    if block:
                        conditions[len(choices)] = Condition(depth, 1)
                    choices.append(Choice(f"{letter}{stage}_{block}", values))
        self.space = Space(tuple(choices), conditions=conditions)
        rng = np.random.default_rng(3)
        shape = (len(choices), int(self.space.sizes.max()))
        self._time, self._gain = (np.cumsum(rng.uniform(0.2, 1.0, shape), axis=1) for _ in range(2))

    def cost(self, genomes: Genomes) -> dict[str, Floats]:
        """Latency and MACs (n,) of genomes (n, genes)."""
        return {
            "latency_ms": self._sum(self._time, genomes) + 1.0,
            "macs": self._sum(self._gain, genomes) * 1e6 + 1e6,
        }

    def quality(self, genomes: Genomes) -> Floats:
        """Accuracy (n,) of genomes (n, genes): more than a sum, by products of neighbours."""
        scaled = self._sum(self._gain, genomes) / self._gain[:, -1].sum()
        pairs = (genomes[:, 1:] * genomes[:, :-1]).sum(axis=1) / 40
        return np.asarray(0.6 + 0.3 * np.tanh(scaled) + 0.02 * pairs)

    def _sum(self, table: Floats, genomes: Genomes) -> Floats:
        active = self.space.active(genomes)
        return np.asarray(np.where(active, table[np.arange(len(table)), genomes], 0).sum(axis=1))


class Watched:
    """A family that counts what it is asked, and may answer with NaN or an interruption.

    Args:
        family: what answers.
        nan_after: genomes after which a quality is NaN.
        interrupt_after: genomes after which ctrl-C is pressed, once.
    """

    def __init__(
        self,
        family: Estimated,
        *,
        nan_after: int | None = None,
        interrupt_after: int | None = None,
    ) -> None:
        self.family, self.space, self.judged = family, family.space, 0
        self.nan_after, self.interrupt_after = nan_after, interrupt_after

    def cost(self, genomes: Genomes) -> Mapping[str, Floats]:
        """As the family says."""
        return self.family.cost(genomes)

    def quality(self, genomes: Genomes) -> Floats:
        """As the family says, of members of its space only."""
        self.space.validate(genomes)
        self.judged += len(genomes)
        if self.interrupt_after is not None and self.judged > self.interrupt_after:
            self.interrupt_after = None
            raise KeyboardInterrupt
        quality = self.family.quality(genomes)
        if self.nan_after is not None and self.judged > self.nan_after:
            quality[-1] = np.nan
        return quality


class Steps(Silent):
    """Counts the progress that is told."""

    def __init__(self) -> None:
        self.total = self.steps = 0

    def task(self, name: str, total: int) -> Steps:
        """Begin counting to ``total``."""
        del name
        self.total = total
        return self

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count."""
        del note
        self.steps += steps


@cache
def _members() -> tuple[Genomes, dict[str, Floats], Floats]:
    """All of the small supernet: genomes, costs and qualities."""
    family = SmallSupernet()
    genomes = family.space.enumerate()
    return genomes, family.cost(genomes), family.quality(genomes)


def optimum(limits: Limits) -> float:
    """The best quality within ``limits`` that a member of the small supernet has."""
    _, cost, quality = _members()
    kept = np.all([cost[metric] <= bound for metric, bound in limits.items()], axis=0)
    return float(quality[kept].max())


def check_strategy(strategy: Strategy, *, gap: float = GAP) -> None:
    """Run all of `STRATEGY_CHECKS`.

    Args:
        strategy: the one to be tested; fast settings will do.
        gap: quality that it may miss of the optimum of `SmallSupernet`, where accuracies lie
            between 0.6 and 1; 0 for one that is exact.

    Raises:
        AssertionError: at the first check that fails.

    Example:
        >>> from tailorbird.search.baselines import RandomSearch
        >>> check_strategy(RandomSearch(evaluations=4000), gap=0.05)
    """
    winners_are_good(strategy, gap=gap)
    for check in STRATEGY_CHECKS:
        if check is not winners_are_good:
            check(strategy)


def winners_are_good(strategy: Strategy, *, gap: float = GAP) -> None:
    """Winners keep their limits, come in the order given, and are near the optimum."""
    for limits in (_LATENCIES, _MIXED):
        family = Watched(SmallSupernet())
        result = strategy.search(family, limits, seed=0)
        assert result.strategy == strategy.name
        assert result.evaluations == family.judged > 0
        assert result.seconds > 0
        assert not result.stopped
        assert [dict(winner.limits) for winner in result.winners] == [dict(one) for one in limits]
        for winner in result.winners:
            genome = winner.genome[None]
            family.space.validate(genome)
            cost = {metric: figures[0] for metric, figures in family.cost(genome).items()}
            assert cost.keys() == winner.cost.keys()
            assert all(np.isclose(winner.cost[metric], cost[metric]) for metric in cost)
            assert all(cost[metric] <= bound for metric, bound in winner.limits.items())
            assert np.isclose(winner.quality, family.family.quality(genome)[0])
            best = optimum(winner.limits)
            assert best - gap - _CLOSE <= winner.quality <= best + _CLOSE, (
                f"{dict(winner.limits)}: quality {winner.quality}, the optimum is {best}"
            )


def seeds_decide(strategy: Strategy) -> None:
    """Equal seeds give equal winners, equal limits share one."""
    family = SmallSupernet()
    first, again = (strategy.search(family, _LATENCIES, seed=5) for _ in range(2))
    for left, right in zip(first.winners, again.winners, strict=True):
        assert (left.genome == right.genome).all()
    assert first.evaluations == again.evaluations
    assert (first.winners[0].genome == first.winners[4].genome).all()


def nan_is_an_error(strategy: Strategy) -> None:
    """A quality that is not a number is one clear error."""
    refused(
        SpaceError,
        lambda: strategy.search(Watched(SmallSupernet(), nan_after=500), _LATENCIES, seed=0),
        "quality is not a finite number for 1 of",
    )


def unreachable_limits_are_named(strategy: Strategy) -> None:
    """Limits below the reachable are an error that names each, and the lowest figure."""
    lowest = float(_members()[1]["latency_ms"].min())
    limits = [*_LATENCIES, {"latency_ms": lowest * 0.9}, {"latency_ms": 0.5}]
    error = refused(
        InfeasibleError,
        lambda: strategy.search(SmallSupernet(), limits, seed=0),
        f"{lowest:.3g}"[:3],
        "0.5",
    )
    assert np.isclose(error.lowest["latency_ms"], lowest)


def the_tightest_limit_is_met(strategy: Strategy) -> None:
    """A limit that one member alone keeps is met by that one."""
    genomes, cost, _ = _members()
    least = int(np.argmin(cost["latency_ms"]))
    limits = [{"latency_ms": float(cost["latency_ms"][least])}]
    result = strategy.search(SmallSupernet(), limits, seed=0)
    assert (result.winners[0].genome == genomes[least]).all()


def senseless_limits_are_told(strategy: Strategy) -> None:
    """All faults of the limits at once."""
    wrong: list[Limits] = [{"latency_ms": -1.0}, {"speed": 3.0}, {}]
    error = refused(ConfigError, lambda: strategy.search(SmallSupernet(), wrong, seed=0))
    assert len(error.problems) == 3, error.problems
    refused(ConfigError, lambda: strategy.search(SmallSupernet(), [], seed=0), "the list is empty")


def interrupted_returns_the_best(strategy: Strategy) -> None:
    """Ctrl-C ends the search with winners that keep their limits."""
    family = Watched(SmallSupernet(), interrupt_after=1200)
    result = strategy.search(family, _LATENCIES, seed=0)
    assert result.stopped
    for winner in result.winners:
        assert winner.cost["latency_ms"] <= winner.limits["latency_ms"]


def progress_stays_within_its_total(strategy: Strategy) -> None:
    """Progress is told, and never beyond what was announced."""
    told = Steps()
    strategy.search(SmallSupernet(), _LATENCIES, seed=0, progress=told)
    assert 0 < told.steps <= told.total


def one_gene_is_a_space(strategy: Strategy) -> None:
    """The smallest space there is."""

    class Tiny:
        space = Space((Choice("r", (128, 160)),))

        def cost(self, genomes: Genomes) -> dict[str, Floats]:
            return {"macs": np.asarray(1.0 + genomes[:, 0])}

        def quality(self, genomes: Genomes) -> Floats:
            return np.asarray(genomes[:, 0] / 2)

    result = strategy.search(Tiny(), [{"macs": 1.5}, {"macs": 2.0}], seed=0)
    assert [winner.genome.tolist() for winner in result.winners] == [[0], [1]]


STRATEGY_CHECKS: tuple[Callable[[Strategy], None], ...] = (
    winners_are_good,
    seeds_decide,
    nan_is_an_error,
    unreachable_limits_are_named,
    the_tightest_limit_is_met,
    senseless_limits_are_told,
    interrupted_returns_the_best,
    progress_stays_within_its_total,
    one_gene_is_a_space,
)
"""The single checks; each takes a strategy and asserts."""
