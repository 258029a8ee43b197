"""What makes files of networks: the protocol, what it is given, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from tailorbird.device import Format, Precision, Run
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Agreement, Parity


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a quantised file is made by.

    Args:
        images: (n, C, H, W), as the file takes them.
        loss: tells by how many points of accuracy a file is worse than the network in float32,
            where it will be run; without it no layer is kept in float32.
        max_loss: points that may be lost before layers are kept in float32.
        like: a file in the same precision of a network of the same structure, such as the one that
            quantisation-aware training was for. Its ranges and what it keeps in float32 are taken
            over as they are, and only weights are new: nothing is calibrated.
    """

    images: Tensor
    loss: Callable[[Path], float] | None = None
    max_loss: float = 1.0
    like: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """How a file was made.

    Args:
        calibration: how ranges were found, such as ``"minmax"``; empty where nothing was quantised.
        kept: layers that stayed in float32 though the file is quantised; not told again where
            they are those of another file.
        loss: points of accuracy that the file loses, where it was asked.
    """

    calibration: str = ""
    kept: tuple[str, ...] = ()
    loss: float | None = None


class Exporter(Protocol):
    """Makes files of networks in one precision and compares them to what they were made from."""

    @property
    def format(self) -> Format:
        """What the files are."""

    @property
    def precision(self) -> Precision:
        """What they compute in; inputs and outputs are float32 in all."""

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
        """Write the file that is shipped.

        What ``options`` want in the file beside the network is in ``module`` already.

        Args:
            module: in eval mode.
            input_shape: (C, H, W).
            path: of the file; those beside it go beside it.
            options: of the export.
            metadata: what travels in the file.
            batch: images per call, where the options leave it fixed.
            calibration: needed by quantised precisions, ignored by others.

        Raises:
            ExportError: when it can't be written, or the precision needs a calibration.
        """

    def quick(
        self,
        networks: Sequence[tuple[nn.Module, tuple[int, ...]]],
        folder: Path,
        names: Sequence[str],
        *,
        batch: int = 1,
    ) -> list[Path]:
        """Write files that are only timed; what they answer does not count.

        Raises:
            ExportError: when one can't be written.
        """

    def verify(
        self, module: nn.Module, path: Path, images: Tensor, run: Run | None = None
    ) -> Parity | Agreement:
        """Whether the file answers as the network does, where it is run."""

    def run(self, path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What a file answers on this machine: asked where the device doesn't tell.

        Raises:
            ExportError: when it can't be run on these images (n, C, H, W).
        """

    def metadata_of(self, path: Path) -> dict[str, str]:
        """What travels in a file."""

    def relabel(self, source: Path, path: Path, metadata: Mapping[str, str]) -> None:
        """Copy a file, and what belongs beside it, with other metadata."""
