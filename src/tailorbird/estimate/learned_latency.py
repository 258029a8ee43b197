"""Latency models learned from measured pairs (architecture, milliseconds).

A model is a regression (:mod:`tailorbird.estimate.regression`) on what its features see of an
architecture: the sums over its layers, its genes, or (:mod:`tailorbird.estimate.transfer`) its
latency on devices that are known already.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from tailorbird.errors import ConfigError, StoreError
from tailorbird.estimate.features import one_hot, resolutions
from tailorbird.estimate.regression import LEAST_SAMPLES, Group, Regression, check, regress
from tailorbird.family import Floats
from tailorbird.files import write_bytes
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace, LayerShape, SlotTable

_FORMAT = "tailorbird-latency-2"


class Features(Protocol):
    """What a latency model sees of a genome."""

    @property
    def key(self) -> str:
        """Identity: a saved model is only loaded with features of the same key."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """Column groups in their order; the residual bends along the first."""

    def __call__(self, genomes: Genomes) -> Floats:
        """Features (n, columns) of genomes (n, genes)."""


class LayerFeatures:
    """Logarithms of what an architecture's layers sum to, and its genes one by one.

    Sums: dense and depthwise multiply-accumulates, activations read and written, parameters,
    layers, layers with squeeze-and-excitation, kernel sizes; and the input size. All are known from
    the architecture alone. Latencies of another width multiplier keep nearly the same ratios, so
    that a model may be fitted to them with these features too.

    Args:
        space: whose genomes are described.
        genes: with one indicator per value of each gene as a second group, of small prior effect;
            it pays from about 100 samples.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> features = LayerFeatures(load_space("compofa-mbv3-w1.0"), genes=False)
        >>> features(np.zeros((2, 6), dtype=np.int64)).shape
        (2, 8)
    """

    def __init__(self, space: ArchitectureSpace, *, genes: bool = True) -> None:
        self._space = space.space
        self._tables = [SlotTable(space, figure) for figure in _figures(space)]
        self._tables.append(resolutions(space))
        self._with_genes = genes
        sizes = ",".join(map(str, self._space.choices[0].values))  # resolutions differ by table
        self._key = f"layers({space.name};{sizes};genes={genes})"

    @property
    def key(self) -> str:
        """Space, its resolutions, and whether genes are included."""
        return self._key

    @property
    def groups(self) -> tuple[Group, ...]:
        """The layers' sums; the genes."""
        sums = Group(len(self._tables), 0.3)
        return (sums, Group(int(self._space.sizes.sum()), 0.05)) if self._with_genes else (sums,)

    def __call__(self, genomes: Genomes) -> Floats:
        """Features (n, columns) of genomes (n, genes).

        Raises:
            SpaceError: when a genome lies outside the space.
        """
        self._space.validate(genomes)
        sums = np.log1p(np.stack([table.sum(genomes) for table in self._tables], axis=1))
        if not self._with_genes:
            return sums
        return np.concatenate([sums, one_hot(self._space, genomes)], axis=1)


def _figures(space: ArchitectureSpace) -> tuple[Callable[[LayerShape], float], ...]:
    """What is summed over the layers, in the order of the columns."""
    of = space.kind_of
    return (
        lambda shape: of(shape).macs(shape) - of(shape).depthwise_macs(shape),
        lambda shape: of(shape).depthwise_macs(shape),
        lambda shape: of(shape).moved(shape),
        lambda shape: of(shape).params(shape),
        lambda shape: 1,
        lambda shape: shape.se,
        lambda shape: shape.kernel,
    )


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Latency of one device setting, learned from measurements.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> compofa = load_space("compofa-mbv3-w1.0")
        >>> genomes = compofa.space.sample(12, np.random.default_rng(0))
        >>> measured_ms = 5.0 + 2.0 * genomes.sum(axis=1)
        >>> model = LatencyModel.fit(genomes, measured_ms, features=LayerFeatures(compofa))
        >>> ms, std = model.predict(genomes[:4])
        >>> ms.shape, std.shape
        ((4,), (4,))
    """

    features: Features
    regression: Regression

    @staticmethod
    def fit(genomes: Genomes, latencies_ms: npt.ArrayLike, *, features: Features) -> LatencyModel:
        """Learn from measured pairs; timings of one architecture are averaged.

        Args:
            genomes: (n, genes) measured architectures.
            latencies_ms: (n,) their latencies.
            features: what the model sees of them.

        Raises:
            SpaceError: when a genome lies outside the features' space.
            ConfigError: all faults of the latencies; fewer than 3 different architectures.
        """
        ms = np.asarray(latencies_ms, dtype=np.float64)
        if genomes.ndim != 2 or ms.shape != genomes.shape[:1]:
            raise ConfigError(
                f"expected genomes (n, genes) and one latency each, got {genomes.shape} and "
                f"{ms.shape}"
            )
        wrong = ~(np.isfinite(ms) & (ms > 0))
        if len(ms) < LEAST_SAMPLES or wrong.any():  # before averaging hides the row
            check(np.zeros((len(ms), 1)), ms, (Group(1, 1.0),), np.ones(len(ms)))
        distinct, row, count = np.unique(genomes, axis=0, return_inverse=True, return_counts=True)
        mean = np.bincount(row.ravel(), weights=ms) / count
        inputs = features(distinct)
        return LatencyModel(features, regress(inputs, mean, groups=features.groups, repeats=count))

    @property
    def error(self) -> float:
        """Its own estimate of its mean relative error: leave-one-out over the samples."""
        return self.regression.error

    def predict(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Median latency (n,) and standard deviation (n,) of one new timing, in ms.

        Raises:
            SpaceError: when a genome lies outside the space.
        """
        return self.regression.predict(self.features(genomes))

    def latency_ms(self, genomes: Genomes) -> Floats:
        """Median latency (n,) in ms: a cost of a family, or a known device to transfer from."""
        return self.predict(genomes)[0]

    def save(self, path: Path) -> None:
        """Write arrays and description to one safetensors file.

        Raises:
            StoreError: when it can't be written.
        """
        fitted = self.regression
        described = {
            "format": _FORMAT,
            "features": self.features.key,
            "groups": [[group.columns, group.scale] for group in fitted.groups],
            "middle": fitted.middle,
        }
        arrays = {name: np.ascontiguousarray(getattr(fitted, name)) for name in _ARRAYS}
        write_bytes(path, to_safetensors(arrays, {"tailorbird": json.dumps(described)}))

    @staticmethod
    def load(path: Path, *, features: Features) -> LatencyModel:
        """Read a saved model; ``features`` have to be those that it was fitted with.

        Raises:
            StoreError: when the file is missing, damaged or of another kind.
            ConfigError: when it was fitted with other features.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                described = json.loads((file.metadata() or {})["tailorbird"])
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            if described["format"] != _FORMAT:
                raise ValueError(f"format {described['format']!r}")
            key = described["features"]
            groups = tuple(Group(int(n), float(scale)) for n, scale in described["groups"])
            fitted = Regression(groups=groups, middle=float(described["middle"]), **arrays)
            _check_loaded(fitted)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"can't read {path} as a latency model: {error}; fit and save it again"
            ) from error
        if key != features.key:
            raise ConfigError(
                f"{path}: expected features {key}, got {features.key}; load it with the features "
                "that it was fitted with"
            )
        return LatencyModel(features, fitted)


_ARRAYS = ("theta", "centre", "scale", "inputs", "factor", "alpha", "residuals")


def _check_loaded(fitted: Regression) -> None:
    n, columns = len(fitted.alpha), sum(group.columns for group in fitted.groups)
    expected = {
        "theta": (len(fitted.groups) + 3,),
        "centre": (columns,),
        "scale": (columns,),
        "inputs": (n, columns),
        "factor": (n, n),
        "alpha": (n,),
        "residuals": (n,),
    }
    for name, shape in expected.items():
        array = getattr(fitted, name)
        if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite float64 {shape}, got {array.shape}")
