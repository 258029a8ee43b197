from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tailorbird.errors import ConfigError
from tailorbird.progress import Silent
from tailorbird.search.evolution import BottomUp, Evolution, Independent, TopDown, prune
from tailorbird.search.strategy import Evaluator
from tailorbird.space import Choice, Condition, Space
from tests.search.families import House, Supernet
from tests.search.problems import intervals

LIMITS = [{"latency_ms": bound} for bound in (10.0, 12.0, 14.0, 16.0)]
SMALL = Evolution(population=20, generations=25)


class Recording(Supernet):
    """Remembers the genomes of each call of ``quality``."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def quality(self, genomes):
        self.calls.append(genomes.copy())
        return super().quality(genomes)


@pytest.mark.parametrize("seed", range(5))
def test_pruning_lowers_one_element_at_a_time_level_by_level_from_the_left(seed):
    space = Supernet().space
    names = [choice.name for choice in space.choices]
    genome = space.sizes - 1
    path = prune(genome, space, np.random.default_rng(seed), unpruned=("r",))
    assert (path[0] == genome).all()
    assert path[-1].sum() == path[-1][names.index("r")] == 1
    space.validate(path)
    for before, after in pairwise(path):
        lowered = next(g for g in range(len(names)) if before[g] != after[g])
        assert before[lowered] - after[lowered] == 1
        dimension = [g for g, name in enumerate(names) if name[0] == names[lowered][0]]
        level = max(before[dimension])
        assert lowered == next(g for g in dimension if before[g] == level)
        assert (after == space.canonical(after[None])).all()


def test_pruning_draws_dimensions_not_genes():
    space = Space((*(Choice(f"k{i}", (3, 5)) for i in range(9)), Choice("d0", (1, 2))))
    first = [
        prune(space.sizes - 1, space, np.random.default_rng(seed))[1][-1] for seed in range(200)
    ]
    assert 70 < first.count(0) < 130


@pytest.mark.parametrize(("given", "used"), [(None, 5), (7, 7), (0, 0)])
@pytest.mark.parametrize("strategy", [TopDown, BottomUp])
def test_generations_are_full_for_the_first_limit_and_warm_from_then_on(strategy, given, used):
    family = Recording()
    result = strategy(evolution=SMALL, warm_generations=given).search(family, LIMITS, seed=0)
    first_population, last_populations = 1, len(LIMITS)
    assert sum(len(call) == 20 for call in family.calls) >= 25 + 3 * used + first_population
    assert len(family.calls) == 1 + 25 + 3 * used + len(LIMITS) + last_populations
    assert result.evaluations == sum(map(len, family.calls))


def test_top_down_starts_from_copies_of_the_looser_limits_best_pruned():
    family = Recording()
    result = TopDown(evolution=SMALL, warm_generations=0).search(family, LIMITS, seed=0)
    warm = family.calls[27:30]
    for calls, bounds, looser in zip(warm, LIMITS[2::-1], LIMITS[:0:-1], strict=True):
        start = np.unique(calls, axis=0)
        assert len(start) == 1
        assert family.cost(start)["latency_ms"][0] <= bounds["latency_ms"]
        best = next(w for w in result.winners if w.limits == looser)
        assert (start[0] <= best.genome).all()
        assert (start[0] != best.genome).any() or best.cost["latency_ms"] <= bounds["latency_ms"]


def test_bottom_up_carries_the_population_over_and_never_gets_worse():
    family = Recording()
    result = BottomUp(evolution=SMALL, warm_generations=0).search(family, LIMITS, seed=0)
    carried = family.calls[27:30]
    assert (carried[0] == carried[1]).all()
    assert (family.calls[26][:, None] == carried[0]).all(axis=2).any(axis=1).sum() >= 20
    qualities = [winner.quality for winner in result.winners]
    assert qualities == sorted(qualities)


def test_children_of_the_last_generation_count():
    class Improving(Supernet):
        """Every call is judged better than the one before it."""

        judged = 0

        def quality(self, genomes):
            self.judged += 1
            return np.full(len(genomes), float(self.judged))

    family = Improving()
    result = Independent(evolution=SMALL).search(family, LIMITS[:1], seed=0)
    assert result.winners[0].quality == family.judged


def test_a_family_where_random_members_never_fit_still_ends():
    space = Space(tuple(Choice(f"k{i}", tuple(range(8))) for i in range(30)))

    class Needle:
        def __init__(self):
            self.space = space

        def cost(self, genomes):
            return {"macs": 1.0 + genomes.sum(axis=1)}

        def quality(self, genomes):
            return genomes @ np.arange(30.0)

    strategies = (Independent(evolution=SMALL), TopDown(evolution=SMALL), BottomUp(evolution=SMALL))
    for strategy in strategies:
        result = strategy.search(Needle(), [{"macs": 1.0}, {"macs": 2.0}], seed=0)
        assert result.winners[0].genome.sum() == 0
        assert result.winners[1].cost["macs"] <= 2.0


def test_all_members_of_a_population_keep_the_limits_and_the_space():
    family, limits = House(intervals(60, 30, seed=0)), {"latency_ms": 14.0}
    limits = {"latency_ms": 0.7 * float(family.problem.base[0])}
    start = Independent(evolution=SMALL).search(family, [limits], seed=1).winners[0].genome[None]
    rng, judge, seen = np.random.default_rng(0), Evaluator(family), []
    first = SMALL.populate(judge, limits, start, rng)
    with Silent().task("", 25) as task:
        last = SMALL.run(
            judge, limits, first, rng, keep=lambda genomes, _: seen.append(genomes), task=task
        )
    assert len(first) == 20
    assert len(last) == 25
    everyone = np.concatenate(seen)
    family.space.validate(everyone)
    assert (family.cost(everyone)["latency_ms"] <= limits["latency_ms"]).all()
    assert family.quality(last).max() == family.quality(everyone).max()


def test_top_down_on_a_house_starts_warm_though_its_genes_have_no_order():
    family = House(intervals(120, 40, seed=2))
    base = float(family.problem.base[0])
    limits = [{"latency_ms": share * base} for share in (0.9, 0.8, 0.7, 0.6)]
    result = TopDown(evolution=Evolution(population=40, generations=80)).search(
        family, limits, seed=0
    )
    qualities = [winner.quality for winner in result.winners]
    assert qualities == sorted(qualities, reverse=True)


def test_every_setting_at_fault_is_told():
    with pytest.raises(ConfigError) as caught:
        Evolution(population=1, generations=-1, parents=2.0, mutated=-0.1, rate=float("nan"))
    assert len(caught.value.problems) == 5
    assert "population: expected a whole number of 2 or more, got 1" in str(caught.value)


def test_warm_generations_below_zero_are_refused():
    for strategy in (TopDown, BottomUp):
        with pytest.raises(ConfigError, match=r"warm_generations: expected .* got -1"):
            strategy(warm_generations=-1)


def test_conditional_dimension_is_pruned_with_its_stage():
    space = Space((Choice("d", (1, 2)), Choice("k", (3, 5))), conditions={1: Condition(0, 1)})
    paths = {
        tuple(map(tuple, prune(np.array([1, 1]), space, np.random.default_rng(s)).tolist()))
        for s in range(20)
    }
    assert paths == {((1, 1), (0, 0)), ((1, 1), (1, 0), (0, 0))}
