"""Searching a part of a family: what takes much of a limit, what is made of some parts only.

Near a limit, a figure must not be too low. Every strategy knows upper bounds only; with a metric
"what of twice the limit is left", a lower bound of a figure is an upper bound of another one, and
sums stay sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tailorbird.family import AdditiveFamily, AdditiveProblem, Floats
from tailorbird.space import Genomes, Space

LEFT = " left of "


@dataclass(frozen=True)
class Near:
    """A family whose figures have complements too; implements `tailorbird.family.AdditiveFamily`.

    Args:
        family: with its own metrics.
        ceilings: metric -> a figure above all that are asked of it.
    """

    family: AdditiveFamily
    ceilings: Mapping[str, float]

    @property
    def space(self) -> Space:
        """The family's."""
        return self.family.space

    @cached_property
    def problem(self) -> AdditiveProblem:
        """The family's, with a metric more for each ceiling."""
        own = self.family.problem
        columns = [own.metrics.index(metric) for metric in self.ceilings]
        tops = np.array(list(self.ceilings.values()), dtype=np.float64)
        return AdditiveProblem(
            loss=own.loss,
            saving=np.concatenate([own.saving, -own.saving[:, columns]], axis=1),
            base=np.concatenate([own.base, tops - own.base[columns]]),
            covers=own.covers,
            metrics=(*own.metrics, *(self._left(metric) for metric in self.ceilings)),
        )

    def genome(self, chosen: Sequence[int]) -> npt.NDArray[np.int64]:
        """The family's."""
        return self.family.genome(chosen)

    def cost(self, genomes: Genomes) -> Mapping[str, Floats]:
        """The family's figures (n,) of ``genomes`` (n, genes), and their complements."""
        found = self.family.cost(genomes)
        left = {self._left(m): top - found[m] for m, top in self.ceilings.items()}
        return {**found, **left}

    def quality(self, genomes: Genomes) -> Floats:
        """The family's."""
        return self.family.quality(genomes)

    def at_least(self, metric: str, figure: float) -> dict[str, float]:
        """The limit that says that a metric is at least so high."""
        return {self._left(metric): self.ceilings[metric] - figure}

    def _left(self, metric: str) -> str:
        return f"{self.ceilings[metric]:g}{LEFT}{metric}"


@dataclass(frozen=True)
class Within:
    """The members of a family that are made of some of its alternatives only.

    Strategies that go by genomes search the whole family in it.

    Args:
        family: all of it.
        alternatives: indices of those that may be chosen.
    """

    family: AdditiveFamily
    alternatives: Sequence[int]

    @property
    def space(self) -> Space:
        """The family's."""
        return self.family.space

    @cached_property
    def problem(self) -> AdditiveProblem:
        """The family's, without the other alternatives."""
        own, rows = self.family.problem, list(self.alternatives)
        return AdditiveProblem(
            loss=own.loss[rows],
            saving=own.saving[rows],
            base=own.base,
            covers=own.covers[rows],
            metrics=own.metrics,
        )

    def genome(self, chosen: Sequence[int]) -> npt.NDArray[np.int64]:
        """The family's genome of alternatives by their indices here."""
        return self.family.genome([self.alternatives[index] for index in chosen])

    def cost(self, genomes: Genomes) -> Mapping[str, Floats]:
        """The family's."""
        return self.family.cost(genomes)

    def quality(self, genomes: Genomes) -> Floats:
        """The family's."""
        return self.family.quality(genomes)
