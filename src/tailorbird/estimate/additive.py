"""Additive savings corrected by measurements of whole networks.

Isolated timings of blocks do not quite add up to a network's latency: caches, memory layout and
fused operators differ in context. Each whole network that is measured (the teacher with one block
replaced, or a candidate with several) says what the savings of its alternatives sum to in context.
Taking the isolated figures as a prior with independent errors, the best linear correction is

    s = s0 + S A' (A S A' + N)^-1 (y - A s0)

with A the (networks x alternatives) choice matrix, y the measured savings, S and N the variances of
the prior and of a measurement.
"""

from __future__ import annotations

import numpy as np

from tailorbird.errors import SpaceError
from tailorbird.family import Floats
from tailorbird.threads import one_thread

RELATIVE_ERROR = 0.25
"""Standard error of an isolated saving, as a share of it."""

FLOOR = 0.01
"""Least standard error of a saving, as a share of the largest one."""


@one_thread()
def correct(isolated: Floats, chosen: Floats, measured: Floats, *, noise: float) -> Floats:
    """Savings (n,) corrected by measured networks.

    Args:
        isolated: (n,) savings of each alternative from isolated timings, in the metric's unit.
        chosen: (k, n) 1 where measured network k holds alternative n, else 0.
        measured: (k,) savings of the whole networks against the teacher.
        noise: standard error of one whole-network measurement, in the metric's unit.

    Raises:
        SpaceError: when shapes do not agree.

    Example:
        >>> correct(np.array([1.0, 2.0]), np.array([[1.0, 1.0]]), np.array([2.4]), noise=0.01)
        array([0.88..., 1.52...])
    """
    if chosen.shape != (len(measured), len(isolated)):
        raise SpaceError(
            f"chosen: expected shape {(len(measured), len(isolated))}, got {chosen.shape}"
        )
    if not len(measured):
        return isolated.copy()
    scale = np.abs(isolated)
    variance = np.maximum(RELATIVE_ERROR * scale, FLOOR * max(float(scale.max()), noise)) ** 2
    gain_input = variance[:, None] * chosen.T
    system = chosen @ gain_input + noise**2 * np.eye(len(measured))
    return np.asarray(isolated + gain_input @ np.linalg.solve(system, measured - chosen @ isolated))
