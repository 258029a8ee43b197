"""Small families of both kinds: the supernet of the contract, and a house with conflicts."""

from __future__ import annotations

import numpy as np

from tailorbird.space import Choice, Space
from tailorbird.testing import SmallSupernet as Supernet

__all__ = ["House", "Supernet"]


class House:
    """A house made from an additive problem: one gene per block, overlapping blocks in conflict."""

    def __init__(self, problem):
        self.problem = problem
        blocks, gene = np.unique(problem.covers, axis=0, return_inverse=True)
        self.members = [np.flatnonzero(gene == block) for block in range(len(blocks))]
        overlap = (blocks.astype(int) @ blocks.T.astype(int)) > 0
        np.fill_diagonal(overlap, False)
        choices = (
            Choice(f"block{number}", ("keep", *map(int, rows)))
            for number, rows in enumerate(self.members)
        )
        self.space = Space(tuple(choices), overlap)

    def cost(self, genomes):
        figures = self.problem.base - self._sum(self.problem.saving, genomes)
        return dict(zip(self.problem.metrics, figures.T, strict=True))

    def quality(self, genomes):
        return -self._sum(self.problem.loss[:, None], genomes)[:, 0]

    def _sum(self, figures, genomes):
        total = np.zeros((len(genomes), figures.shape[1]))
        for column, rows in enumerate(self.members):
            total += np.vstack([np.zeros(figures.shape[1]), figures[rows]])[genomes[:, column]]
        return total
