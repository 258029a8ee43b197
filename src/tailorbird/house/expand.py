"""Expansion: pruned variants of the teacher's blocks and of their alternatives (Bespoke).

Half of the variants rank channels by discrepancy (the CURL-style score: how much the block's own
output moves when a channel is masked), half by magnitude (L1); of both, the lowest ranks go.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block
from tailorbird.graph.importance import (
    discrepancy_scores,
    magnitude_scores,
    prune_interior,
)
from tailorbird.graph.masks import interface_masks, masked
from tailorbird.graph.serial import structure_key
from tailorbird.graph.surgery import capture, extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import TRIES, Collector

RATIOS = (0.05, 0.075, 0.1, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
WHOLE_RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3)
METHODS = ("discrepancy", "magnitude")
MASKED = 0.25
"""Share of the variants whose ends are masked too, by half the ratio. Masks stay while a student
is retrained, as its activations are compared to the teacher's at full width, and are cut then."""


def block_inputs(
    teacher: LayerGraph, blocks: Mapping[str, Block], images: Tensor
) -> dict[str, Tensor]:
    """The teacher's activations at the inputs of ``blocks`` for ``images`` (n, C, H, W)."""
    names = sorted({block.input for block in blocks.values()})
    probe = capture(teacher, names)
    with torch.inference_mode():
        return {name: value.float() for name, value in probe(images).items()}


def add_pruned(
    collector: Collector,
    teacher: LayerGraph,
    images: Tensor,
    options: HouseOptions,
    rng: np.random.Generator,
) -> None:
    """Offer ``options.pruned`` variants; ``images`` (n, C, H, W) feed the discrepancy scores.

    Scores are computed once per source, so the cost grows with distinct sources, not variants.
    """
    inputs = block_inputs(teacher, collector.blocks, images)
    scores: dict[tuple[str, str, str, str], Mapping[int, Tensor]] = {}
    whole = [a for a in collector.alternatives if a.trainable]
    blocks = list(collector.blocks.values())
    kept = 0
    for _ in range(TRIES * options.pruned):
        if kept == options.pruned:
            return
        pick = int(rng.integers(len(blocks) + len(whole)))
        method = METHODS[kept % 2]
        ratio = float(rng.choice(RATIOS))
        if pick < len(blocks):
            block, origin, source = blocks[pick], "teacher", blocks[pick].key
            body = extract(teacher, block)
        else:
            parent = whole[pick - len(blocks)]
            block, origin, source = collector.blocks[parent.block], parent.origin, parent.source
            body = collector.modules[parent.name]
        ends = bool(rng.random() < MASKED)
        variant = f"{method} {ratio:g}{' masked' if ends else ''}"
        if collector.known(block, origin, source, variant):
            continue
        cache = (block.key, origin, source, method)
        if cache not in scores:
            scores[cache] = _scores(body, block, method, inputs[block.input])
        try:
            pruned = prune_interior(
                body,
                block.in_shape,
                ratio=ratio,
                scores=scores[cache],
                multiple=options.width_multiple,
            )
            if ends:
                masks = interface_masks(
                    body,
                    block.in_shape,
                    ratio=ratio / 2,
                    scores=scores[cache],
                    multiple=options.width_multiple,
                )
                if all(mask is None or bool(mask.all()) for mask in masks):
                    collector.rejections["pruning: rounding leaves nothing to mask"] += 1
                    continue
                pruned = masked(pruned, *masks, in_shape=block.in_shape)
        except GraphError as error:
            collector.rejections[f"pruning: {str(error).split(':')[0][:80]}"] += 1
            continue
        kept += collector.offer(block, pruned, origin=origin, source=source, variant=variant)


def add_pruned_wholes(
    collector: Collector,
    teacher: LayerGraph,
    block: Block,
    *,
    multiple: int,
) -> None:
    """Offer the teacher and the whole donors in place of ``block``, pruned by magnitude.

    A donor just over a limit is often better narrowed a little than passed over for the next
    smaller one. ``WHOLE_RATIOS`` variants of each.
    """
    wholes = [
        (a.origin, a.source, collector.modules[a.name])
        for a in collector.alternatives
        if a.block == block.key and a.variant == "stitched"
    ]
    for origin, source, body in [("teacher", block.key, extract(teacher, block)), *wholes]:
        scores = magnitude_scores(body, block.in_shape)
        offered = {structure_key(body, block.in_shape)}
        for ratio in WHOLE_RATIOS:
            variant = f"magnitude {ratio:g}"
            if collector.known(block, origin, source, variant):
                continue
            try:
                pruned = prune_interior(
                    body, block.in_shape, ratio=ratio, scores=scores, multiple=multiple
                )
            except GraphError as error:
                collector.rejections[f"pruning: {str(error).split(':')[0][:80]}"] += 1
                continue
            structure = structure_key(pruned, block.in_shape)
            if structure in offered:
                collector.rejections["pruning: rounding leaves nothing new"] += 1
                continue
            offered.add(structure)
            collector.offer(block, pruned, origin=origin, source=source, variant=variant)


def _scores(
    body: fx.GraphModule, block: Block, method: str, inputs: Tensor
) -> Mapping[int, Tensor]:
    if method == "magnitude":
        return magnitude_scores(body, block.in_shape)
    return discrepancy_scores(body, block.in_shape, [inputs])
