from dataclasses import replace
from functools import cache

import torch
from torch import nn

from tailorbird.graph.masks import ChannelMask, cut_masks
from tailorbird.graph.surgery import induce
from tailorbird.graph.trace import trace
from tailorbird.house.build import sample_house

from .makers import OPTIONS, images, net


@cache
def expanded():
    """A teacher wide enough for multiples of 8 to matter, and a house of pruned variants only."""
    graph = trace(net(width=16), (1, 8, 8))
    only = {"identity": False, "depth": False, "merged": False}
    options = replace(OPTIONS, teacher_blocks=8, donor_blocks=0, pruned=24, **only)
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
