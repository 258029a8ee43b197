"""Stand-ins for tests that must not depend on a machine's mood."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tailorbird.device import Latency
from tailorbird.errors import MeasurementError
from tailorbird.export.exporters import OnnxExporter, Written
from tailorbird.export.verify import Parity
from tailorbird.files import write_bytes
from tailorbird.measure.counts import count
from tailorbird.progress import Silent


@dataclass(frozen=True, kw_only=True)
class FakeDevice:
    """A device whose latency is ``base_ms + ms_per_mmac * MACs / 10^6``, read from the file.

    ``noise`` is the relative standard deviation, drawn from a seed made of the file's bytes, so
    that measuring the same file again gives the same figure.
    """

    ms_per_mmac: float = 1.0
    base_ms: float = 0.01
    noise: float = 0.0
    key: str = "fake"

    def measure(self, models: Sequence[Path]) -> list[Latency]:
        return [self._latency(model) for model in models]

    def _latency(self, model: Path) -> Latency:
        try:
            content = model.read_bytes()
            macs = onnx_macs(onnx.load_model_from_string(content))
        except Exception as error:
            raise MeasurementError(f"{model}: can't be read: {error}") from error
        exact = self.base_ms + self.ms_per_mmac * macs / 1e6
        draw = np.random.default_rng(zlib.crc32(content)).standard_normal()
        median = exact * max(0.1, 1 + self.noise * draw)
        return Latency(median_ms=median, spread_ms=self.noise * exact, runs=1, warmup=0)


def stand_in(module, shape) -> bytes:
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


class FakeExporter(OnnxExporter):
    """Exports that take no time: files whose cost is the network's own. Counts what it made."""

    def __init__(self, *, passes: bool = True) -> None:
        super().__init__()
        self.passes = passes
        self.exported: list[Path] = []
        self.modules: dict[Path, nn.Module] = {}

    def final(self, module, input_shape, path, **_):
        self.exported.append(path)
        self.modules[path] = module
        write_bytes(path, stand_in(module, input_shape))
        return Written()

    def quick(self, networks, folder, names, *, batch=1):
        paths = [folder / f"{name}.onnx" for name in names]
        for (module, shape), path in zip(networks, paths, strict=True):
            path.write_bytes(stand_in(module, shape))
        return paths

    def run(self, path, images):
        with torch.no_grad():
            return self.modules[path](torch.from_numpy(images)).numpy()

    def relabel(self, source, path, metadata):
        super().relabel(source, path, metadata)
        self.modules[path] = self.modules[source]

    def verify(self, module, path, images, run=None):
        assert path.exists()
        return Parity(0.0, 1.0, 1e-4, len(images), self.passes)


class Told(Silent):
    """Keeps what it is told; ``text in told`` asks whether any line has it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)


def write_nothing(report, folder) -> None:
    """Writes a report without its picture and page."""
    report.save(folder / "report.json")


def onnx_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul, from the shapes in the file."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            total += prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])
        elif node.op_type == "MatMul":
            total += prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            total += prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else -1]
    return total


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The file's weights by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
