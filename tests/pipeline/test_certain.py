"""Limits that are near, and devices that are busy: met, not met, or undecided; and who shares."""

from dataclasses import dataclass, field, replace

import pytest

from tailorbird.device import Latency
from tailorbird.fit.candidates import Network
from tailorbird.fit.judge import Judge
from tailorbird.fit.serve import better
from tailorbird.report.record import RunReport
from tailorbird.report.verdict import verdict
from tailorbird.task import Score
from tests.fakes import FakeDevice

from .makers import DEVICE, job, run_job
from .test_execute import Told, by_name

EDGE = {"edge": {"latency": "0.6x"}}


@dataclass(frozen=True, kw_only=True)
class Busy(FakeDevice):
    """Students take ``near`` of the reference's time, or their own, and more or less by turns."""

    base_ms: float = 0.001
    near: float | None = None
    swing: float = 0.1
    speeds: tuple[float, ...] = (1.0,)
    asked: list = field(default_factory=list, compare=False)

    def measure(self, models):
        found = super().measure(models)
        if not any("students" in path.parts for path in models):
            return found
        self.asked.append([path.parent.name for path in models])
        turn, speed = len(self.asked), self.speeds[len(self.asked) % len(self.speeds)]
        factor = 1 + self.swing * (-1) ** turn
        whole = found[0].median_ms
        return [found[0] if speed == 1 else self._at(whole * speed)] + [
            self._at(speed * factor * (one.median_ms if self.near is None else whole * self.near))
            for one in found[1:]
        ]

    def _at(self, ms):
        return Latency(median_ms=ms, spread_ms=0.0, runs=9, warmup=1)


def test_what_is_too_near_to_tell_is_undecided_and_tried_again_by_the_next_run(with_house):
    run, busy = with_house(), Busy(near=0.6)
    first = run_job(job(run, limits=EDGE, device=busy, rounds=1))
    found = first.targets[0]
    assert found.undecided and not found.met and not first.met
    assert len(found.certainty.sessions) == 8
    assert found.certainty.low_ms < found.limits["latency_ms"] < found.certainty.high_ms
    assert abs(found.certainty.margin) < 0.02
    assert found.reason.startswith("undecided: ") and "8 sessions tell" in found.reason
    assert (run / found.onnx).exists() and found.onnx in verdict(first, found)
    assert RunReport.load(run / "report.json").targets[0] == found
    quiet = run_job(job(run, limits=EDGE, device=DEVICE, rounds=1))
    assert quiet.met and not quiet.targets[0].undecided


def test_an_undecided_choice_is_searched_for_again_and_kept_where_nothing_is_found(with_house):
    told, run = Told(), with_house()
    found = run_job(job(run, limits=EDGE, device=Busy(swing=0.08), rounds=3)).targets[0]
    assert found.met
    assert found.certainty.high_ms is None or (
        found.certainty.high_ms <= found.limits["latency_ms"]
    )
    always = job(with_house("other"), limits=EDGE, device=Busy(near=0.6), rounds=3)
    kept = run_job(always, progress=told).targets[0]
    assert kept.undecided and kept.onnx is not None


@pytest.mark.parametrize("sessions", [1, 4])
def test_sessions_are_as_many_as_asked_for(with_house, sessions):
    asked = job(with_house(), limits=EDGE, device=Busy(near=0.6), rounds=1, sessions=sessions)
    assert len(run_job(asked).targets[0].certainty.sessions) == sessions


def test_shares_are_of_one_figure_whatever_the_speed_of_a_session(with_house):
    limits = {"a": {"latency": "0.58x"}, "b": {"latency": "0.7x"}, "c": {"latency_ms": 1.0}}
    device = Busy(swing=0.0, speeds=(1.0, 1.3, 0.8))
    report = run_job(job(with_house(), limits=limits, device=device))
    found = by_name(report)
    assert report.met
    base = report.teacher[device.key].latency_ms
    assert found["a"].limits["latency_ms"] == pytest.approx(0.58 * base, rel=1e-12)
    assert found["b"].limits["latency_ms"] == pytest.approx(0.7 * base, rel=1e-12)
    assert {found[n].measured["teacher_latency_ms"] for n in "ab"} == {base}


def test_no_looser_target_is_worse_off_than_a_tighter_one(with_house):
    run = with_house()
    limits = {"loose": {"latency": "0.9x"}, "tight": {"latency": "0.5x"}}
    found = by_name(run_job(job(run, limits=limits)))
    tight = Score(found["tight"].validation, found["tight"].validation_loss)
    assert not better(tight, found["loose"])


def test_no_target_is_worse_off_than_with_a_donor_as_it_is(with_house):
    asked = job(with_house(), limits={"any": {"macs": "1x"}, "never": {"latency_ms": 1e-6}})
    found = by_name(run_job(asked))
    judge = Judge(replace(asked.data, test=None), Network(asked.teacher, asked.data.input_shape))
    donor = judge.score(Network(asked.donors["narrow"], asked.data.input_shape))
    assert not better(donor, found["any"])
    assert not found["never"].met and found["never"].onnx is None


def test_students_of_targets_that_are_gone_are_said(with_house):
    run, told = with_house(), Notes()
    run_job(job(run, limits=EDGE))
    report = run_job(job(run, limits={"other": {"latency": "0.7x"}}), progress=told)
    assert report.met
    assert "students/edge: its target is not asked for now; it is kept" in told.said
    assert (run / "students/edge/model.onnx").exists()


class Notes(Told):
    """Notes what is said."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, message):
        self.said.append(message)
