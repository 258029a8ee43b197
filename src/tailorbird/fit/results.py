"""What is recorded of a target once its student is proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tailorbird.device import Precision
from tailorbird.fit.judge import Accuracies
from tailorbird.fit.prove import Proof
from tailorbird.measure.rounds import DRIFT
from tailorbird.report.record import TargetResult, TrainingRound
from tailorbird.report.words import undecided
from tailorbird.targets import ACCURACY, LATENCY, PLAIN, RATE, Target


def result_of(
    target: Target,
    proof: Proof,
    accuracies: Accuracies,
    *,
    reference: float,
    precision: Precision = PLAIN,
    missed: str = "",
    otherwise: str = "",
    minutes: float,
    rounds: Sequence[TrainingRound] = (),
    replaced: Sequence[str] = (),
    as_is: str | None = None,
    notes: Sequence[str] = (),
) -> TargetResult:
    """A target's result.

    Args:
        target: whose it is.
        proof: what was found of the exported file.
        accuracies: of the network.
        reference: accuracy of the reference.
        precision: of the file.
        missed: what is said before figures that are over their limits.
        otherwise: why it isn't met where none is.
        minutes: spent on this target.
        rounds: in which its contenders were trained.
        replaced: what the network is made of.
        as_is: the given network that it is, if it was not made.
        notes: what else is to be known, such as why a precision was not taken.
    """
    found, least = dict(proof.measured), target.accuracy(reference)
    if LATENCY in found and any(limit.metric == RATE for limit in target.limits):
        found[RATE] = 1000 * target.place.batch / found[LATENCY]
    accurate = least is None or accuracies.after >= least
    met = proof.word == "met" and accurate
    over = {m: found[m] for m, most in proof.limits.items() if found.get(m, 0.0) > most}
    beside = {} if proof.reference_ms is None else {"teacher_latency_ms": proof.reference_ms}
    return TargetResult(
        name=target.name,
        device=target.place.key,
        limits=proof.limits,
        least={} if least is None else {ACCURACY: least},
        asked=target.shares,
        measured={**found, **beside},
        met=met,
        undecided=proof.word == "undecided" and accurate,
        certainty=proof.certainty,
        accuracy=accuracies.after,
        accuracy_before=accuracies.before,
        teacher_accuracy=reference,
        validation=accuracies.validation.value,
        validation_loss=accuracies.validation.loss,
        compared=None if accuracies.compared is None else accuracies.compared.value,
        as_is=as_is,
        onnx=f"students/{target.name}/{proof.shipped.path.name}",
        precision=precision,
        kept=proof.shipped.written.kept,
        conditions=proof.conditions,
        notes=(*notes, *_drifted(proof)),
        lowest={} if met else over,
        reason=None
        if met
        else _reason(proof, over, missed, otherwise if accurate else _less(accuracies, least)),
        minutes=minutes,
        rounds=tuple(rounds),
        replaced=tuple(replaced),
        code=proof.code,
        unstored=proof.unstored,
    )


def _reason(proof: Proof, over: Mapping[str, float], missed: str, otherwise: str) -> str:
    if proof.word == "undecided" and proof.certainty is not None:
        return undecided(proof.measured[LATENCY], proof.limits[LATENCY], proof.certainty)
    figures = ", ".join(f"{m} {v:.4g} > {proof.limits[m]:.4g}" for m, v in over.items())
    return f"{missed}: {figures}" if over else otherwise


def _less(accuracies: Accuracies, least: float | None) -> str:
    """That a student is less accurate than its target asks for."""
    assert least is not None
    return (
        f"accuracy {100 * accuracies.after:.2f} % where at least {100 * least:.2f} % is asked for; "
        f"it is {100 * accuracies.validation.value:.2f} % on validation images, which choose"
    )


def _drifted(proof: Proof) -> list[str]:
    """That the device's speed changed within sessions, though each was held twice."""
    sessions = () if proof.certainty is None else proof.certainty.sessions
    most = max((abs(one.drift) for one in sessions if one.drift is not None), default=0.0)
    if most <= DRIFT:
        return []
    return [
        f"the device's speed changed by {100 * most:.0f} % within a session, measured again: see "
        "what else it does, or whether it gets hot"
    ]
