"""Choosing a candidate per target: search, measure the best few whole, correct, search again.

All candidates measured at a place form one pool, whichever target they were found for. A target
takes the best of its place's pool within its limits, as measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from tailorbird.errors import ExportError, InfeasibleError, MeasurementError, TailorbirdError
from tailorbird.fit.candidates import Candidates, Key, latency_at
from tailorbird.fit.judged import Judged
from tailorbird.fit.pools import Aim, Choice, Files, Option, Pools, Standing, own_place
from tailorbird.fit.propose import TIGHTEST, Wish, propose
from tailorbird.fit.serve import spared_by
from tailorbird.progress import Progress
from tailorbird.report.record import TrainingRound
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
        contenders: candidates that a target is to have to choose from by training them, at most.
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
    contenders: int = 1

    def __post_init__(self) -> None:
        self.pools = Pools(self.candidates)
        self.judged = Judged(self.candidates, self.pools, self.files, self.progress)
        self.aims: dict[str, Aim] = {}

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
        shut = {*self.pools.failed, *self.aim(target).without}
        if target.precisions is None and not {limit.metric for limit in target.bounds} & SMALLER:
            shut |= self.pools.slow.keys()
        return [
            place.name
            for place in self.places(target)
            if place.name in self.pools and place.name not in shut
        ]

    def notes(self, target: Target) -> list[str]:
        """Why precisions were not taken for a target."""
        names = [place.name for place in self.places(target)]
        open_ones, without = self.open_places(target), self.aim(target).without
        slow = [
            self.pools.slow[name]
            for name in names
            if name in self.pools.slow and name not in open_ones
        ]
        failed = [
            f"{place.precision}: {self.pools.failed[place.name]}"
            for place in self.places(target)
            if place.name in self.pools.failed and place.precision != PLAIN
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
        return self._choose(target, sure=sure)[0]

    def field(self, target: Target, *, sure: bool = False) -> list[Choice]:
        """Candidates to be trained for a target: what `choose` gives, and others to beat it.

        All keep the limits as measured, and no two are one network. Half of them are the best as
        they are. But what is best before it is trained may be small, and larger ones win more: the
        other half is the best of those that take `TIGHTEST` of a limit or more, of the kinds of
        which there are fewest (see `Candidates.kinds`). Where accuracy is limited, half are the
        fastest that may keep that limit, the others the fastest that do so if training wins half of
        what is expected. There is one only where that is the reference, or was trained for this
        target before: what was trained goes first.

        Args, Raises: see `choose`.
        """
        first, options = self._choose(target, sure=sure)
        known = {self.candidates.reference, *(one.key for one in self.aim(target).standings)}
        if self.contenders == 1 or first.key in known:
            return [first]
        found, floor = [first], self.floor(target)

        def take(some: Iterable[Option], most: int) -> None:
            ranked = self._ranked(target, list(some), floor, sure=sure)
            while len(found) < most and (one := next(ranked, None)) is not None:
                if one.key not in {other.key for other in found}:
                    found.append(one)

        take(options, (self.contenders + 1) // 2)
        bolder = [one for one in self._there(options) if self._bolder(target, one, floor)]
        kinds = {key: self.candidates.kind(key) for _, key in options}
        left = set(kinds.values())
        while left and len(found) < self.contenders:
            held, before = Counter(kinds[one.key] for one in found), len(found)
            least = min(held[kind] for kind in left)
            fewest = {kind for kind in left if held[kind] == least}
            take((one for one in bolder if kinds[one[1]] in fewest), before + 1)
            if len(found) == before:
                left -= fewest
        take(options, self.contenders)
        return found

    def order(self, target: Target, standings: Sequence[Standing]) -> list[Standing]:
        """Contenders of a target that were trained as far, best first; see `choose`."""
        floor = self.floor(target)
        if floor is None:
            return sorted(standings, key=lambda one: (-one.quality, self._latency(one)))
        known = {(one.place, one.key): one for one in standings}

        def rank(option: Option) -> tuple[bool, float]:
            expected = self.judged.expected(option, known, sure=False)
            keeps = expected >= floor
            return not keeps, self._cost(target, option) if keeps else -expected

        return sorted(standings, key=lambda one: rank((one.place, one.key)))

    def floor(self, target: Target) -> float | None:
        """The least accuracy on validation images that a target asks for."""
        if target.accuracy(1.0) is None:
            return None
        return target.accuracy(self.judged.reference.accuracy)

    def _choose(self, target: Target, *, sure: bool) -> tuple[Choice, list[Option]]:
        """The choice, and what it was chosen from."""
        if not self.open_places(target):
            raise self._failure(target)
        limits, missed = self.limits(target), self.aim(target).missed
        floor = self.floor(target)
        for allowed in self._allowed(target):
            met = [option for option in self._kept(target, allowed) if option not in missed]
            best = self._furthest(target, met, floor, sure=sure)
            best = best or next(self._ranked(target, met, floor, sure=sure), None)
            if best is not None:
                return best, met
        undecided = self.aim(target).undecided
        if undecided is not None:
            best = next(self._ranked(target, [undecided], floor, sure=sure), None)
            if best is not None:
                return best, []
        raise self._infeasible(target, limits, floor)

    def _furthest(
        self, target: Target, options: Sequence[Option], floor: float | None, *, sure: bool
    ) -> Choice | None:
        """Of those that have been trained for a target, the one that was trained furthest."""
        known = {(one.place, one.key): one for one in self.aim(target).standings}
        left = [known[option] for option in options if option in known]
        self.judged.judge([one.key for one in left])
        if floor is not None:
            expected = [
                self.judged.expected((one.place, one.key), known, sure=sure) for one in left
            ]
            left = [one for one, hope in zip(left, expected, strict=True) if hope >= floor]
        left = self.order(target, left)
        for one in sorted(left, key=lambda one: -one.share):
            option = one.place, one.key
            if self.judged.seen(option) or self.judged.see(option):
                return self._choice(target, option)
        return None

    def _failure(self, target: Target) -> MeasurementError | ExportError:
        for place in self.places(target):
            if place.name in self.pools.failed:
                return self.pools.failed[place.name]
        return ExportError("; ".join(self.aim(target).without.values()))

    def _ranked(
        self, target: Target, options: Sequence[Option], floor: float | None, *, sure: bool
    ) -> Iterator[Choice]:
        """Some options, best first, without those that will not do or can't be made a file.

        Files are judged when their turn comes.
        """
        self.judged.judge([key for _, key in options])
        left = self._there(options)
        while left:
            if floor is None:
                best = max(left, key=self._rank)
            else:
                left = [one for one in left if self.judged.expected(one, {}, sure=sure) >= floor]
                if not left:
                    return
                best = min(left, key=lambda one: self._cost(target, one))
            if self.judged.seen(best):
                left.remove(best)
                yield self._choice(target, best)
            elif not self.judged.see(best):
                left.remove(best)

    def _choice(self, target: Target, option: Option) -> Choice:
        name, key = option
        return Choice(
            key=key,
            name=self.candidates.label(key),
            limits=self.limits(target),
            figures=self.pools.figures(option),
            accuracy=self.judged[option].accuracy,
            place=name,
            precision=self.pools[name].place.precision,
        )

    def _there(self, options: Sequence[Option]) -> list[Option]:
        """Those that are still in their pools: what can't be made a file leaves them."""
        return [(name, key) for name, key in options if key in self.pools[name].candidates]

    def _rank(self, option: Option) -> tuple[float, float]:
        name, key = option
        return self.judged[option].quality, -self.pools[name].candidates[key]

    def _latency(self, standing: Standing) -> float:
        return self.pools[standing.place].candidates[standing.key]

    def _cost(self, target: Target, option: Option) -> float:
        return self.pools.figures(option)[spared_by(target)]

    def _bolder(self, target: Target, option: Option, floor: float | None) -> bool:
        """Whether an option takes most of a limit; keeps accuracy even if training wins little."""
        if floor is not None:
            hopes = [self.judged.expected(option, {}, sure=sure) for sure in (True, False)]
            return sum(hopes) / 2 >= floor
        figures = self.pools.figures(option)
        return any(figures[m] >= TIGHTEST * bound for m, bound in self._tight(target).items())

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

    def stood(self, target: Target, standings: Sequence[Standing], done: TrainingRound) -> None:
        """Note how the contenders of a target stood after a round of training."""
        aim = self.aim(target)
        new = {(one.place, one.key) for one in standings}
        old = [one for one in aim.standings if (one.place, one.key) not in new]
        aim.standings = (*old, *standings)
        aim.rounds = (*aim.rounds, done)

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

    # the search ---------------------------------------------------------------------------------

    def _search(self, targets: Sequence[Target]) -> int:
        """One search for all; the number of candidates that are new."""
        bias = {
            name: self.pools.bias(name) for target in targets for name in self.open_places(target)
        }
        wishes = [
            wish
            for target in targets
            for name in self.open_places(target)
            for wish in self._wishes(target, name, bias[name])
        ]
        found = propose(
            self.candidates,
            wishes,
            self.strategy,
            candidates=self.proposals,
            kinds=list(self.candidates.kinds.values()) if self.contenders > 1 else (),
            content=self.candidates.content,
            seed=self.seed,
            progress=self.progress,
        )
        by_place: dict[str, list[Key]] = {}
        for wish in wishes:
            by_place.setdefault(wish.owner[1], []).extend(found.get(wish.owner, ()))
        new = 0
        for name, keys in by_place.items():
            pool = self.pools[name]
            fresh = self.pools.new(name, keys)
            if not fresh:
                continue
            new += len(fresh)
            checks = () if pool.searched else self.candidates.checks(pool.place, fresh)
            try:
                self.pools.measure(name, fresh, checks)
            except (MeasurementError, ExportError) as error:
                self.pools.failed[name] = error
        self._judge_within(targets)
        return new

    def _wishes(self, target: Target, name: str, bias: Mapping[str, float]) -> list[Wish]:
        """Bounds to search under at a place; several where the accuracy is limited."""
        latency, tight = latency_at(self.pools[name].place), self._tight(target)
        asked, used = [tight], LATENCY if LATENCY in tight else next(iter(tight), "")
        if self.floor(target) is not None:
            used = spared_by(target)
            asked = [{**tight, used: share * self.base(target)[used]} for share in LADDER]
        named = {metric: latency if metric == LATENCY else metric for metric in asked[0]}
        return [
            Wish(
                (target.name, name),
                {named[metric]: b / bias.get(metric, 1.0) for metric, b in bounds.items()},
                near=named[used],
            )
            for bounds in asked
        ]

    def _judge_within(self, targets: Sequence[Target]) -> None:
        keys: list[Key] = []
        for target in targets:
            if self.open_places(target):
                keys += [key for _, key in self._kept(target, self._allowed(target)[-1])]
        self.judged.judge(keys)

    def _within_reach(self, target: Target) -> bool:
        """Whether the reference itself keeps the limits, or a contender that has been trained:
        nothing is gained by a search.
        """
        names = self.open_places(target)
        if not names or self._goes_on(target):
            return True
        if self.floor(target) is not None:
            return False
        reference, tight = self.candidates.reference, self._tight(target)
        kept = {
            (name, reference)
            for name in names
            if reference in self.pools[name].candidates
            and within(self.pools.figures((name, reference)), tight)
        }
        return not kept.issubset(self.aim(target).missed)

    def _goes_on(self, target: Target) -> bool:
        """Whether what was trained for a target may still do."""
        missed, floor = self.aim(target).missed, self.floor(target)
        kept = [one for one in self._kept(target, self._allowed(target)[-1]) if one not in missed]
        return self._furthest(target, kept, floor, sure=False) is not None

    def _near(self, target: Target) -> bool:
        """Whether there is enough to choose from, up to the limit."""
        try:
            field = self.field(target)
        except TailorbirdError:
            return False
        if self.floor(target) is not None or field[0].key == self.candidates.reference:
            return True
        bound = self._tight(target).get(LATENCY)
        if bound is None:
            return True
        highest = max(one.figures[LATENCY] for one in field)
        return len(field) >= self.contenders and highest >= NEAR * bound

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
            if within(self.pools.figures((name, key)), bounds)
        ]

    def _infeasible(
        self, target: Target, limits: Mapping[str, float], floor: float | None
    ) -> InfeasibleError:
        words, names = self.candidates.words, self.open_places(target)
        known = [
            self.pools.figures((name, key)) for name in names for key in self.pools[name].candidates
        ]
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
