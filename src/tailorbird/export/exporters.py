"""How networks become files, as one thing that can be handed on: a format in one precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tailorbird.device import ONNX, OPENVINO, Format, Precision, Run
from tailorbird.errors import ExportError
from tailorbird.export.exporter import Calibration, Exporter, Written
from tailorbird.export.float16 import OnnxFloat16Exporter
from tailorbird.export.int8 import OnnxInt8Exporter
from tailorbird.export.onnx import (
    export_many,
)
from tailorbird.export.onnx_files import OnnxFiles, plain_file
from tailorbird.export.openvino import OpenVinoExporter
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Parity, verify

__all__ = [
    "Calibration",
    "Exporter",
    "OnnxExporter",
    "Written",
    "exporter_for",
]


def exporter_for(
    format: Format,  # noqa: A002  # the field's word
    precision: Precision,
    *,
    own: Exporter | None = None,
) -> Exporter:
    """What makes files of a format in a precision.

    Args:
        format: of the files.
        precision: that they compute in.
        own: taken where it makes just these.

    Raises:
        ExportError: where nothing here does.

    Example:
        >>> exporter_for(ONNX, "float32").precision
        'float32'
    """
    if own is not None and (own.format.name, own.precision) == (format.name, precision):
        return own
    if format.name == ONNX.name:
        made: dict[Precision, Exporter] = {
            "float32": OnnxExporter(),
            "float16": OnnxFloat16Exporter(),
            "int8": OnnxInt8Exporter(),
        }
        return made[precision]
    if format.name == OPENVINO.name:
        return OpenVinoExporter(precision=precision)
    raise ExportError(f"{format.name} files in {precision} are not made here")


@dataclass(frozen=True)
class OnnxExporter(OnnxFiles):
    """ONNX files: PyTorch's dynamo exporter for what is shipped, the older one for timing."""

    format: Format = ONNX
    precision: Precision = "float32"

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
        """See `export_onnx`."""
        plain_file(
            module,
            input_shape,
            path,
            options=options,
            metadata=metadata,
            batch=batch,
        )
        return Written()

    def quick(
        self,
        networks: Sequence[tuple[nn.Module, tuple[int, ...]]],
        folder: Path,
        names: Sequence[str],
        *,
        batch: int = 1,
    ) -> list[Path]:
        """See `export_many`."""
        return export_many(networks, folder, names, batch=batch)

    def verify(
        self, module: nn.Module, path: Path, images: Tensor, run: Run | None = None
    ) -> Parity:
        """See `tailorbird.export.verify.verify`."""
        return verify(module, path, images, run=run)
