"""The model house as a family: one gene per block of the teacher, 0 keeps the block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import fx

from tailorbird.errors import SpaceError
from tailorbird.family import AdditiveProblem, Floats
from tailorbird.graph.blocks import Block
from tailorbird.graph.surgery import induce
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative
from tailorbird.space import Choice, Genomes, Space


@dataclass(frozen=True, kw_only=True)
class HouseFamily:
    """Every network that can be induced from the teacher with the house's alternatives.

    Costs and losses are additive estimates (Bespoke, eq. 4 and 5): the teacher's figure, less what
    each chosen alternative saves. The paper adds up accuracy losses. Divergences add up better:
    a small change of the logits enters them as its square, and independent changes add in squares.

    Args:
        teacher: the traced teacher.
        blocks: key -> block, of every block that has an alternative.
        alternatives: those that can be chosen.
        modules: alternative's name -> module.
        losses: alternative's name -> what it loses alone: divergence or accuracy.
        base: metric -> the teacher's figure.
        savings: metric -> alternative's name -> what it saves of the metric.
    """

    teacher: LayerGraph
    blocks: Mapping[str, Block]
    alternatives: tuple[Alternative, ...]
    modules: Mapping[str, fx.GraphModule]
    losses: Mapping[str, float]
    base: Mapping[str, float]
    savings: Mapping[str, Mapping[str, float]]

    @cached_property
    def by_name(self) -> Mapping[str, Alternative]:
        """Alternative's name -> alternative."""
        return {one.name: one for one in self.alternatives}

    @cached_property
    def slots(self) -> tuple[tuple[str, tuple[Alternative, ...]], ...]:
        """(block key, its alternatives) in the teacher's order: gene by gene."""
        by_block: dict[str, list[Alternative]] = {}
        for alternative in self.alternatives:
            by_block.setdefault(alternative.block, []).append(alternative)
        return tuple((key, tuple(by_block[key])) for key in self.blocks if key in by_block)

    @cached_property
    def space(self) -> Space:
        """One gene per block with alternatives; overlapping blocks exclude each other."""
        keys = [key for key, _ in self.slots]
        covers = self._covers(keys)
        conflicts = (covers @ covers.T) > 0
        np.fill_diagonal(conflicts, False)
        return Space(
            tuple(
                Choice(key, ("keep", *(a.name for a in alternatives)))
                for key, alternatives in self.slots
            ),
            conflicts,
        )

    @cached_property
    def problem(self) -> AdditiveProblem:
        """The choice as an additive problem over ``alternatives``, for the exact solver."""
        metrics = tuple(self.base)
        saving = [[self.savings[m][a.name] for m in metrics] for a in self.alternatives]
        return AdditiveProblem(
            loss=np.array([self.losses[a.name] for a in self.alternatives], dtype=np.float64),
            saving=np.array(saving, dtype=np.float64).reshape(-1, len(metrics)),
            base=np.array([self.base[m] for m in metrics], dtype=np.float64),
            covers=self._covers([a.block for a in self.alternatives]).astype(np.bool_),
            metrics=metrics,
        )

    def cost(self, genomes: Genomes) -> dict[str, Floats]:
        """Predicted figures of ``genomes`` (n x genes): metric -> (n,)."""
        return {
            metric: self.base[metric] - self._sum(genomes, self.savings[metric])
            for metric in self.base
        }

    def quality(self, genomes: Genomes) -> Floats:
        """Minus the summed losses of ``genomes`` (n x genes): (n,)."""
        return -self._sum(genomes, self.losses)

    def induce(self, names: Sequence[str]) -> fx.GraphModule:
        """The teacher with the alternatives ``names`` in place.

        Raises:
            SpaceError: for a name that the house does not hold.
        """
        known = self._known(names)
        return induce(
            self.teacher, {self.blocks[known[name].block]: self.modules[name] for name in names}
        )

    def names(self, genome: Sequence[int]) -> tuple[str, ...]:
        """The alternatives that one genome (genes,) chooses, sorted."""
        return tuple(sorted(self._chosen(genome)))

    def genome(self, chosen: Sequence[int]) -> npt.NDArray[np.int64]:
        """The genome (genes,) that chooses alternatives by their indices."""
        return self.of_names([self.alternatives[index].name for index in chosen])

    def of_names(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """The genome (genes,) that chooses the alternatives ``names``.

        Raises:
            SpaceError: for a name that the house does not hold.
        """
        self._known(names)
        chosen = set(names)
        return np.array(
            [
                next((i for i, a in enumerate(alternatives, 1) if a.name in chosen), 0)
                for _, alternatives in self.slots
            ],
            dtype=np.int64,
        )

    def stages(self, count: int) -> dict[str, Floats]:
        """Alternative's name -> (count,) what share of its layers lies in each stage.

        Args:
            count: the teacher's layers in order, cut into so many stages of equal length.
        """
        count = max(1, count)
        stage = np.arange(len(self.teacher.index)) * count // max(1, len(self.teacher.index))
        covers = self._covers([a.block for a in self.alternatives])
        layers = np.stack([covers[:, stage == one].sum(axis=1) for one in range(count)], axis=1)
        shares = layers / layers.sum(axis=1, keepdims=True)
        return {a.name: shares[row] for row, a in enumerate(self.alternatives)}

    def _chosen(self, genome: Sequence[int]) -> list[str]:
        return [
            alternatives[gene - 1].name
            for (_, alternatives), gene in zip(self.slots, genome, strict=True)
            if gene
        ]

    def _known(self, names: Sequence[str]) -> Mapping[str, Alternative]:
        missing = [name for name in names if name not in self.by_name]
        if missing:
            raise SpaceError(f"the house holds no alternative named {', '.join(missing)}")
        return self.by_name

    def _covers(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        order = self.teacher.index
        covers = np.zeros((len(keys), len(order)), dtype=np.int64)
        for row, key in enumerate(keys):
            covers[row, [order[name] for name in self.blocks[key].nodes]] = 1
        return covers

    def _sum(self, genomes: Genomes, figures: Mapping[str, float]) -> Floats:
        total = np.zeros(len(genomes))
        for column, (_, alternatives) in enumerate(self.slots):
            table = np.array([0.0, *(figures[a.name] for a in alternatives)])
            total += table[genomes[:, column]]
        return total
