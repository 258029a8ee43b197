"""Donors' blocks: from the same place, and translated by linear maps."""

import numpy as np
import pytest
import torch

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.surgery import capture, induce
from tailorbird.graph.trace import trace
from tailorbird.house.activations import Activations
from tailorbird.house.donors import (
    add_donor_blocks,
    add_donor_stages,
    misfit,
    stage_blocks,
    stitched,
)
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import Collector
from tailorbird.house.stitch import linear_map

from .makers import donor, net

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SEEN = Activations(IMAGES, limit=2**30)


def test_a_map_undoes_a_change_of_basis_and_refuses_other_positions():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 5, 4, 4, generator=generator)
    mix = torch.randn(7, 5, generator=generator)
    weight, bias = linear_map(x, torch.einsum("dc,nchw->ndhw", mix, x) - 3)
    torch.testing.assert_close(weight, mix, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(bias, torch.full((7,), -3.0), atol=1e-2, rtol=1e-2)
    with pytest.raises(GraphError, match="stitching: other positions"):
        linear_map(x, x[:, :, :2])


def test_a_block_of_the_network_itself_stitches_back_almost_unchanged():
    teacher = trace(net(), (1, 8, 8))
    blocks = [b for b in enumerate_blocks(teacher) if len(b.in_shape) == len(b.out_shape) == 3]
    block = max(blocks, key=lambda one: one.macs)
    module = stitched(teacher, block, teacher, block, SEEN)
    with torch.no_grad():
        expected = capture(teacher, [block.output])(IMAGES)[block.output]
        whole = induce(teacher, {block: module})(IMAGES)
        assert module(torch.zeros(2, *block.in_shape)).shape[1:] == block.out_shape
        entering = capture(teacher, [block.input])(IMAGES)[block.input]
        error = (module(entering) - expected).square().mean() / expected.square().mean()
    assert error < 0.02
    assert whole.shape == (32, 10)


def test_the_same_place_and_shape_fits_best():
    teacher = trace(net(), (1, 8, 8))
    blocks = enumerate_blocks(teacher)
    for block in blocks[:: max(1, len(blocks) // 10)]:
        best = min(blocks, key=lambda one: misfit(teacher, one, teacher, block))
        assert misfit(teacher, best, teacher, block) == 0
        assert best.in_shape == block.in_shape
        assert (best.input, best.output) == (block.input, block.output)


def test_both_ways_are_offered_and_the_seed_decides():
    teacher, other = trace(net(), (1, 8, 8)), trace(donor(), (1, 8, 8))
    blocks = {b.key: b for b in enumerate_blocks(teacher)}

    def offered(seed):
        collector = Collector(blocks)
        add_donor_blocks(
            collector,
            teacher,
            {"other": other},
            seen=SEEN,
            options=HouseOptions(donor_blocks=6, donor_recall=0.8),
            rng=np.random.default_rng(seed),
        )
        return collector.alternatives

    first = offered(0)
    assert {a.variant for a in first} == {"stitched", "whole"}
    assert first == offered(0)
    assert first != offered(1)


def test_stages_end_where_the_spatial_size_changes_and_every_run_of_them_is_offered():
    teacher, other = trace(net(), (1, 8, 8)), trace(donor(), (1, 8, 8))
    stages = stage_blocks(teacher, stem=True)
    sizes = sorted({key[1] for key in stages}, reverse=True)
    assert set(stages) == {(a, b) for a in [0, *sizes] for b in sizes if a == 0 or a > b}
    for (before, after), block in stages.items():
        assert np.prod(block.out_shape[1:]) == after
        assert (block.input == teacher.layers[0].name) == (before == 0)
        later = [b for b in enumerate_blocks(teacher) if np.prod(b.out_shape[1:]) == after]
        order = teacher.index
        assert order[block.output] == max(order[b.output] for b in later)
    collector = Collector({})
    options = HouseOptions(donor_blocks=1)
    add_donor_stages(collector, teacher, {"other": other}, seen=SEEN, options=options)
    offered = {a.block for a in collector.alternatives}
    whole = 0, sizes[-1]  # another room's
    smaller = {
        stages[key].key
        for key, source in stage_blocks(other, stem=True).items()
        if key in stages and key != whole and 2 * source.macs < stages[key].macs
    }
    assert smaller <= offered
    before = len(collector.alternatives)
    add_donor_stages(collector, teacher, {"other": other}, seen=SEEN, options=options)
    assert len(collector.alternatives) == before
