from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.errors import ConfigError, SpaceError
from tailorbird.search.strategy import Archive, Evaluator, check
from tests.search.families import Supernet


def oracle(limits, quality, cost):
    """The best quality within each set of limits, set by set and genome by genome."""
    return [
        max(
            (q for row, q in enumerate(quality) if all(cost[m][row] <= b for m, b in of.items())),
            default=-np.inf,
        )
        for of in limits
    ]


bound = st.integers(1, 9).map(float)
sets = st.lists(
    st.dictionaries(st.sampled_from(["ms", "macs"]), bound, min_size=1), min_size=1, max_size=9
)


@settings(max_examples=150, deadline=None)
@given(sets, st.integers(0, 2**31), st.integers(1, 3))
def test_archive_holds_the_best_within_each_set_over_many_updates(limits, seed, updates):
    rng = np.random.default_rng(seed)
    archive = Archive(limits, genes=1)
    n = 12 * updates
    genomes = np.arange(n)[:, None]
    quality = rng.integers(0, 10, n).astype(float)
    cost = {metric: rng.integers(1, 11, n).astype(float) for metric in ("ms", "macs")}
    for part in np.split(np.arange(n), updates):
        before = archive.quality.copy()
        place, floor = archive.aim({m: c[part] for m, c in cost.items()})
        for row, at, least in zip(part, place, floor, strict=True):
            kept = [
                held
                for of, held in zip(limits, before, strict=True)
                if all(cost[m][row] <= b for m, b in of.items())
            ]
            assert least == min(kept, default=np.inf)
            assert (at >= 0) == bool(kept)
            if kept:
                assert before[archive.places[at]] == least
        gained = archive.update(genomes[part], quality[part], {m: c[part] for m, c in cost.items()})
        assert (gained == (archive.quality > before)).all()
    assert archive.quality.tolist() == oracle(limits, quality, cost)
    for of, genome, best in zip(limits, archive.genomes[:, 0], archive.quality, strict=True):
        if np.isfinite(best):
            assert quality[genome] == best
            assert all(cost[metric][genome] <= b for metric, b in of.items())


def test_winners_are_priced_afresh_and_in_the_order_given():
    family = Supernet()
    limits = [{"latency_ms": 30.0}, {"macs": 12e6}, {"latency_ms": 9.0}, {"latency_ms": 30.0}]
    archive = Archive(limits, genes=len(family.space.sizes))
    genomes = family.space.sample(3000, np.random.default_rng(0))
    archive.update(genomes, family.quality(genomes), family.cost(genomes))
    winners = archive.winners(family)
    assert [winner.limits for winner in winners] == limits
    for winner in winners:
        cost = {metric: c[0] for metric, c in family.cost(winner.genome[None]).items()}
        assert winner.cost == cost
        assert all(cost[metric] <= b for metric, b in winner.limits.items())
    assert winners[0].genome.tolist() == winners[3].genome.tolist()
    assert winners[0].quality >= winners[2].quality


def test_a_cost_that_changes_its_mind_never_breaks_a_limit():
    class Fickle(Supernet):
        factor = 1.0

        def cost(self, genomes):
            return {metric: c * self.factor for metric, c in super().cost(genomes).items()}

    family = Fickle()
    archive = Archive([{"latency_ms": 10.0}], genes=len(family.space.sizes))
    genomes = family.space.sample(3000, np.random.default_rng(0))
    archive.update(genomes, family.quality(genomes), family.cost(genomes))
    family.factor = 2.0
    with pytest.raises(SpaceError, match="1 of 1 limits hold no genome that keeps them"):
        archive.winners(family)


def test_senseless_limits_are_told_together():
    limits = [{"latency_ms": 20.0}, {}, {"speed": 3.0}, {"macs": -1.0}, {"macs": float("nan")}]
    with pytest.raises(ConfigError) as caught:
        check(Supernet(), limits)
    assert caught.value.problems == (
        "limits[1]: no metric is limited; give one of latency_ms, macs",
        "limits[2]: unknown metric 'speed'; give one of latency_ms, macs",
        "limits[3]: macs has to be above 0, got -1.0",
        "limits[4]: macs has to be above 0, got nan",
    )
    with pytest.raises(ConfigError, match="the list is empty"):
        check(Supernet(), [])
    check(Supernet(), [{"macs": 5.0}, {"latency_ms": 2.0}, {"macs": 5.0}])


def test_figures_that_are_not_numbers_are_named_with_the_first_genome():
    class Broken(Supernet):
        def quality(self, genomes):
            return np.where(genomes[:, 0] == 1, np.nan, 0.5)

        def cost(self, genomes):
            return {"macs": np.ones(3)}

    evaluator = Evaluator(Broken())
    genomes = np.zeros((4, 16), dtype=np.int64)
    genomes[2:, 0] = 1
    with pytest.raises(SpaceError, match=r"not a finite number for 2 of 4 genomes; first: \[1, 0"):
        evaluator.quality(genomes)
    with pytest.raises(SpaceError, match=r"macs: expected one figure for each of 4 .* shape \(3,"):
        evaluator.cost(genomes)
