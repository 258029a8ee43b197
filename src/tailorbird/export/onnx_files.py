"""What all ONNX files have in common, whatever they compute in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from tailorbird.export.onnx import OUTPUT, PROBABILITIES, export_onnx, metadata_of, relabel
from tailorbird.export.options import ExportOptions
from tailorbird.measure.answering import run_onnx


def plain_file(
    module: nn.Module,
    input_shape: Sequence[int],
    path: Path,
    *,
    options: ExportOptions,
    batch: int,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A network as an ONNX file in float32, as the options of an export say; see `export_onnx`."""
    return export_onnx(
        module,
        input_shape,
        path,
        opset=options.opset,
        dynamic_batch=options.dynamic_batch,
        metadata=metadata,
        output=PROBABILITIES if options.softmax else OUTPUT,
        batch=batch,
    )


class OnnxFiles:
    """The part of `tailorbird.export.exporter.Exporter` that doesn't depend on the precision."""

    def run(self, path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `tailorbird.measure.answering.run_onnx`."""
        return run_onnx(path, images)

    def metadata_of(self, path: Path) -> dict[str, str]:
        """See `tailorbird.export.onnx.metadata_of`."""
        return metadata_of(path)

    def relabel(self, source: Path, path: Path, metadata: Mapping[str, str]) -> None:
        """See `tailorbird.export.onnx.relabel`."""
        relabel(source, path, metadata)
