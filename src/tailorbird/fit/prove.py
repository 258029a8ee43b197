"""From students to proofs: exported, timed beside the reference until their limits are clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from tailorbird.errors import MeasurementError, StoreError, TailorbirdError
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
from tailorbird.fit.ship import Shipping
from tailorbird.measure.counts import count
from tailorbird.progress import Progress, each
from tailorbird.report.record import Certainty, Session
from tailorbird.search.selection import within
from tailorbird.targets import LATENCY, Limit, Target


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trained student for one target.

    Args:
        target: whose it is.
        key: its genome; equal for equal students.
        student: the network.
        base: the reference's figures at the target's place: what shares of limits are of.
    """

    target: Target
    key: Key
    student: Made
    base: Mapping[str, float]

    @cached_property
    def counted(self) -> dict[str, float]:
        """What is counted of the network: metric -> figure."""
        return count(self.student.module, self.student.input_shape).as_metrics()


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found of an exported student.

    Args:
        limits: metric -> bound; shares are of one figure of the reference for a place.
        measured: metric -> figure; without a latency where the place has only a table.
        reference_ms: what the reference took, in the same sense as the student's latency: what
            shares are of where the limit is a share, else its mean in the same sessions.
        word: whether every limit is kept, as measured or counted.
        certainty: of the latency; ``None`` where it was not measured.
        code: import paths of the user's own code that rebuilding the student needs.
        unstored: why there is no student to rebuild, only the artifact; ``None`` where there is.
    """

    limits: Mapping[str, float]
    measured: Mapping[str, float]
    reference_ms: float | None
    word: Word
    certainty: Certainty | None = None
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
    beside: Callable[[], Path],
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
        beside: gives the reference's exported file.
        sessions: of a student at most.
        progress: told about exports.

    Returns:
        Target's name -> what was found, or why it could not be: that costs its own target only.

    Raises:
        StoreError: when the folder can't be written.
    """
    found: dict[str, Proof | TailorbirdError] = {}
    paths: dict[str, Path] = {}
    for one in each(progress, "export students", finished):
        target = one.target
        try:
            paths[target.name] = shipping.deliver(
                one.student, target.name, key=one.key, device=target.place.device
            )
        except StoreError:
            raise
        except TailorbirdError as error:
            found[target.name] = error
    delivered = [one for one in finished if one.target.name in paths]
    for place in dict.fromkeys(one.target.place.name for one in delivered):
        there = [one for one in delivered if one.target.place.name == place]
        try:
            timed = _time(there, paths, reference, beside, sessions)
        except MeasurementError as error:
            found |= {one.target.name: error for one in there}
            continue
        for one in there:
            held = timed.get(one.key, [])
            found[one.target.name] = (
                held if isinstance(held, TailorbirdError) else _proof(one, held, shipping, sessions)
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
    limits = {limit.metric: limit for limit in target.limits}
    latency = limits.pop(LATENCY, None)
    bounds = {metric: limit.absolute(base) for metric, limit in limits.items()}
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
    limit = next((one for one in target.limits if one.metric == LATENCY), None)
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
    there: Sequence[Finished],
    paths: Mapping[str, Path],
    reference: Key | None,
    beside: Callable[[], Path],
    most: int,
) -> Mapping[Key, list[Session] | MeasurementError]:
    """Sessions of a place's distinct students; none where the place has only a table."""
    device = there[0].target.place.device
    if device is None:
        return {}
    owners: dict[Key, list[Finished]] = {}
    for one in there:
        owners.setdefault(one.key, []).append(one)
    file = beside()
    trials = {
        key: Trial(
            file if key == reference else paths[own[0].target.name], partial(_clear, own, most)
        )
        for key, own in owners.items()
    }
    return hold(trials, device, file, most=most, together=TOGETHER)


def _clear(owners: Sequence[Finished], most: int, sessions: Sequence[Session]) -> bool:
    """Whether sessions of one student are enough for all of its targets."""
    words = [keeps(one.target, one.base, one.counted, sessions, most) for one in owners]
    return "undecided" not in words


def _proof(one: Finished, sessions: Sequence[Session], shipping: Shipping, looks: int) -> Proof:
    target, base, measured = one.target, one.base, one.counted
    beside, certainty = None, None
    said = keeps(target, base, measured, sessions, looks)
    if sessions:
        latency, beside, certainty = latency_of(target, base, sessions, looks)
        measured = {LATENCY: latency, **measured}
    code, unstored = shipping.bundle(one.student, target.name, measured)
    return Proof(
        limits=target.absolute(base),
        measured=measured,
        reference_ms=beside,
        word=said,
        certainty=certainty,
        code=code,
        unstored=unstored,
    )
