"""Searches that others are judged against: random, exhaustive, and NSGA-II."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.errors import ConfigError
from tailorbird.family import Estimated
from tailorbird.progress import Progress, Silent
from tailorbird.search.reach import started
from tailorbird.search.strategy import (
    Archive,
    Evaluator,
    Limits,
    SearchResult,
    Session,
)
from tailorbird.space import Genomes, Space
from tailorbird.threads import one_thread

_SILENT = Silent()
_CHUNK = 16_384
"""Genomes priced and judged at once."""
_MOST_DRAWS = 20
"""Draws per evaluation before random search gives up finding members within the limits."""


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """The best of random members, one sample for all limits.

    Only members that keep at least one set of limits are judged, and count. Where hardly any do, it
    ends after 20 draws for each evaluation asked for.

    Args:
        evaluations: members to judge, besides those known to keep the limits.

    Raises:
        ConfigError: when ``evaluations`` is not a whole number above 0.
    """

    evaluations: int = 50_000
    name: str = "random"

    def __post_init__(self) -> None:
        if not isinstance(self.evaluations, int) or self.evaluations < 1:
            raise ConfigError(
                f"evaluations: expected a whole number above 0, got {self.evaluations!r}"
            )

    @one_thread()
    def search(
        self,
        family: Estimated,
        limits: Sequence[Limits],
        *,
        seed: int,
        progress: Progress = _SILENT,
    ) -> SearchResult:
        """See `Strategy.search`."""
        session, rng = Session(self.name, family, limits, seed=seed), np.random.default_rng(seed)
        archive = started(session.judge, limits, rng)
        with session.task(progress, self.evaluations) as task:
            left, draws = self.evaluations, _MOST_DRAWS * self.evaluations
            while left > 0 and draws > 0:
                genomes = family.space.sample(min(_CHUNK, draws), rng)
                draws -= len(genomes)
                judged = _judge(session.judge, archive, genomes, most=left)
                left -= judged
                task.advance(judged)
        return session.result(archive.winners(session.judge))


@dataclass(frozen=True, kw_only=True)
class Exhaustive:
    """Every member of a small space: the optimum at each set of limits, proven.

    Args:
        most: members of the largest space that is searched.

    Example:
        >>> from tailorbird.space import Choice
        >>> class Squares:
        ...     space = Space(tuple(Choice(name, (0, 1, 2, 3)) for name in "abc"))
        ...     def cost(self, genomes):
        ...         return {"macs": 1.0 + (genomes**2).sum(axis=1)}
        ...     def quality(self, genomes):
        ...         return genomes @ np.array([1.0, 2.0, 3.0])
        >>> Exhaustive().search(Squares(), [{"macs": 6.0}], seed=0).winners[0].genome
        array([0, 1, 2])
    """

    most: int = 1_000_000
    name: str = "exhaustive"

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
            ConfigError: also when the space has more than ``most`` members.
        """
        session, space = Session(self.name, family, limits, seed=seed), family.space
        if space.size > self.most:
            raise ConfigError(
                f"exhaustive: expected a space of at most {self.most:,} members, got "
                f"{space.size:,}; choose another strategy or raise 'most'"
            )
        archive = started(session.judge, limits, np.random.default_rng(seed))
        with session.task(progress, space.size) as task:
            for genomes in _members(space):
                _judge(session.judge, archive, genomes)
                task.advance(len(genomes))
        return session.result(archive.winners(session.judge))


def _members(space: Space) -> Iterator[Genomes]:
    """All members without a conflict, in parts."""
    genomes = Space(space.choices, conditions=space.conditions).enumerate()
    for start in range(0, len(genomes), _CHUNK):
        part = genomes[start : start + _CHUNK]
        if space.conflicts is not None:
            chosen = (part != 0).astype(np.float32)
            clash = (chosen @ space.conflicts.astype(np.float32) * chosen).any(axis=1)
            part = part[~clash]
        yield part


def _judge(judge: Evaluator, archive: Archive, genomes: Genomes, *, most: int | None = None) -> int:
    """Offer ``genomes`` to the archive; judges and counts at most ``most`` that keep a limit."""
    cost = judge.cost(genomes)
    rows = np.flatnonzero(archive.feasible(cost))[:most]
    kept = {metric: figures[rows] for metric, figures in cost.items()}
    archive.update(genomes[rows], judge.quality(genomes[rows]), kept)
    return len(rows)
