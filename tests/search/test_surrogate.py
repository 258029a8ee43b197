from __future__ import annotations

import numpy as np
import pytest

from tailorbird.search.surrogate import LinearModel, trades
from tailorbird.space import Choice, Condition, Space
from tests.search.families import House
from tests.search.problems import intervals

SPACE = Space(
    (
        Choice("depth", (1, 2, 3)),
        Choice("k1", (3, 5)),
        Choice("k2", (3, 5, 7)),
        Choice("k3", (3, 5, 7)),
        Choice("r", (128, 160, 192)),
    ),
    conditions={2: Condition(0, 1), 3: Condition(0, 2)},
)


def additive(space, seed):
    """Weights per gene and value, and a figure that adds up those of active genes."""
    weights = np.append(np.random.default_rng(seed).normal(size=int(space.sizes.sum())), 0.0)
    model = LinearModel(space)
    model.weights, model.constant = weights, 2.0
    return model


def test_a_sum_over_genes_is_learned_exactly_also_of_inactive_ones():
    truth, model = additive(SPACE, 0), LinearModel(SPACE, ridge=1e-9)
    genomes = SPACE.enumerate()
    figures = truth.predict(genomes)
    model.add(genomes[::2], figures[::2])
    model.add(genomes[1::2], figures[1::2])
    model.fit()
    assert model.predict(genomes) == pytest.approx(figures, abs=1e-6)


def test_newer_figures_outweigh_older_ones():
    model, genomes = LinearModel(SPACE, ridge=1e-9), SPACE.enumerate()
    model.add(genomes, np.zeros(len(genomes)))
    model.add(genomes, np.ones(len(genomes)), decay=0.01)
    model.fit()
    assert model.predict(genomes) == pytest.approx(1 / 1.01)


@pytest.mark.parametrize("seed", range(5))
def test_every_trade_is_on_the_hull_of_all_members(seed):
    gain, cost = additive(SPACE, seed), additive(SPACE, seed + 100)
    members = SPACE.enumerate()
    found = trades(SPACE, gain.weights, cost.weights, count=50)
    SPACE.validate(found)
    gains, costs = gain.predict(members), cost.predict(members)
    assert cost.predict(found)[0] == pytest.approx(costs.min())
    assert gain.predict(found)[-1] == pytest.approx(gains.max())
    for member in found[1:-1]:
        here = gain.predict(member[None])[0], cost.predict(member[None])[0]
        # Some price makes it the best of all.
        prices = np.concatenate([np.geomspace(1e-4, 1e4, 4000), [0.0]])
        best = (gains[:, None] - prices * costs[:, None]).max(axis=0)
        assert (here[0] - prices * here[1] >= best - 2e-2 * (1 + prices)).any()


def test_conflicts_are_settled():
    house = House(intervals(60, 30, seed=3))
    model = LinearModel(house.space)
    genomes = house.space.sample(2000, np.random.default_rng(0))
    model.add(genomes, house.quality(genomes))
    model.fit()
    cost = LinearModel(house.space)
    cost.add(genomes, house.cost(genomes)["latency_ms"])
    cost.fit()
    house.space.validate(trades(house.space, model.weights, cost.weights, count=40))


def test_without_a_trade_off_the_ends_are_left():
    gain = additive(SPACE, 0)
    assert len(trades(SPACE, gain.weights, -gain.weights, count=30)) == 2
    assert len(trades(SPACE, gain.weights, gain.weights, count=1)) == 1
