"""Sessions until a limit is clear: how often the word is wrong, and how many it takes."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tailorbird.device import Latency
from tailorbird.errors import MeasurementError
from tailorbird.fit.sessions import (
    MOST,
    Session,
    Trial,
    figures,
    hold,
    interval,
    mean,
    word,
)

TRIALS = 1000


def said(found, bound, looks=MOST):
    """The word on figures that come one by one, and how many it took."""
    for n in range(1, looks + 1):
        answer = word(found[:n], bound, looks)
        if answer != "undecided":
            break
    return answer, n


def words(true, bound, deviation, looks=MOST):
    rng = np.random.default_rng(0)
    drawn = true * np.exp(rng.normal(0, deviation, (TRIALS, looks)))
    return [said(list(row), bound, looks) for row in drawn]


@pytest.mark.parametrize("deviation", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("over", [1.0, 1.002, 1.02, 1.05])
def test_a_limit_that_is_not_kept_is_seldom_called_met(deviation, over):
    wrong = sum(answer == "met" for answer, _ in words(0.8 * over, 0.8, deviation))
    assert wrong <= 0.05 * TRIALS
    single = sum(answer == "met" for answer, _ in words(0.8 * over, 0.8, deviation, looks=1))
    assert single > wrong or over > 1 + 2 * deviation  # what one figure alone would have said


@pytest.mark.parametrize(("true", "expected"), [(0.82, "over"), (0.784, "met")])
def test_two_percent_off_the_limit_are_told_on_a_quiet_device(true, expected):
    found = words(true, 0.8, 0.007)
    assert sum(answer == expected for answer, _ in found) > 0.9 * TRIALS
    assert np.mean([n for _, n in found]) < 0.8 * MOST


def test_a_busy_device_leaves_it_undecided():
    found = words(0.83, 0.8, 0.05)
    assert sum(answer == "undecided" for answer, _ in found) > 0.8 * TRIALS


def test_far_from_the_limit_one_session_is_enough():
    assert {n for _, n in words(0.5, 0.8, 0.02)} == {1}
    assert word([0.8], 0.8, MOST) == "undecided"
    assert word([0.8, 0.8], 0.8, MOST) == "met"
    assert word([0.8], 0.8, 1) == "met" and word([0.81], 0.8, 1) == "over"


def test_intervals_are_of_factors_and_shrink():
    assert interval([2.0], MOST) is None
    low, high = interval([2.0, 2.2, 1.9], MOST)
    assert low * high == pytest.approx(mean([2.0, 2.2, 1.9]) ** 2)
    more = interval([2.0, 2.2, 1.9] * 3, MOST)
    assert low < more[0] < more[1] < high


def test_the_speed_of_a_session_cancels_out_of_shares():
    slow = [Session(own_ms=m, reference_ms=2 * m, spread_ms=0.0) for m in (1.0, 1.5, 3.0)]
    assert figures(slow, 10.0) == [5.0, 5.0, 5.0]
    assert figures(slow, None) == [1.0, 1.5, 3.0]


@dataclass
class Scripted:
    """Takes what the file's name says times what is next in the list; some files can't be run."""

    key: str = "scripted"
    factors: list[float] = field(default_factory=list)
    broken: tuple[str, ...] = ()
    calls: list[list[str]] = field(default_factory=list)

    def measure(self, models):
        names = [model.stem for model in models]
        self.calls.append(names)
        if bad := [name for name in names if name in self.broken]:
            raise MeasurementError(f"can't run {bad}")
        factor = self.factors[len(self.calls) - 1] if self.factors else 1.0
        return [
            Latency(median_ms=factor * float(name), spread_ms=0.1, runs=9, warmup=1)
            for name in names
        ]


def trial(name, enough):
    return Trial(Path(f"{name}.onnx"), lambda sessions: len(sessions) >= enough)


def test_students_that_are_clear_are_not_timed_again():
    device = Scripted()
    trials = {"a": trial("1", 1), "b": trial("2", 3), "c": trial("3", 99)}
    found = hold(trials, device, Path("4.onnx"), most=4, together=2)
    assert [len(found[name]) for name in "abc"] == [1, 3, 4]
    assert device.calls == [["4", "1", "2"], ["4", "3"], *[["4", "2", "3"]] * 2, ["4", "3"]]
    assert found["b"][0] == Session(own_ms=2.0, reference_ms=4.0, spread_ms=0.1)


def test_the_reference_is_not_timed_against_itself():
    device = Scripted(factors=[1.0, 1.2])
    found = hold({"a": trial("4", 2)}, device, Path("4.onnx"), most=2, together=8)
    assert device.calls == [["4"], ["4"]]
    assert figures(found["a"], 5.0) == [5.0, 5.0]


def test_a_file_that_cannot_be_run_costs_the_others_nothing():
    device = Scripted(broken=("2",))
    trials = {"a": trial("1", 2), "b": trial("2", 2), "c": trial("3", 2)}
    found = hold(trials, device, Path("4.onnx"), most=2, together=8)
    assert isinstance(found["b"], MeasurementError)
    assert len(found["a"]) == len(found["c"]) == 2
    assert device.calls[-1] == ["4", "1", "3"]


def test_a_dead_device_is_not_asked_for_each_file():
    device = Scripted(broken=("4",))
    trials = {name: trial(name, 2) for name in ("1", "2", "3")}
    found = hold(trials, device, Path("4.onnx"), most=2, together=8)
    assert all(isinstance(one, MeasurementError) for one in found.values())
    assert device.calls == [["4", "1", "2", "3"], ["4"]]
