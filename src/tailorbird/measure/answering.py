"""What exported files answer, in the runtime of this machine."""

from __future__ import annotations

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
        size = entry.shape[0] if isinstance(entry.shape[0], int) else 64
        fixed = size if isinstance(entry.shape[0], int) else 1
        outputs = [
            session.run(None, {entry.name: _filled(images[start : start + size], fixed)})[0]
            for start in range(0, len(images), size)
        ]
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"{path.name}: ONNX Runtime can't run it on images of shape {images.shape[1:]}: "
            f"{line[:300]}; export it again for this shape"
        ) from error
    return np.concatenate(outputs)[: len(images)]


def _filled(images: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """At least ``size`` images, the last one again and again."""
    missing = max(size - len(images), 0)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
