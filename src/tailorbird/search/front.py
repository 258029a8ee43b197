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
