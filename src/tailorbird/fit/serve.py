"""What was found for one target serves every other that it suits better than what that one got."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tailorbird.fit.prove import keeps, latency_of
from tailorbird.report.record import TargetResult
from tailorbird.targets import LATENCY, PLAIN, Target
from tailorbird.task import Score


@dataclass(frozen=True)
class Move:
    """A target takes the student of another one.

    Args:
        source: the target whose files are to be copied.
        result: what the target has then; its name is the target's.
    """

    source: str
    result: TargetResult


def moves(
    answered: Sequence[tuple[Target, TargetResult]],
    bases: Mapping[str, Mapping[str, float]],
    *,
    looks: int,
    precisions: Callable[[Target], Collection[str]] = lambda _: (PLAIN,),
    floors: Mapping[str, float] | None = None,
) -> list[Move]:
    """Targets that another one's student suits better than their own.

    Whatever a tighter target got keeps every looser one's limits, so that no looser target ends
    worse off.

    Args:
        answered: targets and what they got.
        bases: place's name -> the reference's figures there, for places that measure.
        looks: sessions at most, by which students were measured.
        precisions: that a target's file may compute in.
        floors: target's name -> the least accuracy on validation images that it asks for.

    Returns:
        The worst off first: done in this order, files are copied before they are replaced.
    """
    found = []
    for target, own in sorted(answered, key=lambda one: worth(one[1])):
        base = bases.get(target.place.name)
        others = [
            result
            for other, result in answered
            if other.name != target.name
            and other.place.name == target.place.name
            and result.precision in precisions(target)
        ]
        floor = (floors or {}).get(target.name)
        best = (
            None
            if base is None
            else _better(target, own, others, base=base, looks=looks, floor=floor)
        )
        if best is not None and base is not None:
            found.append(Move(best.name, _as(best, target, own, base=base, looks=looks)))
    return found


def better(score: Score, own: TargetResult) -> bool:
    """Whether a network that keeps a target's limits is better than what the target got.

    That is: more accurate on validation images, and of a lower loss there. On some hundred images
    chance often favours one of two equal networks in accuracy, and seldom in both; of equal ones a
    target keeps its own, which had more room. Where networks know validation images by heart, it is
    the accuracy on others that decides (`TargetResult.compared`): losses there tell how sure of
    itself a network is.

    Args:
        score: of the network, on the same images as the target's own.
        own: what the target got.
    """
    known = standing(own)
    if not own.met:
        return True
    if known is None:
        return False
    return score.value > known.value and (own.compared is not None or score.loss < known.loss)


def no_worse(score: Score, own: TargetResult) -> bool:
    """Whether a network that was given, and keeps a target's limits, is as good as its student.

    That is: at least as accurate on the images that compare them, and of no higher loss there if
    just as accurate. What was given is known, and of equal ones the target gets it. Of two networks
    that were given one has to be better.

    Args:
        score: of the network, on the same images as the target's own.
        own: what the target got.
    """
    if own.as_is is not None or not own.met:
        return better(score, own)
    if own.compared is not None:
        return score.value >= own.compared
    known = standing(own)
    return known is not None and not known.beats(score)


def standing(result: TargetResult) -> Score | None:
    """A student's score on the images that compare students; ``None`` for an earlier version's."""
    if result.compared is not None:
        return Score(result.compared, 0.0)
    if result.validation is None or result.validation_loss is None:
        return None
    return Score(result.validation, result.validation_loss)


def preferred(
    target: Target,
    accuracy: float,
    score: Score,
    own: TargetResult,
    floor: float | None,
    *,
    measured: Mapping[str, float] | None = None,
    wins: Callable[[Score, TargetResult], bool] = better,
) -> bool:
    """Whether a network that keeps a target's limits on cost is what it wants more than its own.

    Args:
        target: whose it would be.
        accuracy: of the network on validation images.
        score: of the network on the images that compare networks.
        own: what the target got.
        floor: the least accuracy there that the target asks for: what is accurate enough and
            faster is wanted then, or smaller, where the latency is limited as well.
        measured: the network's figures; nothing is known of them yet where ``None``.
        wins: whether the network's accuracy is reason to take it.
    """
    if floor is None:
        return wins(score, own)
    if accuracy < floor:
        return False
    if not own.met or measured is None:
        return True
    spared = spared_by(target)
    return measured[spared] < own.measured.get(spared, 0.0)


def spared_by(target: Target) -> str:
    """What is to be as low as can be for a target that limits the accuracy."""
    bounded = any(limit.metric == LATENCY for limit in target.bounds)
    return "size_mb" if bounded else LATENCY


def worth(result: TargetResult) -> tuple[bool, float]:
    """What students are compared by: those that are not within their own limits come last, others
    by their accuracy on the images that compare them.
    """
    known = standing(result)
    return result.met, -1.0 if known is None else known.value


def _better(
    target: Target,
    own: TargetResult,
    others: Sequence[TargetResult],
    *,
    base: Mapping[str, float],
    looks: int,
    floor: float | None,
) -> TargetResult | None:
    fit = [
        other
        for other in others
        if other.onnx is not None
        and other.certainty is not None
        and other.validation is not None
        and (score := standing(other)) is not None
        and preferred(target, other.validation, score, own, floor, measured=other.measured)
        and keeps(target, base, other.measured, other.certainty.sessions, looks) == "met"
    ]
    if floor is not None:
        return min(fit, key=lambda one: one.measured[spared_by(target)], default=None)
    return max(fit, key=lambda one: (worth(one), -one.measured[LATENCY]), default=None)


def _as(
    other: TargetResult,
    target: Target,
    own: TargetResult,
    *,
    base: Mapping[str, float],
    looks: int,
) -> TargetResult:
    """A result as another target's, its latency in the sense of that target's limit."""
    assert other.onnx is not None
    assert other.certainty is not None
    latency, reference_ms, certainty = latency_of(target, base, other.certainty.sessions, looks)
    return replace(
        other,
        name=target.name,
        limits=target.absolute(base),
        asked=target.shares,
        measured={**other.measured, LATENCY: latency, "teacher_latency_ms": reference_ms},
        met=True,
        undecided=False,
        certainty=certainty,
        onnx=other.onnx.replace(f"students/{other.name}/", f"students/{target.name}/"),
        lowest={},
        reason=None,
        minutes=own.minutes,
        rounds=own.rounds,
        found_for=other.found_for or other.name,
    )
