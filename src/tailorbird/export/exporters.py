"""How networks become files, as one thing that can be handed on: a format in one precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tailorbird.device import ONNX, Format, Precision, Run
from tailorbird.errors import ExportError
from tailorbird.export.exporter import Calibration, Exporter, Written
from tailorbird.export.float16 import OnnxFloat16Exporter
from tailorbird.export.int8 import OnnxInt8Exporter
from tailorbird.export.onnx import (
    OUTPUT,
    PROBABILITIES,
    export_many,
    export_onnx,
    metadata_of,
    relabel,
)
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Parity, verify

__all__ = [
    "Calibration",
    "Exporter",
    "Exporters",
    "OnnxExporter",
    "Written",
    "exporter_for",
]


Exporters = Callable[[Format, Precision], Exporter]
"""What makes files of a format in a precision."""


def exporter_for(format: Format, precision: Precision) -> Exporter:  # noqa: A002  # the field's word
    """What makes files of a format in a precision.

    Raises:
        ExportError: where nothing here does.

    Example:
        >>> exporter_for(ONNX, "float32").precision
        'float32'
    """
    if format.name == ONNX.name:
        made: dict[Precision, Exporter] = {
            "float32": OnnxExporter(),
            "float16": OnnxFloat16Exporter(),
            "int8": OnnxInt8Exporter(),
        }
        return made[precision]
    raise ExportError(f"{format.name} files in {precision} are not made here")


@dataclass(frozen=True)
class OnnxExporter:
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
        export_onnx(
            module,
            input_shape,
            path,
            opset=options.opset,
            dynamic_batch=options.dynamic_batch,
            metadata=metadata,
            output=PROBABILITIES if options.softmax else OUTPUT,
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

    def metadata_of(self, path: Path) -> dict[str, str]:
        """See `tailorbird.export.onnx.metadata_of`."""
        return metadata_of(path)

    def relabel(self, source: Path, path: Path, metadata: Mapping[str, str]) -> None:
        """See `tailorbird.export.onnx.relabel`."""
        relabel(source, path, metadata)
