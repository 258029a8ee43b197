from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.errors import InfeasibleError
from tailorbird.family import AdditiveProblem
from tailorbird.search import exact
from tailorbird.search.annealing import anneal, greedy, score
from tailorbird.search.selection import overlaps
from tests.search.problems import intervals, small_problems

METRICS = ("latency_ms", "size_mb")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.85, 0.6, 0.4])
def test_within_one_percent_of_the_optimums_score(seed, share):
    problem = intervals(400, 150, seed=seed, metrics=METRICS)
    limits = {name: share * base for name, base in zip(METRICS, problem.base, strict=True)}
    best = exact.solve(problem, limits)[0]
    found = anneal(problem, limits, seed=0)
    assert found.feasible
    assert score(problem, found.chosen, limits) <= 1.01 * score(problem, best.chosen, limits)
    assert -1e-9 <= found.loss - best.loss <= 0.005
    clash = overlaps(problem)[np.ix_(found.chosen, found.chosen)]
    assert clash.sum() == len(found.chosen)


@settings(max_examples=60, deadline=None)
@given(small_problems(), st.floats(0.4, 1.1))
def test_small_problems_are_solved_and_never_better_than_exact(problem, share):
    limits = dict.fromkeys(problem.metrics, share * 12.0)
    try:
        best = exact.solve(problem, limits)[0]
    except InfeasibleError as error:
        with pytest.raises(InfeasibleError) as caught:
            anneal(problem, limits, seed=0, steps=50)
        assert caught.value.lowest == error.lowest
    else:
        found = anneal(problem, limits, seed=1, steps=1000)
        assert found.loss == pytest.approx(best.loss, abs=1e-9)


def test_same_seed_same_selection_and_the_seed_matters():
    problem = intervals(200, 80, seed=7)
    limits = {"latency_ms": 0.5 * float(problem.base[0])}
    runs = [anneal(problem, limits, seed=s, steps=60, restarts=1) for s in (0, 0, 1, 2, 3)]
    assert runs[0] == runs[1]
    assert len({run.chosen for run in runs}) > 1


def test_annealing_is_never_worse_than_its_start():
    problem = intervals(200, 80, seed=8)
    limits = {"latency_ms": 0.6 * float(problem.base[0])}
    start = greedy(problem, limits)
    assert start.feasible
    assert anneal(problem, limits, seed=0, steps=5, restarts=1).loss <= start.loss


def test_greedy_takes_the_step_that_lowers_the_score_most():
    problem = AdditiveProblem(
        loss=np.array([0.05, 0.01, 0.0]),
        saving=np.array([[5.0], [2.0], [1.0]]),
        base=np.array([10.0]),
        covers=np.array([[1, 1], [1, 0], [0, 1]], dtype=bool),
        metrics=("macs",),
    )
    assert greedy(problem, {"macs": 6.0}).chosen == (0,)
    assert greedy(problem, {"macs": 9.0}).chosen == (2,)
    assert not greedy(problem, {"macs": 1.0}).feasible
