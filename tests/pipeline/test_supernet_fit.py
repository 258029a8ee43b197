"""From a trained supernet to students: on tiny spaces, with devices that cost no time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import typer
from typer.testing import CliRunner

from tailorbird.cli import app, house
from tailorbird.config.targets import made_names
from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.estimate.learned_latency import LatencyModel, LayerFeatures
from tailorbird.export.bundle import load_student
from tailorbird.export.exporters import OnnxExporter, Written
from tailorbird.export.onnx import export_many
from tailorbird.files import digest_of, read_json, write_json
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.pipeline.reporting import write_report
from tailorbird.pipeline.supernet_fit import FitOptions, fit_run
from tailorbird.pipeline.supernet_run import SupernetRun, evaluate_subnets
from tailorbird.progress import Silent
from tailorbird.report.record import RunReport, TargetResult
from tailorbird.search.baselines import RandomSearch
from tailorbird.supernet.counts import macs
from tailorbird.supernet.store import save_supernet
from tailorbird.targets import Limit, Place, Target
from tests.fakes import FakeDevice, FakeExporter, write_nothing
from tests.supernet.tiny import stripes, tiny_supernet

OPTIONS = FitOptions(subnets=14, candidates=3, rounds=2, checks=6)


@dataclass(frozen=True, kw_only=True)
class Run(SupernetRun):
    """A supernet in a run folder, and how many of its subnets were evaluated at a time."""

    evaluated: list[int] = field(default_factory=list)

    def evaluate(self, genomes):
        self.evaluated.append(len(genomes))
        # Larger networks are better in life; as if these had been trained.
        return 0.01 * evaluate_subnets(self, genomes) + 0.02 * genomes.sum(axis=1)


def run_in(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    net = tiny_supernet(tmp_path, resolutions=(8,)).eval()
    path = tmp_path / "run"
    save_supernet(net, path / "supernet")
    write_json(path / "identity.json", {"name": "tiny"})
    weights = digest_of(path / "supernet" / "weights.safetensors")
    return Run(path=path, supernet=net, data=stripes(), seed=0, weights=weights)


def fleet(**devices):
    """Devices by name: (device or table, limits)."""
    places, limits_ = [], []
    for name, (device, limits) in devices.items():
        own = isinstance(device, Path)
        table, measured = (device, None) if own else (None, device)
        place = Place(name=name, table=table, device=measured)
        for bounds in limits:
            given = bounds if isinstance(bounds, dict) else {"latency_ms": bounds}
            places.append(place)
            limits_.append(tuple(Limit.parse(m, v) for m, v in given.items()))
    names = made_names([place.name for place in places], limits_)
    return [Target(*one) for one in zip(names, places, limits_, strict=True)]


class Said(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def fit(run, wanted, options=OPTIONS, progress=None, exporter=None, write=write_nothing):
    students = fit_run(
        run,
        wanted,
        options=options,
        evaluate=run.evaluate,
        exporter=exporter or Quick(),
        write=write,
        progress=progress or Silent(),
    )
    report = RunReport.load(run.path / "report.json")
    assert report.targets == tuple(student.result for student in students)
    return report


DEVICE = FakeDevice(base_ms=0.05, noise=0.002)


class Quick(FakeExporter):
    """The tracing exporter for students, stand-ins for what is only measured."""

    def final(self, module, input_shape, path, **_):
        self.exported.append(path)
        export_many([(module, tuple(input_shape))], path.parent, [path.stem])
        return Written()

    def verify(self, *given):
        return OnnxExporter.verify(self, *given)

    def run(self, path, images):
        return OnnxExporter.run(self, path, images)

    def relabel(self, source, path, metadata):
        OnnxExporter.relabel(self, source, path, metadata)


def results(report):
    return {target.name: target for target in report.targets}


def test_a_fleet_gets_measured_students_or_the_lowest_reachable(tmp_path):
    run = run_in(tmp_path)
    wanted = fleet(
        box=(DEVICE, ["0.6x", "0.9x", 1e-4, {"latency_ms": "0.9x", "params": "0.8x"}]),
        slow=(FakeDevice(key="slow", ms_per_mmac=9.0), ["0.7x", {"macs": 1e9}]),
    )
    report = fit(run, wanted)
    found = results(report)
    assert [found[w.name].met for w in wanted] == [True, True, False, True, True, True]
    for target in report.targets:
        if target.met:
            assert all(target.measured[m] <= bound for m, bound in target.limits.items())
            home = run.path / "students" / target.name
            again = load_student(home)
            size = again.input_shape[1]
            images = torch.rand(1, 3, size, size)
            session = onnxruntime.InferenceSession(str(home / "model.onnx"))
            (logits,) = session.run(None, {"image": images.numpy()})
            np.testing.assert_allclose(logits, again.module(images).detach(), atol=1e-4)
    never = found["box-0.0001ms"]
    assert "lowest measured: " in never.reason and never.lowest["latency_ms"] > 1e-4
    assert not (run.path / "students" / "box-0.0001ms" / "model.onnx").exists()
    # Nothing of a looser limit is wasted: its student is the larger one.
    assert found["box-0.9x"].measured["macs"] > found["box-0.6x"].measured["macs"]
    assert RunReport.load(run.path / "report.json") == report
    assert any("held out: Kendall tau" in stage.detail for stage in report.stages)


class Unread(FakeDevice):
    """Its key is read, and nothing else."""

    @property
    def format(self):
        raise OSError("no route to host")


def test_a_device_is_tried_before_any_subnet_is_evaluated(tmp_path):
    run = run_in(tmp_path)
    [dead] = results(fit(run, fleet(dead=(Unread(key="silent"), ["0.6x"])))).values()
    assert not dead.met and run.evaluated == []
    assert dead.reason == "device silent: its format raised OSError('no route to host')"
    wanted = fleet(dead=(Unread(key="silent"), ["0.6x"]), box=(DEVICE, [{"params": "0.9x"}]))
    box, dead = (results(fit(run, wanted))[target.name] for target in reversed(wanted))
    assert box.met and not dead.met and run.evaluated


def test_a_student_is_the_best_of_all_subnets_where_predictions_are_exact(tmp_path):
    run = run_in(tmp_path)
    space = run.supernet.architectures
    report = fit(run, fleet(box=(FakeDevice(base_ms=0.001), [{"macs": 4e4}, {"macs": 6e4}])))
    every = space.space.enumerate()
    accuracy, cost = run.evaluate(every), macs(space).sum(every)
    for target in report.targets:
        choice = read_json(run.path / "students" / target.name / "choice.json")["choice"]
        best = accuracy[cost <= target.limits["macs"]].max()
        assert target.met and choice["accuracy"] >= best - 0.021  # one step of one gene


def test_many_targets_evaluate_hardly_more_subnets_than_few(tmp_path):
    few, many = run_in(tmp_path / "a"), run_in(tmp_path / "b")
    fit(few, fleet(box=(DEVICE, ["0.5x", "0.8x"])))
    fit(many, fleet(box=(DEVICE, [f"{share:.2f}x" for share in np.linspace(0.5, 0.9, 6)])))
    assert len(many.evaluated) <= len(few.evaluated) + OPTIONS.rounds
    assert sum(many.evaluated) <= 3 * sum(few.evaluated)


def test_a_finished_run_says_so_and_another_target_costs_only_itself(tmp_path):
    run, said = run_in(tmp_path), Said()
    wanted = fleet(box=(DEVICE, ["0.6x", "0.8x"]))
    report = fit(run, wanted)
    count = len(run.evaluated)
    assert fit(run, wanted, progress=said) == report
    assert len(run.evaluated) == count
    assert said.lines == [f"{run.path} holds these students; nothing to do"]
    student = run.path / "students" / "box-0.6x" / "model.onnx"
    before = student.stat().st_mtime_ns
    more = fit(run, fleet(box=(DEVICE, ["0.6x", "0.8x", "0.7x"])))
    assert [target.met for target in more.targets] == [True] * 3
    assert student.stat().st_mtime_ns == before
    # A student's file that is gone is made again.
    student.unlink()
    fit(run, wanted)
    assert student.exists()


class Killed(KeyboardInterrupt):
    """Stands for the process's end: other errors of a device cost its own targets only."""


@dataclass(frozen=True, kw_only=True)
class Dying(FakeDevice):
    """Ends the process in its session number ``last``; tells what it was asked."""

    last: int | None = None
    asked: list = field(default_factory=list, compare=False)

    def measure(self, models):
        if len(self.asked) == self.last:
            raise Killed
        self.asked.append(len(models))
        return super().measure(models)


def test_a_run_that_is_killed_between_measurements_goes_on(tmp_path):
    def wanted(device):
        return fleet(box=(device, ["0.6x", "0.8x"]))

    whole = Dying(base_ms=0.05)
    expected = fit(run_in(tmp_path / "a"), wanted(whole))
    for last in range(0, len(whole.asked), 3):
        killed = run_in(tmp_path / str(last))
        with pytest.raises(Killed):
            fit(killed, wanted(Dying(base_ms=0.05, last=last)))
        again = fit(killed, wanted(Dying(base_ms=0.05)))
        assert [t.measured for t in again.targets] == [t.measured for t in expected.targets]
        assert [t.accuracy for t in again.targets] == [t.accuracy for t in expected.targets]


class Broken:
    """A device that does not answer any more after so many sessions."""

    key = "broken"

    def __init__(self, sessions):
        self.left = sessions

    def measure(self, models):
        self.left -= 1
        if self.left < 0:
            raise MeasurementError("the cable is out")
        return FakeDevice(base_ms=0.05).measure(models)


def test_a_device_that_fails_costs_only_its_own_targets(tmp_path):
    run = run_in(tmp_path)
    broken = Broken(sessions=0)
    wanted = fleet(box=(DEVICE, ["0.6x"]), bad=(broken, ["0.7x", 3.0]))
    report = fit(run, wanted)
    assert [target.met for target in report.targets] == [True, False, False]
    assert "the cable is out" in results(report)["bad-3ms"].reason
    broken.left = 3  # enough for the tables, not for the candidates
    assert [target.met for target in fit(run, wanted).targets] == [True, False, False]
    broken.left = 1000  # plugged in again
    assert [target.met for target in fit(run, wanted).targets] == [True, True, True]


def write_table(path, space, *, ms_per_mmac):
    """A learned latency model whose figures follow the MACs."""
    genomes = space.space.sample(200, np.random.default_rng(0))
    ms = ms_per_mmac * macs(space).sum(genomes) / 1e6
    LatencyModel.fit(genomes, ms, features=LayerFeatures(space)).save(path)
    return path


def test_what_only_a_table_tells_is_exported_but_never_met(tmp_path):
    run, said = run_in(tmp_path), Said()
    table = write_table(tmp_path / "phone.safetensors", run.architectures, ms_per_mmac=1.0)
    limits = ["0.5x", {"macs": "0.7x"}, {"latency_ms": 1e-6}]
    report = fit(run, fleet(phone=(table, limits)), progress=said)
    share, counted, never = report.targets
    [full] = report.teacher.values()
    assert full.latency_ms is None and "teacher_latency_ms" not in share.measured
    assert report.reference == "full network"
    assert report.accuracy_kind == "top-1 (validation images, also used to choose)"
    assert share.accuracy_before is None
    assert not share.met and "latency_ms" not in share.measured
    assert share.reason.startswith("predicted, not measured: 0.0")
    assert (run.path / share.onnx).exists()
    assert counted.met and counted.measured["macs"] <= counted.limits["macs"]
    assert not never.met and "lowest predicted: " in never.reason and never.onnx is None
    # Another table under the same name is another question.
    student = run.path / share.onnx
    before = student.stat().st_mtime_ns
    write_table(table, run.architectures, ms_per_mmac=2.0)
    fit(run, fleet(phone=(table, limits)))
    assert student.stat().st_mtime_ns > before


def test_tables_that_do_not_fit_are_told_before_anything_is_evaluated(tmp_path):
    run = run_in(tmp_path)
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        fit(
            run,
            fleet(phone=(missing, [15]), box=(DEVICE, ["0.5x"])),
            replace(OPTIONS, layers_at_most=5),
        )
    assert f"phone: {missing}" in str(caught.value)
    assert "distinct layers to time, expected at most 5; raise layers_at_most" in str(caught.value)
    assert not run.evaluated


def test_a_student_over_its_limit_is_replaced_or_reported(tmp_path):
    class Sly(FakeDevice):
        """Slower on what is shipped than on what is tried."""

        late = 1.2

        def measure(self, models):
            found = super().measure(models)
            shipped = [path.name == "model.onnx" and "students" in path.parts for path in models]
            return [
                replace(one, median_ms=one.median_ms * (self.late if own else 1.0))
                for one, own in zip(found, shipped, strict=True)
            ]

    wanted = fleet(box=(Sly(base_ms=0.05), ["0.7x"]))
    run, said = run_in(tmp_path / "a"), Said()
    (target,) = fit(run, wanted, replace(OPTIONS, rounds=3), progress=said).targets
    assert target.met and target.measured["latency_ms"] <= target.limits["latency_ms"]
    assert any("over its limit; searching again" in line for line in said.lines)
    (target,) = fit(run_in(tmp_path / "b"), wanted, replace(OPTIONS, rounds=1)).targets
    assert not target.met and target.reason.startswith(
        "measured over its limit after 1 rounds: latency_ms 0."
    )
    assert target.lowest["latency_ms"] > target.limits["latency_ms"]

    class Slier(Sly):
        late = 9.0

    run = run_in(tmp_path / "c")
    (target,) = fit(run, fleet(box=(Slier(base_ms=0.05), ["0.7x"]))).targets
    assert not target.met and target.onnx is None
    assert not (run.path / "students" / "box-0.7x" / "model.onnx").exists()


def test_fine_tuning_never_makes_a_student_worse_on_validation(tmp_path):
    run = run_in(tmp_path)
    options = replace(OPTIONS, fine_tune=1.0, contenders=2)
    (target,) = fit(run, fleet(box=(DEVICE, ["0.8x"])), options).targets
    assert target.met
    assert target.accuracy >= target.accuracy_before  # the validation split stands for the test
    assert len(list((run.path / "fit" / "fine-tune").iterdir())) == 2
    [rivals] = target.rounds
    assert len(rivals.contenders) == 2 and sum(one.stayed for one in rivals.contenders) == 1
    assert rivals.epochs == 1.0, "an epoch is one step of these few images: none is shorter"


def test_targets_that_choose_one_subnet_share_its_training_and_its_export(tmp_path):
    run, exporter = run_in(tmp_path), Quick()
    wanted = fleet(box=(DEVICE, ["0.8x", {"latency_ms": "0.8x", "params": "1x"}]))
    found = fit(run, wanted, replace(OPTIONS, fine_tune=1.0), exporter=exporter).targets
    assert len(list((run.path / "fit" / "fine-tune").iterdir())) == 1
    exported = [path.parent.name for path in exporter.exported if "students" in path.parts]
    assert exported == [found[0].name]
    assert all(one.met for one in found)
    assert found[0].accuracy == found[1].accuracy
    weights = {(run.path / one.onnx).with_name("student.safetensors").read_bytes() for one in found}
    assert len(weights) == 1
    labels = [
        {p.key: p.value for p in onnx.load(run.path / one.onnx).metadata_props} for one in found
    ]
    assert [label["tailorbird.target"] for label in labels[1:]] == [found[1].name]


def test_end_to_end_with_onnx_runtime(tmp_path):
    run = run_in(tmp_path)
    device = OnnxRuntime(runs=15, warmup=2)
    report = fit(
        run,
        fleet(here=(device, ["1.5x"])),
        replace(OPTIONS, candidates=1, rounds=1),
        exporter=OnnxExporter(),
        write=write_report,
    )
    (target,) = report.targets
    assert target.met and (run.path / target.onnx).exists()
    assert "students/here-1.5x/model.onnx" in (run.path / "report.html").read_text()
    assert any("against 6 whole networks" in stage.detail for stage in report.stages)


def test_settings_out_of_range_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        FitOptions(subnets=2, candidates=0, fine_tune=-1.0, images=0)
    assert str(caught.value).splitlines() == [
        "4 problems:",
        "  - subnets: expected 8 or more, got 2",
        "  - candidates: expected 1 or more, got 0",
        "  - images: expected 1 or more, got 0",
        "  - fine_tune: expected 0 or more epochs, got -1.0",
    ]


def test_size_and_memory_can_be_limited(tmp_path):
    run = run_in(tmp_path)
    wanted = fleet(box=(DEVICE, [{"size_mb": "0.8x"}, {"peak_memory_mb": "0.8x", "macs": "1x"}]))
    for target in fit(run, wanted).targets:
        assert target.met, target
        assert all(target.measured[m] <= bound for m, bound in target.limits.items())


def test_a_strategy_can_be_handed_in(tmp_path):
    run, asked = run_in(tmp_path), []

    class Mine(RandomSearch):
        def search(self, family, limits, **given):
            asked.append(len(limits))
            return super().search(family, limits, **given)

    students = fit_run(
        run,
        fleet(box=(DEVICE, ["0.7x"])),
        options=OPTIONS,
        evaluate=run.evaluate,
        strategy=Mine(evaluations=50),
        exporter=Quick(),
        write=write_nothing,
        progress=Silent(),
    )
    assert students[0].met and students[0].module is not None
    assert asked and asked[0] == OPTIONS.candidates
    # What another strategy found is no answer to this one.
    said = Said()
    fit(run, fleet(box=(DEVICE, ["0.7x"])), progress=said)
    assert not any("nothing to do" in line for line in said.lines)


@pytest.mark.parametrize("met", [True, False])
def test_the_command_ends_as_the_main_job_does(tmp_path, capsys, met):
    target = TargetResult(name="here-0.5x", device="d", limits={"latency_ms": 1.0}, met=met)
    report = RunReport(run="r", seed=0, targets=(target,))
    try:
        house.tell(report, tmp_path)
        code = 0
    except typer.Exit as end:
        code = end.exit_code
    assert code == (0 if met else 3)
    assert "report.html" in capsys.readouterr().out


def test_the_command_reads_options_and_files_before_it_begins(tmp_path):
    path = tmp_path / "targets.yaml"
    path.write_text("devices: [{name: here, limits: [0.5x]}]\n")
    command = ["supernet", "fit", str(tmp_path), str(path)]
    outcome = CliRunner().invoke(app, [*command, "--subnets", "2", "--fine-tune", "-2"])
    assert outcome.exit_code == 2
    assert "subnets: expected 8 or more, got 2" in outcome.output
    assert "fine_tune: expected 0 or more epochs, got -2" in outcome.output
    outcome = CliRunner().invoke(app, [*command[:3], str(tmp_path / "no.yaml")])
    assert outcome.exit_code == 2 and "no.yaml" in outcome.output
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 2 and "no supernet in this folder" in outcome.output
