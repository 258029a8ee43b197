"""A house whose students are the best of several that were trained in rounds."""

import json

import pytest

from tailorbird.export.bundle import load_student
from tailorbird.house.candidates import HouseCandidates
from tailorbird.pipeline import ModelHouse
from tailorbird.report.page import page
from tailorbird.report.record import RunReport
from tests.fakes import FakeExporter, Told

from .makers import figures, job, run_job, tensors

LIMITS = {"edge": {"latency": "0.6x"}, "both": {"latency": "0.8x", "params": "0.95x"}}


class Killed(KeyboardInterrupt):
    """Stands for the process's end."""


class Dying(Told):
    """Ends the process when so many targets have been decided in a round."""

    def __init__(self, decisions):
        super().__init__()
        self.left = decisions

    def say(self, line):
        super().say(line)
        self.left -= "going on with" in line
        if self.left == 0:
            raise Killed


def assert_trained_as_if_alone(folder, result):
    """The student is what its candidate becomes where nobody trains beside it, without a pause."""
    asked = job(folder)
    house = ModelHouse.build(
        asked.teacher,
        donors=asked.donors,
        data=asked.data,
        run=folder,
        options=asked.options,
        exporter=FakeExporter(),
    )
    candidates = HouseCandidates(
        house.house,
        asked.data,
        folder=folder / "elsewhere",
        recipe=asked.recipe,
        seed=asked.seed,
        progress=Told(),
    )
    [name] = [one.name for one in result.rounds[-1].contenders if one.stayed]
    key = candidates.named(name)
    [alone] = candidates.train({key: "alone"}).values()
    stored = load_student(folder / "students" / result.name).module.state_dict()
    assert stored.keys() == alone.module.state_dict().keys()
    assert all(value.equal(stored[k]) for k, value in alone.module.state_dict().items())


def test_a_house_trains_contenders_in_rounds_and_a_kill_between_them_changes_nothing(with_house):
    whole, cut, told = with_house("whole"), with_house("cut"), Told()
    report = run_job(job(whole, limits=LIMITS, contenders=3), progress=told)
    assert "retraining 6 candidates of 2 targets in 3 rounds" in told
    for target in report.targets:
        assert target.met
        first, second = target.rounds
        assert [len(one.contenders) for one in (first, second)] == [3, 2]
        assert len({one.name for one in first.contenders}) == 3
        assert all(one.latency_ms <= target.limits["latency_ms"] for one in first.contenders)
    with pytest.raises(Killed):
        run_job(job(cut, limits=LIMITS, contenders=3), progress=Dying(3))
    again = run_job(job(cut, limits=LIMITS, contenders=3))
    assert figures(again)[3] == figures(report)[3]
    assert tensors(cut) == tensors(whole)
    entries = [json.loads((one / "fit" / "trained.json").read_text()) for one in (whole, cut)]
    assert entries[0] == entries[1]
    assert_trained_as_if_alone(whole, report.targets[0])
    shown = page(report)
    assert "edge: 2 rounds before the last" in shown
    assert RunReport.from_json(report.to_json()).targets == report.targets
    assert not list((whole / "fit").glob("search.json")), "it came to its end"
