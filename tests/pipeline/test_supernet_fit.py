"""From a trained supernet to students: on tiny spaces, with devices that cost no time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tailorbird.config.measured_fleet import FleetDevice, MeasuredFleet, name_wishes
from tailorbird.errors import MeasurementError
from tailorbird.export.bundle import load_student
from tailorbird.files import read_json, write_json
from tailorbird.pipeline.supernet_fit import FitOptions, fit_fleet
from tailorbird.progress import Silent
from tailorbird.report.record import RunReport
from tailorbird.supernet.calibrate import accuracies, recalibrate
from tailorbird.supernet.store import save_supernet
from tailorbird.targets import Limit
from tests.fakes import FakeDevice
from tests.supernet.tiny import stripes, tiny_supernet

OPTIONS = FitOptions(subnets=14, candidates=3, rounds=2, checks=6)


@dataclass
class Run:
    """A supernet in a run folder, and how often its subnets were evaluated."""

    path: Path
    supernet: Any
    data: Any
    seed: int = 0
    evaluated: list[int] = field(default_factory=list)
    stop_after: int | None = None

    def evaluate(self, genomes):
        if self.stop_after is not None and len(self.evaluated) >= self.stop_after:
            raise KeyboardInterrupt
        self.evaluated.append(len(genomes))
        images = list(self.data.validation.batches(16))
        statistics = recalibrate(self.supernet, genomes, [x for x, _ in images])
        found = accuracies(self.supernet, genomes, statistics, images)
        # Larger networks are better in life; as if these had been trained.
        return found * 0.01 + 0.02 * genomes.sum(axis=1)


def run_in(tmp_path, **changes):
    tmp_path.mkdir(exist_ok=True)
    net = tiny_supernet(tmp_path).eval()
    path = tmp_path / "run"
    save_supernet(net, path / "supernet")
    write_json(path / "identity.json", {"name": "tiny"})
    return Run(path, net, stripes(), **changes)


def fleet(**devices):
    """Devices by name: (device or table, limits)."""
    entries, pairs = {}, []
    for name, (device, limits) in devices.items():
        own = isinstance(device, Path)
        entries[name] = FleetDevice(table=device if own else None, device=None if own else device)
        for bounds in limits:
            given = bounds if isinstance(bounds, dict) else {"latency_ms": bounds}
            pairs.append((name, tuple(Limit.parse(m, v) for m, v in given.items())))
    return MeasuredFleet(devices=entries, wanted=name_wishes(pairs))


def fit(run, wanted, options=OPTIONS):
    return fit_fleet(run, wanted, options=options, evaluate=run.evaluate, progress=Silent())


DEVICE = FakeDevice(base_ms=0.05, noise=0.002)


def test_a_fleet_gets_measured_students_or_the_lowest_reachable(tmp_path):
    run = run_in(tmp_path)
    wanted = fleet(
        box=(DEVICE, ["0.6x", "0.9x", 1e-4, {"latency_ms": "0.9x", "params": "0.8x"}]),
        slow=(FakeDevice(key="slow", ms_per_mmac=9.0), ["0.7x", {"macs": 1e9}]),
    )
    report = fit(run, wanted)
    by_name = {target.name: target for target in report.targets}
    assert [by_name[w.name].met for w in wanted.wanted] == [True, True, False, True, True, True]
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
    never = by_name["box-0.0001ms"]
    assert "lowest measured: " in never.reason and never.lowest["latency_ms"] > 1e-4
    assert not (run.path / "students" / "box-0.0001ms" / "model.onnx").exists()
    # Neighbours of the limit are used: the looser target's student is the larger one.
    assert by_name["box-0.9x"].measured["macs"] > by_name["box-0.6x"].measured["macs"]
    assert RunReport.load(run.path / "report.json") == report
    assert (run.path / "report.html").exists()
    assert any("Kendall tau" in stage.detail for stage in report.stages)


def test_many_targets_evaluate_hardly_more_subnets_than_few(tmp_path):
    few, many = run_in(tmp_path / "a"), run_in(tmp_path / "b")
    fit(few, fleet(box=(DEVICE, ["0.5x", "0.8x"])))
    fit(many, fleet(box=(DEVICE, [f"{share:.2f}x" for share in np.linspace(0.5, 0.9, 12)])))
    assert len(many.evaluated) <= len(few.evaluated) + OPTIONS.rounds
    assert sum(many.evaluated) <= 3 * sum(few.evaluated)


def test_a_finished_run_says_so_and_a_killed_one_goes_on(tmp_path):
    wanted = fleet(box=(DEVICE, ["0.6x", "0.8x"]))
    whole = run_in(tmp_path / "a")
    report = fit(whole, wanted)
    count = len(whole.evaluated)
    assert fit(whole, wanted) == report
    assert len(whole.evaluated) == count

    killed = run_in(tmp_path / "b", stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, wanted)
    killed.stop_after = None
    again = fit(killed, wanted)
    assert [t.measured for t in again.targets] == [t.measured for t in report.targets]

    # One more target: the others' students stay as they are.
    before = (whole.path / "students" / "box-0.6x" / "model.onnx").stat().st_mtime_ns
    more = fit(whole, fleet(box=(DEVICE, ["0.6x", "0.8x", "0.7x"])))
    assert [t.met for t in more.targets] == [True] * 3
    assert (whole.path / "students" / "box-0.6x" / "model.onnx").stat().st_mtime_ns == before
