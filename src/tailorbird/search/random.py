"""A random selection within the limits: the baseline that a search has to beat (Bespoke's Rand)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tailorbird.family import AdditiveProblem
from tailorbird.search.exact import infeasible, minimise
from tailorbird.search.selection import (
    Selection,
    check_limits,
    limited,
    make_selection,
    overlaps,
    within,
)


def select(
    problem: AdditiveProblem, limits: Mapping[str, float], *, seed: int, tries: int = 200
) -> Selection:
    """Add random alternatives that fit until the limits are met; accuracy plays no part.

    A try ends when nothing fits any more. After ``tries`` of them the limits are too tight for
    blind luck: then the selection of least summed random weights within the limits is taken.

    Args:
        problem: n alternatives.
        limits: metric -> upper bound.
        seed: equal seeds give equal selections.
        tries: how many blind tries to make.

    Raises:
        InfeasibleError: when nothing meets the limits, with the lowest reachable figures.

    Example:
        >>> problem = AdditiveProblem(
        ...     loss=np.array([0.01, 0.03]), saving=np.array([[2.0], [5.0]]),
        ...     base=np.array([10.0]), covers=np.array([[1, 0], [1, 1]], dtype=bool),
        ...     metrics=("latency_ms",),
        ... )
        >>> select(problem, {"latency_ms": 6.0}, seed=0).chosen
        (1,)
    """
    check_limits(problem, limits)
    rng = np.random.default_rng(seed)
    clash = overlaps(problem)
    saving, base, bounds = limited(problem, limits)
    for _ in range(tries):
        free = np.ones(len(problem.loss), dtype=np.bool_)
        chosen: list[int] = []
        cost = base.copy()
        for index in rng.permutation(len(problem.loss)):
            if (cost <= bounds).all():
                break
            if free[index]:
                chosen.append(int(index))
                free &= ~clash[index]
                cost -= saving[index]
        selection = make_selection(problem, chosen, limits)
        if within(selection.cost, limits):
            return selection
    found = minimise(problem, rng.random(len(problem.loss)), limits)
    if not found:
        raise infeasible(problem, limits)
    return make_selection(problem, found[0], limits)
