"""A tiny job, and exports that take no time: files whose cost is the network's own."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tailorbird.export.verify import Parity
from tailorbird.files import write_bytes
from tailorbird.measure.counts import count
from tailorbird.pipeline import Job
from tailorbird.targets import Target
from tailorbird.train.recipe import Recipe
from tests.fakes import FakeDevice
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
        "description": {"name": "tiny"},
    }
    return Job(**{**arguments, **changes})


def stand_in(module, shape):
    """An ONNX file of one product with as many multiply-accumulates as ``module``."""
    macs = count(module, shape).macs
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "stand-in",
        [value("x", TensorProto.FLOAT, (1, macs)), value("w", TensorProto.FLOAT, (macs, 1))],
        [value("y", TensorProto.FLOAT, (1, 1))],
    )
    model: onnx.ModelProto = helper.make_model(graph)
    return model.SerializeToString(deterministic=True)


def export_onnx(module, shape, path, **_):
    write_bytes(path, stand_in(module, shape))
    return path


def export_many(modules, folder, names):
    paths = [folder / f"{name}.onnx" for name in names]
    for (module, shape), path in zip(modules, paths, strict=True):
        path.write_bytes(stand_in(module, shape))
    return paths


def verify(module, path, batch):
    assert path.exists()
    return Parity(0.0, 1.0, 1e-4, len(batch), True)


def draw_nothing(report, path):
    write_bytes(path, b"")


def stub_exports(put=setattr):
    """Put the stand-ins in the place of exporters, the comparison and pictures."""
    for name, stub in {
        "export_onnx": export_onnx,
        "export_many": export_many,
        "verify": verify,
        "front": draw_nothing,
        "html": draw_nothing,
    }.items():
        for home in ("house.score", "pipeline.pricing", "pipeline.finish", "pipeline.execute"):
            module = importlib.import_module(f"tailorbird.{home}")
            if hasattr(module, name):
                put(module, name, stub)


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
