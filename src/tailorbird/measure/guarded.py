"""What a device says, taken at its boundary: a fault of its own is one error, whatever it is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from tailorbird.errors import MeasurementError
from tailorbird.targets import Device, Latency

TIME_LIMIT_S = 1800.0
"""Seconds that a device may take over one call, unless it has a ``time_limit_s`` of its own."""


def measured(device: Device, models: Sequence[Path]) -> list[Latency]:
    """Latencies of files on a device, checked.

    A device with ``time_limit_s`` (seconds, or ``None`` for none) is given so long, another
    `TIME_LIMIT_S`. A call that hangs is left behind in a thread, which ends with the process; one
    that hangs while it holds the interpreter's lock can't be stopped.

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
expected a tailorbird.targets.Latency
    """
    title = f"device {_key(device)}: measure of {len(models)} files"
    given = _called(device, models, title)
    if not isinstance(given, (list, tuple)):
        raise MeasurementError(
            f"{title} returned {type(given).__name__}, expected a list of a Latency per file"
        )
    if len(given) != len(models):
        raise MeasurementError(f"{title} returned {len(given)} figures, expected one per file")
    return [_latency(one, model, title) for one, model in zip(given, models, strict=True)]


def _called(device: Device, models: Sequence[Path], title: str) -> object:
    limit = getattr(device, "time_limit_s", TIME_LIMIT_S)
    if limit is None:
        return _asked(device, models, title)
    if not isinstance(limit, (int, float)) or not 0 < limit < threading.TIMEOUT_MAX:
        raise MeasurementError(
            f"{title}: time_limit_s is {_shown(limit)}, expected seconds or None"
        )
    found: list[object] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            found.append(_asked(device, models, title))
        except BaseException as error:  # it is raised again where it was asked for
            failed.append(error)

    thread = threading.Thread(target=call, daemon=True, name=title)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        raise MeasurementError(
            f"{title} did not end within {limit:g} s; see whether it hangs, or give it a "
            "time_limit_s of its own"
        )
    if failed:
        raise failed[0]
    return found[0]


def _asked(device: Device, models: Sequence[Path], title: str) -> object:
    try:
        return device.measure(models)
    except (MeasurementError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # its own code may raise anything
        raise MeasurementError(f"{title} raised {_shown(error)}") from error


def _key(device: Device) -> str:
    try:
        return str(device.key)
    except Exception:  # it was read before; what counts is told of the call
        return type(device).__name__


def _shown(value: object) -> str:
    """A value for a message, whatever its own text does."""
    try:
        return f"{value!r:.90}"
    except Exception:
        return f"a {type(value).__name__}"


def _latency(given: object, model: Path, title: str) -> Latency:
    if not isinstance(given, Latency):
        raise MeasurementError(
            f"{title} gave {_shown(given)} for {model.name}, expected a tailorbird.targets.Latency"
        )
    try:
        found = Latency(
            median_ms=float(given.median_ms),
            spread_ms=float(given.spread_ms),
            runs=int(given.runs),
            warmup=int(given.warmup),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise MeasurementError(f"{title} gave {_shown(given)} for {model.name}: {error}") from error
    texts = any(isinstance(value, str) for value in vars(given).values())
    right = isfinite(found.median_ms) and found.median_ms > 0
    right &= isfinite(found.spread_ms) and found.spread_ms >= 0
    if texts or not right or found.runs < 1 or found.warmup < 0:
        raise MeasurementError(
            f"{title} gave {_shown(given)} for {model.name}, expected milliseconds above 0, a "
            "spread of 0 or more, and a run at least"
        )
    return found
