"""Networks that were given and need no training: shipped where no student is more accurate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from tailorbird.device import Precision
from tailorbird.errors import TailorbirdError
from tailorbird.files import scratch
from tailorbird.fit.candidates import Made, Network
from tailorbird.fit.judge import Judges
from tailorbird.fit.prove import Finished, prove
from tailorbird.fit.results import result_of
from tailorbird.fit.serve import no_worse, preferred
from tailorbird.fit.ship import Shipping
from tailorbird.measure.guarded import judged_at_most
from tailorbird.progress import Progress, each
from tailorbird.report.record import TargetResult
from tailorbird.report.words import in_words
from tailorbird.targets import Place, Target


def ship_as_is(
    networks: Mapping[str, Made],
    answered: Sequence[tuple[Target, TargetResult]],
    bases: Mapping[str, Mapping[str, float]],
    *,
    judges: Judges,
    shipping: Shipping,
    beside: Callable[[Place], Path],
    places: Callable[[Target], Sequence[Place]],
    floors: Mapping[str, float],
    sessions: int,
    progress: Progress,
) -> list[TargetResult]:
    """Give targets a network as it is where it keeps their limits and what they got is no better.

    See `tailorbird.fit.serve.no_worse`.

    Cost: an evaluation on validation images and on those that compare networks for each of these;
    an export and sessions for those that are accurate enough for some target, and the same two
    evaluations of the file if it keeps the limits. Only what is shipped answers the test images.

    Args:
        networks: name -> network.
        answered: targets and what they got.
        bases: place's name -> the reference's figures there, for places that measure.
        judges: of accuracies.
        shipping: writes the files.
        beside: gives the reference's exported file for a place.
        places: a target's place in each precision that it may have.
        floors: target's name -> the least accuracy on validation images that it asks for.
        sessions: of a network at most.
        progress: told what is taken, and what can't be exported or run.

    Returns:
        What targets have then, their files in place; those that keep their own are left out.
    """
    held = {target.name: result for target, result in answered}
    taken: dict[str, TargetResult] = {}
    plain = {name: Network(one.module, one.input_shape) for name, one in networks.items()}
    known = {name: judges.validation(name, one).value for name, one in plain.items()}
    scores = {name: judges.compared(name, one) for name, one in plain.items()}
    ranked = sorted(networks, key=lambda name: (-scores[name].value, scores[name].loss))
    for name in each(progress, "try networks as they are", ranked):
        for precision in get_args(Precision):
            finished = [
                Finished(
                    target=target,
                    place=place,
                    key=(),
                    student=networks[name],
                    base=bases[target.place.name],
                )
                for target, _ in answered
                if target.place.name in bases
                and _wanted(
                    target, known[name], scores[name], held[target.name], floors.get(target.name)
                )
                for place in places(target)
                if place.precision == precision
            ]
            found = _proven(
                name,
                finished,
                held,
                judges=judges,
                shipping=shipping,
                beside=beside,
                floors=floors,
                sessions=sessions,
                progress=progress,
            )
            held |= found
            taken |= found
    return list(taken.values())


def _proven(
    name: str,
    finished: Sequence[Finished],
    held: Mapping[str, TargetResult],
    *,
    judges: Judges,
    shipping: Shipping,
    beside: Callable[[Place], Path],
    floors: Mapping[str, float],
    sessions: int,
    progress: Progress,
) -> dict[str, TargetResult]:
    """Targets that one network serves better, in one precision; its files are put in place."""
    if not finished:
        return {}
    found: dict[str, TargetResult] = {}
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
        for one in finished:
            target, proof = one.target, proofs[one.target.name]
            own = held[target.name]
            if isinstance(proof, TailorbirdError):
                progress.say(f"{target.name}: {name} as it is was not tried: {proof}")
                continue
            if proof.word != "met":
                continue
            images, key = judged_at_most(one.place.device), (name, one.place.key)
            file = aside.answers(proof.shipped, one.place)
            if _wanted(
                target,
                judges.validation(key, file, images=images).value,
                judges.compared(key, file, images=images),
                own,
                floors.get(target.name),
                measured=proof.measured,
            ):
                shipping.copy(aside.home(target.name), target.name)
                found[target.name] = result_of(
                    target,
                    proof,
                    judges.of(key, file, images=images),
                    reference=judges.reference(images),
                    precision=one.place.precision,
                    minutes=own.minutes,
                    rounds=own.rounds,
                    as_is=name,
                )
                progress.say(
                    f"{target.name}: {name} as it is{in_words(one.place.precision)} keeps its "
                    "limits and is as good as what was made for it, or better; it is taken"
                )
    return found


_wanted = partial(preferred, wins=no_worse)
