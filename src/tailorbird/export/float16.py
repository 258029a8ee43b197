"""ONNX files in float16, with inputs and outputs in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import Tensor, nn

from tailorbird.device import ONNX, Format, Precision, Run
from tailorbird.errors import ExportError
from tailorbird.export.exporter import Calibration, Written
from tailorbird.export.onnx import (
    export_many,
    write_model,
)
from tailorbird.export.onnx_files import OnnxFiles, plain_file
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Parity, verify
from tailorbird.files import scratch
from tailorbird.quiet import silent

RELATIVE, ABSOLUTE = 2e-2, 1e-3
"""How far outputs may be off, as a share of the largest one, and besides.

A number in float16 has 11 bits: each operation is off by up to 0.05 %, and over a hundred layers
these come to about 1 %. What is farther off has overflowed somewhere.
"""


@dataclass(frozen=True)
class OnnxFloat16Exporter(OnnxFiles):
    """ONNX files in float16, converted by ONNX Runtime's own tool from those in float32.

    Operators that have no float16 stay in float32. Nothing is calibrated: such a file has to say
    what the network says, up to rounding, and is compared to it.
    """

    format: Format = ONNX
    precision: Precision = "float16"

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
        """Write the file that is shipped; see `tailorbird.export.exporter.Exporter`."""
        with scratch() as folder:
            source = plain_file(
                module,
                input_shape,
                folder / path.name,
                options=options,
                metadata=metadata,
                batch=batch,
            )
            write_model(_halved(source), path, sync=True)
        return Written()

    def quick(
        self,
        networks: Sequence[tuple[nn.Module, tuple[int, ...]]],
        folder: Path,
        names: Sequence[str],
        *,
        batch: int = 1,
    ) -> list[Path]:
        """Write files that are only timed; see `tailorbird.export.exporter.Exporter`."""
        paths = export_many(networks, folder, names, batch=batch)
        for path in paths:
            write_model(_halved(path), path, sync=False)
        return paths

    def verify(
        self, module: nn.Module, path: Path, images: Tensor, run: Run | None = None
    ) -> Parity:
        """Whether the file answers as the network does, up to what float16 rounds."""
        return verify(module, path, images, run=run, relative=RELATIVE, absolute=ABSOLUTE)


def _halved(source: Path) -> onnx.ModelProto:
    """A file's network in float16.

    Raises:
        ExportError: where the tool fails.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        with silent():
            model: onnx.ModelProto = convert_float_to_float16(
                onnx.load(source), keep_io_types=True, disable_shape_infer=False
            )
    except Exception as error:  # of the tool, ONNX or protobuf
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"{source.name}: ONNX Runtime can't convert it to float16: {line[:300]}; "
            "use float32 for it"
        ) from error
    return model
