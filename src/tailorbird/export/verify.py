"""Does an exported file say what the network says?"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tailorbird.device import Precision, Run
from tailorbird.errors import ExportError
from tailorbird.measure.answering import run_onnx

RELATIVE, ABSOLUTE = 1e-3, 1e-4


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file is from its network.

    Args:
        max_difference: largest absolute difference of an output over all images.
        top1_agreement: share of images whose largest output is at the same place.
        tolerance: what ``max_difference`` may be, in the outputs' unit.
        images: how many were compared.
        passed: ``max_difference <= tolerance`` and no output that is not finite. Within the
            tolerance the largest outputs can only differ where two are equal up to twice of it.
    """

    max_difference: float
    top1_agreement: float
    tolerance: float
    images: int
    passed: bool

    @property
    def fault(self) -> str:
        """What is wrong where it has not passed."""
        return f"by {self.max_difference:.3g}, expected at most {self.tolerance:.3g}"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a file in a lower precision is from its network in float32.

    Args:
        precision: of the file.
        top1_agreement: share of images whose largest output is at the same place.
        mean_difference: mean absolute difference of outputs.
        worst_image: number of the image with the largest difference.
        worst_difference: that image's largest absolute difference of an output.
        images: how many were compared.
        passed: all outputs are finite.
    """

    precision: Precision
    top1_agreement: float
    mean_difference: float
    worst_image: int
    worst_difference: float
    images: int
    passed: bool

    @property
    def fault(self) -> str:
        """What is wrong where it has not passed."""
        return f"by {self.worst_difference:.3g} on image {self.worst_image}"


def verify(
    module: nn.Module,
    path: Path,
    images: Tensor,
    *,
    tolerance: float | None = None,
    run: Run | None = None,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
) -> Parity:
    """Run the file and compare its outputs to those of ``module`` in eval mode.

    Args:
        module: the network that was exported; a copy of it runs in float32 on the CPU.
        path: the ONNX file.
        images: (n, *input_shape), normalised as in training.
        tolerance: bound on the absolute difference; by default ``relative`` times the largest
            absolute output of the network plus ``absolute``.
        run: runs the file, such as the device that it is for; ONNX Runtime on the CPU where
            ``None``.
        relative: share of the largest absolute output.
        absolute: in the outputs' unit.

    Raises:
        ExportError: when the file can't be run on these images, or its outputs have another shape
            or are no array of floating point numbers.
    """
    expected, actual = _both(module, path, images, run)
    scale = float(np.abs(expected).max())
    bound = relative * scale + absolute if tolerance is None else tolerance
    difference = float(np.abs(actual - expected).max())
    same = _top1(actual) == _top1(expected)
    return Parity(
        max_difference=difference,
        top1_agreement=float(same.mean()),
        tolerance=bound,
        images=len(images),
        passed=bool(np.isfinite(difference) and difference <= bound),
    )


def agreement(
    module: nn.Module,
    path: Path,
    images: Tensor,
    *,
    precision: Precision,
    run: Run | None = None,
) -> Agreement:
    """Run a file in a lower precision and tell how far it is from ``module`` in eval mode.

    Args:
        module: the network that was exported; a copy of it runs in float32 on the CPU.
        path: the file.
        images: (n, *input_shape), as the file takes them.
        precision: of the file.
        run: as `verify` takes it.

    Raises:
        ExportError: as `verify` raises it.
    """
    expected, actual = _both(module, path, images, run)
    off = np.abs(actual - expected).reshape(len(actual), -1)
    worst = off.max(axis=1)
    number = int(worst.argmax())  # the first that is not a number, where there is one
    return Agreement(
        precision=precision,
        top1_agreement=float((_top1(actual) == _top1(expected)).mean()),
        mean_difference=float(off.mean()),
        worst_image=number,
        worst_difference=float(worst[number]),
        images=len(actual),
        passed=bool(np.isfinite(actual).all()),
    )


_Outputs = npt.NDArray[np.float32]


def _both(
    module: nn.Module, path: Path, images: Tensor, run: Run | None
) -> tuple[_Outputs, _Outputs]:
    """What the network and the file answer to the same images."""
    if len(images) == 0:
        raise ExportError(f"{path.name}: no images to compare on; give at least one")
    images = images.detach().cpu().float()
    own = copy.deepcopy(module).cpu().float().eval()
    with torch.no_grad():
        expected = torch.cat([own(batch) for batch in torch.split(images, 64)]).numpy()
    actual = (run or run_onnx)(path, images.numpy())
    if not isinstance(actual, np.ndarray) or actual.dtype.kind != "f":
        kind = getattr(actual, "dtype", type(actual).__name__)
        raise ExportError(
            f"{path.name}: running it gave {kind}, expected a numpy array of floating point numbers"
        )
    if actual.shape != expected.shape:
        raise ExportError(
            f"{path.name}: the file's outputs have shape {actual.shape}, the network's "
            f"{expected.shape}; this file was exported from another network, or "
            "what runs it answers something else"
        )
    return expected, actual


def _top1(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.asarray(outputs.reshape(len(outputs), -1).argmax(axis=1))
