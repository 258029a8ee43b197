"""What is proposed: near the limit too, and no candidate twice."""

import numpy as np
import pytest

from tailorbird.family import AdditiveProblem
from tailorbird.fit.propose import TIGHTEST, Wish, propose
from tailorbird.progress import Silent
from tailorbird.search.additive import Annealing, Exact
from tailorbird.search.near import Near
from tailorbird.space import Choice, Space


class Blocks:
    """Alternatives of a chain of layers: (first, last, what it loses, what it saves in ms)."""

    def __init__(self, layers, *alternatives, size=None):
        self.alternatives = alternatives
        covers = np.zeros((len(alternatives), layers), dtype=bool)
        for row, (first, last, *_) in enumerate(alternatives):
            covers[row, first : last + 1] = True
        saves = [[ms, 0.5 * ms] for *_, ms in alternatives]
        self.problem = AdditiveProblem(
            loss=np.array([one[2] for one in alternatives]),
            saving=np.array(saves),
            base=np.array([100.0, 50.0]),
            covers=covers,
            metrics=("latency_ms@box", "size_mb"),
        )
        self.space = Space(tuple(Choice(f"a{i}", (0, 1)) for i in range(len(alternatives))))

    def genome(self, chosen):
        genome = np.zeros(len(self.alternatives), dtype=np.int64)
        genome[list(chosen)] = 1
        return genome

    def cost(self, genomes):
        figures = self.problem.base - genomes @ self.problem.saving
        return dict(zip(self.problem.metrics, figures.T, strict=True))

    def quality(self, genomes):
        return -(genomes @ self.problem.loss)


def proposed(
    family, limit, *, candidates=4, strategy=None, kinds=(), content=lambda key: key, **more
):
    wish = Wish(("one", "box"), {"latency_ms@box": limit, **more}, near="latency_ms@box")
    found = propose(
        family,
        [wish],
        strategy or Exact(),
        candidates=candidates,
        kinds=kinds,
        content=content,
        seed=0,
        progress=Silent(),
    )
    return found["one", "box"]


def latencies(family, keys):
    return family.cost(np.array(keys))["latency_ms@box"].tolist()


@pytest.fixture
def small_is_best():
    """A donor as it is loses least by far and takes 44 ms; single blocks save 8 ms each."""
    return Blocks(8, (0, 7, 0.01, 56.0), *((i, i, 0.1 + 0.001 * i, 8.0) for i in range(8)))


def test_where_the_best_is_far_below_the_limit_others_near_it_are_proposed_too(small_is_best):
    keys = proposed(small_is_best, 75.0)
    assert len(set(keys)) == len(keys) == 4
    best, *near = latencies(small_is_best, keys)
    assert best == 44.0
    assert all(TIGHTEST * 75.0 <= ms <= 75.0 for ms in near)
    assert proposed(small_is_best, 75.0, candidates=1) == keys[:1]


def test_candidates_spread_over_the_range(small_is_best):
    fine = Blocks(
        16, (0, 15, 0.01, 56.0), *((i, i, 0.1 + 0.01 * i, 3.0 + 0.1 * i) for i in range(16))
    )
    _, *near = latencies(fine, proposed(fine, 75.0))
    bands = [(share * 75.0, (share + 0.05) * 75.0) for share in (0.95, 0.9, 0.85)]
    for ms, (low, high) in zip(near, bands, strict=True):
        assert low - 1e-6 <= ms <= high + 1e-6


def test_a_candidate_that_was_found_gives_way_to_the_next_best():
    family = Blocks(4, *((i, i, 0.1 + 0.01 * i, 9.0) for i in range(4)))
    keys = proposed(family, 91.0)
    assert keys == [(1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0)]
    assert latencies(family, keys) == [91.0, 91.0, 82.0, 91.0], "the last band holds nothing"


def test_where_nothing_is_near_the_limit_the_next_best_below_are_proposed():
    family = Blocks(4, (0, 3, 0.01, 50.0), (0, 2, 0.02, 52.0), (1, 3, 0.03, 54.0))
    keys = proposed(family, 80.0, candidates=3)
    assert keys == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert proposed(family, 80.0, candidates=9) == keys, "there are no more"


def test_a_donors_stage_and_the_teachers_blocks_are_combined_where_that_is_best():
    donor_stage, own_first, own_last = (0, 1, 0.02, 30.0), (0, 0, 0.03, 12.0), (3, 3, 0.02, 15.0)
    family = Blocks(4, donor_stage, own_first, own_last, (0, 3, 0.09, 60.0), (2, 3, 0.2, 31.0))
    best, *_ = proposed(family, 56.0)
    assert best == (1, 0, 1, 0, 0)
    exhaustive = [
        key
        for key in np.ndindex(*(2,) * 5)
        if (np.array(key) @ family.problem.covers <= 1).all()
        and latencies(family, [key])[0] <= 56.0
    ]
    assert best == max(exhaustive, key=lambda key: family.quality(np.array(key)))


def test_a_kind_that_looks_worse_before_it_is_trained_is_proposed_too():
    donors = (0, 3, 0.01, 30.0), (0, 2, 0.02, 28.0), (1, 3, 0.02, 34.0), (0, 1, 0.01, 26.0)
    family = Blocks(4, *donors, *((i, i, 0.3 + 0.1 * i, 9.0) for i in range(4)))
    plain = proposed(family, 75.0)
    assert all(any(key[:4]) for key in plain), "with donors, each band has better ones"
    *others, own, slower = proposed(family, 75.0, kinds=[range(4, 8), ()])
    assert others == plain
    assert own == (0, 0, 0, 0, 1, 1, 1, 0)
    assert latencies(family, [own, slower]) == [73.0, 64.0], "one in each half of what is near"
    assert proposed(family, 75.0, kinds=[[4, 5]]) == plain, "of two blocks, none is near"


def test_several_limits_hold_in_every_band(small_is_best):
    keys = proposed(small_is_best, 75.0, size_mb=40.0)
    figures = small_is_best.cost(np.array(keys))
    assert (figures["size_mb"] <= 40.0 + 1e-6).all()
    assert (figures["latency_ms@box"] <= 75.0 + 1e-6).all()


def test_another_strategy_proposes_near_the_limit_as_well(small_is_best):
    keys = proposed(small_is_best, 75.0, strategy=Annealing(steps=300, restarts=2))
    assert max(latencies(small_is_best, keys)) >= TIGHTEST * 75.0


def test_the_lowest_there_is_is_proposed_where_nothing_keeps_the_limit(small_is_best):
    [key] = proposed(small_is_best, 20.0)
    assert latencies(small_is_best, [key]) == [36.0]


def test_a_figure_that_is_to_be_high_is_a_limit_of_what_is_left(small_is_best):
    near = Near(small_is_best, {"latency_ms@box": 150.0})
    genomes = np.array([[0] * 9, [1] + [0] * 8])
    [(left, bound)] = near.at_least("latency_ms@box", 70.0).items()
    assert bound == 80.0
    assert near.cost(genomes)[left].tolist() == [50.0, 106.0]
    column = near.problem.metrics.index(left)
    assert near.problem.cost([0])[column] == 106.0
    assert near.genome([0]).tolist() == genomes[1].tolist()


def test_what_is_one_network_is_proposed_once():
    """The first two parts left out one by one, or both as a run, which is estimated otherwise."""
    family = Blocks(3, (0, 0, 0.1, 9.0), (1, 1, 0.1, 9.0), (0, 1, 0.15, 17.9), (2, 2, 0.3, 10.0))

    def content(key):
        return (1, 1, 0, key[3]) if key[2] else key

    plain = proposed(family, 84.0, candidates=3)
    assert {(1, 1, 0, 0), (0, 0, 1, 0)} <= set(plain)
    keys = proposed(family, 84.0, candidates=3, content=content)
    assert len(keys) == len({content(key) for key in keys}) == 3
