"""What runs and times artifacts: its words, and the protocol that all devices keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from tailorbird.asking import asked, shown
from tailorbird.errors import MeasurementError

Run = Callable[[Path, "npt.NDArray[np.float32]"], "npt.NDArray[np.float32]"]
"""A file and images (n, C, H, W) to its outputs (n, ...)."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A measured latency of one call: median and interquartile range over ``runs`` timed runs.

    Args:
        median_ms: the median, in ms.
        spread_ms: the interquartile range, in ms.
        runs: that were timed.
        warmup: runs before them.
        drift: by what share the last third of the runs differs from the first, where it is known:
            a device that heats up gets slower.
    """

    median_ms: float
    spread_ms: float
    runs: int
    warmup: int
    drift: float | None = None


Precision = Literal["float32", "float16", "int8"]
"""What an artifact computes in."""


@dataclass(frozen=True)
class Format:
    """What exported files are.

    Args:
        name: such as ``"onnx"``.
        file: what the file in a student's folder is called.
        beside: files that belong to it and lie beside it.
    """

    name: str
    file: str
    beside: tuple[str, ...] = ()


ONNX = Format("onnx", "model.onnx")
OPENVINO = Format("openvino", "model.xml", ("model.bin",))
FORMATS = (ONNX, OPENVINO)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a device says of itself and of the conditions it is in; ``None`` for what it can't tell.

    Args:
        machine: processor or model.
        system: operating system, or browser, and version.
        runtime: what runs files there.
        version: of the runtime.
        cores: that it may use.
        memory_mb: that is free.
        governor: what sets the processor's clock.
        temperature_c: the hottest that can be read, in degrees Celsius.
    """

    machine: str
    system: str
    runtime: str
    version: str
    cores: int | None = None
    memory_mb: float | None = None
    governor: str | None = None
    temperature_c: float | None = None


class Device(Protocol):
    """What times exported networks. One instance is one deployment setting.

    It may have the members of `Runtime` as well; without them it takes ONNX files in float32, and
    what a file answers is asked of ONNX Runtime on this machine.
    """

    @property
    def key(self) -> str:
        """Identity of device, runtime and settings: equal keys give comparable latencies."""

    def measure(self, models: Sequence[Path]) -> list[Latency]:
        """Time each file at the batch size that it was exported with (1 where that is open).

        Files take turns, so that drift hits all alike.

        Raises:
            MeasurementError: when a file can't be run on this device.
        """


class Runtime(Device, Protocol):
    """A device that also says what it takes and is, and tells what a file answers there."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions of artifacts that it runs."""

    @property
    def format(self) -> Format:
        """The artifacts that it runs."""

    def run(self, artifact: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What a file answers to images (n, C, H, W): outputs (n, ...).

        Raises:
            ExportError: when the file can't be run on these images.
            MeasurementError: when the device does not answer.
        """

    def describe(self) -> Description:
        """What it is, asked of the device itself.

        Raises:
            MeasurementError: when the device does not answer.
        """


KEY_LIMIT_S = 60.0
"""Seconds that a device may take to name itself."""

_LONGEST_KEY = 500


def key_of(device: Device) -> str:
    """A device's key, read once.

    Raises:
        MeasurementError: where it is no text that names the device, or raises, or hangs.

    Example:
        >>> class Board:
        ...     key = 5
        >>> key_of(Board())
        Traceback (most recent call last):
        ...
        tailorbird.errors.MeasurementError: the key of its device (Board) is 5, expected text that \
names the device
    """
    title = f"the key of its device ({type(device).__name__})"

    def call() -> str:
        given = device.key
        if not isinstance(given, str) or not given:
            raise MeasurementError(
                f"{title} is {shown(given)}, expected text that names the device"
            )
        text = str.__str__(given)
        if not text.isprintable() or len(text) > _LONGEST_KEY:
            raise MeasurementError(
                f"{title} is {shown(text)}, expected at most {_LONGEST_KEY} printable characters"
            )
        return text

    return asked(call, title, limit_s=KEY_LIMIT_S)
