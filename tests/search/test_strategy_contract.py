"""What every strategy keeps to; a newcomer joins by a row in STRATEGIES."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from tailorbird.search import exact
from tailorbird.search.baselines import Exhaustive, RandomSearch
from tailorbird.search.evolution import BottomUp, Evolution, Independent, TopDown
from tailorbird.search.many_targets import AllAtOnce
from tailorbird.search.nsga2 import Nsga2
from tailorbird.testing import STRATEGY_CHECKS
from tailorbird.testing.strategies import optimum, winners_are_good
from tests.house.test_family import family as house_family
from tests.search.families import House, Supernet
from tests.search.problems import intervals

EVOLUTION = Evolution(population=40, generations=60)
STRATEGIES = {
    "all-at-once": AllAtOnce(),
    "independent": Independent(evolution=EVOLUTION),
    "top-down": TopDown(evolution=EVOLUTION, warm_generations=20),
    "bottom-up": BottomUp(evolution=EVOLUTION, warm_generations=20),
    "random": RandomSearch(evaluations=4000),
    "exhaustive": Exhaustive(),
    "nsga2": Nsga2(population=40, generations=60),
}
NEEDS = {"nsga2": "pymoo"}
GAP = {"exhaustive": 0.0}
"""Quality that a strategy may miss of the optimum on the small spaces; others 0.02."""


def row(name):
    needed = NEEDS.get(name)
    missing = needed is not None and find_spec(needed) is None
    return pytest.param(
        name, marks=pytest.mark.skipif(missing, reason=f"{needed} is not installed")
    )


every = pytest.mark.parametrize("name", [row(name) for name in STRATEGIES])
sampling = pytest.mark.parametrize(
    "name", [row(name) for name in STRATEGIES if name != "exhaustive"]
)


@every
@pytest.mark.parametrize("check", STRATEGY_CHECKS, ids=lambda check: check.__name__)
def test_keeps_to_the_contract(name, check):
    options = {"gap": GAP[name]} if check is winners_are_good and name in GAP else {}
    check(STRATEGIES[name], **options)


@sampling
def test_different_seeds_search_differently_unless_all_find_the_optimum(name):
    tight = [{"latency_ms": bound} for bound in np.linspace(9, 16, 8)]
    found = [STRATEGIES[name].search(Supernet(), tight, seed=seed).winners for seed in range(4)]
    if len({tuple(w.genome.tobytes() for w in winners) for winners in found}) == 1:
        best = [optimum(limits) for limits in tight]
        assert [winner.quality for winner in found[0]] == pytest.approx(best, abs=1e-12)


SHARES = (0.8, 0.65, 0.5)


@sampling
@pytest.mark.parametrize("seed", range(2))
def test_never_better_than_the_exact_optimum_of_a_model_house(name, seed):
    problem = intervals(60, 30, seed=seed)
    limits = [{"latency_ms": share * float(problem.base[0])} for share in SHARES]
    result = STRATEGIES[name].search(House(problem), limits, seed=0)
    for winner in result.winners:
        gap = winner.quality + exact.solve(problem, winner.limits)[0].loss
        assert gap <= 1e-9
        assert gap >= -0.02


@pytest.mark.slow
@every
def test_the_tiny_real_house(name):
    family = house_family()
    limits = [{"latency_ms": 1.6}, {"latency_ms": 1.8, "params": 8000.0}]
    for winner in STRATEGIES[name].search(family, limits, seed=0).winners:
        family.space.validate(winner.genome[None])
        gap = -winner.quality - exact.solve(family.problem, winner.limits)[0].loss
        assert -1e-9 <= gap <= (1e-9 if name == "exhaustive" else 0.02)


def test_exhaustive_proves_the_optimum_of_a_house_with_conflicts():
    problem = intervals(40, 30, seed=4)
    house = House(problem)
    limits = [{"latency_ms": share * float(problem.base[0])} for share in (0.95, 0.85, 0.8)]
    for winner in Exhaustive().search(house, limits, seed=0).winners:
        best = exact.solve(problem, winner.limits)[0]
        assert -winner.quality == pytest.approx(best.loss, abs=1e-12)
