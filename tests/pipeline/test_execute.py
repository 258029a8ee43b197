import errno
import json
import os
from dataclasses import dataclass, field, replace

import pytest

from tailorbird.demo import DigitsNet
from tailorbird.errors import ConfigError, MeasurementError, StoreError
from tailorbird.house import build, distil
from tailorbird.house.build import sample_house
from tailorbird.pipeline import ModelHouse, execute, finish, fitting
from tailorbird.report.record import RunReport
from tailorbird.runfolder import RunFolder
from tailorbird.targets import Target
from tailorbird.train.recipe import Recipe
from tests.fakes import FakeDevice
from tests.house.makers import images, net, same, weights

from .makers import DEVICE, LIMITS, figures, job, stub_exports, tensors


@pytest.fixture(autouse=True)
def stubbed(monkeypatch):
    stub_exports(monkeypatch.setattr)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to its end; tests may run it again but must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        stub_exports(patch.setattr)
        run = tmp_path_factory.mktemp("finished") / "run"
        return run, execute(job(run))


def by_name(report):
    return {target.name: target for target in report.targets}


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(distil, "_train", refuse)
    monkeypatch.setattr(fitting, "retrain_all", refuse)


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
    assert targets["edge"].replaced
    assert RunReport.load(run / "report.json") == report


def test_an_unreachable_limit_costs_the_others_nothing(finished):
    target = by_name(finished[1])["never"]
    assert not target.met
    assert target.onnx is None
    assert 0 < target.lowest["latency_ms"] <= by_name(finished[1])["edge"].measured["latency_ms"]
    assert "no candidate of this house meets latency_ms <= 1e-06; lowest measured" in target.reason


def test_a_teacher_within_the_limit_keeps_all_its_blocks(finished):
    target = by_name(finished[1])["free"]
    assert target.replaced == ()
    assert target.measured["macs"] == finished[1].teacher["fake"].macs


def test_running_again_trains_nothing_and_reports_the_same(finished, no_training):
    run, report = finished
    before = tensors(run), {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    again = execute(job(run))
    assert figures(again) == figures(report)
    assert tensors(run) == before[0]
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")} == before[1]


def test_the_same_job_elsewhere_gives_the_same(finished, tmp_path):
    assert figures(execute(job(tmp_path / "run"))) == figures(finished[1])
    assert tensors(tmp_path / "run") == tensors(finished[0])


def test_stage_by_stage_ends_the_same(finished, tmp_path):
    run = tmp_path / "run"
    house = execute(job(run), until="house")
    assert house.targets == ()
    found = execute(job(run), until="search")
    assert "asked to stop after 'search'" in by_name(found)["edge"].reason
    assert by_name(found)["edge"].measured["latency_ms"] > 0
    assert not (run / "retrain").exists()
    execute(job(run), until="retrain")
    assert not (run / "students/edge/model.onnx").exists()
    assert figures(execute(job(run))) == figures(finished[1])
    assert tensors(run) == tensors(finished[0])


def test_changed_targets_use_the_same_house(tmp_path, monkeypatch):
    run = tmp_path / "run"
    execute(job(run, limits={"edge": {"latency": "0.6x"}}))
    before = tensors(run)

    def refuse(*_, **__):
        raise AssertionError("the house was made again")

    monkeypatch.setattr(distil, "_train", refuse)
    report = execute(job(run, limits={"edge": {"latency": "0.9x"}, "new": {"params": "0.97x"}}))
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
    monkeypatch.setattr(fitting, "retrain_all", refuse)
    execute(job(run, limits={"edge": {"latency": "0.9x"}}))


def test_targets_that_choose_one_network_share_its_training_and_its_export(tmp_path, monkeypatch):
    trained, exported = [], []
    train, export = fitting.retrain_all, finish.export_onnx

    def training(assignments, *given, **options):
        trained.append([one.name for one in assignments])
        return train(assignments, *given, **options)

    def exporting(module, shape, path, **options):
        exported.append(path.parent.name)
        return export(module, shape, path, **options)

    monkeypatch.setattr(fitting, "retrain_all", training)
    monkeypatch.setattr(finish, "export_onnx", exporting)
    alike = {"edge": LIMITS["edge"], "twin": {**LIMITS["edge"], "params": "1x"}}
    found = by_name(execute(job(tmp_path / "run", limits=alike)))
    assert trained == [["edge, twin"]]
    assert [name for name in exported if name != "teacher"] == ["edge"]
    assert found["edge"].met and found["twin"].met
    assert found["edge"].accuracy == found["twin"].accuracy
    assert (tmp_path / "run" / found["twin"].onnx).exists()
    # A target that comes later and chooses it too finds it trained.
    execute(job(tmp_path / "run", limits={**alike, "late": {**LIMITS["edge"], "macs": "1x"}}))
    assert trained[1] == ["late"] and len(list((tmp_path / "run" / "retrain").iterdir())) == 1


def test_another_house_in_the_same_folder_is_refused(finished):
    run, report = finished
    other = job(run)
    with pytest.raises(StoreError) as caught:
        execute(replace(other, options=replace(other.options, recall=0.9), seed=3))
    text = str(caught.value)
    assert (
        "belongs to another job; what differs:\n  house.recall: 0.3 -> 0.9\n  seed: 0 -> 3\n"
        in text
    )
    with pytest.raises(StoreError, match=r"models\.teacher: '\w+' -> '\w+'"):
        execute(replace(other, teacher=net(5)))
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
        execute(job(run, teacher=teacher.eval()), until=until)
    for part in ("networks of the same weights compute something else now", "\n  teacher: '"):
        assert part in str(caught.value)
    assert "narrow: " not in str(caught.value)
    assert execute(job(run)) == report


def test_two_runs_on_one_folder(finished):
    run, _ = finished
    identity = json.loads((run / "identity.json").read_text())
    with (
        RunFolder(run).open(identity),
        pytest.raises(StoreError, match="is in use by another process"),
    ):
        execute(job(run))


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        execute(job(tmp_path / "file" / "run"))


def test_a_disk_that_fills_up_loses_nothing(finished, tmp_path, monkeypatch):
    run, fsync, left = tmp_path / "run", os.fsync, [0]

    def filling(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", filling)
    report, tries = None, 0
    for writes in (3, 20, 45, 20, 20, 20, 20, 1000):
        left[0] = writes
        tries += 1
        try:
            report = execute(job(run))
            break
        except StoreError as error:
            assert "No space left on device" in str(error)
    assert tries > 3
    assert report is not None
    assert figures(report) == figures(finished[1])
    assert tensors(run) == tensors(finished[0])


def test_a_device_that_fails_once_is_asked_again(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Shaky(FakeDevice):
        broken: tuple[bool, ...] = ()

        def measure(self, models):
            if self.broken and any("students" in path.parts for path in models):
                raise MeasurementError("the board does not answer")
            return super().measure(models)

    run, limits = tmp_path / "run", {"edge": {"latency": "0.6x"}}
    first = execute(job(run, limits=limits, device=Shaky(broken=(True,))))
    assert not first.met
    assert first.targets[0].reason == "the board does not answer"
    assert execute(job(run, limits=limits, device=Shaky())).met


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


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_device_that_fails_costs_its_own_targets_only(tmp_path, answers):
    board, run = Dying(key="board", answers=answers), tmp_path / "run"

    def wanted(device):
        bounds = {"latency": "0.6x", "params": "0.95x"}
        targets = [Target("dead", device, bounds), Target("dead2", device, {"latency_ms": 1.0})]
        return replace(job(run), targets=(targets[0], *job(run).targets[:1], targets[1]))

    report = execute(wanted(board))
    found = by_name(report)
    assert found["edge"].met and not report.met
    for name in ("dead", "dead2"):
        assert not found[name].met
        assert found[name].reason == "the board does not answer"
    known = {"params"} if answers == 0 else {"params", "latency_ms"}
    assert found["dead"].limits.keys() == known
    assert found["dead2"].limits == {"latency_ms": 1.0}
    assert len(board.asked) < 8, "a device that is dead was asked again for each target"
    assert "the board does not answer" in (run / "report.html").read_text()
    mended = by_name(execute(wanted(FakeDevice(key="board", base_ms=0.001))))
    assert mended["dead"].met and mended["dead2"].met


def test_a_student_that_comes_out_too_slow_is_searched_for_again(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Slower(FakeDevice):
        """Students take longer than the search was told."""

        factor: float = 1.25

        def measure(self, models):
            return [
                replace(found, median_ms=found.median_ms * self.factor)
                if "students" in path.parts
                else found
                for path, found in zip(models, super().measure(models), strict=True)
            ]

    def one(name, device):  # without donors: a whole donor would be the fastest from the start
        limits = {"edge": {"latency": "0.9x"}}
        return execute(job(tmp_path / name, limits=limits, device=device, donors={})).targets[0]

    plain, found = one("plain", DEVICE), one("a", Slower())
    assert found.met
    assert found.measured["latency_ms"] <= found.limits["latency_ms"]
    assert found.measured["macs"] < plain.measured["macs"]
    hopeless = one("b", Slower(factor=1000))
    assert not hopeless.met
    assert hopeless.reason


def test_a_deleted_file_is_delivered_again(tmp_path):
    run, limits = tmp_path / "run", {"edge": {"latency": "0.6x"}}
    first = execute(job(run, limits=limits))
    for name in fitting.DELIVERED:
        (run / "students/edge" / name).unlink()
        assert figures(execute(job(run, limits=limits))) == figures(first)
        assert (run / "students/edge" / name).exists()


def test_images_without_labels_give_agreement(tmp_path):
    report = execute(job(tmp_path / "run", data=images(labelled=False)))
    assert report.accuracy_kind == "agreement with the teacher"
    targets = by_name(report)
    assert targets["edge"].met
    assert targets["edge"].teacher_accuracy == 1.0
    assert targets["free"].accuracy_before == 1.0


def test_house_from_python_fits_and_leaves_the_teacher_alone(finished, tmp_path):
    model, asked = net(), job(tmp_path / "unused")
    before = weights(model)
    house = ModelHouse.build(
        model,
        donors=asked.donors,
        data=asked.data,
        run=tmp_path / "run",
        options=asked.options,
    )
    students = house.fit(asked.targets, recipe=asked.recipe)
    assert [s.result.met for s in students] == [t.met for t in finished[1].targets]
    for student, target in zip(students, finished[1].targets, strict=True):
        assert replace(student.result, minutes=0.0) == replace(target, minutes=0.0)
    assert students[2].module is None
    assert all((model.state_dict()[k] == v).all() for k, v in before.items())
    assert same(model, net())
    with pytest.raises(ConfigError, match="the name 'edge' occurs twice"):
        house.fit([asked.targets[0], asked.targets[0]])


def test_a_trained_teacher_is_trained_once(tmp_path, monkeypatch):
    run = tmp_path / "run"
    training = {"teacher": Recipe(epochs=1.0, batch_size=64, precision="float32")}
    first = execute(job(run, limits={"edge": {"latency": "0.6x"}}, training=training))
    module = __import__("tailorbird.pipeline.execute", fromlist=["fit"])

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "fit", refuse)
    again = execute(job(run, limits={"edge": {"latency": "0.6x"}}, training=training))
    assert figures(again) == figures(first)


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


def test_sampling_is_not_repeated(finished, monkeypatch):
    build = __import__("tailorbird.house.build", fromlist=["sample_house"])
    assert build.sample_house is sample_house
    monkeypatch.setattr(build, "sample_house", None)
    execute(job(finished[0]), until="house")


def test_minutes_count_over_all_processes(tmp_path, monkeypatch):
    spent = []
    train = build.distil
    monkeypatch.setattr(build, "distil", lambda *a, **k: spent.append(k["spent"]) or train(*a, **k))
    asked = job(tmp_path / "run")
    asked = replace(asked, options=replace(asked.options, epochs=0.1, minutes=10.0))
    execute(asked, until="house")
    folder = RunFolder(tmp_path / "run")
    folder.event("spent", stage="distil", seconds=100.0)
    before = folder.seconds()["distil"]
    (tmp_path / "run" / "finished.json").unlink()
    execute(asked, until="house")
    assert spent == [0.0, before]
    assert before > 100
