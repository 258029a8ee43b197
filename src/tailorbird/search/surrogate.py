"""A linear model of a figure over a space's genes: cheap enough to screen thousands of genomes.

One weight per gene and value, fitted by ridge regression on one-hot genes; an inactive gene weighs
nothing. Under it the best trade of quality against cost, the maximum of quality - lambda cost, is
found exactly gene by gene, children before the gene that wakes them, so that a sweep over lambda
draws a whole front at once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve
from scipy.optimize import Bounds, LinearConstraint, milp

from tailorbird.family import Floats
from tailorbird.space import Genomes, Space


class LinearModel:
    """A figure as a constant plus one weight per gene and value.

    The fit keeps sums only: memory is f^2 for f = ``space.sizes.sum()`` values, a fit costs n f^2
    for n new genomes and f^3 once, a prediction one look-up per gene.

    Args:
        space: the genes.
        ridge: penalty on the weights, in genomes.

    Example:
        >>> from tailorbird.space import Choice
        >>> space = Space((Choice("a", (0, 1, 2)), Choice("b", (0, 1))))
        >>> model = LinearModel(space, ridge=1e-9)
        >>> genomes = space.enumerate()
        >>> model.add(genomes, genomes @ np.array([1.0, 10.0]))
        >>> model.fit()
        >>> model.predict(np.array([[2, 1]])).round(3)
        array([12.])
    """

    def __init__(self, space: Space, *, ridge: float = 0.1) -> None:
        self.space = space
        self.ridge = ridge
        self._starts = _starts(space)
        width = int(self._starts[-1])
        self.weights: Floats = np.zeros(width + 1)  # the last one is that of inactive genes: 0
        self.constant = 0.0
        self._gram: Floats = np.zeros((width + 1, width + 1))  # the last column is the constant's
        self._moment: Floats = np.zeros(width + 1)

    def add(self, genomes: Genomes, figures: Floats, *, decay: float = 1.0) -> None:
        """Take in ``genomes`` (n, genes) and their ``figures`` (n,); older ones weigh ``decay``."""
        hot = np.zeros((len(genomes), len(self.weights)))
        np.put_along_axis(hot, self._columns(genomes), 1.0, axis=1)
        hot[:, -1] = 1.0
        self._gram = self._gram * decay + hot.T @ hot
        self._moment = self._moment * decay + hot.T @ figures

    def fit(self) -> None:
        """Set the weights to the least squares of what was added."""
        penalty = np.full(len(self.weights), self.ridge)
        penalty[-1] = 1e-9
        weights = solve(self._gram + np.diag(penalty), self._moment, assume_a="pos")
        self.constant = float(weights[-1])
        self.weights = np.append(weights[:-1], 0.0)

    def predict(self, genomes: Genomes) -> Floats:
        """(n,) figures of ``genomes`` (n, genes)."""
        return np.asarray(self.constant + self.weights[self._columns(genomes)].sum(axis=1))

    def _columns(self, genomes: Genomes) -> Genomes:
        active = self.space.active(genomes)
        return np.where(active, genomes + self._starts[:-1], len(self.weights) - 1)


def trades(space: Space, gain: Floats, cost: Floats, *, count: int, exact: bool = False) -> Genomes:
    """Up to ``count`` members (m, genes) along the front of two linear models, cheapest first.

    The prices lambda at which they are best are quantiles of the slopes between a gene's values,
    where the best member changes, with infinity (the cheapest member) and 0 (the best) at the
    ends. Exact under the models, except where genes conflict: of these the one that gains most is
    kept, or with ``exact`` the set that gains most, for a small integer programme per member.

    Args:
        space: the genes.
        gain: (f + 1,) a model's ``weights``, to be large.
        cost: (f + 1,) a model's ``weights``, to be small.
        count: of prices.
        exact: settle conflicts by HiGHS, in at most 1,000 nodes per member.

    Example:
        >>> from tailorbird.space import Choice
        >>> space = Space((Choice("a", (0, 1)), Choice("b", (0, 1))))
        >>> gain, cost = np.array([0, 3, 0, 1, 0.0]), np.array([0, 1, 0, 1, 0.0])
        >>> trades(space, gain, cost, count=3).tolist()
        [[0, 0], [1, 0], [1, 1]]
    """
    starts = _starts(space)
    prices = _prices(space, gain, cost, count)
    # At an infinite price only the cost counts.
    of_gain = np.isfinite(prices).astype(np.float64)
    of_cost = np.where(np.isfinite(prices), prices, 1.0)
    children: dict[int, list[int]] = {}
    for gene, condition in space.conditions.items():
        children.setdefault(condition.gene, []).append(gene)
    genes = len(space.sizes)
    genomes = np.zeros((len(prices), genes), dtype=np.int64)
    best, above = np.zeros((genes, len(prices))), np.zeros((genes, len(prices)))
    for gene in reversed(range(genes)):
        values = slice(starts[gene], starts[gene + 1])
        score = gain[values, None] * of_gain - cost[values, None] * of_cost
        for child in children.get(gene, ()):
            score[space.conditions[child].least :] += best[child]
        genomes[:, gene] = score.argmax(axis=0)
        best[gene] = score.max(axis=0)
        above[gene] = best[gene] - score[0]
    if space.conflicts is not None:
        settle = _settle_exactly if exact else _settle
        genomes = settle(genomes, above.T, space.conflicts)
    return space.canonical(genomes)


def _prices(space: Space, gain: Floats, cost: Floats, count: int) -> Floats:
    ends = np.array([np.inf, 0.0])
    if count <= 2:
        return ends[: max(1, count)]
    up, down = _pairs(tuple(space.sizes.tolist()))
    rise, run = (w[up] - w[down] for w in (gain, cost))
    found = rise[rise * run > 0] / run[rise * run > 0]
    if not len(found):
        return ends
    # Midway between two quantiles, so that a price isn't the slope itself: a tie.
    steps = np.quantile(found, np.linspace(1, 0, count - 1))
    return np.concatenate([ends[:1], (steps[1:] + steps[:-1]) / 2, ends[1:]])


@lru_cache(maxsize=8)
def _pairs(sizes: tuple[int, ...]) -> tuple[Genomes, Genomes]:
    """The weights' indices of every two values of one gene."""
    up, down = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    start = 0
    for size in sizes:
        first, second = np.triu_indices(size, 1)
        up.append(first + start)
        down.append(second + start)
        start += size
    return np.concatenate(up), np.concatenate(down)


def _starts(space: Space) -> Genomes:
    return np.concatenate([[0], np.cumsum(space.sizes)])


def _settle(genomes: Genomes, gains: Floats, conflicts: npt.NDArray[np.bool_]) -> Genomes:
    """Of conflicting genes keep the one that gains most over its value 0."""
    settled = np.zeros_like(genomes)
    rows = np.arange(len(genomes))
    for gene in np.argsort(-gains, axis=1, kind="stable").T:
        blocked = ((settled != 0) & conflicts[gene]).any(axis=1)
        settled[rows, gene] = np.where(blocked, 0, genomes[rows, gene])
    return settled


def _settle_exactly(genomes: Genomes, gains: Floats, conflicts: npt.NDArray[np.bool_]) -> Genomes:
    """Of conflicting genes keep those that gain most together over their values 0."""
    cliques = _cliques(conflicts)
    settled = _settle(genomes, gains, conflicts)
    for row, gain in enumerate(gains):
        if cliques is None or not (gain > 0).any():
            continue
        found = milp(
            -gain,
            integrality=np.ones(len(gain), dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(cliques, ub=1),
            options={"node_limit": 1000},
        )
        if found.x is not None and gain[found.x > 0.5].sum() > gain[settled[row] != 0].sum():
            settled[row] = np.where(found.x > 0.5, genomes[row], 0)
    return settled


def _cliques(conflicts: npt.NDArray[np.bool_]) -> Floats | None:
    """Sets of genes of which at most one may differ from 0, (cliques, genes); they say it all."""
    left = np.triu(conflicts, 1)
    rows = []
    while left.any():
        first, second = np.argwhere(left)[0]
        clique = [int(first), int(second)]
        shared = conflicts[first] & conflicts[second]
        while shared.any():
            clique.append(int(np.argmax(shared)))
            shared &= conflicts[clique[-1]]
        left[np.ix_(clique, clique)] = False
        rows.append(np.isin(np.arange(len(conflicts)), clique).astype(np.float64))
    return np.stack(rows) if rows else None
