"""Strategies for families whose costs add up."""

import numpy as np
import pytest

from tailorbird.errors import ConfigError, InfeasibleError
from tailorbird.search import exact
from tailorbird.search.additive import Annealing, Exact, RandomSelection, strategy_for
from tailorbird.search.baselines import Exhaustive
from tailorbird.search.many_targets import AllAtOnce
from tailorbird.search.reach import reachable, unreachable
from tests.house.test_family import family
from tests.search.families import Supernet

LIMITS = [{"latency_ms": 1.9}, {"latency_ms": 1.7, "params": 8500.0}, {"params": 7600.0}]


@pytest.mark.parametrize(
    "strategy", [Exact(), Annealing(steps=300, restarts=2), RandomSelection()], ids=lambda s: s.name
)
def test_winners_are_members_within_their_limits_and_none_beats_the_proof(strategy):
    house = family()
    found = strategy.search(house, LIMITS, seed=0)
    assert (found.strategy, len(found.winners)) == (strategy.name, len(LIMITS))
    for bounds, winner in zip(LIMITS, found.winners, strict=True):
        house.space.validate(winner.genome[None])
        cost, quality = house.cost(winner.genome[None]), house.quality(winner.genome[None])
        assert all(cost[m][0] <= bound * (1 + 1e-9) for m, bound in bounds.items())
        assert winner.quality == quality[0]
        assert winner.cost == pytest.approx({m: float(v[0]) for m, v in cost.items()})
        best = exact.solve(house.problem, bounds)[0]
        assert winner.quality <= -best.loss + 1e-9
        if strategy.name == "exact":
            assert winner.quality == pytest.approx(-best.loss)
    again = strategy.search(house, LIMITS, seed=0)
    assert all(
        (a.genome == b.genome).all() for a, b in zip(found.winners, again.winners, strict=True)
    )


def test_other_families_and_limits_that_nothing_keeps_are_told():
    supernet = Supernet()
    with pytest.raises(ConfigError, match="exact: expected a family whose costs add up"):
        Exact().search(
            supernet, [{next(iter(supernet.cost(supernet.space.enumerate()))): 1e9}], seed=0
        )
    with pytest.raises(InfeasibleError, match=r"1 of 2 limits can't be kept(.|\n)*limits\[1\]"):
        Exact().search(family(), [{"latency_ms": 1.9}, {"latency_ms": 1e-3}], seed=0)


def test_what_suits_a_family():
    assert isinstance(strategy_for(family()), Exact)
    assert isinstance(strategy_for(Supernet()), Exhaustive | AllAtOnce)


def test_limits_that_nothing_keeps_are_found_exactly_where_costs_add_up():
    house = family()
    least = exact.lowest(house.problem, "latency_ms")
    rows = [{"latency_ms": 1.0001 * least}, {"latency_ms": 0.999 * least}, {"params": 1e9}]
    found = unreachable(house, rows, seed=0)
    assert found.keys() == {1}
    assert found[1]["latency_ms"] == pytest.approx(least)
    both = [
        {"latency_ms": 1.0001 * least, "params": exact.lowest(house.problem, "params") * 1.0001}
    ]
    apart = exact.minimise(house.problem, house.problem.loss, both[0])
    assert (0 in unreachable(house, both, seed=0)) == (not apart)


def test_limits_that_nothing_keeps_are_found_by_halves_elsewhere():
    supernet = Supernet()
    metric = next(iter(supernet.cost(supernet.space.enumerate())))
    lowest = float(supernet.cost(supernet.space.enumerate())[metric].min())
    rows = [{metric: lowest * share} for share in (3.0, 0.5, 2.0, 0.9, 1.5)]
    assert unreachable(supernet, rows, seed=0).keys() == {1, 3}
    assert reachable(supernet, [rows[0]], np.random.default_rng(0)).shape[0] == 1
