"""Latency models learned from measured pairs (architecture, milliseconds).

A device's latency is nearly a product of powers of a few sums over the layers: MACs,
activations moved, parameters read, layers launched. In logarithms that is linear, so ten pairs
say most of it; what bends (launch-bound small inputs, compute-bound large ones) is left to a smooth
residual. Both are one Gaussian process on the logarithm of latency (Rasmussen and Williams 2006,
ch. 2 and 5), with z the scaled features, groups g of f_g columns, and the first group z_1:

    log t ~ m + GP(0, k) + noise,   k(z, z') = 1/4 + sum_g a_g^2 z_g'z'_g / f_g
                                               + b^2 exp(-|z_1 - z'_1|^2 / (2 f_1 l^2))

Amplitudes, length and noise are the most probable ones under log-normal priors. Timings have long
tails (a busy machine is late, never early), so the noise is Student's t with 2 degrees of freedom,
fitted by reweighting: a late outlier loses its weight instead of pulling the model.
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
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.stats import t as student

from tailorbird.errors import ConfigError, StoreError
from tailorbird.files import write_bytes
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace, LayerShape, SlotTable
from tailorbird.supernet.counts import layer_macs, layer_params

Floats = npt.NDArray[np.float64]

LEAST_SAMPLES = 3
FREEDOM = 2.0
"""Degrees of freedom of the timing noise; small means long tails."""

_CONSTANT = 0.25
_ROUNDS = 8
_SETTLED = 0.05
"""Relative change of weights at which reweighting ends."""
_CHUNK = 2048
_FORMAT = "tailorbird-latency-1"


@dataclass(frozen=True)
class Group:
    """Columns of features that belong together.

    Attributes:
        columns: how many.
        scale: expected effect of the whole group on the logarithm of latency (0.3: 30 %).
    """

    columns: int
    scale: float


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
        first = space.slots[0].name
        self._space = space.space
        self._tables = [SlotTable(space, figure) for figure in _FIGURES]
        self._tables.append(
            SlotTable.per_slot(space, lambda slot, shape: shape.in_size * (slot.name == first))
        )
        self._with_genes = genes
        sizes = ",".join(str(size) for size in self._space.sizes)
        self._key = f"layers({space.name};{sizes};genes={genes})"

    @property
    def key(self) -> str:
        """Space, its numbers of values, and whether genes are included."""
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
        active = self._space.active(genomes)
        chosen = [
            (genomes[:, [gene]] == np.arange(size)) & active[:, [gene]]
            for gene, size in enumerate(self._space.sizes)
        ]
        return np.concatenate([sums, *chosen], axis=1)


def _depthwise(shape: LayerShape) -> int:
    depthwise = shape.kind == "mbconv"
    return shape.out_size**2 * shape.mid_channels * shape.kernel**2 if depthwise else 0


def _moved(shape: LayerShape) -> int:
    """Activations read and written by the convolutions of a layer."""
    before, after = shape.in_size**2, shape.out_size**2
    ends = before * shape.in_channels + after * shape.out_channels
    if shape.kind not in ("mbconv", "bottleneck"):
        return ends
    again = 4 if shape.se else 2
    return ends + shape.mid_channels * (2 * before + again * after)


_FIGURES: tuple[Callable[[LayerShape], float], ...] = (
    lambda shape: layer_macs(shape) - _depthwise(shape),
    _depthwise,
    _moved,
    layer_params,
    lambda shape: 1,
    lambda shape: shape.se,
    lambda shape: shape.kernel,
)


@dataclass(frozen=True, eq=False)
class Regression:
    """A fitted Gaussian process on log latency; made by :func:`regress`.

    Attributes:
        groups: of the inputs' columns.
        theta: logarithms of the groups' amplitudes, of the residual's amplitude and length, and of
            the noise.
        centre: (columns,) subtracted from the inputs.
        scale: (columns,) what the difference is divided by.
        inputs: (n, columns) scaled training inputs.
        middle: m, median log latency.
        factor: (n, n) lower Cholesky factor of the training covariance.
        alpha: (n,) its solution for the training targets.
        residuals: (n,) leave-one-out log residuals, measured less predicted from all others.
    """

    groups: tuple[Group, ...]
    theta: Floats
    centre: Floats
    scale: Floats
    inputs: Floats
    middle: float
    factor: Floats
    alpha: Floats
    residuals: Floats

    @property
    def error(self) -> float:
        """The model's own estimate of its mean relative error: leave-one-out over the samples."""
        return float(np.abs(np.expm1(-self.residuals)).mean())

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Median latency (n,) and standard deviation (n,) of one new timing, in ms.

        The deviation is the one of a normal with the same central 68 %: the timings' rare late
        outliers are wider than it tells.

        Raises:
            ConfigError: when the inputs have another number of columns.
        """
        if inputs.ndim != 2 or inputs.shape[1] != len(self.centre):
            raise ConfigError(
                f"features: expected shape (n, {len(self.centre)}) as in fitting, got "
                f"{inputs.shape}; use the features that the model was fitted with"
            )
        log_ms, variance = np.empty(len(inputs)), np.empty(len(inputs))
        noise = (student.ppf(0.841345, FREEDOM) * np.exp(self.theta[-1])) ** 2
        for start in range(0, len(inputs), _CHUNK):
            rows = slice(start, start + _CHUNK)
            scaled = (inputs[rows] - self.centre) / self.scale
            kernel = _Kernel.between(scaled, self.inputs, self.groups).value(self.theta)
            own = _variance(scaled, self.groups, self.theta)
            known = solve_triangular(self.factor, kernel.T, lower=True)
            log_ms[rows] = self.middle + kernel @ self.alpha
            variance[rows] = np.maximum(own - (known**2).sum(axis=0), 0) + noise
        ms = np.exp(log_ms)
        return ms, ms * np.sqrt(variance)


def regress(
    inputs: Floats,
    latencies_ms: npt.ArrayLike,
    *,
    groups: tuple[Group, ...] | None = None,
    repeats: npt.ArrayLike | None = None,
) -> Regression:
    """Fit log latency to features of any origin.

    Args:
        inputs: (n, columns) features, one row per architecture.
        latencies_ms: (n,) measured latencies.
        groups: of the columns; one group of scale 0.3 when ``None``.
        repeats: (n,) number of timings that each latency is the mean of; 1 when ``None``.

    Raises:
        ConfigError: all faults at once: shapes, fewer than 3 samples, values that aren't finite,
            latencies that aren't positive.

    Example:
        >>> macs = np.array([100.0, 150.0, 200.0, 300.0, 400.0])
        >>> model = regress(np.log(macs)[:, None], 2.0 + 0.05 * macs)
        >>> model.predict(np.log([[250.0]]))[0].round(1)
        array([14.5])
    """
    ms = np.asarray(latencies_ms, dtype=np.float64)
    groups = groups or (Group(inputs.shape[1] if inputs.ndim == 2 else 0, 0.3),)
    counts = np.ones(ms.shape) if repeats is None else np.asarray(repeats, dtype=np.float64)
    _check(inputs, ms, groups, counts)
    spread = inputs.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    scaled = (inputs - inputs.mean(axis=0)) / scale
    middle = float(np.median(np.log(ms)))
    target = np.log(ms) - middle
    kernel = _Kernel.between(scaled, scaled, groups)
    theta, weights = _prior(groups)[0], counts
    for _ in range(_ROUNDS):
        theta = _most_probable(kernel, target, weights, groups, theta)
        covariance = kernel.value(theta)
        factor = cho_factor(covariance + np.diag(np.exp(2 * theta[-1]) / weights), lower=True)
        alpha = cho_solve(factor, target)
        left = target - covariance @ alpha
        unsure = np.diag(covariance - covariance @ cho_solve(factor, covariance))
        surprise = counts * (left**2 + unsure) / np.exp(2 * theta[-1])
        before, weights = weights, counts * (FREEDOM + 1) / (FREEDOM + surprise)
        if np.abs(np.log(weights / before)).max() < _SETTLED:
            break
    inverse = cho_solve(factor, np.eye(len(ms)))
    return Regression(
        groups=groups,
        theta=theta,
        centre=inputs.mean(axis=0),
        scale=scale,
        inputs=scaled,
        middle=middle,
        factor=np.tril(factor[0]),
        alpha=alpha,
        residuals=alpha / np.diag(inverse),
    )


def _check(inputs: Floats, ms: Floats, groups: tuple[Group, ...], counts: Floats) -> None:
    problems = []
    if inputs.ndim != 2 or ms.ndim != 1 or len(inputs) != len(ms) or counts.shape != ms.shape:
        problems.append(
            f"expected features (n, columns), latencies (n,) and repeats (n,), got "
            f"{inputs.shape}, {ms.shape} and {counts.shape}"
        )
    elif sum(group.columns for group in groups) != inputs.shape[1]:
        problems.append(f"groups: expected {inputs.shape[1]} columns together, got {groups}")
    if ms.size < LEAST_SAMPLES:
        problems.append(
            f"expected at least {LEAST_SAMPLES} different architectures, got {ms.size}; measure "
            "more (about 10 make a useful model)"
        )
    wrong = ~(np.isfinite(ms) & (ms > 0))
    if wrong.any():
        problems.append(
            f"latencies: expected positive milliseconds, got {wrong.sum()} of {ms.size} that are "
            f"not; first: row {int(np.argmax(wrong))}, {ms.flat[int(np.argmax(wrong))]}; measure "
            "them again or leave them out"
        )
    if not np.isfinite(inputs).all():
        problems.append(f"features: {np.sum(~np.isfinite(inputs))} values are not finite")
    if not (np.isfinite(counts) & (counts > 0)).all():
        problems.append("repeats: expected positive numbers")
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True, eq=False)
class _Kernel:
    """Parts of the covariance between two sets of inputs that don't depend on theta."""

    products: tuple[Floats, ...]
    distance: Floats

    @staticmethod
    def between(left: Floats, right: Floats, groups: tuple[Group, ...]) -> _Kernel:
        ends = np.cumsum([group.columns for group in groups])
        pairs = list(zip(np.split(left, ends[:-1], 1), np.split(right, ends[:-1], 1), strict=True))
        products = tuple(a @ b.T / max(a.shape[1], 1) for a, b in pairs)
        a, b = pairs[0]
        squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        return _Kernel(products, np.maximum(squares, 0) / max(a.shape[1], 1))

    def bend(self, theta: Floats) -> Floats:
        """The smooth residual's covariance."""
        return np.asarray(np.exp(2 * theta[-3] - self.distance / 2 * np.exp(-2 * theta[-2])))

    def value(self, theta: Floats) -> Floats:
        total = _CONSTANT + self.bend(theta)
        for amplitude, product in zip(theta, self.products, strict=False):
            total += np.exp(2 * amplitude) * product
        return total


def _variance(scaled: Floats, groups: tuple[Group, ...], theta: Floats) -> Floats:
    """Prior variance (n,) of each row: the covariance's diagonal."""
    ends = np.cumsum([group.columns for group in groups])
    total = np.full(len(scaled), _CONSTANT + np.exp(2 * theta[-3]))
    for amplitude, part in zip(theta, np.split(scaled, ends[:-1], axis=1), strict=False):
        total += np.exp(2 * amplitude) * (part**2).sum(axis=1) / max(part.shape[1], 1)
    return total


def _prior(groups: tuple[Group, ...]) -> tuple[Floats, Floats]:
    """Mean and spread of theta: amplitudes, residual's amplitude and length, noise."""
    scales = [group.scale for group in groups]
    mean = np.log(np.array([*scales, 0.1, 1.5, 0.05]))
    return mean, np.array([*[1.0] * len(groups), 1.0, 0.5, 1.0])


def _most_probable(
    kernel: _Kernel,
    target: Floats,
    weights: Floats,
    groups: tuple[Group, ...],
    start: Floats,
) -> Floats:
    """Theta of the highest posterior density, by its gradient."""
    mean, spread = _prior(groups)
    identity = np.eye(len(target))

    def loss(theta: Floats) -> tuple[float, Floats]:
        noise = np.exp(2 * theta[-1]) / weights
        factor = cho_factor(kernel.value(theta) + np.diag(noise), lower=True)
        alpha = cho_solve(factor, target)
        slope = np.outer(alpha, alpha) - cho_solve(factor, identity)  # Rasmussen eq. 5.9
        bent = slope * kernel.bend(theta)
        gradient = [
            -np.exp(2 * amplitude) * (slope * product).sum()
            for amplitude, product in zip(theta, kernel.products, strict=False)
        ]
        gradient.append(-bent.sum())
        gradient.append(-(bent * kernel.distance).sum() / 2 * np.exp(-2 * theta[-2]))
        gradient.append(-(np.diag(slope) * noise).sum())
        away = (theta - mean) / spread
        value = target @ alpha / 2 + np.log(np.diag(factor[0])).sum() + away @ away / 2
        return float(value), np.array(gradient) + away / spread

    bounds = [*[(-8.0, 3.0)] * (len(groups) + 1), (-1.5, 2.0), (-6.0, 0.0)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x, dtype=np.float64)


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
            _check(np.zeros((len(ms), 1)), ms, (Group(1, 1.0),), np.ones(len(ms)))
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
