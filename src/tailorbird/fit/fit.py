"""The one path from candidates to students.

Search, measure whole, correct the estimate, judge, train further, export, prove, measure the file;
again where a limit is missed, a bounded number of times; then say so. A target that can't be met,
or whose device fails, costs the others nothing. Equal students are trained and exported once.

In the run folder: ``students/TARGET/choice.json`` when a candidate is chosen, ``result.json`` when
it is proven. Both carry the request that they answer, so that a changed target is done anew, an
unchanged one is not. ``fit/search.json`` holds what a round of searches began with, so that one
that was killed takes the same turns again: what it measured and judged is in stores, and what
its contenders answered after each round of their training in ``fit/trained.json``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tailorbird.data.images import ImageData
from tailorbird.errors import ConfigError, PrecisionError, TailorbirdError
from tailorbird.export.exporters import Exporter, OnnxExporter
from tailorbird.fit.answers import Answers, Round, Student
from tailorbird.fit.as_is import ship_as_is
from tailorbird.fit.attempts import Attempt
from tailorbird.fit.candidates import Candidates, Key, Made, Network
from tailorbird.fit.choose import Chooser
from tailorbird.fit.halving import Halving, rounds_of
from tailorbird.fit.judge import Judges
from tailorbird.fit.ledger import Ledger
from tailorbird.fit.opening import Opening
from tailorbird.fit.outcomes import Outcomes, answered
from tailorbird.fit.places import places_for
from tailorbird.fit.pools import Choice
from tailorbird.fit.prove import Proof, prove
from tailorbird.fit.quantised import JudgedFiles, Quantiser, Rounding
from tailorbird.fit.serve import moves
from tailorbird.fit.settings import FEWER, Settings, Until, check_targets
from tailorbird.fit.ship import Shipping, export_reference
from tailorbird.progress import Progress, Silent, each
from tailorbird.report.words import figure, in_words
from tailorbird.runfolder import RunFolder
from tailorbird.search.additive import strategy_for
from tailorbird.search.strategy import Strategy
from tailorbird.targets import LATENCY, PLAIN, Place, Target, places_of
from tailorbird.task import CLASSIFICATION, Task


def fit(
    candidates: Candidates,
    targets: Sequence[Target],
    *,
    data: ImageData,
    folder: RunFolder,
    request: Callable[[Target], str],
    settings: Settings,
    reference: Callable[[], Network],
    beside: Path,
    task: Task = CLASSIFICATION,
    strategy: Strategy | None = None,
    exporter: Exporter | None = None,
    until: Until = "export",
    progress: Progress | None = None,
    trust: Collection[str] = (),
) -> list[Student]:
    """One student per target, in order, or the reason why not; continues what was begun.

    Cost: what `Candidates.open` times once per place; per search one solution for all targets and
    the few networks that it asks for; per distinct choice one training and one export; per target
    one measurement.

    Args:
        candidates: what is chosen from.
        targets: a place and limits each.
        data: images; the test split is read for the last figures only.
        folder: the run folder, open.
        request: a short hash of all that a target's result answers to.
        settings: bounds of the search.
        reference: the reference as it is exported, to be measured beside students.
        beside: the folder of its exported file, made when missing.
        task: what outputs mean.
        strategy: how candidates are searched; what suits them where ``None``.
        exporter: makes files of its own format and precision, ONNX in float32 where ``None``;
            others come from `exporter_for`.
        until: where to stop.
        progress: told how it goes.
        trust: import paths of code that students of an earlier run may be made of.

    Raises:
        ConfigError: for no targets, names that occur twice, different places of one name, or a
            precision that a device does not run.
        StoreError: when the folder can't be written.
    """
    exporter = exporter or OnnxExporter()
    problems, places = check_targets(targets), {}
    for target in targets:
        try:
            places[target.name] = places_for(target, exporter)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return _Fitting(
        candidates,
        [Attempt(target, request(target)) for target in targets],
        places=places,
        data=data,
        folder=folder,
        settings=settings,
        reference=reference,
        beside=beside,
        task=task,
        strategy=strategy,
        exporter=exporter,
        progress=progress or Silent(),
        trust=trust,
    ).run(until)


class _Fitting:
    """One call of `fit`; see there."""

    def __init__(
        self,
        candidates: Candidates,
        attempts: Sequence[Attempt],
        *,
        places: Mapping[str, Sequence[Place]],
        data: ImageData,
        folder: RunFolder,
        settings: Settings,
        reference: Callable[[], Network],
        beside: Path,
        task: Task,
        strategy: Strategy | None,
        exporter: Exporter,
        progress: Progress,
        trust: Collection[str],
    ) -> None:
        self.candidates, self.attempts, self._places = candidates, attempts, places
        self.data, self.folder, self.settings = data, folder, settings
        self.exporter, self.progress = exporter, progress
        self._make_reference, self._beside = reference, beside
        self._strategy, self._known = strategy, 0
        self.answers = Answers(folder.path, trust)
        self._judges = Judges(data, lambda: self._reference, task, lambda: candidates.comparing)
        rounding = Rounding(
            reference=lambda: self._reference,
            task=task,
            seed=settings.seed,
            folder=folder.path / "fit" / "rounding",
            progress=progress,
        )
        quantiser = Quantiser(data, self._judges, settings.quantise, rounding)
        self.shipping = Shipping(data, folder.path, settings.export, exporter, quantiser)

    @cached_property
    def chooser(self) -> Chooser:
        """What chooses; not made where all is answered."""
        return Chooser(
            self.candidates,
            self._strategy or strategy_for(self.candidates),
            proposals=self.settings.candidates,
            searches=self.settings.rounds,
            seed=self.settings.seed,
            progress=self.progress,
            places=self._precisions,
            files=JudgedFiles(self.candidates, self.shipping.quantiser, self.exporter),
            contenders=self.settings.contenders if self.candidates.epochs > 0 else 1,
        )

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self.folder.path / "fit" / "trained.json")

    @cached_property
    def _outcomes(self) -> Outcomes:
        return Outcomes(
            self.candidates,
            lambda: self.chooser,
            judges=self._judges,
            shipping=self.shipping,
            answers=self.answers,
            precisions=self._precisions,
            rounds=self.settings.rounds,
            progress=self.progress,
        )

    @cached_property
    def _opening(self) -> Opening:
        return Opening(
            self.candidates,
            self.chooser.pools,
            self.exporter,
            self.folder.stage,
            self.progress,
            lacks=self.shipping.quantiser.lacks,
        )

    def _precisions(self, target: Target) -> Sequence[Place]:
        """A target's place in each precision that it may have."""
        return self._places[target.name]

    def run(self, until: Until) -> list[Student]:
        """Students in the order of their targets."""
        for attempt in self.attempts:
            stored = self.answers.student(attempt.target.name, attempt.request)
            if stored is not None:
                attempt.result, attempt.module = stored.result, stored.module
        for name in self.answers.others([attempt.target.name for attempt in self.attempts]):
            self.progress.say(f"students/{name}: its target is not asked for now; it is kept")
        if any(attempt.result is None for attempt in self.attempts):
            self._fit(until)
        return [self._outcomes.student(attempt, until) for attempt in self.attempts]

    def _fit(self, until: Until) -> None:
        self._try_devices()
        if all(attempt.result is not None for attempt in self.attempts):
            return  # nothing is left that anything could be prepared for
        self.candidates.prepare()
        begun, first, names = self._begin()
        for number in range(first, self.settings.rounds + FEWER):
            asked = [a for a in self.attempts if a.target.name in names]
            open_ones = [a for a in asked if a.result is None]
            if not open_ones:
                break
            self._note(begun, number, names)
            with self.folder.stage("search"):
                self._choose(asked, last=number >= self.settings.rounds - 1)
            if until == "search":
                return
            chosen = [a for a in open_ones if a.result is None]
            with self.folder.stage(self.candidates.words.training):
                self._train(chosen)
            if until == "retrain":
                return
            with self.folder.stage("export"):
                self._prove(chosen, last=number >= self.settings.rounds - 1)
            names = [a.target.name for a in chosen if a.result is None]
            self._known = len(self._ledger)
        self._serve()
        self.answers.forget()

    def _try_devices(self) -> None:
        """Ask each device everything once, before time is spent; a fault costs its targets."""
        open_ones = [attempt for attempt in self.attempts if attempt.result is None]
        for place in places_of([attempt.target for attempt in open_ones]).values():
            if place.device is None:
                continue
            there = [a for a in open_ones if a.target.place.name == place.name]
            others = [one for a in there for one in self._precisions(a.target)]
            error = self._opening.try_out(place, others)
            if error is not None:
                for attempt in there:
                    self._outcomes.give_up(attempt, error)

    # rounds that survive a kill -----------------------------------------------------------------

    def _begin(self) -> tuple[str, int, list[str]]:
        """Open all places as the round that was under way began; its number and its targets."""
        open_ones = [a for a in self.attempts if a.result is None]
        begun = self.answers.begun([a.request for a in self.attempts])
        state = self.answers.round(begun)
        if state is not None:
            names, number = list(state.open), state.number
            self.chooser.aims |= state.aims
        else:
            names, number = [a.target.name for a in open_ones], 0
        wanted = {a.target.name for a in open_ones}
        every: dict[str, Place] = {}
        for attempt in self.attempts:
            for place in self._precisions(attempt.target):
                if attempt.target.name in wanted or (state and place.name in state.pools):
                    every.setdefault(place.name, place)
        for name, place in every.items():
            self._opening.open(place, None if state is None else state.pools.get(name))
        self._known = len(self._ledger) if state is None else state.known
        self.candidates.observe(self._ledger.trained(self.candidates, self._known))
        return begun, number, names

    def _note(self, begun: str, number: int, names: Sequence[str]) -> None:
        """Write down what a round begins with."""
        self.answers.note(
            Round(
                begun=begun,
                number=number,
                open=tuple(names),
                aims=self.chooser.aims,
                pools={name: self.chooser.pools.past(name) for name in self.chooser.pools},
                known=self._known,
            )
        )

    # one round ----------------------------------------------------------------------------------

    def _choose(self, attempts: Sequence[Attempt], *, last: bool) -> None:
        start = time.perf_counter()
        self.chooser.settle([a.target for a in attempts])
        for attempt in attempts:
            if attempt.result is not None:
                continue  # answered in this round, before a kill
            try:
                attempt.field = self.chooser.field(attempt.target, sure=last)
                attempt.choice = attempt.field[0]
            except TailorbirdError as error:
                self._outcomes.give_up(attempt, error)
                continue
            self.answers.chosen(attempt.target.name, attempt.request, attempt.choice)
            self._tell(attempt.target, attempt.choice)
        share = (time.perf_counter() - start) / max(1, len(attempts))
        for attempt in attempts:
            attempt.seconds += share

    def _tell(self, target: Target, choice: Choice) -> None:
        parts = self.candidates.parts(choice.key)
        latency = figure(LATENCY, choice.figures[LATENCY])
        made = f"{len(parts)} replacements, " if parts else ""
        self.progress.say(
            f"{target.name}: {made}{latency}{in_words(choice.precision)}, validation "
            f"{100 * choice.accuracy:.2f} % before {self.candidates.words.doing}"
        )

    def _train(self, attempts: Sequence[Attempt]) -> None:
        """Train all contenders together, in rounds; equal ones are one."""
        halving = Halving(
            self.candidates,
            self.chooser,
            self._ledger,
            rounds_of(self.chooser.contenders),
            self.progress,
        )
        winners = halving.run({a.target.name: (a.target, a.field) for a in attempts})
        owners: dict[Key, list[Attempt]] = {}
        for attempt in attempts:
            winner = winners[attempt.target.name]
            attempt.choice, attempt.made = winner.choice, winner.made
            self.answers.chosen(attempt.target.name, attempt.request, winner.choice)
            owners.setdefault(winner.choice.key, []).append(attempt)
        for own in owners.values():
            for number, attempt in enumerate(own):
                assert attempt.made is not None
                module = attempt.made.module
                attempt.module = module if number == 0 else copy.deepcopy(module)
                attempt.seconds += attempt.made.seconds / len(own)

    def _prove(self, attempts: Sequence[Attempt], *, last: bool) -> None:
        """Export and measure; what is not within its limits is searched for again."""
        start = time.perf_counter()
        proofs = prove(
            [attempt.finished(self.chooser.base(attempt.target)) for attempt in attempts],
            self.shipping,
            reference=None if self.settings.export.adds else self.candidates.reference,
            beside=self._reference_file,
            sessions=self.settings.sessions,
            progress=self.progress,
        )
        for attempt in attempts:
            attempt.seconds += (time.perf_counter() - start) / len(attempts)
        for attempt in each(self.progress, "judge students", attempts):
            proof = proofs[attempt.target.name]
            if isinstance(proof, Proof) and attempt.made is not None:
                self._take(attempt, proof.shipped.student)
            if isinstance(proof, PrecisionError):
                self._shut(attempt, proof)
            elif isinstance(proof, TailorbirdError):
                self._outcomes.give_up(attempt, proof)
            elif last or proof.certainty is None:
                self._outcomes.record(attempt, self._outcomes.result(attempt, proof))
            elif not self._enough(attempt, proof):
                self._miss(attempt, proof)
            elif self._accurate(attempt, proof):
                self._outcomes.record(attempt, self._outcomes.result(attempt, proof))

    def _take(self, attempt: Attempt, student: Made) -> None:
        """What was shipped may have been trained on, for its precision."""
        assert attempt.made is not None
        if student.module is not attempt.made.module:
            attempt.seconds += student.seconds - attempt.made.seconds
            attempt.made, attempt.module = student, copy.deepcopy(student.module)

    def _shut(self, attempt: Attempt, error: PrecisionError) -> None:
        """A precision costs too much: another one is chosen, in a further round."""
        assert attempt.choice is not None
        self.chooser.shut(attempt.target, attempt.choice.place, str(error))
        self.progress.say(f"{attempt.target.name}: {error}; choosing again without it")
        attempt.again()

    def _enough(self, attempt: Attempt, proof: Proof) -> bool:
        """Whether limits are kept, or are undecided once more as nothing tighter was found."""
        assert attempt.choice is not None
        option = attempt.choice.place, attempt.choice.key
        again = option == self.chooser.aim(attempt.target).undecided
        return proof.word == "met" or (proof.word == "undecided" and again)

    def _miss(self, attempt: Attempt, proof: Proof) -> None:
        """Search again: asked for is what keeps the limit if it comes out as much slower."""
        target, choice = attempt.target, attempt.choice
        assert choice is not None
        undecided = proof.word == "undecided"
        slower = proof.highest_ms / choice.figures[LATENCY]
        self.chooser.miss(target, choice, slower, undecided=undecided)
        how = "too near its limit to tell" if undecided else "over its limit"
        self.progress.say(
            f"{target.name}: measured {figure(LATENCY, proof.measured[LATENCY])}, {how}; "
            "searching again"
        )
        attempt.again()

    def _accurate(self, attempt: Attempt, proof: Proof) -> bool:
        """Whether a limit on accuracy is kept, on validation images; else another is searched."""
        target, choice = attempt.target, attempt.choice
        assert choice is not None
        floor = self.chooser.floor(target)
        if floor is None:
            return True
        found = self._outcomes.accuracies(attempt, proof).validation.value
        self.chooser.judged.became(choice.key, choice.accuracy, found)
        if found >= floor:
            return True
        self.chooser.dismiss(target, choice)
        self.progress.say(
            f"{target.name}: {100 * found:.2f} % on validation images, at least "
            f"{100 * floor:.2f} % is asked for; searching again"
        )
        attempt.again()
        return False

    def _serve(self) -> None:
        """Give targets the networks as they are, and the students of others, that suit them
        better.
        """
        held = {a.target.name: a for a in self.attempts if a.result is not None}
        bases = {
            a.target.place.name: self.chooser.base(a.target)
            for a in held.values()
            if a.target.place.device is not None and self.chooser.open_places(a.target)
        }
        asked = {a.target.name: self.chooser.floor(a.target) for a in held.values()}
        floors = {name: floor for name, floor in asked.items() if floor is not None}
        networks = self.candidates.as_they_are()
        for result in ship_as_is(
            networks,
            answered(list(held.values())),
            bases,
            floors=floors,
            judges=self._judges,
            shipping=self.shipping,
            beside=self._reference_file,
            places=self._precisions,
            sessions=self.settings.sessions,
            progress=self.progress,
        ):
            attempt = held[result.name]
            assert result.as_is is not None
            attempt.module = copy.deepcopy(networks[result.as_is].module)
            self._outcomes.record(attempt, result)
        modules = {name: attempt.module for name, attempt in held.items()}
        for move in moves(
            answered(list(held.values())),
            bases,
            looks=self.settings.sessions,
            precisions=lambda target: [place.precision for place in self._precisions(target)],
            floors=floors,
        ):
            attempt = held[move.result.name]
            self.shipping.copy(self.shipping.home(move.source), move.result.name)
            attempt.module = copy.deepcopy(modules[move.source])
            self._outcomes.record(attempt, move.result)
            self.progress.say(
                f"{move.result.name}: the student of {move.source} keeps its limits too and is "
                "better; it is taken"
            )

    # the reference ------------------------------------------------------------------------------

    @cached_property
    def _reference(self) -> Network:
        return self._make_reference()

    def _reference_file(self, place: Place) -> Path:
        """The reference's file in float32 as a place takes it."""
        exporter = self.shipping.exporter_at(place.at(PLAIN))
        folder = self._beside if place.batch == 1 else self._beside / f"batch-{place.batch}"
        name = self.candidates.words.reference
        return export_reference(
            self._reference, self.data, folder, exporter, name=name, batch=place.batch
        )
