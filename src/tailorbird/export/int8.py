"""ONNX files in int8: calibrated after training, with the layers that need it in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor, nn

from tailorbird.device import ONNX, Format, Precision, Run
from tailorbird.errors import ExportError
from tailorbird.export.attempts import Attempts
from tailorbird.export.exporter import Calibration, Written
from tailorbird.export.onnx import (
    export_many,
    write_model,
)
from tailorbird.export.onnx_files import OnnxFiles, plain_file
from tailorbird.export.options import LEAST_CALIBRATION, ExportOptions
from tailorbird.export.quantise import PRODUCTS, minmax, prepared, quantised
from tailorbird.export.verify import Agreement, agreement
from tailorbird.files import scratch
from tailorbird.train.quantised.onnx_weights import with_weights

TRACED_OPSET = 20
"""The tracing exporter writes GELU as one operator from here on, as the other exporter does."""

TAKEN_OVER = "taken over"
"""How ranges are found where they are those of another file."""


@dataclass(frozen=True)
class OnnxInt8Exporter(OnnxFiles):
    """ONNX files in int8 (QDQ), quantised after training by `onnxruntime.quantization`.

    Ranges of activations are found by several calibrations, of which the one counts whose file is
    nearest to the network on the calibration images. Where a file costs more accuracy than it may,
    the layers that hurt most stay in float32.
    """

    format: Format = ONNX
    precision: Precision = "int8"

    def final(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        path: Path,
        *,
        options: ExportOptions,
        metadata: Mapping[str, str],
        batch: int = 1,
        calibration: Calibration | None = None,
    ) -> Written:
        """Write the file that is shipped; see `tailorbird.export.exporter.Exporter`.

        Cost: the float32 export, a few passes over the calibration images, and where
        ``calibration.loss`` finds the file too lossy a few more files and answers of it.

        Raises:
            ExportError: without 16 calibration images, where nothing can be quantised, or for a
                network of more than 2 GB.
        """
        if calibration is None or len(calibration.images) < LEAST_CALIBRATION:
            given = 0 if calibration is None else len(calibration.images)
            raise ExportError(
                f"{path.name}: int8 needs {LEAST_CALIBRATION} calibration images or more, got "
                f"{given}; give more, or use float32"
            )
        with scratch() as folder:
            source = folder / path.name
            plain_file(
                module,
                input_shape,
                source,
                options=options,
                batch=batch,
            )
            _check_size(source)
            model = prepared(source)
            if calibration.like is not None:
                made = with_weights(calibration.like, model)
                onnx.helper.set_model_props(made, dict(metadata))
                write_model(made, path, sync=True)
                lost = None if calibration.loss is None else calibration.loss(path)
                return Written(calibration=TAKEN_OVER, loss=lost)
            images = calibration.images.detach().cpu().float().numpy()
            attempts = Attempts(model, images, metadata, folder / "attempts" / path.name)
            chosen, written = attempts.best(calibration.loss, calibration.max_loss)
            write_model(chosen, path, sync=True)
        return written

    def quick(
        self,
        networks: Sequence[tuple[nn.Module, tuple[int, ...]]],
        folder: Path,
        names: Sequence[str],
        *,
        batch: int = 1,
    ) -> list[Path]:
        """Write files that are only timed: ranges are those of one random image.

        Their operators are those of the files that `final` writes. A part of a network without
        products stays in float32.
        """
        paths = export_many(networks, folder, names, batch=batch, opset=TRACED_OPSET)
        faults = []
        for path, (_, shape) in zip(paths, networks, strict=True):
            try:
                _quantise_roughly(path, (batch, *shape))
            except ExportError as error:
                faults.append(f"{path.name}: {error}")
        if faults:
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise ExportError("; ".join(faults[:5]) + more)
        return paths

    def verify(
        self, module: nn.Module, path: Path, images: Tensor, run: Run | None = None
    ) -> Agreement:
        """How far the file is from the network in float32."""
        return agreement(module, path, images, precision=self.precision, run=run)


def _quantise_roughly(path: Path, shape: tuple[int, ...]) -> None:
    """A float32 file in int8, in its place, with whatever ranges."""
    model = prepared(path)
    if not any(node.op_type in PRODUCTS for node in model.graph.node):
        return
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    ranges = {
        name: ends if np.isfinite(ends).all() else (-1.0, 1.0)
        for name, ends in minmax(model, images).items()
    }
    write_model(quantised(model, ranges), path, sync=False)


def _check_size(source: Path) -> None:
    beside = source.with_name(source.name + ".data")
    if beside.exists():
        raise ExportError(
            f"{source.name}: expected at most 2 GB of weights, got "
            f"{beside.stat().st_size / 1e9:.1f}; larger networks are not made in int8, use float32"
        )
