"""Choosing by short training, in rounds: successive halving.

How good a candidate is before it is trained says little of what it becomes. So several contenders
of each target are trained for a share of the recipe and judged, the better half is trained on, and
so forth; the last one is trained to the end. The rounds divide the recipe so that each takes about
as many steps in all. All contenders of all targets are trained together, since they share the
teacher's passes; nothing is ever trained twice.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
AISTATS 2016. Hyperband (Li et al., JMLR 2018) runs it with several numbers of contenders, for where
short training may mislead; here one number is given.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tailorbird.fit.candidates import Candidates, Judgement, Key, Made, Network
from tailorbird.fit.choose import Chooser
from tailorbird.fit.ledger import NETWORK, WORST, Entry, Ledger
from tailorbird.fit.pools import Choice, Option, Standing
from tailorbird.progress import Progress, each
from tailorbird.report.record import Contender, TrainingRound
from tailorbird.targets import LATENCY, PLAIN, Target
from tailorbird.train.clock import Pause

ETA = 2
"""Of so many contenders, one goes on."""


def rounds_of(contenders: int) -> list[Pause | None]:
    """Where training pauses so that contenders can be judged; the last round goes to its end.

    With R rounds, the r-th ends after (eta^r - 1) / (eta^R - 1) of the schedule: what a round adds
    grows as the number of contenders falls.

    Example:
        >>> [None if one is None else round(one.at, 3) for one in rounds_of(4)]
        [0.143, 0.429, None]
        >>> rounds_of(1)
        [None]
    """
    count = 1
    while ETA ** (count - 1) < contenders:
        count += 1
    whole = ETA**count - 1
    paused: list[Pause | None] = [
        Pause(at=(ETA**number - 1) / whole, spent=number / count) for number in range(1, count)
    ]
    return [*paused, None]


def left_after(contenders: int) -> int:
    """How many of a target's contenders go on after a round."""
    return math.ceil(contenders / ETA)


def trainings(contenders: int) -> float:
    """What a target with so many contenders takes, in whole trainings of one network.

    Example:
        >>> round(trainings(1), 2), round(trainings(4), 2), round(trainings(8), 2)
        (1.0, 1.71, 2.13)
    """
    spent, before, left = 0.0, 0.0, contenders
    for pause in rounds_of(contenders):
        share = 1.0 if pause is None else pause.at
        spent += left * (share - before)
        before, left = share, left_after(left)
    return spent


@dataclass(frozen=True)
class Winner:
    """The contender of a target that was trained to the end."""

    choice: Choice
    made: Made


@dataclass
class _Race:
    """A target's contenders: all of them, and those that are left."""

    target: Target
    field: Sequence[Choice]
    left: list[Choice]

    def number(self, choice: Choice) -> int:
        """A contender's number, from 1."""
        return 1 + [(one.place, one.key) for one in self.field].index((choice.place, choice.key))

    def called(self, choice: Choice) -> str:
        """A contender's name in messages; '#' is in no target's name."""
        if len(self.left) == 1:
            return self.target.name
        return f"{self.target.name} #{self.number(choice)}"


class Halving:
    """Trains the contenders of targets in rounds.

    Args:
        candidates: trained.
        chooser: ranks contenders, and is told how far each got.
        ledger: what they answered after each round.
        pauses: see `rounds_of`; the same for all targets, whoever is there, so that a run which was
            killed pauses where it did.
        progress: told about each round.
    """

    def __init__(
        self,
        candidates: Candidates,
        chooser: Chooser,
        ledger: Ledger,
        pauses: Sequence[Pause | None],
        progress: Progress,
    ) -> None:
        self._candidates, self._chooser = candidates, chooser
        self._ledger, self._pauses, self._progress = ledger, pauses, progress

    def run(self, fields: Mapping[str, tuple[Target, Sequence[Choice]]]) -> dict[str, Winner]:
        """The winner of each target, trained to the end.

        Cost: `trainings` of the number of contenders, in whole trainings per target, and per round
        one walk over the validation images for each contender, or its file.

        Args:
            fields: target's name -> the target and its contenders; one for a target that has no
                choice, which is trained beside the others.

        Raises:
            StoreError: when what was found can't be written down.
        """
        races = [_Race(target, field, list(field)) for target, field in fields.values()]
        if not races:
            return {}
        self._announce(races)
        for pause in self._pauses:
            open_ones = [race for race in races if len(race.left) > 1]
            if pause is None or not open_ones:
                break
            found = self._round(races, open_ones, pause)
            for race in open_ones:
                self._decide(race, [found[_option(one)] for one in race.left], pause)
        self._candidates.observe(self._ledger.trained(self._candidates))
        made = self._candidates.train(_names(races))
        return {race.target.name: Winner(race.left[0], made[race.left[0].key]) for race in races}

    def _round(
        self, races: Sequence[_Race], open_ones: Sequence[_Race], pause: Pause
    ) -> dict[Option, Standing]:
        """Train all that are left up to a pause; how the contenders stand then.

        What was judged there before, by a run that was killed, is not asked again: the networks may
        have gone on.
        """
        options = list(dict.fromkeys(_option(one) for race in open_ones for one in race.left))
        if any(self._known(option, pause) is None for option in options):
            made = self._candidates.train(_names(races), pause=pause)
            self._judge(options, made, pause)
        standings = {}
        for name, key in options:
            found = self._known((name, key), pause)
            assert found is not None
            standings[name, key] = Standing(
                place=name,
                key=key,
                share=pause.at,
                quality=found.quality,
                accuracy=found.accuracy,
            )
        return standings

    def _judge(self, options: Collection[Option], made: Mapping[Key, Made], pause: Pause) -> None:
        """Judge what was trained, networks first; written down together."""
        entries: list[Entry] = []
        plain: dict[Key, Judgement] = {}

        def note(key: Key, place: str, judged: Judgement) -> None:
            found = judged if math.isfinite(judged.quality) else WORST
            training = self._candidates.training(key)
            if self._ledger.find(training, pause.at, place) is None:
                entries.append(
                    Entry(
                        key=key,
                        training=training,
                        share=pause.at,
                        place=place,
                        quality=found.quality,
                        accuracy=found.accuracy,
                        epochs=made[key].epochs,
                    )
                )

        for name, key in each(self._progress, "judge contenders", options):
            network = Network(made[key].module, made[key].input_shape)
            if key not in plain:
                known = self._ledger.find(self._candidates.training(key), pause.at)
                plain[key] = (
                    self._candidates.weigh(network, trained=True)
                    if known is None
                    else known.judgement
                )
                note(key, NETWORK, plain[key])
            if self._place(name) != NETWORK:
                file = self._chooser.judged.trained((name, key), network, plain[key])
                note(key, self._place(name), file)
        self._ledger.add(entries)

    def _known(self, option: Option, pause: Pause) -> Entry | None:
        name, key = option
        return self._ledger.find(self._candidates.training(key), pause.at, self._place(name))

    def _place(self, name: str) -> str:
        """What judgements at a place are written under: in float32 all places are the same."""
        place = self._chooser.pools[name].place
        return NETWORK if place.precision == PLAIN else place.key

    def _decide(self, race: _Race, standings: Sequence[Standing], pause: Pause) -> None:
        """The better half goes on; how all stood is kept and told."""
        order = self._chooser.order(race.target, standings)
        stay = {(one.place, one.key) for one in order[: left_after(len(order))]}
        by_option = {(one.place, one.key): one for one in standings}
        known = [self._known(_option(one), pause) for one in race.left]
        made = [one.epochs for one in known if one is not None and one.epochs is not None]
        done = max(made, default=pause.at * self._candidates.epochs)
        contenders = tuple(
            Contender(
                number=race.number(one),
                name=one.name,
                precision=one.precision,
                latency_ms=one.figures[LATENCY],
                before=one.accuracy,
                accuracy=by_option[_option(one)].accuracy,
                stayed=_option(one) in stay,
            )
            for one in race.left
        )
        self._chooser.stood(
            race.target, standings, TrainingRound(epochs=done, contenders=contenders)
        )
        figures = ", ".join(f"#{one.number} {100 * one.accuracy:.2f} %" for one in contenders)
        race.left = [one for one in race.left if _option(one) in stay]
        going_on = ", ".join(f"#{race.number(one)}" for one in race.left)
        self._progress.say(
            f"{race.target.name}: after {done:.3g} epochs {figures} on validation images; "
            f"going on with {going_on}"
        )

    def _announce(self, races: Sequence[_Race]) -> None:
        """State the budget before it is spent."""
        counts = [len(race.left) for race in races]
        if max(counts) == 1:
            return
        own, before, total, steps = sum(counts), 0.0, 0.0, []
        for pause in self._pauses:
            share = 1.0 if pause is None or max(counts) == 1 else pause.at
            steps.append(f"{sum(counts)} to epoch {share * self._candidates.epochs:.3g}")
            total += sum(counts) * (share - before) * self._candidates.epochs
            before, counts = share, [left_after(count) for count in counts]
            if share == 1.0:
                break
        targets = "one target" if len(races) == 1 else f"{len(races)} targets"
        minutes = self._candidates.minutes
        bound = "" if minutes is None else f", and {minutes:.3g} minutes"
        self._progress.say(
            f"{self._candidates.words.doing} {own} candidates of {targets} in {len(steps)} rounds, "
            f"{total:.3g} epochs{bound} in all at most: {', '.join(steps)}"
        )


def _option(choice: Choice) -> Option:
    return choice.place, choice.key


def _names(races: Sequence[_Race]) -> dict[Key, str]:
    """What is left of all targets, with names for messages; one network may be of several."""
    names: dict[Key, list[str]] = {}
    for race in races:
        for one in race.left:
            names.setdefault(one.key, []).append(race.called(one))
    return {key: ", ".join(own) for key, own in names.items()}
