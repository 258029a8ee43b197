"""How networks become files, as one thing that can be handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from tailorbird.export.onnx import OUTPUT, PROBABILITIES, export_many, export_onnx
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Parity, verify
from tailorbird.targets import ONNX, Format, Run


class Exporter(Protocol):
    """Makes files of networks and compares them to what they were made from."""

    @property
    def format(self) -> Format:
        """What the files are."""

    def final(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        path: Path,
        *,
        options: ExportOptions,
        metadata: Mapping[str, str],
    ) -> None:
        """Write the file that is shipped.

        What ``options`` want in the file beside the network is in ``module`` already.

        Raises:
            ExportError: when it can't be written.
        """

    def quick(
        self,
        networks: Sequence[tuple[nn.Module, tuple[int, ...]]],
        folder: Path,
        names: Sequence[str],
    ) -> list[Path]:
        """Write files that are only timed.

        Raises:
            ExportError: when one can't be written.
        """

    def verify(
        self, module: nn.Module, path: Path, images: Tensor, run: Run | None = None
    ) -> Parity:
        """Whether the file answers as the network does, where it is run."""


@dataclass(frozen=True)
class OnnxExporter:
    """ONNX files: PyTorch's dynamo exporter for what is shipped, the older one for timing."""

    format: Format = ONNX

    def final(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        path: Path,
        *,
        options: ExportOptions,
        metadata: Mapping[str, str],
    ) -> None:
        """See `export_onnx`."""
        export_onnx(
            module,
            input_shape,
            path,
            opset=options.opset,
            dynamic_batch=options.dynamic_batch,
            metadata=metadata,
            output=PROBABILITIES if options.softmax else OUTPUT,
        )

    def quick(
        self,
        networks: Sequence[tuple[nn.Module, tuple[int, ...]]],
        folder: Path,
        names: Sequence[str],
    ) -> list[Path]:
        """See `export_many`."""
        return export_many(networks, folder, names)

    def verify(
        self, module: nn.Module, path: Path, images: Tensor, run: Run | None = None
    ) -> Parity:
        """See `tailorbird.export.verify.verify`."""
        return verify(module, path, images, run=run)
