"""Seeded, stratified division of image indices into splits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tailorbird.errors import DataError

Indices = npt.NDArray[np.int64]


def divide(
    labels: npt.ArrayLike | None, count: int, share: float, *, seed: int, what: str = "validation"
) -> tuple[Indices, Indices]:
    """Split ``range(count)`` into what stays and a ``share`` that is held out.

    With labels each class gives its share, at least one image and never all; without, images are
    drawn over the whole. Both parts come back in ascending order.

    Args:
        labels: (count,) integers, or None.
        share: part to hold out, between 0 and 1.
        seed: same seed, same division.
        what: the held-out part's name, for errors.

    Raises:
        DataError: for a share outside (0, 1), or classes with fewer than two images.

    Example:
        >>> stay, held = divide([0, 0, 0, 0, 1, 1, 1, 1], 8, 0.25, seed=0)
        >>> len(stay), len(held)
        (6, 2)
    """
    if not 0 < share < 1:
        raise DataError(f"{what}: expected a share between 0 and 1 (exclusive), got {share}")
    rng = np.random.default_rng(seed)
    groups = np.zeros(count, np.int64) if labels is None else np.asarray(labels, np.int64)
    names, sizes = np.unique(groups, return_counts=True)
    poor = [str(name) for name, size in zip(names, sizes, strict=True) if size < 2]
    if poor or count < 2:
        where = f"class {', '.join(poor[:5])} has" if poor and labels is not None else "there is"
        raise DataError(
            f"too few images for a {what} split: {where} fewer than two images"
            f"{f' ({len(poor)} such classes)' if len(poor) > 1 else ''}; add images, or remove "
            "the class"
        )
    held = np.zeros(count, np.bool_)
    for name, size in zip(names, sizes, strict=True):
        take = min(max(round(share * int(size)), 1), int(size) - 1)
        held[rng.permutation(np.flatnonzero(groups == name))[:take]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
