"""Local search around winners: all changes of one gene, until none is better within its limits."""

from __future__ import annotations

import numpy as np

from tailorbird.search.strategy import Archive, Evaluator
from tailorbird.space import Genomes

_TOGETHER = 32
"""Winners whose neighbours are made in one batch: bounds the memory."""


class Seen:
    """Genomes met before, as 64-bit hashes: 8 bytes each.

    Example:
        >>> seen = Seen(2, np.random.default_rng(0))
        >>> seen.new(np.array([[0, 1], [0, 1], [1, 1]]))
        array([0, 2])
        >>> seen.note(np.array([[0, 1], [1, 1]]))
        >>> seen.new(np.array([[1, 1], [1, 0]]))
        array([1])
    """

    def __init__(self, genes: int, rng: np.random.Generator) -> None:
        self._factors = rng.integers(-(2**62), 2**62, size=genes) * 2 + 1
        self._hashes: Genomes = np.empty(0, dtype=np.int64)

    def keys(self, genomes: Genomes) -> Genomes:
        """(n,) hashes of ``genomes`` (n, genes)."""
        mixed = (genomes + 1) * self._factors
        return np.asarray((mixed ^ (mixed >> 29)).sum(axis=1))

    def new(self, genomes: Genomes) -> Genomes:
        """Rows of the first of each of ``genomes`` that hasn't been noted, in order."""
        keys, first = np.unique(self.keys(genomes), return_index=True)
        place = np.searchsorted(self._hashes, keys)
        known = np.append(self._hashes, 0)[place] == keys
        known &= place < len(self._hashes)
        return np.sort(first[~known])

    def note(self, genomes: Genomes) -> None:
        """Remember ``genomes`` (n, genes)."""
        self._hashes = np.sort(np.concatenate([self._hashes, self.keys(genomes)]), kind="stable")


def polish(
    evaluator: Evaluator,
    archive: Archive,
    *,
    seen: Seen,
    budget: int | None = None,
) -> bool:
    """Improve the winners in ``archive`` until no change of one gene betters any of them.

    Costs come first: a neighbour's quality is computed only where it keeps some limits, and once.
    A winner's neighbours serve all limits. It takes about (genes x values) evaluations per
    different winner, each winner's neighbours being looked at once.

    Args:
        evaluator: the family.
        archive: what holds the winners; gets better ones.
        seen: genomes evaluated already, with their quality told to the archive.
        budget: evaluations at most, ``None`` for no bound; a batch of winners that would exceed
            it ends the polish.

    Returns:
        Whether it came to its end: no single change improves any winner.
    """
    space = evaluator.space
    done = Seen(len(space.sizes), np.random.default_rng(0))
    spent = evaluator.evaluations
    while True:
        winners, _ = archive.distinct()
        winners = winners[done.new(winners)]
        if not len(winners):
            return True
        for start in range(0, len(winners), _TOGETHER):
            some = winners[start : start + _TOGETHER]
            near, _ = space.neighbours(some)
            near = near[seen.new(near)]
            costs = evaluator.cost(near)
            useful = archive.feasible(costs)
            near, costs = near[useful], {m: c[useful] for m, c in costs.items()}
            if budget is not None and evaluator.evaluations - spent + len(near) > budget:
                return False
            archive.update(near, evaluator.quality(near), costs)
            seen.note(near)
            done.note(some)
