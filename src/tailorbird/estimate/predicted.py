"""A space whose members are priced and judged by predictors, without building any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tailorbird.family import Floats
from tailorbird.space import Genomes, Space

Predictor = Callable[[Genomes], Floats]
"""Genomes (n, genes) -> figures (n,)."""


@dataclass(frozen=True, kw_only=True)
class PredictedFamily:
    """What a search needs of a supernet: its space, a predicted quality, predicted costs.

    Args:
        space: the genomes.
        predictor: predicted accuracy, higher is better.
        costs: metric -> predictor of it, such as ``latency_ms``, ``macs``, ``params``; with several
            devices ``latency_ms@DEVICE``.

    Example:
        >>> import numpy as np
        >>> from tailorbird.space import Choice
        >>> family = PredictedFamily(
        ...     space=Space((Choice("depth", (2, 3, 4)),)),
        ...     predictor=lambda genomes: 0.7 + 0.02 * genomes[:, 0],
        ...     costs={"latency_ms": lambda genomes: 5.0 + 3.0 * genomes[:, 0]},
        ... )
        >>> family.cost(np.array([[1]])), family.quality(np.array([[1]]))
        ({'latency_ms': array([8.])}, array([0.72]))
    """

    space: Space
    predictor: Predictor
    costs: Mapping[str, Predictor]

    def cost(self, genomes: Genomes) -> dict[str, Floats]:
        """Predicted figures of ``genomes`` (n, genes): metric -> (n,)."""
        return {metric: predict(genomes) for metric, predict in self.costs.items()}

    def quality(self, genomes: Genomes) -> Floats:
        """Predicted accuracy of ``genomes`` (n, genes): (n,)."""
        return self.predictor(genomes)
