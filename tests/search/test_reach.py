from __future__ import annotations

import numpy as np
import pytest

from tailorbird.errors import InfeasibleError
from tailorbird.search import exact
from tailorbird.search.reach import reachable
from tailorbird.space import Choice, Space
from tests.search.families import House, Supernet
from tests.search.problems import intervals


def test_the_lowest_member_is_found_and_anything_below_it_is_an_error():
    family = Supernet()
    everything = family.cost(family.space.enumerate())
    lowest = {metric: float(figures.min()) for metric, figures in everything.items()}
    limits = [{metric: figure} for metric, figure in lowest.items()]
    starts = reachable(family, limits, np.random.default_rng(0))
    family.space.validate(starts)
    for start, bounds in zip(starts, limits, strict=True):
        for metric, bound in bounds.items():
            assert family.cost(start[None])[metric][0] <= bound
    below = [{"latency_ms": 0.999 * lowest["latency_ms"]}, {"latency_ms": 20.0}, {"macs": 5.0}]
    with pytest.raises(InfeasibleError) as caught:
        reachable(family, below, np.random.default_rng(0))
    message = str(caught.value)
    assert message.startswith("2 of 3 limits can't be kept")
    assert f"limits[0]: latency_ms <= {below[0]['latency_ms']:g}; the lowest found" in message
    assert "limits[2]: macs <= 5; the lowest found is macs" in message
    assert "limits[1]" not in message
    assert caught.value.lowest == pytest.approx(lowest)


@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_of_a_house_is_the_exact_one(seed):
    problem = intervals(200, 60, seed=seed)
    house = House(problem)
    with pytest.raises(InfeasibleError) as caught:
        reachable(house, [{"latency_ms": 1e-6}], np.random.default_rng(0))
    lowest = exact.lowest(problem, "latency_ms")
    assert caught.value.lowest["latency_ms"] == pytest.approx(lowest)


class Opposed:
    """Two costs of which one falls as the other rises: a + b is always 20 + 2."""

    space = Space(tuple(Choice(f"g{gene}", tuple(range(5))) for gene in range(5)))

    def cost(self, genomes):
        return {"a": 1.0 + genomes.sum(axis=1), "b": 21.0 - genomes.sum(axis=1)}

    def quality(self, genomes):
        return genomes[:, 0] / 4


def test_limits_that_fight_are_met_where_they_can_be_and_named_where_not():
    limits = [{"a": float(a), "b": 22.0 - a} for a in range(1, 22)]
    starts = reachable(Opposed(), limits, np.random.default_rng(1))
    assert (1 + starts.sum(axis=1)).tolist() == list(range(1, 22))
    with pytest.raises(InfeasibleError, match=r"lowest found is a 1, b 1 \(each alone; not all"):
        reachable(Opposed(), [*limits, {"a": 11.0, "b": 10.0}], np.random.default_rng(1))


def test_hundreds_of_unreachable_sets_are_one_short_error():
    class Counting(Opposed):
        priced = 0

        def cost(self, genomes):
            self.priced += len(genomes)
            return super().cost(genomes)

    family = Counting()
    limits = [{"a": 10.0 - 0.01 * n, "b": 10.0 - 0.01 * n} for n in range(400)]
    with pytest.raises(InfeasibleError, match=r"400 of 400 limits(.|\n)*and 380 more"):
        reachable(family, limits, np.random.default_rng(0))
    assert family.priced < 50_000
