"""What a device says, taken at its boundary: a fault of its own is one error, whatever it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import numpy.typing as npt

from tailorbird.asking import asked, shown
from tailorbird.device import (
    ONNX,
    Description,
    Device,
    Format,
    Latency,
    Precision,
    Run,
    key_of,
)
from tailorbird.errors import ExportError, MeasurementError

TIME_LIMIT_S = 1800.0
"""Seconds that a device may take over one call, unless it has a ``time_limit_s`` of its own."""

LEAST_MS, MOST_MS = 1e-6, 1e8
"""A latency lies between these, a nanosecond and a day."""

_MOST_RUNS = 10**12

Answer = TypeVar("Answer")


def measured(device: Device, models: Sequence[Path]) -> list[Latency]:
    """Latencies of files on a device, checked.

    A device with ``time_limit_s`` (seconds, or ``None`` for none) is given so long, another
    `TIME_LIMIT_S`; so in all functions here. A call that hangs is left behind in a thread, which
    ends with the process; one that hangs while it holds the interpreter's lock can't be stopped.

    Args:
        device: any; what it raises or returns is not trusted.
        models: its artifacts.

    Returns:
        One latency per file, in order.

    Raises:
        MeasurementError: saying what the device did, or did not do in time.

    Example:
        >>> class Broken:
        ...     key = "board"
        ...     def measure(self, models):
        ...         return [-1.0 for _ in models]
        >>> measured(Broken(), [Path("a.onnx")])
        Traceback (most recent call last):
        ...
        tailorbird.errors.MeasurementError: device board: measure of 1 files gave -1.0 for a.onnx, \
expected a tailorbird.device.Latency
    """
    title, files = f"{_title(device)}: measure of {len(models)} files", list(models)
    return _asked(device, title, lambda: _latencies(device.measure([*files]), files, title))


def answering(device: Device | None) -> Run | None:
    """What tells what files answer on a device, checked; ``None`` where it can't.

    The run that comes back gives float32 outputs (n, ...) of its own for n images, all finite. It
    raises an ExportError where the device does, and a MeasurementError that says what else it did.

    Raises:
        MeasurementError: where the device's ``run`` is none.

    Example:
        >>> class Broken:
        ...     key = "board"
        ...     def run(self, artifact, images):
        ...         return None
        >>> answering(Broken())(Path("a.onnx"), np.zeros((2, 3, 8, 8), np.float32))
        Traceback (most recent call last):
        ...
        tailorbird.errors.MeasurementError: device board: run of a.onnx on 2 images gave None, \
expected a numpy array of 2 rows of floating point numbers
    """
    if device is None:
        return None
    named = _title(device)
    given = _asked(device, f"{named}: its run", lambda: getattr(device, "run", None))
    if given is None:
        return None
    if not callable(given):
        raise MeasurementError(f"{named}: its run is {shown(given)}, expected a method")

    def run(artifact: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        title = f"{named}: run of {artifact.name} on {len(images)} images"
        return _asked(
            device, title, lambda: _outputs(given(artifact, images.copy()), len(images), title)
        )

    return run


def format_of(device: Device) -> Format:
    """The artifacts that a device runs; ONNX files where it doesn't say.

    Raises:
        MeasurementError: where what it says is no format.
    """
    title = f"{_title(device)}: its format"

    def call() -> Format:
        given = getattr(device, "format", ONNX)
        right = isinstance(given, Format) and isinstance(given.beside, tuple)
        if not right or not _texts((given.name, given.file, *given.beside)):
            raise MeasurementError(
                f"{title} is {shown(given)}, expected a tailorbird.device.Format such as ONNX"
            )
        return Format(given.name, given.file, given.beside)

    return _asked(device, title, call)


def precisions_of(device: Device) -> tuple[Precision, ...]:
    """The precisions that a device runs; float32 where it doesn't say.

    Raises:
        MeasurementError: where what it says are no precisions.
    """
    title, known = f"{_title(device)}: its precisions", get_args(Precision)

    def call() -> tuple[Precision, ...]:
        given = getattr(device, "precisions", ("float32",))
        right = isinstance(given, (tuple, list)) and len(given) > 0 and _texts(given)
        if not right or len(set(given)) < len(given) or not set(given) <= set(known):
            raise MeasurementError(
                f"{title} are {shown(given)}, expected a tuple of one or more of "
                f"{', '.join(known)}, each once"
            )
        return tuple(given)

    return _asked(device, title, call)


def description_of(device: Device) -> Description | None:
    """What a device says of itself and its conditions now; ``None`` where it can't.

    Raises:
        MeasurementError: saying what it said instead.
    """
    title = f"{_title(device)}: describe"

    def call() -> Description | None:
        method = getattr(device, "describe", None)
        return None if method is None else _description(method(), title)

    return _asked(device, title, call)


def threads_of(device: Device) -> int | None:
    """How many threads a device says that it computes with; ``None`` where it doesn't say."""

    def call() -> int | None:
        given = getattr(device, "threads", None)
        return int(given) if isinstance(given, int) else None

    try:
        return _asked(device, f"{_title(device)}: its threads", call)
    except MeasurementError:  # nothing needs it
        return None


def judged_at_most(device: Device | None) -> int | None:
    """How many images of a split files are judged on there, where a device sets a bound.

    A device behind a cable is not sent ten thousand photographs: it has ``images``.

    Example:
        >>> class Board:
        ...     key, images = "board", 500
        >>> judged_at_most(Board()), judged_at_most(None)
        (500, None)
    """
    if device is None:
        return None

    def call() -> int | None:
        given = getattr(device, "images", None)
        return given if isinstance(given, int) and given > 0 else None

    try:
        return _asked(device, f"{_title(device)}: its images", call)
    except MeasurementError:  # all of them, then
        return None


def too_many_threads(device: Device, cores: int | None = None) -> str | None:
    """What to say of a device with more threads than this machine has cores; else ``None``.

    Args:
        device: with ``threads`` or without.
        cores: of this machine; counted where ``None``.

    Example:
        >>> class Busy:
        ...     key, threads = "busy", 8
        >>> too_many_threads(Busy(), cores=2)
        'device busy: 8 threads on 2 cores wait for each other; give fewer'
    """
    threads, have = threads_of(device), cores or os.cpu_count() or 1
    if threads is None or threads <= have:
        return None
    return f"{_title(device)}: {threads} threads on {have} cores wait for each other; give fewer"


def _asked(device: Device, title: str, call: Callable[[], Answer]) -> Answer:
    limit = asked(
        lambda: _limit(getattr(device, "time_limit_s", TIME_LIMIT_S), title),
        f"{title}: its time_limit_s",
        limit_s=TIME_LIMIT_S,
    )
    return asked(
        call,
        title,
        limit_s=limit,
        way_out="see whether it hangs, or give it a time_limit_s of its own",
        passes=(MeasurementError, ExportError),
    )


def _limit(given: object, title: str) -> float | None:
    if given is None:
        return None
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not number or not 0 < given < threading.TIMEOUT_MAX:  # type: ignore[operator]  # a number
        raise MeasurementError(f"{title}: time_limit_s is {shown(given)}, expected seconds or None")
    return float(given)  # type: ignore[arg-type]  # as above


def _title(device: Device) -> str:
    try:
        return f"device {key_of(device)}"
    except MeasurementError:  # it was read before; what counts is told of the call
        return f"device {type(device).__name__}"


def _texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) and value for value in values)


# answers ----------------------------------------------------------------------------------------


def _latencies(given: object, models: Sequence[Path], title: str) -> list[Latency]:
    if not isinstance(given, (list, tuple)):
        raise MeasurementError(
            f"{title} returned {type(given).__name__}, expected a list of a Latency per file"
        )
    if len(given) != len(models):
        raise MeasurementError(f"{title} returned {len(given)} figures, expected one per file")
    return [_latency(one, model, title) for one, model in zip(given, models, strict=True)]


def _latency(given: object, model: Path, title: str) -> Latency:
    if not isinstance(given, Latency):
        raise MeasurementError(
            f"{title} gave {shown(given)} for {model.name}, expected a tailorbird.device.Latency"
        )
    try:
        found = Latency(
            median_ms=float(given.median_ms),
            spread_ms=float(given.spread_ms),
            runs=int(given.runs),
            warmup=int(given.warmup),
            drift=None if given.drift is None else float(given.drift),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise MeasurementError(f"{title} gave {shown(given)} for {model.name}: {error}") from error
    odd = any(isinstance(value, (str, bool)) for value in vars(given).values())
    odd |= found.drift is not None and not (isfinite(found.drift) and found.drift >= -1)
    right = isfinite(found.median_ms) and LEAST_MS <= found.median_ms <= MOST_MS
    right &= isfinite(found.spread_ms) and 0 <= found.spread_ms <= MOST_MS
    right &= 1 <= found.runs <= _MOST_RUNS and 0 <= found.warmup <= _MOST_RUNS
    if odd or not right:
        raise MeasurementError(
            f"{title} gave {shown(given)} for {model.name}, expected "
            f"{LEAST_MS:g} to {MOST_MS:g} ms, a spread of 0 or more, and a run at least"
        )
    return found


def _description(given: object, title: str) -> Description:
    if not isinstance(given, Description):
        raise MeasurementError(
            f"{title} gave {shown(given)}, expected a tailorbird.device.Description"
        )
    texts = (given.machine, given.system, given.runtime, given.version)
    numbers = (given.cores, given.memory_mb, given.temperature_c)
    wrong: list[object] = [one for one in texts if not (isinstance(one, str) and one)]
    wrong += [one for one in (given.governor,) if not (one is None or isinstance(one, str))]
    wrong += [one for one in numbers if not (one is None or _is_number(one))]
    if wrong:
        raise MeasurementError(
            f"{title} gave {shown(wrong[0])}, expected texts that are not empty, finite numbers, "
            "and None for what can't be told"
        )
    return given


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _outputs(given: object, count: int, title: str) -> npt.NDArray[np.float32]:
    wanted = f"expected a numpy array of {count} rows of floating point numbers"
    if not isinstance(given, np.ndarray):
        raise MeasurementError(f"{title} gave {shown(given)}, {wanted}")
    if given.dtype.kind != "f" or given.ndim < 2 or len(given) != count or given.size == 0:
        raise MeasurementError(
            f"{title} gave an array of {given.dtype} of shape {given.shape}, {wanted}"
        )
    with np.errstate(over="ignore"):
        found = np.array(given, dtype=np.float32)
    broken = int(found.size - np.isfinite(found).sum())
    if broken:
        raise MeasurementError(
            f"{title} gave {broken} of {found.size} values that are not finite, {wanted}"
        )
    return found
