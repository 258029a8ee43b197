"""Expansion: pruned variants of the teacher's blocks and of their alternatives (Bespoke).

Half of the variants rank channels by discrepancy (the CURL-style score: how much the block's own
output moves when a channel is masked; estimated for all channels and measured for those that a cut
decides on), half by magnitude (L1); of both, the lowest ranks go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block
from tailorbird.graph.channels import Group, analyse
from tailorbird.graph.importance import Scores, magnitude_scores, prune_interior
from tailorbird.graph.masks import interface_masks, masked
from tailorbird.graph.sensitivity import Sensitivity
from tailorbird.graph.structure import structure_key
from tailorbird.graph.surgery import capture, extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import Collector

RATIOS = (0.05, 0.075, 0.1, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
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
    with torch.no_grad():
        return {name: value.float() for name, value in probe(images).items()}


class _Source:
    """What variants are cut from: a block or an alternative, with the scores of its channels."""

    def __init__(self, body: fx.GraphModule, block: Block, images: Tensor, multiple: int) -> None:
        self.body, self.in_shape = body, block.in_shape
        self.structure = structure_key(body, block.in_shape)
        self.channels = analyse(body, block.in_shape)
        self._images, self._multiple = images, multiple

    @cached_property
    def _magnitude(self) -> Scores:
        return magnitude_scores(self.body, self.in_shape, channels=self.channels)

    @cached_property
    def _sensitivity(self) -> Sensitivity:
        return Sensitivity(self.body, self.in_shape, self._images, channels=self.channels)

    def pruned(self, method: str, ratio: float) -> fx.GraphModule:
        """Without the share ``ratio`` of its inner channels."""
        return prune_interior(
            self.body,
            self.in_shape,
            ratio=ratio,
            scores=self._scores(method, ratio, [g for g in self.channels.groups if g.interior]),
            multiple=self._multiple,
            channels=self.channels,
        )

    def masks(self, method: str, ratio: float) -> tuple[Tensor, Tensor]:
        """Masks for the share ``ratio`` of the channels at its ends."""
        ends = [g for g in self.channels.groups if not g.interior]
        return interface_masks(
            self.body,
            self.in_shape,
            ratio=ratio,
            scores=self._scores(method, ratio, ends),
            multiple=self._multiple,
            channels=self.channels,
        )

    def _scores(self, method: str, ratio: float, groups: Sequence[Group]) -> Scores:
        if method == "magnitude":
            return self._magnitude
        return self._sensitivity.at(ratio, groups, multiple=self._multiple)


def add_pruned(
    collector: Collector,
    teacher: LayerGraph,
    images: Tensor,
    options: HouseOptions,
    rng: np.random.Generator,
) -> None:
    """Offer ``options.pruned`` variants; ``images`` (n, C, H, W) feed the discrepancy scores.

    Channels are estimated once per source, and a bounded number is measured per variant, see
    ``tailorbird.graph.sensitivity``.
    """
    inputs = block_inputs(teacher, collector.blocks, images)
    sources: dict[tuple[str, str], _Source] = {}
    whole = [a for a in collector.alternatives if a.trainable]
    blocks = list(collector.blocks.values())
    for kept in collector.draws("sample pruned variants", options.pruned):
        pick = int(rng.integers(len(blocks) + len(whole)))
        method = METHODS[kept % 2]
        ratio = float(rng.choice(RATIOS))
        parent = None if pick < len(blocks) else whole[pick - len(blocks)]
        if parent is None:
            block, origin, source = blocks[pick], "teacher", blocks[pick].key
        else:
            block, origin, source = collector.blocks[parent.block], parent.origin, parent.source
        ends = bool(rng.random() < MASKED)
        variant = f"{method} {ratio:g}{' masked' if ends else ''}"
        if collector.known(block, origin, source, variant):
            continue
        key = (block.key, parent.name if parent is not None else "")
        try:
            if key not in sources:
                body = extract(teacher, block) if parent is None else collector.modules[parent.name]
                images_here = inputs[block.input]
                sources[key] = _Source(body, block, images_here, options.width_multiple)
            pruned = sources[key].pruned(method, ratio)
            if not ends and structure_key(pruned, block.in_shape) == sources[key].structure:
                collector.rejections["pruning: rounding leaves nothing new"] += 1
                continue
            if ends:
                masks = sources[key].masks(method, ratio / 2)
                if all(bool(mask.all()) for mask in masks):
                    collector.rejections["pruning: rounding leaves nothing to mask"] += 1
                    continue
                pruned = masked(pruned, *masks, in_shape=block.in_shape)
        except GraphError as error:
            collector.rejections[f"pruning: {str(error).split(':')[0][:80]}"] += 1
            continue
        collector.offer(block, pruned, origin=origin, source=source, variant=variant)
