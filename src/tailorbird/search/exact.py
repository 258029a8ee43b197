"""The best selection within the limits, proven: a mixed-integer programme solved by HiGHS.

One binary variable per alternative. Of the alternatives that cover one layer at most one is
chosen; the savings of each limited metric reach the difference between the teacher's figure and
the limit; the summed accuracy loss (Bespoke, eq. 4) is least. Where blocks are intervals of a chain
of layers the cover constraints alone have integral vertices, so the search tree stays small.

Dominance: alternative ``a`` is never needed where another one covers only layers that ``a`` covers,
loses no more and saves no less. With k selections ruled out, ``a`` can still be needed in their
stead, so it is dropped only when more than k others dominate it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from tailorbird.errors import InfeasibleError, SpaceError
from tailorbird.family import AdditiveProblem, Floats
from tailorbird.search.selection import (
    Selection,
    check_limits,
    limited,
    make_selection,
    within,
)

_RETRIES = 20
_TOLERANCE = 1e-6
"""HiGHS takes a constraint as met up to this much."""


def solve(
    problem: AdditiveProblem,
    limits: Mapping[str, float],
    *,
    exclude: Sequence[tuple[int, ...]] = (),
    count: int = 1,
) -> list[Selection]:
    """The ``count`` selections of least summed loss within all ``limits``, best first.

    Args:
        problem: n alternatives.
        limits: metric -> upper bound; may be empty.
        exclude: selections (indices) that must not be returned.
        count: how many distinct selections to return at most.

    Returns:
        Between one and ``count`` selections; fewer where no more exist.

    Raises:
        InfeasibleError: when nothing meets the limits, with the lowest reachable figures.
        ConfigError: for unknown metrics or limits that are not positive.

    Example:
        >>> problem = AdditiveProblem(
        ...     loss=np.array([0.01, 0.04, 0.02]),
        ...     saving=np.array([[2.0], [5.0], [3.0]]),
        ...     base=np.array([10.0]),
        ...     covers=np.array([[1, 0], [1, 1], [0, 1]], dtype=bool),
        ...     metrics=("latency_ms",),
        ... )
        >>> [s.chosen for s in solve(problem, {"latency_ms": 5.5}, count=2)]
        [(0, 2), (1,)]
    """
    check_limits(problem, limits)
    found = minimise(problem, problem.loss, limits, exclude=exclude, count=count)
    if not found:
        raise infeasible(problem, limits, excluded=len(exclude))
    return [make_selection(problem, chosen, limits) for chosen in found]


def lowest(
    problem: AdditiveProblem, metric: str, *, limits: Mapping[str, float] | None = None
) -> float:
    """The lowest reachable figure of ``metric``, whatever the accuracy, within ``limits``.

    Raises:
        InfeasibleError: when nothing meets ``limits``.
        ConfigError: for an unknown metric.
    """
    bounds = dict(limits or {})
    check_limits(problem, {metric: 1.0} | bounds)
    column = problem.metrics.index(metric)
    found = minimise(problem, -problem.saving[:, column], bounds)
    if not found:
        raise infeasible(problem, bounds)
    return float(problem.cost(found[0])[column])


def infeasible(
    problem: AdditiveProblem,
    limits: Mapping[str, float],
    *,
    excluded: int = 0,
    searcher: str = "",
) -> InfeasibleError:
    """The error for ``limits`` that nothing meets, with the lowest reachable figure of each.

    Args:
        problem: the additive problem.
        limits: metric -> upper bound.
        excluded: how many selections were ruled out beforehand.
        searcher: names a searcher that may have missed a selection that exists.
    """
    reach = {metric: lowest(problem, metric) for metric in limits}
    wanted = " and ".join(f"{metric} <= {bound:.6g}" for metric, bound in limits.items())
    missed = {
        metric: low for metric, low in reach.items() if not within(reach, {metric: limits[metric]})
    }
    if missed:
        figures = ", ".join(f"{metric} {low:.6g}" for metric, low in missed.items())
        text = f"no selection of alternatives meets {wanted}; the lowest reachable is {figures}"
    elif excluded:
        text = f"no selection besides the {excluded} excluded meets {wanted}"
    elif searcher:
        text = f"{searcher} found no selection that meets {wanted}; give it more steps"
    else:
        figures = ", ".join(f"{metric} {low:.6g}" for metric, low in reach.items())
        text = (
            f"no selection of alternatives meets {wanted} together, though each limit alone can "
            f"be met (lowest, each alone: {figures})"
        )
    way_out = "" if searcher and not missed else "; raise a limit, or build a house with more"
    return InfeasibleError(
        f"{text}{way_out}{' or smaller alternatives' if way_out else ''}",
        limits=limits,
        lowest=reach,
    )


def minimise(
    problem: AdditiveProblem,
    weights: Floats,
    limits: Mapping[str, float],
    *,
    exclude: Sequence[tuple[int, ...]] = (),
    count: int = 1,
) -> list[tuple[int, ...]]:
    """The ``count`` selections of least summed ``weights`` (n,) within ``limits``, best first.

    Returns:
        Sorted indices; an empty list when nothing meets the limits.
    """
    saving, base, bounds = limited(problem, limits)
    banned = [tuple(sorted(set(chosen))) for chosen in exclude]
    kept = useful(weights, saving, problem.covers, spare=len(set(banned)) + count - 1)
    programme = _Programme(
        weights[kept],
        saving[kept],
        base - bounds,
        cover_rows(problem.covers[kept]),
        scale=np.maximum(np.abs(base), np.abs(bounds)),
    )
    place = {int(index): position for position, index in enumerate(kept)}
    for chosen in banned:
        if all(index in place for index in chosen):
            programme.forbid([place[index] for index in chosen])
    found: list[tuple[int, ...]] = []
    misses = 0
    while len(found) < count:
        positions = programme.solve()
        if positions is None:
            break
        chosen = tuple(sorted(int(kept[position]) for position in positions))
        programme.forbid(positions)
        if make_selection(problem, chosen, limits).feasible:
            found.append(chosen)
            continue
        # HiGHS takes a limit as met up to 1e-6; such near misses are ruled out one by one, and
        # if they swarm, the limits are tightened by that much.
        misses += 1
        if misses == _RETRIES:
            programme.tighten(_TOLERANCE)
    return found


def useful(
    weights: Floats, saving: Floats, covers: npt.NDArray[np.bool_], *, spare: int = 0
) -> npt.NDArray[np.int64]:
    """Indices of the alternatives that at most ``spare`` others dominate, sorted.

    Args:
        weights: (n,) what is minimised.
        saving: (n, k) savings of the limited metrics.
        covers: (n, layers).
        spare: how many selections are ruled out or wanted beyond the best.

    Example:
        >>> covers = np.array([[1, 1], [1, 0], [1, 0]], dtype=bool)
        >>> saving = np.array([[1.0], [2.0], [1.5]])
        >>> useful(np.array([0.2, 0.1, 0.1]), saving, covers)
        array([1])
        >>> useful(np.array([0.2, 0.1, 0.1]), saving, covers, spare=1)
        array([1, 2])
    """
    n = len(weights)
    area = covers.astype(np.float32)
    shared = area @ area.T
    size = area.sum(axis=1)
    better = (shared == size[:, None]) & (size[:, None] > 0)  # [i, j]: i covers a part of j
    better &= weights[:, None] <= weights[None, :]
    for column in saving.T:
        better &= column[:, None] >= column[None, :]
    # of alternatives that dominate each other, being equal, the first one counts
    equal = better & better.T
    better &= ~(equal & (np.arange(n)[:, None] >= np.arange(n)[None, :]))
    useless = (weights >= 0) & (saving <= 0).all(axis=1)  # dominated by the teacher's own block
    return np.flatnonzero(better.sum(axis=0) + useless <= spare)


def cover_rows(covers: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The layers' rows (rows, n) that matter: no duplicates, none implied by another one.

    Example:
        >>> cover_rows(np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1]], dtype=bool)).astype(int)
        array([[0, 1, 1],
               [1, 1, 0]])
    """
    rows = np.unique(covers.T, axis=0)
    rows = rows[rows.sum(axis=1) > 1]
    area = rows.astype(np.float32)
    inside = (area @ area.T) == area.sum(axis=1)[:, None]  # [i, j]: row i is part of row j
    np.fill_diagonal(inside, False)
    return np.asarray(rows[~inside.any(axis=1)])


class _Programme:
    """A growing binary programme over the alternatives that are left."""

    def __init__(
        self,
        weights: Floats,
        saving: Floats,
        needed: Floats,
        rows: npt.NDArray[np.bool_],
        *,
        scale: Floats,
    ) -> None:
        self._size = len(weights)
        # HiGHS stops at an absolute gap of 1e-6: scaled so that this is far below any difference
        largest = float(np.abs(weights).max(initial=0.0))
        self._objective = weights * (1e3 / largest) if largest > 0 else weights
        self._limits = len(needed)
        self._matrix = np.concatenate([(saving / scale).T, -rows.astype(np.float64)])
        self._lower = np.concatenate([needed / scale, np.full(len(rows), -1.0)])

    def forbid(self, positions: Sequence[int]) -> None:
        """Rule one selection out: at least one variable has to differ from it."""
        row = np.ones(self._size)
        row[list(positions)] = -1.0
        self._matrix = np.concatenate([self._matrix, row[None]])
        self._lower = np.append(self._lower, 1.0 - len(positions))

    def tighten(self, share: float) -> None:
        """Ask for ``share`` of the limit more than the limits say."""
        self._lower[: self._limits] += share

    def solve(self) -> list[int] | None:
        """Positions of the best selection, or ``None`` when there is none."""
        if self._size == 0:  # as tolerant as HiGHS: who asked checks what was found
            return [] if bool((self._lower <= _TOLERANCE).all()) else None
        result = milp(
            self._objective,
            constraints=LinearConstraint(self._matrix, lb=self._lower),
            integrality=np.ones(self._size, dtype=np.int64),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if result.status == 2:
            return None
        if result.x is None or result.status != 0:
            raise SpaceError(f"HiGHS could not solve the selection problem: {result.message}")
        return [int(position) for position in np.flatnonzero(result.x > 0.5)]
