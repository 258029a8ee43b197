"""How good a supernet is over its whole range of costs, as one figure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tailorbird.errors import DataError
from tailorbird.family import Floats

Rows = npt.NDArray[np.int64]


def bucket_front(costs: Floats, accuracies: Floats, *, buckets: int = 6) -> Rows:
    """Rows of the best subnet in each of several equally wide ranges of cost, cheapest first.

    The ranges span the lowest to the highest cost given. Of equals the cheaper one is taken; a
    range without a subnet has no row.

    Raises:
        DataError: for no subnet, lengths that differ, or figures that aren't finite.

    Example:
        >>> bucket_front(np.array([1.0, 2.0, 9.0]), np.array([0.5, 0.6, 0.7]), buckets=2)
        array([1, 2])
    """
    where = _bucket(costs, accuracies, buckets)
    order = np.lexsort((costs, -accuracies, where))
    _, first = np.unique(where[order], return_index=True)
    found: Rows = order[first].astype(np.int64)
    return found


def mean_pareto_accuracy(costs: Floats, accuracies: Floats, *, buckets: int = 6) -> float:
    """Area under accuracy over cost, the cost scaled to 0 ... 1 (DepS, sec. 5, "success metrics").

    The curve is a staircase: in each of the equally wide ranges of cost it is the best subnet's
    accuracy. So the area is the mean over the ranges. In a range without a subnet the best of the
    next cheaper range counts, since a cheaper network serves there too; the cheapest range
    always has one. Figures of two supernets compare where the same costs span the ranges, such
    as when the smallest and the largest subnet of one space are among those evaluated.

    Args:
        costs: (n,) such as MACs or milliseconds.
        accuracies: (n,) shares or per cent; the result is in the same unit.
        buckets: how many ranges.

    Raises:
        DataError: for no subnet, lengths that differ, or figures that aren't finite.

    Example:
        >>> costs, accuracies = np.array([0.0, 1.0, 4.0, 6.0]), np.array([0.5, 0.6, 0.7, 0.8])
        >>> round(mean_pareto_accuracy(costs, accuracies, buckets=3), 3)
        0.667
    """
    front = bucket_front(costs, accuracies, buckets=buckets)
    where = _bucket(costs, accuracies, buckets)[front]
    serving = np.searchsorted(where, np.arange(buckets), side="right") - 1
    return float(accuracies[front][serving].mean())


def _bucket(costs: Floats, accuracies: Floats, buckets: int) -> Rows:
    """Which range (n,) each subnet lies in, from 0."""
    if buckets < 1:
        raise DataError(f"buckets: expected 1 or more, got {buckets}")
    if costs.ndim != 1 or costs.shape != accuracies.shape or not len(costs):
        raise DataError(
            "Pareto accuracy: expected one cost and one accuracy per subnet and at least one "
            f"subnet, got shapes {costs.shape} and {accuracies.shape}"
        )
    broken = np.flatnonzero(~(np.isfinite(costs) & np.isfinite(accuracies)))
    if len(broken):
        raise DataError(
            f"Pareto accuracy: {len(broken)} subnets have figures that aren't finite, the first in "
            f"row {broken[0]}"
        )
    edges = np.linspace(costs.min(), costs.max(), buckets + 1)[1:-1]
    found: Rows = np.searchsorted(edges, costs, side="right").astype(np.int64)
    return np.zeros_like(found) if costs.min() == costs.max() else found
