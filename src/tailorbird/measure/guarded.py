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
    `TIME_LIMIT_S`. A call that hangs is left behind in a thread, which ends with the process.

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
    title = f"device {device.key}: measure of {len(models)} files"
    given = _called(device, models, title)
    if not isinstance(given, (list, tuple)):
        raise MeasurementError(
            f"{title} returned {type(given).__name__}, expected a list of a Latency per file"
        )
    if len(given) != len(models):
        raise MeasurementError(f"{title} returned {len(given)} figures, expected one per file")
    found = [_latency(one, model, title) for one, model in zip(given, models, strict=True)]
    if found and not any(one.median_ms for one in found):
        raise MeasurementError(f"{title} gave 0 ms for every file, which nothing takes")
    return found


def _called(device: Device, models: Sequence[Path], title: str) -> object:
    limit: float | None = getattr(device, "time_limit_s", TIME_LIMIT_S)
    if limit is None:
        return _asked(device, models, title)
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
    except (Exception, SystemExit) as error:  # a device's own code may raise anything
        raise MeasurementError(f"{title} raised {type(error).__name__}: {error}") from error


def _latency(given: object, model: Path, title: str) -> Latency:
    if not isinstance(given, Latency):
        raise MeasurementError(
            f"{title} gave {given!r:.60} for {model.name}, expected a tailorbird.targets.Latency"
        )
    try:
        found = Latency(
            median_ms=float(given.median_ms),
            spread_ms=float(given.spread_ms),
            runs=int(given.runs),
            warmup=int(given.warmup),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise MeasurementError(f"{title} gave {given!r:.90} for {model.name}: {error}") from error
    for name in ("median_ms", "spread_ms"):
        value = getattr(found, name)
        if isinstance(getattr(given, name), str) or not isfinite(value) or value < 0:
            raise MeasurementError(
                f"{title} gave {name} {getattr(given, name)!r} for {model.name}, expected a number "
                "of milliseconds"
            )
    return found
