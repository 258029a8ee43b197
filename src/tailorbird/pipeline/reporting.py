"""What a run reports: figures of students, teacher and donors; the files that show them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tailorbird.data.images import ImageData
from tailorbird.errors import ExportError, MeasurementError
from tailorbird.export.onnx import export_many
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.build import House
from tailorbird.measure.counts import count
from tailorbird.pipeline.choose import judge_module
from tailorbird.progress import Progress
from tailorbird.report.page import html
from tailorbird.report.plot import front
from tailorbird.report.record import Point, RunReport, StageCost, TargetResult
from tailorbird.runfolder import RunFolder
from tailorbird.targets import Device, Target

PACKAGES = ("tailorbird", "torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "scipy")


def write_report(report: RunReport, folder: Path) -> None:
    """Write ``report.json``, ``front.png`` and ``report.html``."""
    report.save(folder / "report.json")
    front(report, folder / "front.png")
    html(report, folder / "report.html")


def make_report(
    house: House,
    data: ImageData,
    donors: Mapping[str, LayerGraph],
    targets: Sequence[Target],
    results: Sequence[TargetResult],
    *,
    folder: RunFolder,
    seed: int,
    progress: Progress,
) -> RunReport:
    """Collect what the run found; the teacher and the donors are judged as they are."""
    devices = {target.device.key: target.device for target in targets}
    teacher: dict[str, Point] = {}
    others: list[Point] = []
    if results:
        with folder.stage("report"):
            for key, device in devices.items():
                points = _points(house, data, donors, device, progress)
                teacher[key] = points.pop("teacher")
                others += points.values()
    return RunReport(
        run=str(folder.path),
        seed=seed,
        teacher=teacher,
        donors=tuple(others),
        targets=tuple(results),
        stages=tuple(
            StageCost(name=name, minutes=seconds / 60) for name, seconds in folder.seconds().items()
        ),
        rejections=dict(house.rejections),
        environment=environment(),
        accuracy_kind="top-1" if data.labelled else "agreement with the teacher",
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


def _points(
    house: House,
    data: ImageData,
    donors: Mapping[str, LayerGraph],
    device: Device,
    progress: Progress,
) -> dict[str, Point]:
    """The teacher and those donors that answer to the same classes, as they are, on ``device``."""
    graph = house.teacher
    outputs = graph.layer(graph.output).shape
    networks: Mapping[str, LayerGraph] = {
        "teacher": graph,
        **{n: d for n, d in donors.items() if d.layer(d.output).shape == outputs},
    }
    split = data.test or data.validation
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        try:
            paths = export_many(
                [(n.module, n.input_shape) for n in networks.values()],
                Path(folder),
                [f"n{number}" for number in range(len(networks))],
            )
            latencies: list[float | None] = [one.median_ms for one in device.measure(paths)]
        except (ExportError, MeasurementError) as error:
            progress.say(f"donors are not drawn in the report: {error}")
            networks = {"teacher": graph}
            known = house.store.load_latencies(device.key).get("teacher")
            latencies = [None if known is None else known.median_ms]
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
