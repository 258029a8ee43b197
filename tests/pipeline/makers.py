"""A tiny job, run with exports that take no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tailorbird.pipeline import Job, execute
from tailorbird.targets import Target
from tailorbird.train.recipe import Recipe
from tests.fakes import FakeDevice, FakeExporter, write_nothing
from tests.house.makers import OPTIONS, donor, images, net

DEVICE = FakeDevice(base_ms=0.001)
LIMITS = {
    "edge": {"latency": "0.6x"},
    "both": {"latency": "0.8x", "params": "0.95x"},
    "never": {"latency_ms": 1e-6},
    "free": {"macs": "1x"},
}


def job(run, *, limits=None, device=DEVICE, data=None, **changes):
    chosen = LIMITS if limits is None else limits
    arguments = {
        "teacher": net(),
        "donors": {"narrow": donor()},
        "data": data or images(),
        "targets": tuple(Target(name, device, bounds) for name, bounds in chosen.items()),
        "run": Path(run),
        "options": replace(OPTIONS, memory_mb=2),
        "recipe": Recipe(epochs=2.0, batch_size=64, recalibrate_batches=1, precision="float32"),
        "contenders": 1,
        "check_teacher": False,  # it is untrained
        "description": {"name": "tiny"},
    }
    return Job(**{**arguments, **changes})


def small(options):
    """Those of a house with few alternatives, where any will do."""
    return replace(options, teacher_blocks=2, donor_blocks=1, pruned=2, epochs=1.0)


def run_job(asked, *, until="export", exporter=None, write=write_nothing, progress=None):
    """`execute` with exports that take no time, and no pictures."""
    return execute(
        asked, until=until, exporter=exporter or FakeExporter(), write=write, progress=progress
    )


def figures(report):
    """What a report says, without the time that it took."""
    return (
        report.teacher,
        report.donors,
        report.rejections,
        [replace(target, minutes=0.0) for target in report.targets],
    )


def tensors(run):
    """Every trained file under a run folder, by its path."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for pattern in ("house/trained/*.safetensors", "students/*/student.safetensors")
        for path in Path(run).glob(pattern)
    }
