from functools import cache

import numpy as np
import pytest
import torch

from tailorbird.errors import GraphError, SpaceError
from tailorbird.family import Estimated, is_additive
from tailorbird.graph.surgery import induce
from tailorbird.house.family import HouseFamily

from .makers import same, small_sample, teacher


@cache
def family():
    """The tiny house with made-up figures."""
    sample = small_sample()
    rng = np.random.default_rng(0)
    names = [a.name for a in sample.alternatives]
    return HouseFamily(
        teacher=teacher(),
        blocks=sample.blocks,
        alternatives=sample.alternatives,
        modules=sample.modules,
        losses=dict(zip(names, rng.normal(0.02, 0.01, len(names)), strict=True)),
        base={"latency_ms": 2.0, "params": 9000.0},
        savings={
            "latency_ms": dict(zip(names, rng.uniform(0, 0.3, len(names)), strict=True)),
            "params": dict(zip(names, rng.uniform(0, 900, len(names)), strict=True)),
        },
    )


def random_genomes(count=64):
    return family().space.sample(count, np.random.default_rng(1))


def chosen(genome):
    decoded = family().space.decode(genome[None])[0]
    return [name for name in decoded.values() if name != "keep"]


def test_space_names_every_alternative_once():
    space = family().space
    named = [v for choice in space.choices for v in choice.values[1:]]
    assert sorted(map(str, named)) == sorted(a.name for a in family().alternatives)
    assert all(choice.values[0] == "keep" for choice in space.choices)


def test_conflicts_are_exactly_the_overlaps_of_blocks():
    space, blocks = family().space, family().blocks
    keys = [choice.name for choice in space.choices]
    for i, left in enumerate(keys):
        for j, right in enumerate(keys):
            shared = set(blocks[left].nodes) & set(blocks[right].nodes)
            assert space.conflicts[i, j] == (i != j and bool(shared))


def test_cost_and_quality_agree_with_the_additive_problem():
    typed: Estimated = family()
    assert is_additive(typed)
    problem = family().problem
    index = {a.name: i for i, a in enumerate(family().alternatives)}
    genomes = random_genomes()
    cost, quality = typed.cost(genomes), typed.quality(genomes)
    assert any(len(chosen(genome)) > 1 for genome in genomes)
    for row, genome in enumerate(genomes):
        picks = [index[name] for name in chosen(genome)]
        assert problem.covers[picks].sum(axis=0).max(initial=0) <= 1
        expected = problem.cost(picks)
        for column, metric in enumerate(problem.metrics):
            assert cost[metric][row] == pytest.approx(expected[column])
        assert quality[row] == pytest.approx(-problem.total_loss(picks))


def test_names_are_what_induce_takes_and_genome_is_their_inverse():
    sample = small_sample()
    known = {a.name: sample.blocks[a.block] for a in sample.alternatives}
    for genome in random_genomes(8):
        names = chosen(genome)
        built = family().induce(family().names(genome))
        assert same(built, induce(teacher(), {known[n]: sample.modules[n] for n in sorted(names)}))
        assert built(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        assert (family().of_names(names) == genome).all()
        assert family().names(genome.tolist()) == tuple(sorted(names))
        index = [i for i, a in enumerate(family().alternatives) if a.name in names]
        assert (family().genome(index) == genome).all()
    nothing = family().induce(family().names([0] * len(family().slots)))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nothing(x), teacher().module(x))


def test_overlap_and_strangers_are_refused():
    space = family().space
    i, j = np.argwhere(space.conflicts)[0]
    genome = np.zeros(len(space.choices), dtype=np.int64)
    genome[[i, j]] = 1
    with pytest.raises(
        SpaceError, match="1 genomes choose alternatives that overlap; first: row 0"
    ):
        space.validate(genome[None])
    with pytest.raises(GraphError, match="overlap"):
        family().induce([str(space.choices[k].values[1]) for k in (i, j)])
    with pytest.raises(SpaceError, match="the house holds no alternative named a9999, b1"):
        family().induce(["a9999", "b1"])
