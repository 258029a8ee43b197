from dataclasses import replace
from functools import cache

import torch
from torch import nn

from tailorbird.graph.masks import ChannelMask, cut_masks
from tailorbird.graph.surgery import induce
from tailorbird.graph.trace import trace
from tailorbird.house.activations import Activations
from tailorbird.house.build import sample_house
from tailorbird.house.donors import add_whole_donors, largest_block
from tailorbird.house.expand import add_pruned_wholes
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import Collector

from .makers import OPTIONS, donor, images, net


@cache
def expanded():
    """A teacher wide enough for multiples of 8 to matter, and a house of pruned variants only."""
    graph = trace(net(width=16), (1, 8, 8))
    options = replace(OPTIONS, teacher_blocks=8, donor_blocks=0, pruned=24, identity=False)
    options = replace(options, merged=False)
    return graph, sample_house(graph, {}, images(), options, seed=0)


def pruned():
    graph, sample = expanded()
    return graph, sample, [a for a in sample.alternatives if a.variant != "whole"]


def widths(module):
    return [m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_variants_are_smaller_than_what_they_came_from():
    _, sample, variants = pruned()
    assert len(variants) >= 8
    assert {v.variant.split()[0] for v in variants} == {"discrepancy", "magnitude"}
    for variant in variants:
        assert variant.macs < sample.blocks[variant.block].macs


def test_widths_are_multiples_of_eight_and_ends_stay_whole():
    _, sample, variants = pruned()
    narrower = 0
    for variant in variants:
        block, module = sample.blocks[variant.block], sample.modules[variant.name]
        assert all(width % 8 == 0 for width in widths(module)), variant
        assert module(torch.zeros(2, *block.in_shape)).shape[1:] == block.out_shape
        narrower += "masked" not in variant.variant
    assert narrower


def test_masked_variants_keep_the_interface_and_can_be_cut():
    graph, sample, variants = pruned()
    masked = [v for v in variants if v.variant.endswith("masked")]
    assert masked
    x = next(iter(images().validation.batches(16)))[0]
    hidden = 0
    for variant in masked:
        block, module = sample.blocks[variant.block], sample.modules[variant.name]
        masks = [m for m in module.modules() if isinstance(m, ChannelMask)]
        hidden += any(bool((mask.mask == 0).any()) for mask in masks)
        assert module(torch.zeros(2, *block.in_shape)).shape[1:] == block.out_shape
        student = induce(graph, {block: module})
        cut = cut_masks(student, (1, 8, 8))
        assert not any(isinstance(m, ChannelMask) for m in cut.modules())
        with torch.no_grad():
            torch.testing.assert_close(cut(x), student(x), atol=1e-4, rtol=1e-4)
    assert hidden


def test_whole_donors_and_the_teacher_are_offered_narrower_and_narrower():
    teacher, other = trace(net(), (1, 8, 8)), trace(donor(), (1, 8, 8))
    inputs = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    collector = Collector({})
    add_whole_donors(
        collector,
        teacher,
        {"other": other},
        seen=Activations(inputs, limit=0),
        options=HouseOptions(donor_blocks=1),
    )
    block = largest_block(teacher, stem=True)
    add_pruned_wholes(collector, teacher, block, multiple=2)
    for origin in ("teacher", "other"):
        sizes = [
            a.macs for a in collector.alternatives if a.origin == origin and "mag" in a.variant
        ]
        assert sizes
        assert sizes == sorted(set(sizes), reverse=True)
    assert len({a.structure for a in collector.alternatives}) == len(collector.alternatives)
    assert {a.block for a in collector.alternatives} == {block.key}
