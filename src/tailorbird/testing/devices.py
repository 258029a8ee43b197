"""What every device keeps to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tailorbird.device import ONNX, Device, Run
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.measure.answering import run_onnx
from tailorbird.measure.guarded import (
    answering,
    description_of,
    format_of,
    measured,
    precisions_of,
)
from tailorbird.targets import Place
from tailorbird.testing.raising import refused

Images = npt.NDArray[np.float32]

_COUNT = 3
"""Images that files are run on."""


def check_device(device: Device, models: Sequence[Path], *, images: Images | None = None) -> None:
    """A device keeps to what `tailorbird.device.Device` and `tailorbird.device.Runtime` say.

    Latencies come in the order of the files, grow with the work, and a bad file is an error. What
    it says of itself is of the right type. Where it has ``run``, a row of answers comes for each
    image, the same for the same image, and those of ONNX files are ONNX Runtime's.

    Args:
        device: the one to be tested.
        models: two or more exported files of clearly rising work, such as 1, 2 and 8 convolutions:
            the next takes longer than the one before on any day.
        images: (n, C, H, W), two or more that the last file takes; random ones by default, which
            needs ONNX files.

    Raises:
        AssertionError: naming what it does not keep to.
    """
    assert len(models) > 1, "give two or more files"
    _kept(lambda: Place(device=device))
    _kept(lambda: precisions_of(device))
    _kept(lambda: description_of(device))
    given = _kept(lambda: format_of(device))
    _check_measure(device, models)
    run = _kept(lambda: answering(device))
    if run is not None:
        _check_run(device, run, models[-1], images, onnx=given == ONNX)


def _check_measure(device: Device, models: Sequence[Path]) -> None:
    assert _kept(lambda: measured(device, [])) == [], "nothing to measure: expected an empty list"
    for files in (list(models), list(reversed(models))):
        found = _kept(lambda files=files: measured(device, files))  # type: ignore[misc]
        rising = found if files == list(models) else found[::-1]
        medians = [latency.median_ms for latency in rising]
        assert medians == sorted(set(medians)), f"expected rising latencies, got {medians}"
    missing = models[0].with_name("there-is-no-such-file.onnx")
    refused(MeasurementError, lambda: device.measure([missing]), missing.name)


def _check_run(device: Device, run: Run, model: Path, images: Images | None, *, onnx: bool) -> None:
    assert onnx or images is not None, "give images that the last file takes"
    shown = _random(model) if images is None else images
    assert len(shown) > 1, "give two or more images"
    found = _kept(lambda: run(model, shown))
    again = _kept(lambda: run(model, shown[::-1]))[::-1]
    assert found.shape == again.shape, f"run: {found.shape}, then {again.shape} for the same images"
    assert _close(found, again), "run: expected the same answer to an image wherever it stands"
    one = _kept(lambda: run(model, shown[:1]))
    assert _close(one, found[:1]), "run: expected the same answer to an image alone"
    if onnx:
        right = run_onnx(model, shown)
        assert found.shape == right.shape, f"run: expected {right.shape}, got {found.shape}"
        assert _close(found, right), "run: expected what ONNX Runtime answers on this machine"
    given: Run = device.run  # type: ignore[attr-defined]  # it has one
    own = shown.copy()
    given(model, own)
    assert np.array_equal(own, shown), "run: expected images to be left as they are"
    missing = model.with_name("there-is-no-such-file.onnx")
    try:
        given(missing, shown)
    except (ExportError, MeasurementError) as error:
        assert missing.name in str(error), f"expected {missing.name} in the error, got: {error}"
    else:
        raise AssertionError("run: expected an ExportError for a file that is not there")


def _random(model: Path) -> Images:
    """Images (n, ...) that an ONNX file takes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    return np.random.default_rng(0).standard_normal((_COUNT, *shape), dtype=np.float32)


def _close(found: Images, wanted: Images) -> bool:
    """Within what another order of additions changes."""
    scale = float(np.abs(wanted).max())
    return found.shape == wanted.shape and bool(
        np.allclose(found, wanted, rtol=1e-3, atol=1e-3 * scale + 1e-4)
    )


Given = TypeVar("Given")


def _kept(call: Callable[[], Given]) -> Given:
    """What a call gives; what it is refused for is what the device does not keep to."""
    try:
        return call()
    except (ConfigError, ExportError, MeasurementError) as error:
        raise AssertionError(str(error)) from error
