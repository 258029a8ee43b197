"""Choosing a candidate per target: search, measure the best few whole, correct, search again.

All candidates measured at a place form one pool, whichever target they were found for. A target
takes the best of its place's pool within its limits, as measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from statistics import fmean

import numpy as np

from tailorbird.errors import ExportError, InfeasibleError, MeasurementError, TailorbirdError
from tailorbird.fit.candidates import (
    Candidates,
    Judgement,
    Key,
    Timing,
    estimates,
    latency_at,
    rows,
)
from tailorbird.fit.pools import Aim, Choice, Files, Option, Past, Pool, own_place
from tailorbird.fit.propose import Wish, propose
from tailorbird.fit.serve import spared_by
from tailorbird.measure.counts import count, in_precision
from tailorbird.progress import Progress
from tailorbird.search.selection import within
from tailorbird.search.strategy import Strategy
from tailorbird.targets import LATENCY, PLAIN, Place, Target

MARGIN = 0.02
"""Share of a latency limit kept free at the choice, for the noise of the final measurement."""

NEAR = 0.95
"""A choice that takes this share of its latency limit leaves little to search for."""

LADDER = (0.25, 0.4, 0.55, 0.7, 0.85)
"""Shares of the reference's figure that candidates are searched for under a limit on accuracy."""

SMALLER = {"size_mb", "peak_memory_mb"}
"""What a lower precision saves even where it saves no time."""

EXACT = 1e-6
"""Estimates that are off by less are taken as exact."""

SAFETY = 0.99
"""What is asked for after a miss, as a share of what would just have been enough."""


@dataclass(eq=False, repr=False)
class Chooser:
    """Holds the pools of all places, and chooses from them.

    Args:
        candidates: what is chosen from.
        strategy: how it is searched.
        proposals: candidates proposed per target and search.
        searches: at most, in one call of `settle`.
        seed: of the search.
        progress: told how it goes.
        places: a target's place in each precision that it may have, float32 first.
        files: judges candidates in other precisions; as they are in float32 without it.

    Attributes:
        failed: place's name -> why its device failed; that costs its own targets only.
        slow: place's name -> that its precision makes the reference no faster than float32 does.
    """

    candidates: Candidates
    strategy: Strategy
    _: KW_ONLY
    proposals: int
    searches: int
    seed: int
    progress: Progress
    places: Callable[[Target], Sequence[Place]] = own_place
    files: Files | None = None

    def __post_init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.aims: dict[str, Aim] = {}
        self.failed: dict[str, MeasurementError | ExportError] = {}
        self.slow: dict[str, str] = {}
        self._counted: dict[Key, dict[str, float]] = {}
        self._judged: dict[Key, Judgement] = {}
        self._as_files: dict[Option, Judgement] = {}
        self._closed: list[float] = []

    def open(self, place: Place, timing: Timing | None, past: Past | None = None) -> None:
        """Begin a place's pool, or take it up; a device that fails is noted in ``failed``."""
        reference, past = self.candidates.reference, past or Past()
        try:
            latency = self.candidates.open(place, timing)
            plain = latency if timing is None else timing.base_ms
            base = {**self.counted(reference), LATENCY: plain}
            self.pools[place.name] = Pool(place, timing, base, {reference: latency})
            if place.precision != PLAIN and latency >= plain:
                self.slow[place.name] = (
                    f"{place.precision} is no faster than float32 here: the "
                    f"{self.candidates.words.reference} takes {latency:.4g} ms, {plain:.4g} in "
                    "float32"
                )
            first = self.candidates.checks(place, ())
            self.measure(place.name, past.candidates, [*past.checks, *first])
        except (MeasurementError, ExportError) as error:
            self.failed[place.name] = error

    def past(self, name: str) -> Past:
        """What `open` needs to take up the pool of the place of that name."""
        pool = self.pools[name]
        return Past(tuple(pool.candidates), tuple(pool.checks))

    def counted(self, key: Key) -> dict[str, float]:
        """What is counted of a candidate: metric -> figure, latency left out."""
        if key not in self._counted:
            network = self.candidates.network(key)
            self._counted[key] = count(network.module, network.input_shape).as_metrics()
        return self._counted[key]

    def measure(self, name: str, fresh: Sequence[Key], checks: Sequence[Key] = ()) -> None:
        """Take candidates and checks into a pool, and correct the estimate by them.

        Raises:
            ExportError, MeasurementError: when the device fails.
        """
        pool, candidates = self.pools[name], self.candidates
        if pool.timing is None:
            keys = list(fresh)
            if keys:
                latencies = estimates(candidates, pool.place, keys).tolist()
                pool.candidates |= dict(zip(keys, latencies, strict=True))
            return
        labels = {key: candidates.label(key) for key in (*fresh, *checks)}
        timed = pool.timing.measure(
            {label: partial(candidates.network, key) for key, label in labels.items()}
        )
        found = {key: timed[label].median_ms for key, label in labels.items()}
        pool.candidates |= {key: found[key] for key in fresh}
        pool.checks |= {key: found[key] for key in checks}
        proposed = {k: ms for k, ms in pool.candidates.items() if k != candidates.reference}
        if whole := {**pool.checks, **proposed}:
            candidates.learn(pool.place, whole)

    def settle(self, targets: Sequence[Target]) -> None:
        """Search until the choices come near their limits, nothing new is found, or enough."""
        left = [target for target in targets if not self._within_reach(target)]
        for _ in range(self.searches):
            left = [target for target in left if self.open_places(target)]
            informed = {name for name, pool in self.pools.items() if pool.informed}
            if not left or not self._search(left):
                break
            left = [
                target
                for target in left
                if not (informed.issuperset(self.open_places(target)) and self._near(target))
            ]
        self._judge_within(targets)

    def open_places(self, target: Target) -> list[str]:
        """Names of the places in which a target can be chosen for now, float32 first."""
        shut = {*self.failed, *self.aim(target).without}
        if target.precisions is None and not {limit.metric for limit in target.bounds} & SMALLER:
            shut |= self.slow.keys()
        return [
            place.name
            for place in self.places(target)
            if place.name in self.pools and place.name not in shut
        ]

    def notes(self, target: Target) -> list[str]:
        """Why precisions were not taken for a target."""
        names = [place.name for place in self.places(target)]
        open_ones, without = self.open_places(target), self.aim(target).without
        slow = [self.slow[name] for name in names if name in self.slow and name not in open_ones]
        failed = [
            f"{place.precision}: {self.failed[place.name]}"
            for place in self.places(target)
            if place.name in self.failed and place.precision != PLAIN
        ]
        return [*slow, *failed, *(without[name] for name in names if name in without)]

    def shut(self, target: Target, name: str, reason: str) -> None:
        """A place's precision does not do for a target."""
        self.aim(target).without[name] = reason

    def choose(self, target: Target, *, sure: bool = False) -> Choice:
        """The best of the place's pools within the limits, as measured.

        Best is the most accurate. Where accuracy is limited, it is the fastest of those that are
        expected to keep that limit once they are trained further; the smallest, where the latency
        is limited as well.

        Args:
            target: a place and limits.
            sure: nothing is expected of training: only what is accurate enough as it is will do.

        Raises:
            InfeasibleError: when none is, with the lowest figures of the pools.
            MeasurementError, ExportError: when the device failed.
        """
        if not self.open_places(target):
            raise self._failure(target)
        limits, missed = self.limits(target), self.aim(target).missed
        floor = self.floor(target)
        for allowed in self._allowed(target):
            met = [option for option in self._kept(target, allowed) if option not in missed]
            best = self._best(target, met, floor, sure=sure)
            if best is not None:
                return best
        undecided = self.aim(target).undecided
        if undecided is not None:
            best = self._best(target, [undecided], floor, sure=sure)
            if best is not None:
                return best
        raise self._infeasible(target, limits, floor)

    def floor(self, target: Target) -> float | None:
        """The least accuracy on validation images that a target asks for."""
        if target.accuracy(1.0) is None:
            return None
        self.judge([self.candidates.reference])
        return target.accuracy(self._judged[self.candidates.reference].accuracy)

    def trained(self, choice: Choice, accuracy: float) -> None:
        """Take in what a candidate's accuracy on validation images became."""
        most = self._judged[self.candidates.reference].accuracy
        if choice.key != self.candidates.reference and choice.accuracy < most:
            self._closed.append((accuracy - choice.accuracy) / (most - choice.accuracy))

    def _failure(self, target: Target) -> MeasurementError | ExportError:
        for place in self.places(target):
            if place.name in self.failed:
                return self.failed[place.name]
        return ExportError("; ".join(self.aim(target).without.values()))

    def _best(
        self, target: Target, options: Sequence[Option], floor: float | None, *, sure: bool
    ) -> Choice | None:
        """The best of some options; ``None`` where none will do, or none can be made a file.

        A file in a lower precision answers no better than its network, by and large. So options
        are taken as good as their networks until their turn comes; then the file is judged.
        """
        self.judge([key for _, key in options])
        left = list(options)
        while left:
            if floor is None:
                best = max(left, key=self._rank)
            else:
                left = [one for one in left if self._expected(one, sure=sure) >= floor]
                if not left:
                    return None
                best = min(left, key=lambda one: self._cost(target, one))
            if self._seen(best):
                name, key = best
                return Choice(
                    key=key,
                    name=self.candidates.label(key),
                    limits=self.limits(target),
                    figures=self._figures(name, key),
                    accuracy=self._judgement(best).accuracy,
                    place=name,
                    precision=self.pools[name].place.precision,
                )
            if not self._judge_file(best):
                left.remove(best)
        return None

    def _rank(self, option: Option) -> tuple[float, float]:
        name, key = option
        return self._judgement(option).quality, -self.pools[name].candidates[key]

    def _cost(self, target: Target, option: Option) -> float:
        return self._figures(*option)[spared_by(target)]

    def _expected(self, option: Option, *, sure: bool) -> float:
        """The accuracy that an option is expected to have once it is trained further."""
        found, reference = self._judgement(option).accuracy, self.candidates.reference
        if sure or option[1] == reference:
            return found
        closes = fmean(self._closed) if self._closed else self.candidates.closes
        return found + closes * max(0.0, self._judged[reference].accuracy - found)

    def _judgement(self, option: Option) -> Judgement:
        return self._as_files.get(option, self._judged[option[1]])

    def _seen(self, option: Option) -> bool:
        plain = self.pools[option[0]].place.precision == PLAIN
        return plain or self.files is None or option in self._as_files

    def _judge_file(self, option: Option) -> bool:
        """See to it that an option has been judged as a file; whether that could be done."""
        assert self.files is not None
        name, key = option
        try:
            self._as_files[option] = self.files.judge(
                self.pools[name].place, key, self._judged[key]
            )
        except (ExportError, MeasurementError) as error:
            self.progress.say(f"{name}: {self.candidates.label(key)} is left out: {error}")
            del self.pools[name].candidates[key]
            return False
        return True

    def miss(
        self, target: Target, choice: Choice, slower: float, *, undecided: bool = False
    ) -> None:
        """Note that a choice came out over its limit: it is not chosen again, and less is asked.

        Args:
            slower: latency of the file as a multiple of what the candidate had taken.
            undecided: it may be within the limit, and is chosen again where nothing else is left.
        """
        aim, option = self.aim(target), (choice.place, choice.key)
        if undecided:
            aim.undecided = option
        if option not in aim.missed:
            aim.missed.append(option)
        aim.scale = min(aim.scale, SAFETY / max(slower, 1.0))

    def dismiss(self, target: Target, choice: Choice) -> None:
        """Note that a choice is not accurate enough: it is not chosen again."""
        self.aim(target).missed.append((choice.place, choice.key))

    def aim(self, target: Target) -> Aim:
        """How the target is chosen for."""
        return self.aims.setdefault(target.name, Aim())

    def base(self, target: Target) -> Mapping[str, float]:
        """The reference's figures at a target's place, in float32.

        Raises:
            KeyError: where the place has not been opened.
        """
        names = [place.name for place in self.places(target) if place.name in self.pools]
        return self.pools[names[0] if names else target.place.name].base

    def limits(self, target: Target) -> dict[str, float]:
        """The target's bounds in their units."""
        return target.absolute(self.base(target))

    def judge(self, keys: Sequence[Key]) -> None:
        """See to it that candidates have been judged, all that are new at once."""
        new = [key for key in dict.fromkeys(keys) if key not in self._judged]
        if new:
            self._judged |= dict(zip(new, self.candidates.judge(new), strict=True))

    # the search ---------------------------------------------------------------------------------

    def _search(self, targets: Sequence[Target]) -> int:
        """One search for all; the number of candidates that are new."""
        bias = {name: self._bias(name) for target in targets for name in self.open_places(target)}
        wishes = [
            Wish((target.name, name), bounds)
            for target in targets
            for name in self.open_places(target)
            for bounds in self._wishes(target, name, bias[name])
        ]
        found = propose(
            self.candidates,
            wishes,
            self.strategy,
            candidates=self.proposals,
            seed=self.seed,
            progress=self.progress,
        )
        by_place: dict[str, list[Key]] = {}
        for wish in wishes:
            by_place.setdefault(wish.owner[1], []).extend(found.get(wish.owner, ()))
        new = 0
        for name, keys in by_place.items():
            pool = self.pools[name]
            fresh = sorted({key for key in keys if key not in pool.candidates})
            if not fresh:
                continue
            new += len(fresh)
            checks = () if pool.searched else self.candidates.checks(pool.place, fresh)
            try:
                self.measure(name, fresh, checks)
            except (MeasurementError, ExportError) as error:
                self.failed[name] = error
        self._judge_within(targets)
        return new

    def _wishes(
        self, target: Target, name: str, bias: Mapping[str, float]
    ) -> list[dict[str, float]]:
        """Bounds to search under at a place; several where the accuracy is limited."""
        latency, tight = latency_at(self.pools[name].place), self._tight(target)
        asked = [tight]
        if self.floor(target) is not None:
            spared = spared_by(target)
            asked = [{**tight, spared: share * self.base(target)[spared]} for share in LADDER]
        return [
            {
                latency if metric == LATENCY else metric: bound / bias.get(metric, 1.0)
                for metric, bound in bounds.items()
            }
            for bounds in asked
        ]

    def _bias(self, name: str) -> dict[str, float]:
        """Metric -> what is counted of a place's candidates, as a multiple of its estimate.

        Sizes and memory are estimated roughly; what is counted is exact.
        """
        reference, precision = self.candidates.reference, self.pools[name].place.precision
        keys = [key for key in self.pools[name].candidates if key != reference] or [reference]
        estimated = self.candidates.cost(rows(keys))
        found = {}
        for metric in self.counted(keys[0]).keys() & estimated.keys():
            exact = np.array([in_precision(self.counted(k), precision)[metric] for k in keys])
            ratio = float(np.median(exact / estimated[metric]))
            if abs(ratio - 1.0) > EXACT:
                found[metric] = ratio
        return found

    def _judge_within(self, targets: Sequence[Target]) -> None:
        keys: list[Key] = []
        for target in targets:
            if self.open_places(target):
                keys += [key for _, key in self._kept(target, self._allowed(target)[-1])]
        self.judge(keys)

    def _within_reach(self, target: Target) -> bool:
        """Whether the reference itself keeps the limits: nothing is gained by a search."""
        names = self.open_places(target)
        if not names:
            return True
        if self.floor(target) is not None:
            return False
        reference, tight = self.candidates.reference, self._tight(target)
        kept = {
            (name, reference)
            for name in names
            if reference in self.pools[name].candidates
            and within(self._figures(name, reference), tight)
        }
        return not kept.issubset(self.aim(target).missed)

    def _near(self, target: Target) -> bool:
        try:
            choice = self.choose(target)
        except TailorbirdError:
            return False
        if self.floor(target) is not None:
            return True
        bound = self._tight(target).get(LATENCY)
        return bound is None or choice.figures[LATENCY] >= NEAR * bound

    # limits -------------------------------------------------------------------------------------

    def _tight(self, target: Target) -> dict[str, float]:
        """What to choose by: the latency with a margin, tighter after a miss."""
        measured = any(self.pools[name].timing is not None for name in self.open_places(target))
        margin = MARGIN if measured else 0.0
        scale = self.aim(target).scale * (1 - margin)
        return {
            metric: bound * (scale if metric == LATENCY else 1.0)
            for metric, bound in self.limits(target).items()
        }

    def _allowed(self, target: Target) -> list[dict[str, float]]:
        """Bounds to choose by, the first that something keeps.

        The margin is given up before the target is; the student's own measurement decides then.
        """
        tight = self._tight(target)
        return [tight, self.limits(target)] if self.aim(target).scale == 1.0 else [tight]

    def _kept(self, target: Target, bounds: Mapping[str, float]) -> list[Option]:
        return [
            (name, key)
            for name in self.open_places(target)
            for key in self.pools[name].candidates
            if within(self._figures(name, key), bounds)
        ]

    def _figures(self, name: str, key: Key) -> dict[str, float]:
        pool = self.pools[name]
        counted = in_precision(self.counted(key), pool.place.precision)
        return {**counted, LATENCY: pool.candidates[key]}

    def _infeasible(
        self, target: Target, limits: Mapping[str, float], floor: float | None
    ) -> InfeasibleError:
        words, names = self.candidates.words, self.open_places(target)
        known = [self._figures(name, key) for name in names for key in self.pools[name].candidates]
        lowest = {metric: min(figures[metric] for figures in known) for metric in limits}
        asked = ", ".join(f"{metric} <= {bound:.4g}" for metric, bound in limits.items())
        reached = ", ".join(f"{metric} {value:.4g}" for metric, value in lowest.items())
        if floor is not None:
            asked = ", ".join(filter(None, [asked, f"accuracy >= {floor:.4g}"]))
        how = "predicted" if self.pools[names[0]].timing is None else "measured"
        slower = ""
        if self.aim(target).scale < 1.0 and LATENCY in limits:
            slower = (
                " (a student came out slower than it had been measured, so "
                f"{self._tight(target)[LATENCY]:.4g} ms were asked for)"
            )
        told = f"; lowest {how}: {reached}" if reached else ""
        return InfeasibleError(
            f"target '{target.name}': no {words.candidate} meets {asked}{slower}{told}; "
            f"{words.way_out}",
            target=target.name,
            limits=limits,
            lowest=lowest,
        )
