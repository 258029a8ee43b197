"""What exported files answer, in the runtime of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ExportError


def run_onnx(
    path: Path,
    images: npt.NDArray[np.float32],
    *,
    provider: str = "CPUExecutionProvider",
    threads: int = 0,
) -> npt.NDArray[np.float32]:
    """Outputs of an ONNX file for all images, in batches of the size that it was exported with.

    Where that is fixed and the images do not fill the last batch, its last one is repeated.

    Args:
        path: the file.
        images: (n, C, H, W).
        provider: ONNX Runtime's execution provider.
        threads: intra-op threads; 0 for what ONNX Runtime takes by itself.

    Raises:
        ExportError: when it can't be run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        (entry,) = session.get_inputs()
        outputs = [
            session.run(None, {entry.name: part})[0] for part in in_batches(images, entry.shape[0])
        ]
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"{path.name}: ONNX Runtime can't run it on images of shape {images.shape[1:]}: "
            f"{line[:300]}; export it again for this shape"
        ) from error
    return np.concatenate(outputs)[: len(images)]


def in_batches(
    images: npt.NDArray[np.float32], size: object, *, most: int = 64
) -> Iterator[npt.NDArray[np.float32]]:
    """Images in calls of the batch size that a file was exported with.

    Args:
        images: (n, C, H, W).
        size: a number, and the last call is filled up with its last image; anything else where the
            batch is open.
        most: images per call then.

    Example:
        >>> [len(part) for part in in_batches(np.zeros((5, 1, 2, 2), np.float32), 4)]
        [4, 4]
        >>> [len(part) for part in in_batches(np.zeros((5, 1, 2, 2), np.float32), "batch")]
        [5]
    """
    fixed = isinstance(size, int)
    step = size if isinstance(size, int) else most
    for start in range(0, len(images), step):
        part = images[start : start + step]
        if fixed and len(part) < step:
            part = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
        yield part
