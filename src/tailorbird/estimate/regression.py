"""Regression of latencies on features: a Gaussian process with long-tailed noise.

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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.stats import t as student

from tailorbird.errors import ConfigError
from tailorbird.family import Floats
from tailorbird.threads import one_thread

LEAST_SAMPLES = 3
FREEDOM = 2.0
"""Degrees of freedom of the timing noise; small means long tails."""

_CONSTANT = 0.25
_ROUNDS = 8
_SETTLED = 0.05
"""Relative change of weights at which reweighting ends."""
_CHUNK = 2048


@dataclass(frozen=True)
class Group:
    """Columns of features that belong together.

    Attributes:
        columns: how many.
        scale: expected effect of the whole group on the logarithm of latency (0.3: 30 %).
    """

    columns: int
    scale: float


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

    @one_thread()
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


@one_thread()
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
    check(inputs, ms, groups, counts)
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


def check(inputs: Floats, ms: Floats, groups: tuple[Group, ...], counts: Floats) -> None:
    """What :func:`regress` demands of its arguments.

    Raises:
        ConfigError: all faults at once.
    """
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
