"""Choosing a candidate per target: search, measure the best few whole, correct, search again.

All candidates measured at a place form one pool, whichever target they were found for. A target
takes the best of its place's pool within its limits, as measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

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
from tailorbird.fit.propose import Wish, propose
from tailorbird.measure.counts import count
from tailorbird.progress import Progress
from tailorbird.search.selection import within
from tailorbird.search.strategy import Strategy
from tailorbird.targets import LATENCY, Place, Target

MARGIN = 0.02
"""Share of a latency limit kept free at the choice, for the noise of the final measurement."""

NEAR = 0.95
"""A choice that takes this share of its latency limit leaves little to search for."""

EXACT = 1e-6
"""Estimates that are off by less are taken as exact."""

SAFETY = 0.99
"""What is asked for after a miss, as a share of what would just have been enough."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate chosen for a target.

    Args:
        key: its genome.
        name: the same as a short text.
        limits: metric -> bound in its unit, margin not taken off.
        figures: metric -> figure of the whole network; latency measured where it can be.
        accuracy: on the validation split, before it is trained further.
    """

    key: Key
    name: str
    limits: Mapping[str, float]
    figures: Mapping[str, float]
    accuracy: float


@dataclass
class Pool:
    """What is known at one place.

    Args:
        place: where.
        timing: times networks there; ``None`` where the place has only a table.
        base: the reference's figures.
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
        missed: candidates that came out over it, or too near to tell.
        undecided: the last of those that were too near: taken where nothing tighter is found.
    """

    scale: float = 1.0
    missed: list[Key] = field(default_factory=list)
    undecided: Key | None = None


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

    Attributes:
        failed: place's name -> why its device failed; that costs its own targets only.
    """

    candidates: Candidates
    strategy: Strategy
    _: KW_ONLY
    proposals: int
    searches: int
    seed: int
    progress: Progress

    def __post_init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.aims: dict[str, Aim] = {}
        self.failed: dict[str, MeasurementError | ExportError] = {}
        self._counted: dict[Key, dict[str, float]] = {}
        self._judged: dict[Key, Judgement] = {}

    def open(self, place: Place, timing: Timing | None, past: Past | None = None) -> None:
        """Begin a place's pool, or take it up; a device that fails is noted in ``failed``."""
        reference, past = self.candidates.reference, past or Past()
        try:
            latency = self.candidates.open(place, timing)
            base = {**self.counted(reference), LATENCY: latency}
            self.pools[place.name] = Pool(place, timing, base, {reference: latency})
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
        labels = {candidates.label(key): key for key in (*fresh, *checks)}
        timed = pool.timing.measure(
            {label: partial(candidates.network, key) for label, key in labels.items()}
        )
        found = {labels[label]: latency.median_ms for label, latency in timed.items()}
        pool.candidates |= {key: found[key] for key in fresh}
        pool.checks |= {key: found[key] for key in checks}
        proposed = {k: ms for k, ms in pool.candidates.items() if k != candidates.reference}
        if whole := {**pool.checks, **proposed}:
            candidates.learn(pool.place, whole)

    def settle(self, targets: Sequence[Target]) -> None:
        """Search until the choices come near their limits, nothing new is found, or enough."""
        left = [target for target in targets if not self._within_reach(target)]
        for _ in range(self.searches):
            left = [target for target in left if target.place.name not in self.failed]
            informed = {name for name, pool in self.pools.items() if pool.informed}
            if not left or not self._search(left):
                break
            left = [
                target
                for target in left
                if not (target.place.name in informed and self._near(target))
            ]
        self._judge_within(targets)

    def choose(self, target: Target) -> Choice:
        """The best of the place's pool within the limits, as measured.

        Raises:
            InfeasibleError: when none is, with the lowest figures of the pool.
            MeasurementError, ExportError: when the device failed.
        """
        name = target.place.name
        if name in self.failed:
            raise self.failed[name]
        limits, missed = self.limits(target), self.aim(target).missed
        for allowed in self._allowed(target):
            met = [key for key in self._kept(name, allowed) if key not in missed]
            if met:
                return self._best(target, met)
        undecided = self.aim(target).undecided
        if undecided is not None:
            return self._best(target, [undecided])
        raise self._infeasible(target, limits)

    def _best(self, target: Target, keys: Sequence[Key]) -> Choice:
        self.judge(keys)
        name = target.place.name
        pool = self.pools[name].candidates
        best = max(keys, key=lambda key: (self._judged[key].quality, -pool[key]))
        return Choice(
            key=best,
            name=self.candidates.label(best),
            limits=self.limits(target),
            figures=self._figures(name, best),
            accuracy=self._judged[best].accuracy,
        )

    def miss(
        self, target: Target, choice: Choice, slower: float, *, undecided: bool = False
    ) -> None:
        """Note that a choice came out over its limit: it is not chosen again, and less is asked.

        Args:
            slower: latency of the file as a multiple of what the candidate had taken.
            undecided: it may be within the limit, and is chosen again where nothing else is left.
        """
        aim = self.aim(target)
        if undecided:
            aim.undecided = choice.key
        if choice.key not in aim.missed:
            aim.missed.append(choice.key)
        aim.scale = min(aim.scale, SAFETY / max(slower, 1.0))

    def aim(self, target: Target) -> Aim:
        """How the target is chosen for."""
        return self.aims.setdefault(target.name, Aim())

    def limits(self, target: Target) -> dict[str, float]:
        """The target's bounds in their units."""
        return target.absolute(self.pools[target.place.name].base)

    def judge(self, keys: Sequence[Key]) -> None:
        """See to it that candidates have been judged, all that are new at once."""
        new = [key for key in dict.fromkeys(keys) if key not in self._judged]
        if new:
            self._judged |= dict(zip(new, self.candidates.judge(new), strict=True))

    # the search ---------------------------------------------------------------------------------

    def _search(self, targets: Sequence[Target]) -> int:
        """One search for all; the number of candidates that are new."""
        bias = {name: self._bias(name) for name in {target.place.name for target in targets}}
        wishes = [
            Wish(target.name, self._wish(target, bias[target.place.name])) for target in targets
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
        for target in targets:
            by_place.setdefault(target.place.name, []).extend(found.get(target.name, ()))
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

    def _wish(self, target: Target, bias: Mapping[str, float]) -> dict[str, float]:
        latency = latency_at(target.place)
        return {
            latency if metric == LATENCY else metric: bound / bias.get(metric, 1.0)
            for metric, bound in self._tight(target).items()
        }

    def _bias(self, name: str) -> dict[str, float]:
        """Metric -> what is counted of a place's candidates, as a multiple of its estimate.

        Sizes and memory are estimated roughly; what is counted is exact.
        """
        keys = [key for key in self.pools[name].candidates if key != self.candidates.reference]
        if not keys:
            return {}
        estimated = self.candidates.cost(rows(keys))
        found = {}
        for metric in self.counted(keys[0]).keys() & estimated.keys():
            exact = np.array([self.counted(key)[metric] for key in keys])
            ratio = float(np.median(exact / estimated[metric]))
            if abs(ratio - 1.0) > EXACT:
                found[metric] = ratio
        return found

    def _judge_within(self, targets: Sequence[Target]) -> None:
        keys: list[Key] = []
        for target in targets:
            if target.place.name not in self.failed:
                keys += self._kept(target.place.name, self._allowed(target)[-1])
        self.judge(keys)

    def _within_reach(self, target: Target) -> bool:
        """Whether the reference itself keeps the limits: nothing is gained by a search."""
        name = target.place.name
        if name in self.failed:
            return True
        reference = self.candidates.reference
        missed = reference in self.aim(target).missed
        return not missed and within(self.pools[name].base, self._tight(target))

    def _near(self, target: Target) -> bool:
        try:
            choice = self.choose(target)
        except TailorbirdError:
            return False
        bound = self._tight(target).get(LATENCY)
        return bound is None or choice.figures[LATENCY] >= NEAR * bound

    # limits -------------------------------------------------------------------------------------

    def _tight(self, target: Target) -> dict[str, float]:
        """What to choose by: the latency with a margin, tighter after a miss."""
        margin = 0.0 if self.pools[target.place.name].timing is None else MARGIN
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

    def _kept(self, name: str, bounds: Mapping[str, float]) -> list[Key]:
        return [
            key for key in self.pools[name].candidates if within(self._figures(name, key), bounds)
        ]

    def _figures(self, name: str, key: Key) -> dict[str, float]:
        return {**self.counted(key), LATENCY: self.pools[name].candidates[key]}

    def _infeasible(self, target: Target, limits: Mapping[str, float]) -> InfeasibleError:
        pool, words = self.pools[target.place.name], self.candidates.words
        known = [self._figures(target.place.name, key) for key in pool.candidates]
        lowest = {metric: min(figures[metric] for figures in known) for metric in limits}
        asked = ", ".join(f"{metric} <= {bound:.4g}" for metric, bound in limits.items())
        reached = ", ".join(f"{metric} {value:.4g}" for metric, value in lowest.items())
        how = "predicted" if pool.timing is None else "measured"
        slower = ""
        if self.aim(target).scale < 1.0 and LATENCY in limits:
            slower = (
                " (a student came out slower than it had been measured, so "
                f"{self._tight(target)[LATENCY]:.4g} ms were asked for)"
            )
        return InfeasibleError(
            f"target '{target.name}': no {words.candidate} meets {asked}{slower}; lowest {how}: "
            f"{reached}; {words.way_out}",
            target=target.name,
            limits=limits,
            lowest=lowest,
        )
