"""Code of a user's own, asked at its boundary: whatever it does is one error, in bounded time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from tailorbird.errors import MeasurementError

Answer = TypeVar("Answer")

_SLICE_S = 1.0
"""Time is counted in such slices, so that a process that was stopped and continued is not late."""


def asked(
    call: Callable[[], Answer],
    title: str,
    *,
    limit_s: float | None,
    way_out: str = "see whether it hangs",
    passes: tuple[type[Exception], ...] = (MeasurementError,),
) -> Answer:
    """What a call gives, unless it raises or takes too long.

    A call that hangs is left behind in a thread, which ends with the process. One that hangs while
    it holds the interpreter's lock stops every thread, this one too, and can't be told.

    Args:
        call: runs the user's code; what it returns should be checked in it, since values may be
            of the user's own classes.
        title: what messages call it.
        limit_s: seconds, or ``None`` to wait for ever, in the calling thread.
        way_out: what to do about a call that takes too long.
        passes: errors that are handed on as they are, as ctrl-C is.

    Raises:
        MeasurementError: saying what it raised, or that it took too long.

    Example:
        >>> asked(lambda: 1 / 0, "device board: run", limit_s=5)
        Traceback (most recent call last):
        ...
        tailorbird.errors.MeasurementError: device board: run raised ZeroDivisionError('division \
by zero')
    """
    if limit_s is None:
        return _called(call, title, passes)
    found: list[Answer] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(_called(call, title, passes))
        except BaseException as error:  # it is raised again where it was asked for
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True, name=title[:80])
    thread.start()
    left = limit_s
    while left > 0 and thread.is_alive():
        thread.join(min(left, _SLICE_S))
        left -= _SLICE_S
    if failed:
        raise failed[0]
    if not found:
        raise MeasurementError(f"{title} did not end within {limit_s:g} s; {way_out}")
    return found[0]


def _called(call: Callable[[], Answer], title: str, passes: tuple[type[Exception], ...]) -> Answer:
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except passes:
        raise
    except BaseException as error:  # SystemExit and the like cost what they are raised for only
        raise MeasurementError(f"{title} raised {shown(error)}") from error


def shown(value: object) -> str:
    """A value for a message in a few words, whatever its own text does.

    Example:
        >>> shown([1.5] * 2)
        '[1.5, 1.5]'
    """
    try:
        return f"{value!r:.90}".encode("ascii", "backslashreplace").decode()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"a {type(value).__name__}"
