from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tailorbird.errors import ConfigError, InfeasibleError
from tailorbird.family import AdditiveProblem
from tailorbird.search.exact import cover_rows, lowest, solve
from tailorbird.search.selection import make_selection
from tests.search.problems import intervals, small_problems


def every_selection(problem):
    """All sets of alternatives without an overlap, priced one by one: the slow oracle."""
    n = len(problem.loss)
    for chosen in chain.from_iterable(combinations(range(n), size) for size in range(n + 1)):
        if problem.covers[list(chosen)].sum(axis=0).max(initial=0) <= 1:
            yield chosen


def oracle(problem, limits):
    """Losses of all selections within the limits, least first."""
    selections = [make_selection(problem, chosen, limits) for chosen in every_selection(problem)]
    return sorted((s for s in selections if s.feasible), key=lambda s: s.loss)


@settings(max_examples=150, deadline=None)
@given(small_problems(), st.floats(0.2, 1.1), st.floats(0.2, 1.1))
def test_optimum_and_runners_up_equal_brute_force(problem, first, second):
    shares = (first, second)
    limits = {
        name: share * base
        for name, share, base in zip(problem.metrics, shares, problem.base, strict=False)
    }
    expected = oracle(problem, limits)
    if not expected:
        with pytest.raises(InfeasibleError) as caught:
            solve(problem, limits)
        for metric, low in caught.value.lowest.items():
            column = problem.metrics.index(metric)
            reachable = min(problem.cost(chosen)[column] for chosen in every_selection(problem))
            assert low == pytest.approx(reachable)
        return
    found = solve(problem, limits, count=4)
    assert [s.loss for s in found] == pytest.approx([s.loss for s in expected[:4]], abs=1e-9)
    assert len({s.chosen for s in found}) == len(found) == min(4, len(expected))
    for selection in found:
        assert selection.feasible
        assert problem.covers[list(selection.chosen)].sum(axis=0).max(initial=0) <= 1
    rest = solve(problem, limits, exclude=[found[0].chosen]) if len(expected) > 1 else []
    assert all(s.loss == pytest.approx(expected[1].loss, abs=1e-9) for s in rest)


@settings(max_examples=50, deadline=None)
@example(intervals(0, 5, seed=0), 0.9999999999999999)  # met but for rounding
@example(intervals(0, 5, seed=0), 0.9999999)  # missed, by less than HiGHS would notice
@given(small_problems(), st.floats(0.3, 1.0))
def test_lowest_equals_brute_force(problem, share):
    metric, limits = problem.metrics[0], {problem.metrics[-1]: share * problem.base[-1]}
    expected = [s.cost[metric] for s in oracle(problem, limits)]
    if expected:
        assert lowest(problem, metric, limits=limits) == pytest.approx(min(expected))
    else:
        with pytest.raises(InfeasibleError):
            lowest(problem, metric, limits=limits)


def test_the_lowest_reachable_figure_is_itself_a_limit_that_can_be_met():
    problem = intervals(60, 30, seed=3)
    low = lowest(problem, "latency_ms")
    assert solve(problem, {"latency_ms": low})[0].cost["latency_ms"] == pytest.approx(low)
    with pytest.raises(InfeasibleError, match="lowest reachable is latency_ms"):
        solve(problem, {"latency_ms": low * 0.999})


def test_near_misses_within_the_solvers_tolerance_are_not_returned():
    count = 30
    limit = 5.0
    problem = AdditiveProblem(
        loss=np.append(np.linspace(0.01, 0.02, count), 0.5),
        saving=np.append(np.full(count, 5.0 - 1e-7), 6.0)[:, None],
        base=np.array([10.0]),
        covers=np.ones((count + 1, 1), dtype=bool),
        metrics=("macs",),
    )
    best = solve(problem, {"macs": limit})[0]
    assert best.chosen == (count,)
    assert best.cost["macs"] <= limit


def test_a_mild_limit_keeps_the_teacher():
    problem = intervals(40, 20, seed=0, harmful=True)
    assert solve(problem, {"latency_ms": float(problem.base[0])})[0].chosen == ()


def test_limits_that_only_fail_together_say_so():
    problem = AdditiveProblem(
        loss=np.array([0.1, 0.1]),
        saving=np.array([[5.0, 0.0], [0.0, 5.0]]),
        base=np.array([10.0, 10.0]),
        covers=np.ones((2, 1), dtype=bool),
        metrics=("macs", "params"),
    )
    with pytest.raises(InfeasibleError, match="together, though each limit alone") as caught:
        solve(problem, {"macs": 6.0, "params": 6.0})
    assert caught.value.lowest == {"macs": 5.0, "params": 5.0}
    assert caught.value.limits == {"macs": 6.0, "params": 6.0}


def test_an_exhausted_exclusion_says_so():
    problem = intervals(3, 4, seed=1)
    limits = {"latency_ms": 100 * float(problem.base[0])}
    everything = solve(problem, limits, count=50)
    with pytest.raises(InfeasibleError, match=f"besides the {len(everything)} excluded"):
        solve(problem, limits, exclude=[s.chosen for s in everything])


def test_all_faulty_limits_are_listed_at_once():
    problem = intervals(5, 5, seed=0)
    with pytest.raises(ConfigError) as caught:
        solve(problem, {"speed": 1.0, "latency_ms": -1.0})
    assert len(caught.value.problems) == 2
    assert "no figures for metric 'speed'" in str(caught.value)


def test_no_alternatives_at_all():
    problem = intervals(0, 5, seed=0)
    assert solve(problem, {"latency_ms": float(problem.base[0])})[0].chosen == ()
    with pytest.raises(InfeasibleError):
        solve(problem, {"latency_ms": 0.5 * float(problem.base[0])})


def test_cover_rows_keep_every_pairwise_overlap():
    covers = intervals(40, 25, seed=2).covers
    rows = cover_rows(covers)
    assert len(rows) < covers.shape[1]
    clash = (covers.astype(int) @ covers.T.astype(int)) > 0
    kept = (rows.T.astype(int) @ rows.astype(int)) > 0
    off_diagonal = ~np.eye(len(covers), dtype=bool)
    assert (clash == kept)[off_diagonal].all()
