from __future__ import annotations

import numpy as np
import pytest

from tailorbird.errors import InfeasibleError
from tailorbird.search import exact
from tailorbird.search.random import select
from tailorbird.search.selection import overlaps
from tests.search.problems import intervals


@pytest.mark.parametrize("tries", [0, 200])
def test_selections_are_within_the_limits_and_do_not_overlap(tries):
    problem = intervals(100, 50, seed=0, metrics=("latency_ms", "macs"))
    limits = {"latency_ms": 0.6 * problem.base[0], "macs": 0.6 * problem.base[1]}
    seen = set()
    for seed in range(10):
        found = select(problem, limits, seed=seed, tries=tries)
        assert found.feasible
        assert overlaps(problem)[np.ix_(found.chosen, found.chosen)].sum() == len(found.chosen)
        assert found == select(problem, limits, seed=seed, tries=tries)
        seen.add(found.chosen)
    assert len(seen) > 5


def test_a_limit_that_blind_luck_misses_is_still_met():
    problem = intervals(100, 50, seed=1)
    limits = {"latency_ms": exact.lowest(problem, "latency_ms") * 1.001}
    assert select(problem, limits, seed=0, tries=5).feasible


def test_out_of_reach():
    problem = intervals(30, 20, seed=1)
    with pytest.raises(InfeasibleError, match="lowest reachable"):
        select(problem, {"latency_ms": 1e-3}, seed=0, tries=3)
