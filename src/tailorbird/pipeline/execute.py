"""A whole job: train what has to be trained, build the house, fit the targets, report."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import nn

from tailorbird.errors import ExportError, MeasurementError, StoreError
from tailorbird.export.onnx import export_many
from tailorbird.graph.trace import LayerGraph
from tailorbird.measure.counts import count
from tailorbird.pipeline.choose import judge_module
from tailorbird.pipeline.fitting import Student, request_of
from tailorbird.pipeline.job import Job, Until, identity
from tailorbird.pipeline.model_house import ModelHouse, assemble, trace_all
from tailorbird.progress import Progress, Silent
from tailorbird.report.page import html
from tailorbird.report.plot import front
from tailorbird.report.record import Point, RunReport, StageCost, TargetResult
from tailorbird.runfolder import RunFolder, read_json, write_bytes, write_json
from tailorbird.targets import Device
from tailorbird.train.fit import fit

PACKAGES = ("tailorbird", "torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "scipy")


def execute(job: Job, *, until: Until = "export", progress: Progress | None = None) -> RunReport:
    """Run or continue ``job``; returns what is also written to ``report.json``.

    Raises:
        TailorbirdError: for bad input, an untraceable teacher, or a folder that can't be used;
            what has been trained and measured until then stays and is used by the next run.
    """
    shown = progress or Silent()
    folder = RunFolder(job.run)
    made_from = identity(
        teacher=job.teacher,
        donors=job.donors,
        data=job.data,
        options=job.options,
        training=job.training,
        seed=job.seed,
    )
    with folder.open(made_from):
        asked = _asked(job, until)
        stored = _finished(job.run, asked)
        if stored is not None:
            shown.say(f"{job.run} holds this job, finished; nothing to do")
            return stored
        folder.event("started", until=until)
        write_bytes(
            job.run / "config.yaml",
            yaml.safe_dump(dict(job.description), sort_keys=False).encode(),
        )
        write_json(job.run / "environment.json", environment())
        if job.data.skipped:
            shown.say(f"data: {job.data.skipped} corrupt images left out")
        if job.training:  # what is wrong with a network is told before time is spent on training
            trace_all(job.teacher, job.donors, job.data, job.options)
        with folder.stage("train"):
            models = {
                name: _trained(job, name, model, shown)
                for name, model in {"teacher": job.teacher, **job.donors}.items()
            }
        house = assemble(
            models.pop("teacher"),
            models,
            job.data,
            job.options,
            folder=folder,
            made_from=made_from,
            seed=job.seed,
            progress=shown,
        )
        students = []
        if until != "house":
            students = house.fit_open(
                job.targets,
                recipe=job.recipe,
                rounds=job.rounds,
                candidates=job.candidates,
                until=until,
            )
        report = make_report(job, house, students)
        write_report(report, job.run)
        write_json(job.run / "finished.json", asked)
        folder.event("finished", until=until, met=report.met)
    return report


def _asked(job: Job, until: Until) -> dict[str, object]:
    """What a finished run has answered, as plain data."""
    requests = {
        target.name: request_of(
            target,
            recipe=job.recipe,
            rounds=job.rounds,
            candidates=job.candidates,
            seed=job.seed,
        )
        for target in job.targets
    }
    return {"until": until, "targets": requests}


def _finished(run: Path, asked: Mapping[str, object]) -> RunReport | None:
    """The report of a run that has answered just this; ``None`` where something is left to do."""
    try:
        if read_json(run / "finished.json") != asked:
            return None
        report = RunReport.load(run / "report.json")
    except StoreError:
        return None
    return report if all(_delivered(run, t, asked) for t in report.targets) else None


def _delivered(run: Path, target: TargetResult, asked: Mapping[str, object]) -> bool:
    """The target's answer is on record (a device's failure is not) and its files are there."""
    home, requests = run / "students" / target.name, asked["targets"]
    try:
        record = read_json(home / "result.json")
    except StoreError:
        return False
    assert isinstance(requests, dict)
    if not isinstance(record, dict) or record.get("request") != requests.get(target.name):
        return False
    files = ("model.onnx", "student.json", "student.safetensors")
    return target.onnx is None or all((home / name).exists() for name in files)


def write_report(report: RunReport, folder: Path) -> None:
    """Write ``report.json``, ``front.png`` and ``report.html``."""
    report.save(folder / "report.json")
    front(report, folder / "front.png")
    html(report, folder / "report.html")


def make_report(job: Job, house: ModelHouse, students: list[Student]) -> RunReport:
    """Collect what the run found."""
    devices = {target.device.key: target.device for target in job.targets}
    teacher: dict[str, Point] = {}
    donors: list[Point] = []
    if students:
        with house.folder.stage("report"):
            for key, device in devices.items():
                points = _points(house, device)
                teacher[key] = points.pop("teacher")
                donors += points.values()
    return RunReport(
        run=str(job.run),
        seed=job.seed,
        teacher=teacher,
        donors=tuple(donors),
        targets=tuple(student.result for student in students),
        stages=tuple(
            StageCost(name=name, minutes=seconds / 60)
            for name, seconds in house.folder.seconds().items()
        ),
        rejections=dict(house.house.rejections),
        environment=environment(),
        accuracy_kind="top-1" if job.data.labelled else "agreement with the teacher",
    )


def environment() -> dict[str, object]:
    """Versions and machine, as far as they decide results."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _trained(job: Job, name: str, model: nn.Module, progress: Progress) -> nn.Module:
    """``model`` itself, or a copy trained as the job says; trained once for a run."""
    recipe = job.training.get(name)
    if recipe is None:
        return model
    path = job.run / "models" / f"{name}.safetensors"
    if not path.exists():
        outcome = fit(
            model,
            job.data,
            recipe=recipe,
            seed=job.seed,
            checkpoint=job.run / "models" / name,
            progress=progress,
        )
        progress.say(f"{name}: trained to {100 * outcome.accuracy:.2f} % on validation")
        state = {k: v.cpu().contiguous() for k, v in outcome.module.state_dict().items()}
        write_bytes(path, dump_tensors(state))
    twin = copy.deepcopy(model)
    twin.load_state_dict(load_tensors(path.read_bytes()))
    return twin.eval()


def _points(house: ModelHouse, device: Device) -> dict[str, Point]:
    """The teacher and those donors that answer to the same classes, as they are, on ``device``."""
    graph = house.house.teacher
    outputs = graph.layer(graph.output).shape
    networks: Mapping[str, LayerGraph] = {
        "teacher": graph,
        **{n: d for n, d in house.donors.items() if d.layer(d.output).shape == outputs},
    }
    split = house.data.test or house.data.validation
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        try:
            paths = export_many(
                [(n.module, n.input_shape) for n in networks.values()],
                Path(folder),
                [f"n{number}" for number in range(len(networks))],
            )
            latencies = [latency.median_ms for latency in device.measure(paths)]
        except (ExportError, MeasurementError) as error:
            house.progress.say(f"donors are not drawn in the report: {error}")
            networks = {"teacher": graph}
            latencies = [house.house.store.load_latencies(device.key)["teacher"].median_ms]
    points = {}
    for (name, network), latency in zip(networks.items(), latencies, strict=True):
        counts = count(network.module, network.input_shape)
        points[name] = Point(
            name=name,
            latency_ms=latency,
            accuracy=judge_module(network.module, graph, split),
            params=counts.params,
            macs=counts.macs,
            size_mb=counts.size_mb,
            device=device.key,
        )
    return points
