"""Networks that were given and need no training: shipped where they are better than the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tailorbird.errors import TailorbirdError
from tailorbird.files import scratch
from tailorbird.fit.candidates import Made
from tailorbird.fit.judge import Judges
from tailorbird.fit.prove import Finished, prove
from tailorbird.fit.results import result_of
from tailorbird.fit.serve import better
from tailorbird.fit.ship import Shipping
from tailorbird.progress import Progress
from tailorbird.report.record import TargetResult
from tailorbird.targets import Target


def ship_as_is(
    networks: Mapping[str, Made],
    answered: Sequence[tuple[Target, TargetResult]],
    bases: Mapping[str, Mapping[str, float]],
    *,
    judges: Judges,
    shipping: Shipping,
    beside: Callable[[], Path],
    sessions: int,
    progress: Progress,
) -> list[TargetResult]:
    """Give targets a network as it is where it keeps their limits and is better than what they got.

    See `tailorbird.fit.serve.better` for what is better.

    Cost: an evaluation on validation images for each network; an export and sessions for those that
    are accurate enough for some target.

    Args:
        networks: name -> network.
        answered: targets and what they got.
        bases: place's name -> the reference's figures there, for places that measure.
        judges: of accuracies.
        shipping: writes the files.
        beside: gives its exported file.
        sessions: of a network at most.
        progress: told what is taken, and what can't be exported or run.

    Returns:
        What targets have then, their files in place; those that keep their own are left out.
    """
    held = {target.name: result for target, result in answered}
    taken: dict[str, TargetResult] = {}
    scores = {name: judges.validation(name, network) for name, network in networks.items()}
    for name in sorted(networks, key=lambda name: (-scores[name].value, scores[name].loss)):
        network = networks[name]
        there = [
            target
            for target, _ in answered
            if target.place.name in bases and better(scores[name], held[target.name])
        ]
        if not there:
            continue
        finished = [
            Finished(target=t, key=(), student=network, base=bases[t.place.name]) for t in there
        ]
        with scratch() as folder:
            aside = shipping.at(folder)
            proofs = prove(
                finished,
                aside,
                reference=None,
                beside=beside,
                sessions=sessions,
                progress=progress,
            )
            for target in there:
                proof = proofs[target.name]
                if isinstance(proof, TailorbirdError):
                    progress.say(f"{target.name}: {name} as it is was not tried: {proof}")
                elif proof.word == "met":
                    shipping.copy(aside.home(target.name), target.name)
                    held[target.name] = taken[target.name] = result_of(
                        target,
                        proof,
                        judges.of(name, network),
                        reference=judges.reference,
                        onnx=f"students/{target.name}/{shipping.exporter.format.file}",
                        minutes=held[target.name].minutes,
                        as_is=name,
                    )
                    progress.say(
                        f"{target.name}: {name} as it is keeps its limits and is better than the "
                        "student; it is taken"
                    )
    return list(taken.values())
