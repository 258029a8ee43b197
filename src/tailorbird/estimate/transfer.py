"""From devices whose latency is known to a new one, with about ten measurements.

Networks that are slow on one device are slow on the next, but by other ratios and at other batch
sizes. A new device's log latency is therefore learned from the log latencies of the known devices,
together with the architecture's own sums, by `tailorbird.estimate.regression`. Known devices enter
by what their models predict, not by single timings: predictions carry no timing noise and exist for
every genome.

Which architectures to measure matters as much as the model: `choose` takes those whose timings
leave the least variance over the whole space (greedy I-optimal design; Seo et al. 2000, "Gaussian
process regression: active data selection").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError
from tailorbird.estimate.learned_latency import Features
from tailorbird.estimate.regression import Group
from tailorbird.family import Floats
from tailorbird.space import Genomes

_NOISE = 0.1
"""Variance of a timing against that of the latencies among architectures, for the design only."""

_BEND, _LENGTH = 0.3, 1.5
"""Variance and length of the smooth residual in the design."""

MOST_CANDIDATES = 4000


class DeviceFeatures:
    """Log latencies on known devices, and an architecture's own sums.

    Args:
        known: device -> latency in ms (n,) of genomes (n, genes): a model's ``latency_ms``, a
            compiled table's ``sum``, or looked-up measurements.
        architecture: further features, of which the first group is used; ``None`` for none.

    Raises:
        ConfigError: when no device is known.

    Example:
        >>> slow, fast = (lambda g: 9.0 + g.sum(axis=1)), (lambda g: 1.0 + g.sum(axis=1))
        >>> features = DeviceFeatures({"phone": slow, "board": fast})
        >>> features(np.array([[0, 1], [2, 2]])).round(1)
        array([[2.3, 0.7],
               [2.6, 1.6]])
    """

    def __init__(
        self,
        known: Mapping[str, Callable[[Genomes], Floats]],
        *,
        architecture: Features | None = None,
    ) -> None:
        if not known:
            raise ConfigError(
                "known: expected at least one device with a latency model, got none; without any, "
                "fit LatencyModel to the architecture alone"
            )
        self._known = dict(known)
        self._architecture = architecture

    @property
    def key(self) -> str:
        """Names of the devices, and the architecture's features."""
        own = self._architecture.key if self._architecture else ""
        return f"devices({','.join(self._known)};{own})"

    @property
    def groups(self) -> tuple[Group, ...]:
        """The devices; the architecture's own sums, of smaller prior effect."""
        devices = Group(len(self._known), 0.3)
        if self._architecture is None:
            return (devices,)
        return (devices, Group(self._architecture.groups[0].columns, 0.1))

    def __call__(self, genomes: Genomes) -> Floats:
        """Features (n, columns) of genomes (n, genes).

        Raises:
            ConfigError: naming the known devices whose latencies aren't positive and finite.
        """
        latencies = {name: latency(genomes) for name, latency in self._known.items()}
        wrong = [
            f"{name}: {np.sum(~(np.isfinite(ms) & (ms > 0)))} of {len(genomes)} latencies are not "
            "positive and finite; fit or read this device's model again, or leave it out"
            for name, ms in latencies.items()
            if not (np.isfinite(ms) & (ms > 0)).all()
        ]
        if wrong:
            raise ConfigError(wrong)
        columns = np.log(np.stack(list(latencies.values()), axis=1))
        if self._architecture is None:
            return columns
        own = self._architecture(genomes)[:, : self._architecture.groups[0].columns]
        return np.concatenate([columns, own], axis=1)


def choose(
    features: Features, candidates: Genomes, count: int, *, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Which architectures to measure on the new device.

    Greedily takes the candidate whose timing lowers the summed posterior variance over all
    candidates most. Timings themselves aren't needed, so all can be measured in one go.

    Args:
        features: those of the model to be fitted.
        candidates: (n, genes) architectures to choose from, such as 1,000 samples of the space; of
            more than 4,000 a random 4,000 are considered.
        count: how many.
        rng: for that choice.

    Returns:
        Rows (count,) of ``candidates``, the most telling first; any first part of it is the choice
        of that size.

    Raises:
        ConfigError: when count is not between 1 and the number of different candidates.

    Example:
        >>> features = DeviceFeatures({"phone": lambda g: 5.0 + g.sum(axis=1)})
        >>> genomes = np.arange(100)[:, None]
        >>> picked = choose(features, genomes, 3, rng=np.random.default_rng(0))
        >>> bool(picked.min() < 10 and picked.max() > 90)
        True
    """
    rows = np.unique(candidates, axis=0, return_index=True)[1] if len(candidates) else np.zeros(0)
    rows = np.sort(rows).astype(np.int64)
    if not 1 <= count <= min(len(rows), MOST_CANDIDATES):
        raise ConfigError(
            f"count: expected 1 to {min(len(rows), MOST_CANDIDATES)} (different candidates), got "
            f"{count}; sample more candidates or measure fewer"
        )
    if len(rows) > MOST_CANDIDATES:
        rows = np.sort(rng.choice(rows, MOST_CANDIDATES, replace=False))
    covariance = _covariance(features(candidates[rows]), features.groups)
    taken = np.zeros(len(rows), dtype=np.bool_)
    picked = []
    for _ in range(count):
        gain = (covariance**2).sum(axis=0) / (np.diag(covariance) + _NOISE)
        best = int(np.argmax(np.where(taken, -1.0, gain)))
        taken[best] = True
        picked.append(rows[best])
        column = covariance[:, best].copy()
        covariance -= np.outer(column, column) / (column[best] + _NOISE)
    return np.array(picked, dtype=np.int64)


def _covariance(inputs: Floats, groups: tuple[Group, ...]) -> Floats:
    """Prior covariance (n, n) between candidates, in units of the latencies' own variance."""
    spread = inputs.std(axis=0)
    scaled = (inputs - inputs.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    columns = scaled.shape[1]
    product = scaled @ scaled.T / columns
    squares = np.diag(product)
    distance = np.maximum(squares[:, None] + squares - 2 * product, 0)
    return np.asarray(1.0 + product + _BEND * np.exp(-distance / (2 * _LENGTH**2)))
