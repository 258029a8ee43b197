"""What each target of a fit ends with, recorded as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tailorbird.errors import InfeasibleError, TailorbirdError
from tailorbird.fit.answers import Answers, Student
from tailorbird.fit.attempts import Attempt
from tailorbird.fit.candidates import Candidates, Network
from tailorbird.fit.choose import Chooser
from tailorbird.fit.judge import Accuracies, Judges
from tailorbird.fit.prove import Proof
from tailorbird.fit.results import result_of
from tailorbird.fit.settings import Until
from tailorbird.fit.ship import Shipping, clear
from tailorbird.measure.guarded import judged_at_most
from tailorbird.progress import Progress
from tailorbird.report.record import TargetResult
from tailorbird.report.words import figure
from tailorbird.targets import LATENCY, Place, Target


class Outcomes:
    """Makes results of attempts, and writes them down.

    Args:
        candidates: what was chosen from.
        chooser: gives what chose; not asked where all is answered.
        judges: of accuracies.
        shipping: where files are.
        answers: in the run folder.
        precisions: a target's place in each precision that it may have.
        rounds: attempts at a limit, for messages.
        progress: told why a target is given up.
    """

    def __init__(
        self,
        candidates: Candidates,
        chooser: Callable[[], Chooser],
        *,
        judges: Judges,
        shipping: Shipping,
        answers: Answers,
        precisions: Callable[[Target], Sequence[Place]],
        rounds: int,
        progress: Progress,
    ) -> None:
        self._candidates, self._chooser, self._judges = candidates, chooser, judges
        self._shipping, self._answers, self._precisions = shipping, answers, precisions
        self._rounds, self._progress = rounds, progress

    def record(self, attempt: Attempt, result: TargetResult) -> None:
        """Give an attempt its result."""
        attempt.result = result
        self._answers.record(attempt.request, result)

    def result(self, attempt: Attempt, proof: Proof) -> TargetResult:
        """Of a student whose file was measured."""
        choice, made, target = attempt.choice, attempt.made, attempt.target
        assert choice is not None
        assert made is not None
        expected = figure(LATENCY, choice.figures[LATENCY])
        return result_of(
            target,
            proof,
            self.accuracies(attempt, proof),
            reference=self._judges.reference(judged_at_most(target.place.device)),
            precision=choice.precision,
            missed=f"measured over its limit after {self._rounds} rounds",
            otherwise=f"predicted, not measured: {expected} by {target.place.table}",
            minutes=attempt.seconds / 60,
            rounds=self._chooser().aim(target).rounds,
            replaced=self._candidates.parts(choice.key),
            notes=self._chooser().notes(target),
        )

    def accuracies(self, attempt: Attempt, proof: Proof) -> Accuracies:
        """Of the file, as its device answers."""
        choice, made = attempt.choice, attempt.made
        assert choice is not None
        assert made is not None
        place = attempt.target.place.at(choice.precision)
        return self._judges.of(
            (choice.key, place.key),
            self._shipping.answers(proof.shipped, place),
            before=None if made.before is None else Network(made.before, made.input_shape),
            images=judged_at_most(place.device),
        )

    def give_up(self, attempt: Attempt, error: TailorbirdError) -> None:
        """A target gets nothing, and why; a device that does not answer is asked again later."""
        target = attempt.target
        infeasible = isinstance(error, InfeasibleError)
        result = TargetResult(
            name=target.name,
            device=target.place.key,
            limits=self._limits(target),
            asked=target.shares,
            met=False,
            lowest=error.lowest if isinstance(error, InfeasibleError) else {},
            reason=str(error),
            minutes=attempt.seconds / 60,
            rounds=self._chooser().aim(target).rounds,
        )
        self._progress.say(f"{target.name}: {error}")
        clear(self._shipping.home(target.name))
        attempt.result = result
        if infeasible:
            self._answers.record(attempt.request, result)

    def student(self, attempt: Attempt, until: Until) -> Student:
        """What users get; where the fit was to stop early, what is known so far."""
        result = attempt.result
        if result is None:
            choice = attempt.choice
            result = TargetResult(
                name=attempt.target.name,
                device=attempt.target.place.key,
                limits=self._chooser().limits(attempt.target),
                asked=attempt.target.shares,
                measured=choice.figures if choice else {},
                met=False,
                reason=f"the run was asked to stop after '{until}'",
                minutes=attempt.seconds / 60,
                rounds=self._chooser().aim(attempt.target).rounds,
                replaced=self._candidates.parts(choice.key) if choice else (),
            )
        return Student(result=result, module=attempt.module)

    def _limits(self, target: Target) -> dict[str, float]:
        """Bounds in their units; without a share of a latency that could not be measured."""
        reference, pools = self._candidates.reference, self._chooser().pools
        base = dict(pools.counted(reference))
        label = self._candidates.label(reference)
        known = self._candidates.latencies(target.place).known.get(label)
        if any(place.name in pools for place in self._precisions(target)):
            base = dict(self._chooser().base(target))
        elif known is not None:
            base[LATENCY] = known.median_ms
        return {
            limit.metric: limit.absolute(base)
            for limit in target.bounds
            if not limit.share or limit.metric in base
        }


def answered(attempts: Sequence[Attempt]) -> list[tuple[Target, TargetResult]]:
    """Targets that have a result."""
    return [(one.target, one.result) for one in attempts if one.result is not None]
