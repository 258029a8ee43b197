"""What all ONNX files have in common, whatever they compute in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailorbird.export.onnx import metadata_of, relabel
from tailorbird.measure.answering import run_onnx


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
