"""What every searcher over an additive problem takes and returns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError
from tailorbird.family import AdditiveProblem, Floats

TOLERANCE = 1e-9
"""A limit counts as met up to this share of itself: room for rounding, not for a compromise."""


@dataclass(frozen=True)
class Selection:
    """Alternatives chosen together, and what the additive model says of them.

    Args:
        chosen: indices of the alternatives, sorted; none of them overlap.
        loss: summed accuracy loss, as a fraction (eq. 4).
        cost: predicted figure per metric.
        feasible: whether all limits are met.
    """

    chosen: tuple[int, ...]
    loss: float
    cost: dict[str, float]
    feasible: bool


def make_selection(
    problem: AdditiveProblem, chosen: Iterable[int], limits: Mapping[str, float]
) -> Selection:
    """The selection of the alternatives ``chosen``, indices in any order, as ``problem`` has it."""
    index = tuple(sorted(int(i) for i in chosen))
    figures = problem.cost(index)
    cost = {name: float(figure) for name, figure in zip(problem.metrics, figures, strict=True)}
    return Selection(index, problem.total_loss(index), cost, within(cost, limits))


def within(cost: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether every limited figure of ``cost`` is at most its limit.

    Example:
        >>> within({"macs": 5.0, "params": 9.0}, {"macs": 5.0})
        True
        >>> within({"macs": 5.0}, {"macs": 4.99})
        False
    """
    return all(cost[name] <= bound + TOLERANCE * abs(bound) for name, bound in limits.items())


def check_limits(problem: AdditiveProblem, limits: Mapping[str, float]) -> None:
    """Check that all limits name a metric of ``problem`` and are positive numbers.

    Raises:
        ConfigError: listing every limit at fault.
    """
    known = ", ".join(problem.metrics)
    problems = [
        f"limits: no figures for metric '{name}'; the problem has {known}"
        for name in limits
        if name not in problem.metrics
    ]
    problems += [
        f"limits: {name} has to be a positive number, got {bound!r}"
        for name, bound in limits.items()
        if not (math.isfinite(bound) and bound > 0)
    ]
    if problems:
        raise ConfigError(problems)


def limited(problem: AdditiveProblem, limits: Mapping[str, float]) -> tuple[Floats, Floats, Floats]:
    """Savings (n, k), base (k,) and bounds (k,) of the k limited metrics, in ``limits``' order."""
    columns = [problem.metrics.index(name) for name in limits]
    return (
        problem.saving[:, columns],
        problem.base[columns],
        np.array(list(limits.values()), dtype=np.float64),
    )


def overlaps(problem: AdditiveProblem) -> npt.NDArray[np.bool_]:
    """(n, n) whether two alternatives cover one layer; True on the diagonal."""
    covers = problem.covers.astype(np.float32)
    clash = (covers @ covers.T) > 0
    np.fill_diagonal(clash, True)
    return clash
