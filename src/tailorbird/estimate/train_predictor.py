"""Accuracy predictors learned from a few measured (architecture, accuracy) pairs, with uncertainty.

A Gaussian process (Rasmussen and Williams, 2006, chapters 2 and 5). Its covariance has one linear
and one squared exponential term for each group g of features (see `tailorbird.estimate.features`):

    k(x, z) = sum_g a_g <x_g, z_g> / n_g + b_g exp(-c_g |x_g - z_g|^2 / n_g)

with n_g columns in the group. The linear terms are ridge regression; the others add what isn't
linear, and let the uncertainty grow away from what was measured. The variances a, b, the inverse
lengths c and the noise maximise the marginal likelihood of the pairs times a wide prior that keeps
them sane when pairs are few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.stats import kendalltau

from tailorbird.errors import ConfigError
from tailorbird.estimate.features import Features
from tailorbird.family import Floats
from tailorbird.files import write_bytes
from tailorbird.space import Genomes
from tailorbird.threads import one_thread

LEAST_PAIRS = 5
TUNING_PAIRS = 400
"""Pairs that variances and lengths are fitted to, drawn at random where there are more: the time of
the fit grows with their cube, the predictions use all pairs."""
BOUNDS = (-12.0, 6.0)
"""Of the logarithms of the parameters."""
KIND = "tailorbird accuracy predictor 1"
"""What a saved file says that it is; the number changes with the file's form."""

_PRIOR_SPREAD = 1.5  # of the logarithms of the parameters
_STEPS = 60
_CHUNK = 2048


@dataclass(frozen=True)
class HeldOut:
    """How well a predictor does on pairs that it hasn't seen.

    Attributes:
        pairs: their number.
        kendall_tau: rank correlation, 1 for the right order.
        mae: mean absolute error, in the unit of the accuracies.
        within_1_std: share of the pairs within one standard deviation, 0.68 if well calibrated.
        within_2_std: the same for two, 0.95 if well calibrated.
    """

    pairs: int
    kendall_tau: float
    mae: float
    within_1_std: float
    within_2_std: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedPredictor:
    """A fitted Gaussian process. Made by `fit`, written by `save`.

    `tailorbird.estimate.predictor_files.load` reads it again.

    Attributes:
        features: what turns genomes into groups of columns.
        inputs: group -> (pairs, columns) of the training pairs, centred and scaled.
        centre, scale: group -> (columns,) what was subtracted, then divided by.
        targets: (pairs,) measured accuracies.
        parameters: (3 groups + 1,) logarithms of a, b, c of each group, and of the noise variance,
            for targets scaled to variance 1.
    """

    features: Features
    inputs: Mapping[str, Floats]
    centre: Mapping[str, Floats]
    scale: Mapping[str, Floats]
    targets: Floats
    parameters: Floats

    @one_thread()
    def predict(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Mean (n,) and standard deviation (n,) of a new measurement of each genome's accuracy.

        The deviation includes the measurements' own noise.
        """
        parts = [
            self._posterior(genomes[start : start + _CHUNK])
            for start in range(0, len(genomes), _CHUNK)
        ]
        means, stds = zip(*parts, strict=True) if parts else ((np.zeros(0),), (np.zeros(0),))
        return np.concatenate(means), np.concatenate(stds)

    def __call__(self, genomes: Genomes) -> Floats:
        """Predicted accuracy (n,) alone: the quality for a search, faster than `predict`."""
        parts = [
            self._mean(self._covariance(genomes[start : start + _CHUNK])[1])
            for start in range(0, len(genomes), _CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def report(self, genomes: Genomes, accuracies: npt.ArrayLike) -> HeldOut:
        """Figures on held-out pairs: genomes (n, genes) and accuracies (n,), at least two.

        Raises:
            ConfigError: fewer than two pairs, or accuracies that aren't finite.
        """
        measured = _checked(genomes, accuracies, least=2, differ=False)
        mean, std = self.predict(genomes)
        off = np.abs(mean - measured)
        return HeldOut(
            pairs=len(measured),
            kendall_tau=float(kendalltau(mean, measured).statistic),
            mae=float(off.mean()),
            within_1_std=float((off <= std).mean()),
            within_2_std=float((off <= 2 * std).mean()),
        )

    def save(self, path: Path) -> None:
        """Write one safetensors file: the training pairs and parameters, and the columns' names.

        Raises:
            StoreError: when it can't be written.
        """
        from safetensors.numpy import save

        tensors = {"targets": self.targets, "parameters": self.parameters}
        for name in self.inputs:
            tensors[f"{name}.inputs"] = self.inputs[name]
            tensors[f"{name}.centre"] = self.centre[name]
            tensors[f"{name}.scale"] = self.scale[name]
        columns = json.dumps({name: list(names) for name, names in self.features.columns.items()})
        whole = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        write_bytes(Path(path), save(whole, metadata={"kind": KIND, "columns": columns}))

    @property
    def usable(self) -> bool:
        """Whether the training pairs' covariance can be factored, so that it can predict at all."""
        try:
            with np.errstate(all="ignore"):
                return bool(np.isfinite(self._weights).all())
        except (np.linalg.LinAlgError, ValueError):
            return False

    @cached_property
    def _spread(self) -> float:
        return float(self.targets.std())

    @cached_property
    def _factor(self) -> Floats:
        """Lower Cholesky factor of the training pairs' covariance, noise included."""
        grams = [gram(x, x) for x in self.inputs.values()]
        return np.asarray(cholesky(_with_noise(grams, self.parameters), lower=True))

    @cached_property
    def _weights(self) -> Floats:
        scaled = (self.targets - self.targets.mean()) / self._spread
        return np.asarray(cho_solve((self._factor, True), scaled))

    def _mean(self, between: Floats) -> Floats:
        return np.asarray(between @ self._weights * self._spread + self.targets.mean())

    def _covariance(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Prior variance (n,) of the genomes, and covariance (n, pairs) with the training pairs."""
        groups = self.features(genomes)
        variance = np.zeros(len(genomes))
        between = np.zeros((len(genomes), len(self.targets)))
        for (name, known), (a, b, c) in zip(
            self.inputs.items(), _by_group(self.parameters), strict=True
        ):
            new = (groups[name] - self.centre[name]) / self.scale[name]
            variance += a * np.einsum("ij,ij->i", new, new) / new.shape[1] + b
            product, distance = gram(new, known)
            product *= a
            between += product
            distance *= -c
            between += b * np.exp(distance, out=distance)
        return variance, between

    def _posterior(self, genomes: Genomes) -> tuple[Floats, Floats]:
        variance, between = self._covariance(genomes)
        explained = solve_triangular(self._factor, between.T, lower=True)
        left = variance - np.einsum("ij,ij->j", explained, explained)
        noise = np.exp(self.parameters[-1])
        return self._mean(between), np.sqrt(np.maximum(left, 0.0) + noise) * self._spread


@one_thread()
def fit(
    genomes: Genomes,
    accuracies: npt.ArrayLike,
    features: Features,
    *,
    seed: int = 0,
    tuning_pairs: int = TUNING_PAIRS,
) -> TrainedPredictor:
    """Learn accuracy from measured pairs.

    Args:
        genomes: (n, genes) canonical, 5 or more.
        accuracies: (n,) measured, in any unit.
        features: of the genomes' space, such as `architecture_features`.
        seed: chooses the pairs that variances and lengths are fitted to, where there are many.
        tuning_pairs: how many those are at most.

    Raises:
        ConfigError: too few pairs, accuracies that aren't finite or all equal, lengths that differ.
        SpaceError: genomes outside the space of the features.

    Example:
        >>> from tailorbird.estimate.features import SpaceFeatures
        >>> from tailorbird.space import Choice, Space
        >>> space = Space(tuple(Choice(f"gene {i}", (0, 1, 2)) for i in range(4)))
        >>> genomes = space.sample(40, np.random.default_rng(0))
        >>> accuracies = 70 + genomes @ np.array([2.0, 1.0, 0.5, 0.2])
        >>> predictor = fit(genomes[:30], accuracies[:30], SpaceFeatures(space))
        >>> predictor.report(genomes[30:], accuracies[30:]).kendall_tau > 0.95
        True
    """
    targets = _checked(genomes, accuracies, least=LEAST_PAIRS, differ=True)
    groups = _checked_groups(features, genomes)
    centre = {name: values.mean(axis=0) for name, values in groups.items()}
    scale = {name: _scale(values) for name, values in groups.items()}
    inputs = {name: (groups[name] - centre[name]) / scale[name] for name in groups}
    chosen = np.arange(len(targets))
    if len(targets) > tuning_pairs:
        chosen = np.random.default_rng(seed).permutation(len(targets))[:tuning_pairs]
    return TrainedPredictor(
        features=features,
        inputs=inputs,
        centre=centre,
        scale=scale,
        targets=targets,
        parameters=_tuned([x[chosen] for x in inputs.values()], targets[chosen]),
    )


def gram(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Scalar products (n, m) and squared distances (n, m), both divided by the columns."""
    columns = left.shape[1]
    products = left @ right.T / columns
    squares = [np.einsum("ij,ij->i", x, x) / columns for x in (left, right)]
    distances = squares[0][:, None] + squares[1] - 2 * products
    return products, np.maximum(distances, 0.0, out=distances)


def _by_group(parameters: Floats) -> Floats:
    """(groups, 3): a, b, c."""
    return np.exp(parameters[:-1].reshape(-1, 3))


def _with_noise(grams: list[tuple[Floats, Floats]], parameters: Floats) -> Floats:
    covariance: Floats = np.exp(parameters[-1]) * np.eye(len(grams[0][0]))
    for (products, distances), (a, b, c) in zip(grams, _by_group(parameters), strict=True):
        covariance += a * products + b * np.exp(-c * distances)
    return covariance


def _tuned(inputs: list[Floats], targets: Floats) -> Floats:
    """Parameters that maximise likelihood times prior, by L-BFGS with exact gradients."""
    spread = targets.std()
    scaled = (targets - targets.mean()) / (spread if spread > 0 else 1.0)
    grams = [gram(x, x) for x in inputs]
    start = np.array([-1.0, -1.0, -1.5] * len(inputs) + [-4.0])

    def objective(parameters: Floats) -> tuple[float, Floats]:
        factor = cholesky(_with_noise(grams, parameters), lower=True)
        inverse = np.asarray(cho_solve((factor, True), np.eye(len(scaled))))
        weights = inverse @ scaled
        away = (parameters - start) / _PRIOR_SPREAD
        loss = 0.5 * scaled @ weights + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        # d loss / d K; the derivative by a parameter is its product with d K / d parameter.
        slope = 0.5 * (inverse - np.outer(weights, weights))
        gradient = []
        for (products, distances), (a, b, c) in zip(grams, _by_group(parameters), strict=True):
            bell = b * np.exp(-c * distances)
            gradient += [
                a * np.vdot(slope, products),
                np.vdot(slope, bell),
                -c * np.vdot(slope, bell * distances),
            ]
        gradient.append(np.exp(parameters[-1]) * np.trace(slope))
        return float(loss), np.array(gradient) + away / _PRIOR_SPREAD

    bounds = [BOUNDS] * len(start)
    best = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    )
    return np.asarray(best.x)


def _scale(values: Floats) -> Floats:
    """Standard deviation of each column; indicators and constants keep their size."""
    if ((values == 0) | (values == 1)).all():
        return np.ones(values.shape[1])
    spread = values.std(axis=0)
    return np.where(spread > 1e-9 * np.maximum(1.0, np.abs(values).max(axis=0)), spread, 1.0)


def _checked(genomes: Genomes, accuracies: npt.ArrayLike, *, least: int, differ: bool) -> Floats:
    """The accuracies as floats.

    Raises:
        ConfigError: see `fit`; all faults at once.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if values.ndim != 1 or genomes.ndim != 2 or len(values) != len(genomes):
        raise ConfigError(
            f"pairs: expected one accuracy per genome, got genomes {genomes.shape} and accuracies "
            f"{values.shape}"
        )
    faults = []
    if len(values) < least:
        faults.append(f"pairs: expected at least {least}, got {len(values)}; measure more")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        faults.append(
            f"accuracies: expected finite numbers, {len(wrong)} of {len(values)} aren't; first: "
            f"row {wrong[0]}; leave these pairs out or measure them again"
        )
    elif differ and len(values) >= least and np.ptp(values) <= 1e-12 * np.abs(values).max():
        faults.append(
            f"accuracies: all {len(values)} are {values[0]:g}, so there is nothing to learn; "
            "measure architectures that differ more"
        )
    if faults:
        raise ConfigError(faults)
    return values


def _checked_groups(features: Features, genomes: Genomes) -> Mapping[str, Floats]:
    """The features of the genomes.

    Raises:
        ConfigError: groups or widths that aren't those of ``columns``, or values not finite.
    """
    groups = features(genomes)
    expected = {name: (len(genomes), len(names)) for name, names in features.columns.items()}
    shapes = {name: values.shape for name, values in groups.items()}
    if shapes != expected or not expected or (0 in [width for _, width in expected.values()]):
        raise ConfigError(f"features: expected the groups {expected} of columns, got {shapes}")
    bad = [name for name, values in groups.items() if not np.isfinite(values).all()]
    if bad:
        raise ConfigError(f"features: groups {', '.join(bad)} hold values that aren't finite")
    return groups
