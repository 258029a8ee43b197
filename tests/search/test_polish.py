from __future__ import annotations

import numpy as np
import pytest

from tailorbird.search.polish import Seen, polish
from tailorbird.search.strategy import Archive, Evaluator
from tests.search.families import House, Supernet
from tests.search.problems import intervals

SUPERNET = [{"latency_ms": bound} for bound in (9.0, 11.0, 14.0, 20.0)]


def started(family, limits, count=30):
    archive = Archive(limits, genes=len(family.space.sizes))
    genomes = family.space.sample(count, np.random.default_rng(2))
    genomes[0] = 0
    archive.update(genomes, family.quality(genomes), family.cost(genomes))
    seen = Seen(genomes.shape[1], np.random.default_rng(0))
    seen.note(genomes)
    return archive, seen


def improvements(family, archive):
    """Changes of one gene that better a winner within its limits, one limit at a time."""
    better = 0
    for bounds, genome, quality in zip(
        archive.limits, archive.genomes, archive.quality, strict=True
    ):
        near, _ = family.space.neighbours(genome[None])
        cost = family.cost(near)
        kept = np.all([cost[metric] <= bound for metric, bound in bounds.items()], axis=0)
        better += int((family.quality(near[kept]) > quality).sum())
    return better


@pytest.mark.parametrize(
    ("family", "limits"),
    [
        (Supernet(), SUPERNET),
        (Supernet(), [{"latency_ms": 12.0, "macs": 15e6}, {"macs": 16e6}]),
        (House(intervals(60, 30, seed=1)), [{"latency_ms": share} for share in (50.0, 40.0)]),
    ],
    ids=["one metric", "two metrics", "house"],
)
def test_afterwards_no_single_change_betters_any_winner(family, limits):
    archive, seen = started(family, limits)
    before = archive.quality.copy()
    assert improvements(family, archive) > 0
    evaluator = Evaluator(family)
    assert polish(evaluator, archive, seen=seen)
    assert improvements(family, archive) == 0
    assert (archive.quality >= before).all()
    for winner in archive.winners(family):
        assert all(winner.cost[metric] <= bound for metric, bound in winner.limits.items())
    spent = evaluator.evaluations
    assert polish(evaluator, archive, seen=seen)
    assert evaluator.evaluations == spent  # nothing is evaluated twice


def test_the_budget_bounds_it_and_it_says_that_it_isnt_done():
    family = Supernet()
    archive, seen = started(family, SUPERNET)
    evaluator = Evaluator(family)
    assert not polish(evaluator, archive, seen=seen, budget=60)
    assert evaluator.evaluations <= 60


def test_seen_tells_genomes_apart_by_all_their_genes():
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, 3, (20_000, 40))
    seen = Seen(40, rng)
    rows = seen.new(genomes)
    seen.note(genomes[rows])
    assert len(rows) == len(np.unique(genomes, axis=0))
    assert len(seen.new(genomes)) == 0
    other = genomes[:1000].copy()
    other[:, 17] = (other[:, 17] + 1) % 3
    assert len(seen.new(other)) == 1000
