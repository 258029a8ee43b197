"""From students to proofs: exported, timed beside the reference until their limits are clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from tailorbird.device import Device, Precision
from tailorbird.errors import ExportError, MeasurementError, StoreError, TailorbirdError
from tailorbird.fit.bench import TOGETHER
from tailorbird.fit.candidates import Key, Made
from tailorbird.fit.sessions import (
    Trial,
    Word,
    figures,
    hold,
    interval,
    mean,
    word,
)
from tailorbird.fit.ship import Shipped, Shipping
from tailorbird.measure.counts import count, in_precision
from tailorbird.measure.guarded import description_of
from tailorbird.progress import Progress, each
from tailorbird.report.record import Certainty, Session
from tailorbird.search.selection import within
from tailorbird.targets import LATENCY, PLAIN, Limit, Place, Target


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trained student for one target.

    Args:
        target: whose it is.
        place: where, in which precision.
        key: its genome; equal for equal students.
        student: the network.
        base: the reference's figures at the target's place, in float32: what shares of limits are
            of.
    """

    target: Target
    place: Place
    key: Key
    student: Made
    base: Mapping[str, float]


@dataclass(frozen=True)
class _Delivered:
    """A student whose file is there."""

    finished: Finished
    shipped: Shipped

    @property
    def kind(self) -> tuple[Key, Precision]:
        """Equal for equal files at one device."""
        return self.finished.key, self.finished.place.precision

    @cached_property
    def counted(self) -> dict[str, float]:
        """What is counted of the network, and of its file where that is smaller: metric -> figure.

        Memory in other precisions than float32 is an estimate, see `in_precision`.
        """
        student, precision = self.shipped.student, self.finished.place.precision
        found = count(student.module, student.input_shape).as_metrics()
        if precision == PLAIN:
            return found
        return {**in_precision(found, precision), "size_mb": self.shipped.size_mb}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found of an exported student.

    Args:
        shipped: its file.
        limits: metric -> bound; shares are of one figure of the reference for a place.
        measured: metric -> figure; without a latency where the place has only a table.
        reference_ms: what the reference took, in the same sense as the student's latency: what
            shares are of where the limit is a share, else its mean in the same sessions.
        word: whether every limit is kept, as measured or counted.
        certainty: of the latency; ``None`` where it was not measured.
        conditions: what the device said of itself then; empty where it says nothing.
        code: import paths of the user's own code that rebuilding the student needs.
        unstored: why there is no student to rebuild, only the artifact; ``None`` where there is.
    """

    shipped: Shipped
    limits: Mapping[str, float]
    measured: Mapping[str, float]
    reference_ms: float | None
    word: Word
    certainty: Certainty | None = None
    conditions: Mapping[str, str | int | float] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    unstored: str | None = None

    @property
    def highest_ms(self) -> float:
        """The latency that can't be excluded: what is allowed for where a limit is undecided."""
        high = None if self.certainty is None else self.certainty.high_ms
        return high if self.word == "undecided" and high is not None else self.measured[LATENCY]


def prove(
    finished: Sequence[Finished],
    shipping: Shipping,
    *,
    reference: Key | None,
    beside: Callable[[Place], Path],
    sessions: int,
    progress: Progress,
) -> dict[str, Proof | TailorbirdError]:
    """Export students, measure them beside the reference where that can be, write their bundles.

    Cost: an export per distinct student; for a place, sessions of its distinct students together.

    Args:
        finished: students; targets of equal keys get equal files.
        shipping: writes them.
        reference: the reference's genome, which is not timed against itself; ``None`` where its
            delivered file is another one than ``beside``.
        beside: gives the reference's exported file for a place, in float32.
        sessions: of a student at most.
        progress: told about exports.

    Returns:
        Target's name -> what was found, or why it could not be: that costs its own target only.

    Raises:
        StoreError: when the folder can't be written.
    """
    found: dict[str, Proof | TailorbirdError] = {}
    delivered: list[_Delivered] = []
    for one in each(progress, "export students", finished):
        try:
            shipped = shipping.deliver(one.student, one.target.name, key=one.key, place=one.place)
        except StoreError:
            raise
        except TailorbirdError as error:
            found[one.target.name] = error
        else:
            delivered.append(_Delivered(one, shipped))
    for name in dict.fromkeys(one.finished.target.place.name for one in delivered):
        there = [one for one in delivered if one.finished.target.place.name == name]
        try:
            timed = _time(there, reference, beside, sessions)
        except (MeasurementError, ExportError) as error:
            found |= {ready.finished.target.name: error for ready in there}
            continue
        device = there[0].finished.target.place.device
        conditions = {} if device is None else _conditions(device)
        for ready in there:
            held = timed.get(ready.kind, [])
            found[ready.finished.target.name] = (
                held
                if isinstance(held, TailorbirdError)
                else replace(_proof(ready, held, shipping, sessions), conditions=conditions)
            )
    return found


def keeps(
    target: Target,
    base: Mapping[str, float],
    counted: Mapping[str, float],
    sessions: Sequence[Session],
    looks: int,
) -> Word:
    """Whether a student keeps a target's limits.

    Args:
        target: a place and limits.
        base: the reference's figures there.
        counted: metric -> figure of the student; its latency is not looked at.
        sessions: of the student; none where the place has only a table, so that a latency is not
            known to be kept.
        looks: sessions at most.
    """
    latency, bounds = target.latency(base), target.absolute(base)
    bounds.pop(LATENCY, None)
    if not (bounds.keys() <= counted.keys() and within(counted, bounds)):
        return "over"
    if latency is None:
        return "met"
    if not sessions:
        return "over"
    return word(figures(sessions, _scale(latency, base)), latency.absolute(base), looks)


def latency_of(
    target: Target, base: Mapping[str, float], sessions: Sequence[Session], looks: int
) -> tuple[float, float, Certainty]:
    """A student's latency in ms, what the reference took in the same sense, and how sure that is.

    Args:
        target: a share of the reference's latency is of its one figure in ``base``; where
            milliseconds are limited, or nothing, they are as they were measured.
        base: the reference's figures there.
        sessions: one at least.
        looks: sessions at most.
    """
    limit = target.latency(base)
    scale = _scale(limit, base)
    found = figures(sessions, scale)
    beside = scale if scale is not None else mean([one.reference_ms for one in sessions])
    low, high = interval(found, looks) or (None, None)
    margin = None if limit is None else 1 - mean(found) / limit.absolute(base)
    certainty = Certainty(sessions=tuple(sessions), low_ms=low, high_ms=high, margin=margin)
    return mean(found), beside, certainty


def _scale(latency: Limit | None, base: Mapping[str, float]) -> float | None:
    """What the reference is taken to take: shares are of one figure, milliseconds are as timed."""
    return base[LATENCY] if latency is not None and latency.share else None


def _time(
    there: Sequence[_Delivered],
    reference: Key | None,
    beside: Callable[[Place], Path],
    most: int,
) -> Mapping[tuple[Key, Precision], list[Session] | MeasurementError]:
    """Sessions of a device's distinct students; none where the place has only a table."""
    place = there[0].finished.target.place
    if place.device is None:
        return {}
    owners: dict[tuple[Key, Precision], list[_Delivered]] = {}
    for one in there:
        owners.setdefault(one.kind, []).append(one)
    file = beside(place)
    trials = {
        kind: Trial(
            file if kind == (reference, PLAIN) else own[0].shipped.path, partial(_clear, own, most)
        )
        for kind, own in owners.items()
    }
    return hold(trials, place.device, file, most=most, together=TOGETHER)


def _conditions(device: Device) -> dict[str, str | int | float]:
    """What a device says of itself; nothing where it says nothing, or fails: it has measured."""
    try:
        found = description_of(device)
    except MeasurementError:
        return {}
    told = {} if found is None else asdict(found)
    return {name: value for name, value in told.items() if value is not None}


def _clear(owners: Sequence[_Delivered], most: int, sessions: Sequence[Session]) -> bool:
    """Whether sessions of one student are enough for all of its targets."""
    words = [
        keeps(one.finished.target, one.finished.base, one.counted, sessions, most) for one in owners
    ]
    return "undecided" not in words


def _proof(one: _Delivered, sessions: Sequence[Session], shipping: Shipping, looks: int) -> Proof:
    target, base, measured = one.finished.target, one.finished.base, one.counted
    beside, certainty = None, None
    said = keeps(target, base, measured, sessions, looks)
    if sessions:
        latency, beside, certainty = latency_of(target, base, sessions, looks)
        measured = {LATENCY: latency, **measured}
    code, unstored = shipping.bundle(one.shipped.student, target.name, measured)
    return Proof(
        shipped=one.shipped,
        limits=target.absolute(base),
        measured=measured,
        reference_ms=beside,
        word=said,
        certainty=certainty,
        code=code,
        unstored=unstored,
    )
