import errno
import json
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pytest

from tailorbird.data.unfamiliar import comparing
from tailorbird.demo import DigitsNet
from tailorbird.device import Format
from tailorbird.errors import ConfigError, MeasurementError, StoreError
from tailorbird.fit.candidates import Network
from tailorbird.fit.judge import Judge
from tailorbird.fit.serve import better, no_worse, standing
from tailorbird.fit.ship import DELIVERED
from tailorbird.pipeline import ModelHouse
from tailorbird.progress import Silent
from tailorbird.report.record import RunReport
from tailorbird.runfolder import RunFolder
from tailorbird.search.additive import Annealing
from tailorbird.targets import Target
from tailorbird.task import CLASSIFICATION
from tailorbird.train.recipe import Recipe
from tests.fakes import FakeDevice, FakeExporter
from tests.house.makers import images, net, same, weights

from .makers import DEVICE, LIMITS, figures, job, run_job, small, tensors


@pytest.fixture(scope="module")
def finished(built_house, tmp_path_factory):
    """A run to its end; tests may run it again but must not change it."""
    run = shutil.copytree(built_house, tmp_path_factory.mktemp("finished") / "run")
    return run, run_job(job(run))


def by_name(report):
    return {target.name: target for target in report.targets}


def trained(run):
    """When each network in training, and each alternative, was last written."""
    patterns = ("house/trained/*", "house/sample.json", "retrain/*/*", "models/**/*")
    return {p: p.stat().st_mtime_ns for pattern in patterns for p in run.glob(pattern)}


def test_limits_are_kept_by_the_files_that_are_delivered(finished):
    run, report = finished
    targets = by_name(report)
    assert list(targets) == list(LIMITS)
    base = report.teacher[DEVICE.key].latency_ms
    for name in ("edge", "both", "free"):
        target = targets[name]
        assert target.met, target
        assert all(target.measured[metric] <= bound for metric, bound in target.limits.items())
        again = DEVICE.measure([run / target.onnx])[0].median_ms
        assert again == target.measured["latency_ms"]
        assert target.teacher_accuracy is not None
    assert targets["edge"].limits == {"latency_ms": pytest.approx(0.6 * base)}
    assert targets["both"].limits["params"] == pytest.approx(0.95 * report.teacher["fake"].params)
    assert targets["edge"].as_is == "narrow"
    assert RunReport.load(run / "report.json") == report


def test_an_unreachable_limit_costs_the_others_nothing(finished):
    target = by_name(finished[1])["never"]
    assert not target.met
    assert target.onnx is None
    assert 0 < target.lowest["latency_ms"] <= by_name(finished[1])["edge"].measured["latency_ms"]
    assert "no candidate of this house meets latency_ms <= 1e-06; lowest measured" in target.reason


def test_a_teacher_within_the_limit_is_chosen_and_a_better_student_of_another_taken(finished):
    run, report = finished
    choice = json.loads((run / "students/free/choice.json").read_text())["choice"]
    assert not any(choice["key"])  # no block is replaced
    assert choice["figures"]["macs"] == report.teacher["fake"].macs
    free, others = by_name(report)["free"], [t for t in report.targets if t.onnx]
    assert not any(better(standing(target), free) for target in others)
    if free.found_for is not None:
        source = by_name(report)[free.found_for]
        assert free.replaced == source.replaced
        assert free.measured["latency_ms"] == source.measured["latency_ms"]


def test_no_student_is_shipped_where_a_donor_as_it_is_would_do(finished):
    run, report = finished
    asked, point = job(run), report.donors[0]
    donor = Network(asked.donors["narrow"], (1, 8, 8))
    pairs = comparing(asked.data, CLASSIFICATION, lambda _: None)
    score = Judge(replace(asked.data, test=None), donor).score(donor, split=pairs)
    kept = [t for t in report.targets if t.met and point.latency_ms <= t.measured["latency_ms"]]
    assert kept  # the donor is the fastest of all
    for target in kept:
        assert target.as_is == "narrow" or not no_worse(score, target), target


def test_what_another_strategy_found_is_no_answer(with_house):
    run, limits = with_house(), {"edge": {"latency": "0.6x"}}
    run_job(job(run, limits=limits))
    before = json.loads((run / "students/edge/result.json").read_text())["request"]
    run_job(job(run, limits=limits, strategy=Annealing(steps=100, restarts=1)))
    assert json.loads((run / "students/edge/result.json").read_text())["request"] != before


def test_running_again_trains_nothing_and_reports_the_same(finished):
    run, report = finished
    before = tensors(run), trained(run)
    again = run_job(job(run))
    assert figures(again) == figures(report)
    assert tensors(run) == before[0]
    assert trained(run) == before[1]


def test_the_same_job_elsewhere_gives_the_same(finished, tmp_path):
    assert figures(run_job(job(tmp_path / "run"))) == figures(finished[1])
    assert tensors(tmp_path / "run") == tensors(finished[0])


def test_stage_by_stage_ends_the_same(finished, with_house):
    run = with_house()
    house = run_job(job(run), until="house")
    assert house.targets == ()
    found = run_job(job(run), until="search")
    assert "asked to stop after 'search'" in by_name(found)["edge"].reason
    assert by_name(found)["edge"].measured["latency_ms"] > 0
    assert not (run / "retrain").exists()
    run_job(job(run), until="retrain")
    assert not (run / "students/edge/model.onnx").exists()
    assert figures(run_job(job(run))) == figures(finished[1])
    assert tensors(run) == tensors(finished[0])


def test_changed_targets_use_the_same_house(with_house):
    run = with_house()
    run_job(job(run, limits={"edge": {"latency": "0.6x"}}))
    before = tensors(run)
    report = run_job(job(run, limits={"edge": {"latency": "0.9x"}, "new": {"params": "0.97x"}}))
    assert by_name(report)["edge"].met
    assert (
        by_name(report)["edge"].limits["latency_ms"]
        > 0.8 * by_name(report)["edge"].measured["teacher_latency_ms"]
    )
    assert by_name(report)["new"].met
    after = tensors(run)
    assert {k: v for k, v in after.items() if "trained" in k} == {
        k: v for k, v in before.items() if "trained" in k
    }
    before = trained(run)
    run_job(job(run, limits={"edge": {"latency": "0.9x"}}))
    assert trained(run) == before


def test_targets_that_choose_one_network_share_its_training_and_its_export(with_house):
    run, exporter = with_house(), FakeExporter()
    alike = {"edge": LIMITS["edge"], "twin": {**LIMITS["edge"], "params": "1x"}}
    unseen = replace(images(), holdout=images().validation)
    found = by_name(run_job(job(run, limits=alike, data=unseen), exporter=exporter))
    exported = [path.parent.name for path in exporter.exported]
    assert [name for name in exported if name != "teacher"] == ["edge"]
    assert found["edge"].met and found["twin"].met
    assert found["edge"].replaced and found["twin"].replaced
    assert found["edge"].accuracy == found["twin"].accuracy
    assert (run / found["twin"].onnx).exists()
    # A target that comes later and chooses it too finds it trained.
    [once], before = (run / "retrain").iterdir(), trained(run)
    late = {**alike, "late": {**LIMITS["edge"], "macs": "1x"}}
    assert by_name(run_job(job(run, limits=late, data=unseen)))["late"].met
    assert list((run / "retrain").iterdir()) == [once] and trained(run) == before


def test_another_house_in_the_same_folder_is_refused(finished):
    run, report = finished
    other = job(run)
    with pytest.raises(StoreError) as caught:
        run_job(replace(other, options=replace(other.options, recall=0.9), seed=3))
    text = str(caught.value)
    assert (
        "belongs to another job; what differs:\n  house.recall: 0.3 -> 0.9\n  seed: 0 -> 3\n"
        in text
    )
    with pytest.raises(StoreError, match="teacher: its weights are others"):
        run_job(replace(other, teacher=net(5)))
    assert RunReport.load(run / "report.json").targets == report.targets


class Doubled(DigitsNet):
    """Another network with the same weights."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("until", ["house", "export"])
def test_equal_weights_in_another_network_are_refused(finished, until):
    run, report = finished
    teacher = Doubled(width=8, depth=1, classes=10)
    teacher.load_state_dict(net().state_dict())
    with pytest.raises(StoreError) as caught:
        run_job(job(run, teacher=teacher.eval()), until=until)
    for part in ("networks of the same weights compute something else now", "\n  teacher: '"):
        assert part in str(caught.value)
    assert "narrow: " not in str(caught.value)
    assert run_job(job(run)) == report


def test_two_runs_on_one_folder(finished):
    run, _ = finished
    identity = json.loads((run / "identity.json").read_text())
    with (
        RunFolder(run).open(identity),
        pytest.raises(StoreError, match="is in use by another process"),
    ):
        run_job(job(run))


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        run_job(job(tmp_path / "file" / "run"))


def test_a_disk_that_fills_up_loses_nothing(finished, tmp_path, monkeypatch):
    run, fsync, left = tmp_path / "run", os.fsync, [0]

    def filling(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", filling)
    report, tries = None, 0
    for writes in (3, 40, 65, 20, 1000):
        left[0] = writes
        tries += 1
        try:
            report = run_job(job(run))
            break
        except StoreError as error:
            assert "No space left on device" in str(error)
    assert tries > 2
    assert report is not None
    assert figures(report) == figures(finished[1])
    assert tensors(run) == tensors(finished[0])


def test_a_device_that_fails_once_is_asked_again(with_house):
    @dataclass(frozen=True, kw_only=True)
    class Shaky(FakeDevice):
        broken: tuple[bool, ...] = ()

        def measure(self, models):
            if self.broken and any("students" in path.parts for path in models):
                raise MeasurementError("the board does not answer")
            return super().measure(models)

    run, limits = with_house(), {"edge": {"latency": "0.6x"}}
    first = run_job(job(run, limits=limits, device=Shaky(broken=(True,))))
    assert not first.met
    assert first.targets[0].reason == "the board does not answer"
    assert run_job(job(run, limits=limits, device=Shaky())).met


@dataclass(frozen=True, kw_only=True)
class Dying(FakeDevice):
    """Answers ``answers`` times; what it was asked is shared by its copies."""

    answers: int
    asked: list = field(default_factory=list, compare=False)

    def measure(self, models):
        self.asked.append(len(models))
        if len(self.asked) > self.answers:
            raise MeasurementError("the board does not answer")
        return super().measure(models)


@pytest.mark.parametrize("answers", [0, 1, 2, 3])
def test_a_device_that_fails_costs_its_own_targets_only(with_house, answers):
    board, run = Dying(key="board", answers=answers), with_house()

    def wanted(device):
        bounds = {"latency": "0.6x", "params": "0.95x"}
        targets = [Target("dead", device, bounds), Target("dead2", device, {"latency_ms": 1.0})]
        return replace(job(run), targets=(targets[0], *job(run).targets[:1], targets[1]))

    report = run_job(wanted(board))
    found = by_name(report)
    assert found["edge"].met and not report.met
    for name in ("dead", "dead2"):
        assert not found[name].met
        assert found[name].reason == "the board does not answer"
    known = {"params"} if answers < 2 else {"params", "latency_ms"}
    assert found["dead"].limits.keys() == known
    assert found["dead2"].limits == {"latency_ms": 1.0}
    assert len(board.asked) < 8, "a device that is dead was asked again for each target"
    assert "the board does not answer" in (run / "report.json").read_text()
    mended = by_name(run_job(wanted(FakeDevice(key="board", base_ms=0.001))))
    assert mended["dead"].met and mended["dead2"].met


def test_a_student_that_comes_out_too_slow_is_searched_for_again(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Slower(FakeDevice):
        """Students take longer than the search was told."""

        factor: float

        def measure(self, models):
            return [
                replace(found, median_ms=found.median_ms * self.factor)
                if "students" in path.parts
                else found
                for path, found in zip(models, super().measure(models), strict=True)
            ]

    # Without donors and depth: a whole donor, or a branch less, would be fast from the start.
    def asked(run, **how):
        made = job(run, limits={"edge": {"latency": "0.9x"}}, donors={}, **how)
        return replace(made, options=replace(made.options, depth=False))

    run_job(asked(tmp_path / "built"), until="house")

    def one(name, device):
        run = shutil.copytree(tmp_path / "built", tmp_path / name)
        return run_job(asked(run, device=device)).targets[0]

    plain = one("plain", DEVICE)
    room = plain.limits["latency_ms"] / plain.measured["latency_ms"]
    found = one("a", Slower(factor=1.1 * room))
    assert found.met
    assert found.measured["latency_ms"] <= found.limits["latency_ms"]
    assert found.measured["macs"] < plain.measured["macs"]
    hopeless = one("b", Slower(factor=1000))
    assert not hopeless.met
    assert hopeless.reason


def test_deleted_files_are_delivered_again(with_house):
    run, limits = with_house(), {"edge": {"latency": "0.6x"}}
    first = run_job(job(run, limits=limits))
    delivered = [run / "students/edge" / name for name in ("model.onnx", *DELIVERED)]
    for path in delivered:
        path.unlink()
    assert figures(run_job(job(run, limits=limits))) == figures(first)
    assert all(path.exists() for path in delivered)


def test_images_without_labels_give_agreement(tmp_path):
    limits = {name: LIMITS[name] for name in ("edge", "free")}
    report = run_job(job(tmp_path / "run", limits=limits, data=images(labelled=False)))
    assert report.accuracy_kind == "agreement with the teacher"
    targets = by_name(report)
    assert targets["edge"].met
    assert targets["edge"].teacher_accuracy == 1.0
    assert targets["free"].accuracy_before is None, "the teacher is not retrained"


def test_house_from_python_fits_and_leaves_the_teacher_alone(finished, tmp_path):
    model, asked = net(), job(tmp_path / "unused")
    before = weights(model)
    house = ModelHouse.build(
        model,
        donors=asked.donors,
        data=asked.data,
        targets=asked.targets,
        run=tmp_path / "run",
        options=asked.options,
        exporter=FakeExporter(),
    )
    students = house.fit(asked.targets, recipe=asked.recipe, contenders=1)
    assert [s.result.met for s in students] == [t.met for t in finished[1].targets]
    for student, target in zip(students, finished[1].targets, strict=True):
        assert replace(student.result, minutes=0.0) == replace(target, minutes=0.0)
    assert students[2].module is None
    assert all((model.state_dict()[k] == v).all() for k, v in before.items())
    assert same(model, net())
    with pytest.raises(ConfigError, match="the name 'edge' occurs twice"):
        house.fit([asked.targets[0], asked.targets[0]])


def test_a_trained_teacher_is_trained_once(tmp_path):
    run = tmp_path / "run"
    training = {"teacher": Recipe.named("standard", epochs=1.0, batch_size=64, precision="float32")}
    asked = job(run, limits={"edge": {"macs": "1x"}}, training=training)
    asked = replace(asked, options=small(asked.options))
    first, before = run_job(asked), trained(run)
    assert any("models" in path.parts for path in before)
    assert figures(run_job(asked)) == figures(first)
    assert trained(run) == before


def test_a_holdout_scores_anew_and_keeps_what_is_trained(with_house):
    run = with_house()
    before, scores = trained(run), (run / "house" / "scores.json").read_text()
    told = run_job(job(run), until="house").decided
    assert told.startswith("64 validation images, two laid over each other each time")
    assert (run / "house" / "scores.json").read_text() == scores
    apart = replace(images(), holdout=images().test)
    told = run_job(job(run, data=apart), until="house").decided
    assert told == "64 holdout images, which no network was trained on"
    assert trained(run) == before
    assert (run / "house" / "scores.json").read_text() != scores


def test_a_job_that_trains_all_its_networks_spares_the_validation_images(tmp_path):
    recipe = Recipe.named("standard", epochs=1.0)
    for training in ({"teacher": recipe}, {"teacher": recipe, "narrow": recipe}):
        data = job(tmp_path, training=training).data
        assert (data.holdout is data.validation) == (len(training) == 2)


def test_a_job_lists_all_its_faults(tmp_path):
    with pytest.raises(ConfigError) as caught:
        job(tmp_path, limits={}, rounds=0, candidates=0, seed=-1, training={"x": Recipe()})
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "targets",
        "rounds",
        "candidates",
        "seed",
        "training",
    ]


class Told(Silent):
    """Notes of all tasks; opening the task called ``until`` ends the process."""

    def __init__(self, until=None):
        self.until, self.notes = until, []

    def task(self, name, total):
        if name == self.until:
            raise Killed
        return nullcontext(self)

    def advance(self, steps=1, note=""):
        self.notes.append(note)


class Killed(BaseException):
    """Stands for the process's end."""


def test_minutes_count_over_all_processes(tmp_path):
    asked = job(tmp_path / "run")
    asked = replace(asked, options=replace(small(asked.options), epochs=4000.0, minutes=2.0))
    with pytest.raises(Killed):
        run_job(asked, until="house", progress=Told(until="distil"))
    RunFolder(tmp_path / "run").event("spent", stage="distil", seconds=1000.0)
    told = Told()
    run_job(asked, until="house", progress=told)
    assert "time is spent" in told.notes


def test_a_device_of_other_files_than_are_made_is_refused(tmp_path):
    class Other(FakeDevice):
        format = Format("engine", "model.engine")

    with pytest.raises(ConfigError, match=r"none .* answers: device fake: it runs engine files"):
        run_job(job(tmp_path / "run", limits={"edge": {"params": "0.9x"}}, device=Other()))


class Odd(FakeDevice):
    """Runs files, and answers something else than arrays."""

    def __init__(self, answer):
        super().__init__(key="odd", base_ms=0.001)
        object.__setattr__(self, "answer", answer)

    def run(self, artifact, images):
        return self.answer(images)


class Comparing(FakeExporter):
    """Asks whoever runs files."""

    def verify(self, module, path, images, run=None):
        if run is not None:
            run(path, images.numpy())
        return super().verify(module, path, images)


def test_a_run_that_is_wrong_costs_its_own_targets_only(with_house):
    asked = job(with_house())
    odd = Target("odd", Odd(lambda images: [None] * len(images)), {"latency": "0.6x"})
    asked = replace(asked, targets=(odd, *asked.targets[:1]))
    found = by_name(run_job(asked, exporter=Comparing()))
    assert found["edge"].met and not found["odd"].met
    assert re.fullmatch(
        r"device odd: run of small\.onnx on 1 images gave \[None\], expected a numpy array .*",
        found["odd"].reason,
    )


def test_devices_are_tried_before_anything_is_trained(tmp_path):
    asked = job(tmp_path / "run", limits={"edge": {"latency": "0.6x"}}, device=Odd(iter))
    with pytest.raises(ConfigError, match="none of the targets' devices answers: device odd: run"):
        run_job(replace(asked, training={"teacher": asked.recipe}), exporter=Comparing())
    assert not (tmp_path / "run" / "models").exists()
