"""What is known at a place in one precision, and what is chosen from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tailorbird.device import Precision
from tailorbird.fit.candidates import Judgement, Key, Timing
from tailorbird.targets import PLAIN, Place, Target

Option = tuple[str, Key]
"""A place's name, which says the precision, and a candidate."""


class Files(Protocol):
    """Judges candidates as files of a precision, where they will run."""

    def judge(self, place: Place, key: Key, plain: Judgement) -> Judgement:
        """How a candidate's file answers validation images.

        Args:
            place: a device in some precision.
            key: of the candidate.
            plain: how the network in float32 answers all of them.

        Raises:
            ExportError: when the file can't be made or run.
            MeasurementError: when the device does not answer.
        """


def own_place(target: Target) -> Sequence[Place]:
    """The target's place as it is: float32 only."""
    return (target.place,)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate chosen for a target.

    Args:
        key: its genome.
        name: the same as a short text.
        limits: metric -> bound in its unit, margin not taken off.
        figures: metric -> figure of the whole network; latency measured where it can be.
        accuracy: on the validation split, before it is trained further.
        place: the name of the place in the precision that was chosen.
        precision: that its file computes in.
    """

    key: Key
    name: str
    limits: Mapping[str, float]
    figures: Mapping[str, float]
    accuracy: float
    place: str = ""
    precision: Precision = PLAIN


@dataclass
class Pool:
    """What is known at one place, in one precision.

    Args:
        place: where.
        timing: times networks there; ``None`` where the place has only a table.
        base: the reference's figures, in float32: what shares of limits are of.
        candidates: those proposed, each with its latency in ms, and the reference.
        checks: networks that only correct the estimate.
    """

    place: Place
    timing: Timing | None
    base: Mapping[str, float]
    candidates: dict[Key, float]
    checks: dict[Key, float] = field(default_factory=dict)

    @property
    def searched(self) -> bool:
        """Whether candidates have been proposed for this place: the reference is there anyway."""
        return len(self.candidates) > 1

    @property
    def informed(self) -> bool:
        """Whether the estimate has been corrected by whole networks."""
        return self.timing is not None and (self.searched or bool(self.checks))


@dataclass(frozen=True)
class Past:
    """The networks of a pool when it was left; their figures are in the place's store."""

    candidates: tuple[Key, ...] = ()
    checks: tuple[Key, ...] = ()


@dataclass
class Aim:
    """How a target is chosen for: tighter after a miss, and without what missed.

    Args:
        scale: share of the limit that is asked for.
        missed: candidates that came out over it, or too near to tell, each with its place.
        undecided: the last of those that were too near: taken where nothing tighter is found.
        without: names of places whose precision does not do, and why.
    """

    scale: float = 1.0
    missed: list[Option] = field(default_factory=list)
    undecided: Option | None = None
    without: dict[str, str] = field(default_factory=dict)
