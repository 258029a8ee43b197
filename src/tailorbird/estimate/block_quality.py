"""From the qualities of blocks to that of a network: a linear model, learned from trained networks.

Sums of losses of single blocks (Bespoke, eq. 4) take a loss for the same wherever it occurs. DONNA
(Moons et al., "Distilling Optimal Neural Networks: Rapid Search in Diverse Spaces", ICCV 2021) fits
a linear model from block qualities to the accuracies of some trained networks instead. Few networks
are trained here, so blocks are taken together by the stage of the network where they are, and the
weights of stages are held near each other: ridge regression of what the plain sum leaves.

Whether that is any better is told on networks left out, one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tailorbird.errors import SpaceError
from tailorbird.family import Floats
from tailorbird.threads import one_thread

POINTS_PER_STAGE = 3
"""Trained networks that are needed for each stage with a weight of its own."""

MOST_STAGES = 4
"""Stages that a network is divided into at most."""

LEAST_WEIGHT = 0.1
"""Least weight of a stage, as a share of the mean: no loss is ever a gain."""

HELD = 1.0
"""How strongly weights are held near each other, for losses scaled to a variance of 1."""


@dataclass(frozen=True, kw_only=True)
class BlockModel:
    """How losses of blocks add up to the quality of a trained network.

    Args:
        weights: (stages,) of the losses in each stage of the network, 1 on the mean.
        tau: Kendall's rank correlation of what is predicted of networks left out with what they
            became.
        tau_of_sums: that of the plain sum of losses.
        points: networks that this was learned from.
    """

    weights: Floats
    tau: float
    tau_of_sums: float
    points: int

    @property
    def better(self) -> bool:
        """Whether it ranks networks that it has not seen better than plain sums do."""
        return self.tau > self.tau_of_sums

    def __str__(self) -> str:
        weights = ", ".join(f"{weight:.2f}" for weight in self.weights)
        return (
            f"{self.points} trained candidates are ranked with Kendall's tau {self.tau:.2f} by "
            f"weighted losses of blocks ({weights}), {self.tau_of_sums:.2f} by plain sums"
        )


def stages_for(points: int) -> int:
    """How many stages so many networks can tell apart; fewer than 2 tell nothing.

    Example:
        >>> [stages_for(points) for points in (3, 6, 9, 100)]
        [1, 2, 3, 4]
    """
    return min(MOST_STAGES, points // POINTS_PER_STAGE)


@one_thread()
def learn(losses: Floats, quality: Floats) -> BlockModel | None:
    """A model of n trained networks; ``None`` where they are too few, or all alike.

    Args:
        losses: (n, stages) what the blocks of a network lose alone, summed in each stage.
        quality: (n,) what became of it, higher is better.

    Raises:
        SpaceError: when shapes do not agree.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> losses = rng.uniform(size=(12, 2))
        >>> model = learn(losses, -losses @ np.array([3.0, 1.0]))
        >>> bool(model.weights[0] > 1.5 * model.weights[1]), model.better
        (True, True)
    """
    if losses.ndim != 2 or quality.shape != (len(losses),):
        raise SpaceError(
            f"losses and quality: expected (n, stages) and (n,), got {losses.shape} and "
            f"{quality.shape}"
        )
    points, stages = losses.shape
    if stages < 2 or stages_for(points) < stages or np.ptp(quality) == 0:
        return None
    left_out = np.array(
        [
            losses[row] @ _weights(np.delete(losses, row, 0), np.delete(quality, row))
            for row in range(points)
        ]
    )
    return BlockModel(
        weights=_weights(losses, quality),
        tau=_tau(-left_out, quality),
        tau_of_sums=_tau(-losses.sum(axis=1), quality),
        points=points,
    )


def _weights(losses: Floats, quality: Floats) -> Floats:
    """(stages,) weights, 1 on the mean: those of the plain sum, corrected."""
    from sklearn.linear_model import Ridge

    total = losses.sum(axis=1)
    spread = total - total.mean()
    variance = float(spread @ spread)
    slope = -float(spread @ (quality - quality.mean())) / variance if variance > 0 else 0.0
    if slope <= 0:  # the sum says nothing: there is nothing that could be corrected
        return np.ones(losses.shape[1])
    scale = float(losses.std(axis=0).max())
    rest = quality + slope * total
    ridge = Ridge(alpha=HELD).fit(losses / scale, rest / (slope * scale))
    found = np.maximum(1.0 - np.asarray(ridge.coef_), LEAST_WEIGHT)
    return np.asarray(found / found.mean())


def _tau(predicted: Floats, quality: Floats) -> float:
    """Kendall's tau; 0 where one of both is constant."""
    from scipy.stats import kendalltau

    found = float(kendalltau(predicted, quality).statistic)
    return found if np.isfinite(found) else 0.0
