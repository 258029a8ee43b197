"""Strategies for families whose costs and losses add up, such as model houses.

`Exact` proves the best member within each set of limits. `Annealing` is the way of the paper
(Bespoke, section 4.3), slower and without a proof; that and `RandomSelection` are for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from tailorbird.errors import ConfigError, InfeasibleError
from tailorbird.family import AdditiveFamily, AdditiveProblem, Estimated, is_additive
from tailorbird.progress import Progress, Silent
from tailorbird.search import annealing, exact, random
from tailorbird.search.baselines import Exhaustive
from tailorbird.search.many_targets import AllAtOnce
from tailorbird.search.selection import Selection
from tailorbird.search.strategy import Limits, SearchResult, Session, Strategy, Winner
from tailorbird.space import Genome
from tailorbird.threads import one_thread

_SILENT = Silent()

FEW = 20_000
"""Up to this many members a space is searched exhaustively."""


@runtime_checkable
class Ranks(Protocol):
    """A strategy that knows more than the best member at a set of limits."""

    def ranked(self, family: AdditiveFamily, bounds: Limits, *, count: int) -> list[Genome]:
        """The best members (genes,) within the limits, best first: ``count`` of them if there are.

        Raises:
            InfeasibleError: when nothing keeps the limits.
        """


class _Additive:
    """What the strategies have in common: they differ in how one set of limits is solved."""

    name: str

    def _solve(self, problem: AdditiveProblem, bounds: Limits, seed: int) -> Selection:
        raise NotImplementedError

    @one_thread()
    def search(
        self,
        family: Estimated,
        limits: Sequence[Limits],
        *,
        seed: int,
        progress: Progress = _SILENT,
    ) -> SearchResult:
        """See `Strategy.search`.

        Raises:
            ConfigError: also for a family whose costs don't add up.
        """
        session = Session(self.name, family, limits, seed=seed)
        if not is_additive(family):
            raise ConfigError(
                f"{self.name}: expected a family whose costs add up, such as a model house's; "
                "choose another strategy, such as all-at-once"
            )
        winners: list[Winner] = []
        failed: list[tuple[int, InfeasibleError]] = []
        with session.task(progress, len(limits)) as task:
            for row, bounds in enumerate(limits):
                try:
                    found = self._solve(family.problem, bounds, seed)
                    winners.append(_winner(family, bounds, found, session))
                except InfeasibleError as error:
                    failed.append((row, error))
                task.advance()
        if failed and not session.stopped:
            raise InfeasibleError(
                f"{len(failed)} of {len(limits)} limits can't be kept; raise them:"
                + "".join(f"\n  - limits[{row}]: {error}" for row, error in failed),
                limits=failed[0][1].limits,
                lowest=failed[0][1].lowest,
            )
        return session.result(winners)


@dataclass(frozen=True, kw_only=True)
class Exact(_Additive):
    """The best member at each set of limits, proven by integer programming; additive families only.

    Cost: one programme per set of limits, under a second where blocks lie along a chain.
    """

    name: str = "exact"

    def _solve(self, problem: AdditiveProblem, bounds: Limits, seed: int) -> Selection:
        return exact.solve(problem, bounds)[0]

    @one_thread()
    def ranked(self, family: AdditiveFamily, bounds: Limits, *, count: int) -> list[Genome]:
        """See `Ranks.ranked`; each further member is one programme more, with a no-good cut."""
        found = exact.solve(family.problem, bounds, count=count)
        return [np.asarray(family.genome(one.chosen), dtype=np.int64) for one in found]


@dataclass(frozen=True, kw_only=True)
class Annealing(_Additive):
    """Simulated annealing, as in Bespoke; additive families only.

    Args:
        steps, restarts: see `tailorbird.search.annealing.anneal`.
    """

    steps: int = 5000
    restarts: int = 24
    name: str = "annealing"

    def _solve(self, problem: AdditiveProblem, bounds: Limits, seed: int) -> Selection:
        return annealing.anneal(
            problem, bounds, seed=seed, steps=self.steps, restarts=self.restarts
        )


@dataclass(frozen=True, kw_only=True)
class RandomSelection(_Additive):
    """Alternatives drawn until the limits are kept, the paper's "Rand"; additive families only."""

    name: str = "random-selection"

    def _solve(self, problem: AdditiveProblem, bounds: Limits, seed: int) -> Selection:
        return random.select(problem, bounds, seed=seed)


def strategy_for(family: Estimated) -> Strategy:
    """What suits a family: a proof where there can be one, else one search for all limits.

    Example:
        >>> from tailorbird.space import Choice, Space
        >>> class Few:
        ...     space = Space((Choice("width", (8, 16)),))
        >>> strategy_for(Few()).name
        'exhaustive'
    """
    if is_additive(family):
        return Exact()
    return Exhaustive() if family.space.size <= FEW else AllAtOnce()


def _winner(family: AdditiveFamily, bounds: Limits, found: Selection, session: Session) -> Winner:
    genome = np.asarray(family.genome(found.chosen), dtype=np.int64)
    quality = float(session.judge.quality(genome[None])[0])
    return Winner(limits=dict(bounds), genome=genome, quality=quality, cost=found.cost)
