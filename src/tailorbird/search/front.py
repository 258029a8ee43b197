"""Fronts of points whose coordinates are all to be small, such as (latency, error)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tailorbird.errors import SpaceError
from tailorbird.family import Floats

_CHUNK = 4_000_000
"""Entries of the largest temporary array."""


def undominated(points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which of the points (n, d) no other point beats: mask (n,).

    A point beats another where it is no larger in any coordinate and smaller in one; of equal
    points all are kept.

    Example:
        >>> undominated([[1.0, 3.0], [2.0, 2.0], [2.0, 4.0]])
        array([ True,  True, False])
    """
    array = _points(points)
    if array.shape[1] == 2:
        return _undominated_pairs(array)
    mask = np.ones(len(array), dtype=np.bool_)
    step = max(1, _CHUNK // max(1, array.size))
    for start in range(0, len(array), step):
        part = array[start : start + step, None]
        beaten = (array <= part).all(axis=2) & (array < part).any(axis=2)
        mask[start : start + step] = ~np.any(beaten, axis=1)
    return mask


def hypervolume(points: npt.ArrayLike, reference: tuple[float, float]) -> float:
    """Area that the points (n, 2) dominate up to ``reference``; points beyond it add nothing.

    Example:
        >>> hypervolume([[1.0, 2.0], [2.0, 1.0]], (3.0, 3.0))
        3.0
    """
    array = _points(points, width=2)
    array = array[(array < reference).all(axis=1)]
    front = np.unique(array[undominated(array)], axis=0)
    ceilings = np.concatenate([[reference[1]], front[:-1, 1]])[: len(front)]
    return float(((reference[0] - front[:, 0]) * (ceilings - front[:, 1])).sum())


def best_within(cost: npt.ArrayLike, quality: npt.ArrayLike, limits: npt.ArrayLike) -> Floats:
    """The best quality (k,) at each of the limits (k,) among members of known cost and quality.

    Args:
        cost: (n,) of each member.
        quality: (n,) of each member, higher is better.
        limits: (k,) upper bounds of the cost, in any order.

    Returns:
        (k,) qualities; NaN where no member keeps the limit.

    Example:
        >>> best_within([30.0, 10.0, 20.0], [0.8, 0.7, 0.6], [5.0, 25.0, 30.0])
        array([nan, 0.7, 0.8])
    """
    points = _points(np.stack([np.asarray(cost, float), np.asarray(quality, float)], axis=-1))
    points = points[np.argsort(points[:, 0], kind="stable")]
    best = np.concatenate([[np.nan], np.fmax.accumulate(points[:, 1])])
    return np.asarray(best[np.searchsorted(points[:, 0], np.asarray(limits, float), side="right")])


def staircase(points: npt.ArrayLike) -> Floats:
    """Corners (k, 2) of the line under which no point (n, 2) lies, from left to right.

    Each front point is followed by the corner where the line turns down to the next one.

    Example:
        >>> staircase([[2.0, 1.0], [1.0, 3.0], [3.0, 3.0]])
        array([[1., 3.],
               [2., 3.],
               [2., 1.]])
    """
    array = _points(points, width=2)
    front = np.unique(array[undominated(array)], axis=0)
    if len(front) == 0:
        return front
    corners = np.stack([front[1:, 0], front[:-1, 1]], axis=1)
    line = np.empty((2 * len(front) - 1, 2))
    line[0::2], line[1::2] = front, corners
    return line


def _undominated_pairs(points: Floats) -> npt.NDArray[np.bool_]:
    """The mask for points (n, 2) in O(n log n): from left to right, the least height so far."""
    order = np.lexsort((points[:, 1], points[:, 0]))
    x, y = points[order].T
    first = np.searchsorted(x, x)  # of those equally far left; the lowest of them comes first
    lowest = np.concatenate([[np.inf], np.minimum.accumulate(y)])
    mask = np.empty(len(points), dtype=np.bool_)
    mask[order] = (y == y[first]) & (y < lowest[first]) if len(y) else True
    return mask


def _points(points: npt.ArrayLike, *, width: int | None = None) -> Floats:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        array = array.reshape(0, width or 2)
    if array.ndim != 2 or (width is not None and array.shape[1] != width):
        expected = f"(n, {width})" if width else "(n, d)"
        raise SpaceError(f"points: expected shape {expected}, got {array.shape}")
    if not np.isfinite(array).all():
        raise SpaceError("points: holds values that are not finite")
    return array
