"""Blocks of the donors, brought into the teacher's shapes and channels (Bespoke, Algorithm 2).

A teacher's block S and a donor are drawn at random. Of several blocks drawn from the donor the one
that fits S best is taken: it lies at the same place of its network, and needs least cutting. Then
it is, in turn,

- fitted: channels are cut where it is wider, 1x1 adapters added where it is narrower (the paper's
  way, which keeps the donor's channels in the donor's order), or
- stitched: linear maps in front and behind translate between the two networks' channels, see
  `tailorbird.house.stitch`.

Each donor is also offered stage by stage, a stage being what lies between two changes of spatial
size, so that a student can take its stages from different networks. All of its stages at once are
a whole network, see `tailorbird.house.wholes`.

Cost: a pass of teacher and donor over the calibration images, and a least-squares problem for each
stitched candidate; where memory is short, such a pass for each candidate, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from tailorbird.errors import GraphError
from tailorbird.graph.adapt import fit_shape
from tailorbird.graph.blocks import Block, enumerate_blocks, sample_block
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.activations import Activations
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import Collector
from tailorbird.house.stitch import linear_map, stitch
from tailorbird.progress import each

DRAWS = 12
"""Blocks drawn from a donor for each candidate. The paper takes the first, and so spends most of
its distillation on blocks from the wrong depth."""

WAYS = ("stitched", "whole")


def add_donor_stages(
    collector: Collector,
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    *,
    seen: Activations,
    options: HouseOptions,
) -> None:
    """Offer runs of a donor's stages in place of the teacher's; ``seen`` fits the maps.

    Less than s (s + 1) / 2 alternatives for each donor, with s changes of spatial size: of all
    stages together only donors that answer to other classes make one, and not here.
    """
    own, largest = stage_blocks(teacher, stem=options.stem), largest_block(teacher, stem=True)
    own = {key: block for key, block in own.items() if block != largest}
    for name, donor in each(collector.progress, "sample stages of donors", sorted(donors.items())):
        for key, source in stage_blocks(donor, stem=options.stem).items():
            if key in own:
                offer_stitched(
                    collector,
                    own[key],
                    source,
                    teacher=teacher,
                    donor=donor,
                    name=name,
                    seen=seen,
                )


def offer_stitched(
    collector: Collector,
    block: Block,
    source: Block,
    *,
    teacher: LayerGraph,
    donor: LayerGraph,
    name: str,
    seen: Activations,
    variant: str = "stitched",
) -> None:
    """Offer a given block of a donor for a given block of the teacher, once."""
    if collector.known(block, name, source.key, variant):
        return
    collector.blocks.setdefault(block.key, block)
    try:
        module = stitched(donor, source, teacher, block, seen)
    except GraphError as error:
        collector.rejections[f"donor: {_reason(error)}"] += 1
        return
    collector.offer(block, module, origin=name, source=source.key, variant=variant)


def stage_blocks(graph: LayerGraph, *, stem: bool) -> dict[tuple[int, int], Block]:
    """Blocks from the image or the end of a stage to the end of a stage.

    A stage ends with the last tensor of its spatial size that a block can end with.

    Returns:
        (positions of the input, or 0 for the image; positions of the output) -> block.
    """
    order, image = graph.index, graph.layers[0].name
    blocks = [block for block in enumerate_blocks(graph, stem=stem) if len(block.out_shape) > 1]
    last: dict[int, str] = {}
    for block in sorted(blocks, key=lambda block: order[block.output]):
        last[_positions(block.out_shape)] = block.output
    ends = set(last.values())
    return {
        (0 if b.input == image else _positions(b.in_shape), _positions(b.out_shape)): b
        for b in blocks
        if b.output in ends and (b.input == image or b.input in ends)
    }


def largest_block(graph: LayerGraph, *, stem: bool) -> Block | None:
    """The block of most MACs, of several the longest, that ends in a map or in tokens."""
    blocks = [block for block in enumerate_blocks(graph, stem=stem) if len(block.out_shape) > 1]
    return max(blocks, key=lambda block: (block.macs, len(block.nodes)), default=None)


def add_donor_blocks(
    collector: Collector,
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    *,
    seen: Activations,
    options: HouseOptions,
    rng: np.random.Generator,
) -> None:
    """Offer ``options.donor_blocks`` alternatives; ``seen`` fits the linear maps."""
    names = sorted(donors)
    blocks = list(collector.blocks.values())
    for kept in collector.draws("sample donors' blocks", options.donor_blocks if names else 0):
        block = blocks[rng.integers(len(blocks))]
        name = names[rng.integers(len(names))]
        donor = donors[name]
        drawn = [sample_block(donor, rng, recall=options.donor_recall) for _ in range(DRAWS)]
        found = [source for source in drawn if source is not None]
        if not found:
            collector.rejections["donor: no block at the drawn layers"] += 1
            continue
        source = min(found, key=lambda one: misfit(donor, one, teacher, block))
        variant = WAYS[kept % len(WAYS)]
        if collector.known(block, name, source.key, variant):
            continue
        if _scale(source.in_shape, source.out_shape) != _scale(block.in_shape, block.out_shape):
            collector.rejections["donor: other change of spatial size"] += 1
            continue
        try:
            if variant == "stitched":
                module = stitched(donor, source, teacher, block, seen)
            else:
                module = _fitted(donor, source, block, rng)
        except GraphError as error:
            collector.rejections[f"donor: {_reason(error)}"] += 1
            continue
        collector.offer(block, module, origin=name, source=source.key, variant=variant)


def misfit(donor: LayerGraph, source: Block, teacher: LayerGraph, block: Block) -> float:
    """How badly a donor's block suits: 0 for equal shapes at the same place of its network.

    Octaves of channels and of spatial size to bridge, plus the distance of both ends, as shares of
    the networks' depths; infinite where the ranks of the shapes differ.
    """
    shapes = ((source.in_shape, block.in_shape), (source.out_shape, block.out_shape))
    if any(len(own) != len(wanted) for own, wanted in shapes):
        return float("inf")
    octaves = sum(
        abs(float(np.log2(mine / theirs)))
        for own, wanted in shapes
        for mine, theirs in zip(own, wanted, strict=True)
    )
    ends = zip(_place(donor, source), _place(teacher, block), strict=True)
    return octaves + 4 * sum(abs(mine - theirs) for mine, theirs in ends)


def stitched(
    donor: LayerGraph, source: Block, teacher: LayerGraph, block: Block, seen: Activations
) -> fx.GraphModule:
    """The donor's block between linear maps fitted on the images of ``seen``.

    No map is put in front where both blocks are fed the same tensor, which the image is.

    Raises:
        GraphError: when the two blocks' tensors differ in more than their channels.
    """
    own = seen.at(donor, [source.input, source.output])
    wanted = seen.at(teacher, [block.input, block.output])
    same = torch.equal(wanted[block.input], own[source.input])  # both begin at the image
    return stitch(
        extract(donor, source),
        None if same else linear_map(wanted[block.input], own[source.input]),
        linear_map(own[source.output], wanted[block.output]),
        spatial=(len(block.in_shape) == 3, len(block.out_shape) == 3),
    )


def _fitted(
    donor: LayerGraph, source: Block, block: Block, rng: np.random.Generator
) -> fx.GraphModule:
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return fit_shape(
        extract(donor, source),
        block.in_shape,
        block.out_shape,
        native_in=source.in_shape,
        generator=generator,
    )


def _place(graph: LayerGraph, block: Block) -> tuple[float, float]:
    """Where a block begins and ends, as shares of its network's depth."""
    order = graph.index
    depth = len(order) - 1
    return order[block.input] / depth, order[block.output] / depth


def _scale(in_shape: Sequence[int], out_shape: Sequence[int]) -> tuple[int, int]:
    """Rank kept and the rounded downsampling: a quick test before the exact dry run."""
    before, after = _positions(in_shape), _positions(out_shape)
    return len(in_shape) - len(out_shape), round(before / max(after, 1))


def _positions(shape: Sequence[int]) -> int:
    return int(np.prod(shape[1:])) if len(shape) == 3 else int(np.prod(shape[:-1]))


def _reason(error: GraphError) -> str:
    return str(error).split(":")[0].split(";")[0][:80]
