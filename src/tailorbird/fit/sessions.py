"""Whether a latency keeps its limit: sessions until an interval of confidence is clear of it.

A session's figures agree to within half a percent; two sessions differ by more, and beside other
work by a tenth. What one session says of a student near its limit is chance, so sessions are
repeated until Student's t interval of the mean lies on one side of the limit, and at most so often;
the error allowed is divided by the number of looks (Bonferroni), so that looking often doesn't make
a word more likely. Intervals are of logarithms: a latency varies by factors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal, TypeVar

from tailorbird.device import Device
from tailorbird.errors import MeasurementError
from tailorbird.measure.guarded import measured
from tailorbird.report.record import Session

MOST = 8
"""Sessions of a student at most, unless asked for otherwise."""

ERROR = 0.05
"""Chance that an interval, at any of the looks, does not hold the mean."""

FAR = 1.25
"""A first session that is off the limit by this factor needs no second."""

Name = TypeVar("Name", bound=Hashable)

Word = Literal["met", "over", "undecided"]
"""What sessions say of a limit."""


def figures(sessions: Sequence[Session], base_ms: float | None) -> list[float]:
    """A student's latency in ms by session.

    Args:
        sessions: as they were measured.
        base_ms: what the reference is taken to take, so that a session's speed cancels out;
            ``None`` for the time as it was.

    Example:
        >>> once = Session(own_ms=2.0, reference_ms=4.0, spread_ms=0.1)
        >>> figures([once], 5.0), figures([once], None)
        ([2.5], [2.0])
    """
    if base_ms is None:
        return [one.own_ms for one in sessions]
    return [one.own_ms * (base_ms / one.reference_ms) for one in sessions]


def mean(found_ms: Sequence[float]) -> float:
    """The geometric mean; of equal figures exactly that.

    Example:
        >>> mean([2.0, 2.0]), round(mean([1.0, 4.0]), 9)
        (2.0, 2.0)
    """
    first = found_ms[0]
    return first * exp(fmean(log(one / first) for one in found_ms))


def interval(found_ms: Sequence[float], looks: int) -> tuple[float, float] | None:
    """What holds the mean of all sessions there could be, in ms; ``None`` for fewer than two.

    Example:
        >>> low, high = interval([1.99, 2.0, 2.01], looks=8)
        >>> low < 1.95 < 2.05 < high
        True
    """
    from scipy.stats import t

    n = len(found_ms)
    if n < 2:
        return None
    center = mean(found_ms)
    deviation = stdev(log(one / center) for one in found_ms)
    half = float(t.ppf(1 - ERROR / (2 * looks), n - 1)) * deviation / sqrt(n)
    return center * exp(-half), center * exp(half)


def word(found_ms: Sequence[float], bound_ms: float, looks: int) -> Word:
    """What sessions say of a limit.

    Args:
        found_ms: by session.
        bound_ms: the limit.
        looks: sessions at most; with one, its figure alone decides.

    Example:
        >>> word([1.97], 2.0, looks=8), word([1.5], 2.0, looks=8), word([1.97], 2.0, looks=1)
        ('undecided', 'met', 'met')
        >>> word([1.90, 1.91, 1.89, 1.90], 2.0, looks=8), word([2.1, 1.8, 2.0], 2.0, looks=8)
        ('met', 'undecided')
    """
    sides = interval(found_ms, looks)
    if sides is None:
        far = looks == 1 or not 1 / FAR < found_ms[0] / bound_ms < FAR
        sides = (found_ms[0], found_ms[0]) if far else (0.0, float("inf"))
    if sides[1] <= bound_ms:
        return "met"
    return "over" if sides[0] > bound_ms else "undecided"


@dataclass(frozen=True)
class Trial:
    """An exported student, and what tells when enough is known of it.

    Args:
        path: its file.
        clear: whether these sessions are enough.
    """

    path: Path
    clear: Callable[[Sequence[Session]], bool]


def hold(
    trials: Mapping[Name, Trial], device: Device, reference: Path, *, most: int, together: int
) -> dict[Name, list[Session] | MeasurementError]:
    """Sessions of students on one device, each beside the reference, until all is clear.

    Cost: a session times those that are not clear yet, ``together`` at a time, and the reference.

    Args:
        trials: by name.
        device: what runs the files.
        reference: its file; a trial of this very file is the reference itself, and timed once.
        most: sessions of a student.
        together: students timed in one call.

    Returns:
        A trial's name -> its sessions, or why there are none.
    """
    found: dict[Name, list[Session]] = {name: [] for name in trials}
    failed: dict[Name, MeasurementError] = {}
    for _ in range(most):
        left = [
            name
            for name, trial in trials.items()
            if name not in failed and not (found[name] and trial.clear(found[name]))
        ]
        for start in range(0, len(left), together):
            names = left[start : start + together]
            paths = {name: trials[name].path for name in names}
            for name, one in _session(paths, device, reference).items():
                if isinstance(one, Session):
                    found[name].append(one)
                else:
                    failed[name] = one
    return {**found, **failed}


def _session(
    paths: Mapping[Name, Path], device: Device, reference: Path
) -> dict[Name, Session | MeasurementError]:
    """One session; a file that can't be run costs the others nothing."""
    others = {name: path for name, path in paths.items() if path != reference}
    try:
        base, *own = measured(device, [reference, *others.values()])
    except MeasurementError as error:
        if len(paths) == 1:
            return dict.fromkeys(paths, error)
        try:
            measured(device, [reference])
        except MeasurementError as dead:  # it is not the files
            return dict.fromkeys(paths, dead)
        found: dict[Name, Session | MeasurementError] = {}
        for name, path in paths.items():
            found |= _session({name: path}, device, reference)
        return found
    timed = dict(zip(others, own, strict=True))
    return {
        name: Session(
            own_ms=timed.get(name, base).median_ms,
            reference_ms=base.median_ms,
            spread_ms=timed.get(name, base).spread_ms,
            drift=timed.get(name, base).drift,
        )
        for name in paths
    }
