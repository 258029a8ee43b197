"""What is written when a run has come to its end."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from tailorbird.errors import StoreError
from tailorbird.fit.candidates import Network
from tailorbird.measure.counts import count
from tailorbird.records import read_record
from tailorbird.report.page import html
from tailorbird.report.plot import front
from tailorbird.report.record import Point, RunReport, StageCost
from tailorbird.runfolder import RunFolder

PACKAGES = ("tailorbird", "torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "scipy")


PAGES = ("report.html", "front.png")
"""What a report is for people; made again from ``report.json`` where it is gone."""


def changed_versions(run: Path) -> list[str]:
    """A line on the packages whose versions are others than when the run was last worked on."""
    try:
        before = read_record(run / "environment.json", dict[str, object])
    except StoreError:
        return []
    now = environment()
    changed = [
        f"{package} {before[package]} -> {now[package]}"
        for package in PACKAGES
        if before.get(package) not in (None, now[package])
    ]
    return (
        [f"{run}: versions changed since it was begun: {', '.join(changed)}; what is there is kept"]
        if changed
        else []
    )


def write_report(report: RunReport, folder: Path) -> None:
    """Write ``report.json``, ``front.png`` and ``report.html``."""
    report.save(folder / "report.json")
    front(report, folder / "front.png")
    html(report, folder / "report.html")


def stage_costs(
    folder: RunFolder, details: Mapping[str, str] | None = None
) -> tuple[StageCost, ...]:
    """What each stage of a run took so far; ``details`` says for some what was done."""
    return tuple(
        StageCost(name=name, minutes=seconds / 60, detail=(details or {}).get(name, ""))
        for name, seconds in folder.seconds().items()
    )


def point_of(
    network: Network,
    name: str,
    device: str = "",
    *,
    latency_ms: float | None = None,
    accuracy: float | None = None,
) -> Point:
    """A network as it is, with what is counted of it."""
    counts = count(network.module, network.input_shape)
    return Point(
        name=name,
        latency_ms=latency_ms,
        accuracy=accuracy,
        params=counts.params,
        macs=counts.macs,
        size_mb=counts.size_mb,
        device=device,
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
