"""Small families of both kinds: a supernet with depths, and a house with conflicts."""

from __future__ import annotations

import numpy as np

from tailorbird.space import Choice, Condition, Space


class Supernet:
    """3 stages of 1 or 2 blocks, kernels and widths, a resolution; 2 costs. 148,176 members."""

    def __init__(self):
        choices, conditions = [Choice("r", (128, 160))], {}
        for stage in range(3):
            depth = len(choices)
            choices.append(Choice(f"d{stage}", (1, 2)))
            for block in range(2):
                for letter, values in (("k", (3, 5)), ("e", (3, 4, 6))):
                    if block:
                        conditions[len(choices)] = Condition(depth, 1)
                    choices.append(Choice(f"{letter}{stage}_{block}", values))
        self.space = Space(tuple(choices), conditions=conditions)
        rng = np.random.default_rng(3)
        shape = (len(choices), int(self.space.sizes.max()))
        self._time, self._gain = (np.cumsum(rng.uniform(0.2, 1.0, shape), axis=1) for _ in range(2))

    def cost(self, genomes):
        return {
            "latency_ms": self._sum(self._time, genomes) + 1.0,
            "macs": self._sum(self._gain, genomes) * 1e6 + 1e6,
        }

    def quality(self, genomes):
        scaled = self._sum(self._gain, genomes) / self._gain[:, -1].sum()
        # A product of neighbours makes it more than a sum.
        pairs = (genomes[:, 1:] * genomes[:, :-1]).sum(axis=1) / 40
        return 0.6 + 0.3 * np.tanh(scaled) + 0.02 * pairs

    def _sum(self, table, genomes):
        active = self.space.active(genomes)
        return np.where(active, table[np.arange(len(table)), genomes], 0).sum(axis=1)


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
