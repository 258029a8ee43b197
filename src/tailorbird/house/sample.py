"""Sampling the house: blocks of the teacher and, for each, modules that could replace it.

Algorithm 2 of Bespoke. A teacher's block S and a donor's block P' are drawn at random; P' is
fitted to S's shapes by cutting channels where it is wider and by 1x1 adapters where it is narrower,
and is kept if a dry run gives exactly S's output shape at fewer MACs. The teacher's own smaller
blocks and, where the shapes allow, the identity join them.

Every loop is bounded: ``TRIES`` draws for each candidate wanted, and all that is turned away is
counted by its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx, nn

from tailorbird.errors import GraphError, MeasurementError
from tailorbird.graph.adapt import fit_shape
from tailorbird.graph.blocks import Block, enumerate_blocks, sample_block
from tailorbird.graph.serial import structure_key
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.options import HouseOptions
from tailorbird.measure.counts import count

TRIES = 30
DRAWS = 6
"""Blocks drawn from a donor for each candidate; the one that needs least cutting is taken. The
paper takes the first, and so spends most of its distillation on blocks from the wrong depth."""


class Collector:
    """Gathers alternatives, refuses twins and those that save nothing, counts rejections."""

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self.blocks = dict(blocks)
        self.alternatives: list[Alternative] = []
        self.modules: dict[str, fx.GraphModule] = {}
        self.rejections: Counter[str] = Counter()
        self._seen: set[tuple[str, str, str, str]] = set()

    def known(self, block: Block, origin: str, source: str, variant: str = "whole") -> bool:
        """Whether this candidate was offered before; it is counted as a duplicate if so."""
        key = (block.key, origin, source, variant)
        if key in self._seen:
            self.rejections["drawn before"] += 1
            return True
        self._seen.add(key)
        return False

    def offer(
        self, block: Block, module: fx.GraphModule, *, origin: str, source: str, variant: str
    ) -> bool:
        """Keep ``module`` as an alternative of ``block`` if it is smaller and runs."""
        try:
            counts = count(module, block.in_shape)
        except MeasurementError:
            self.rejections["does not run"] += 1
            return False
        if counts.macs >= block.macs:
            self.rejections["not smaller than the teacher's block"] += 1
            return False
        structure = structure_key(module, block.in_shape)
        name = f"a{len(self.alternatives):04d}"
        self.alternatives.append(
            Alternative(
                name=name,
                block=block.key,
                origin=origin,
                source=source,
                variant=variant,
                macs=counts.macs,
                params=counts.params,
                structure=structure,
            )
        )
        self.modules[name] = module
        return True

    def sample(self) -> Sample:
        """All that was gathered."""
        return Sample(
            blocks=self.blocks,
            alternatives=tuple(self.alternatives),
            modules=self.modules,
            rejections=self.rejections,
        )


def teacher_blocks(
    teacher: LayerGraph, options: HouseOptions, rng: np.random.Generator
) -> dict[str, Block]:
    """Distinct random blocks of the teacher, at most ``options.teacher_blocks``, by key.

    Raises:
        GraphError: when the teacher holds no block at all.
    """
    found: dict[str, Block] = {}
    for _ in range(TRIES * options.teacher_blocks):
        if len(found) == options.teacher_blocks:
            break
        block = sample_block(teacher, rng, recall=options.recall)
        if block is None or (not options.stem and block.input == teacher.layers[0].name):
            continue
        found[block.key] = block
    if not found:
        raise GraphError(
            "the teacher holds no block that could be replaced: expected at least one part with "
            "a convolution or dense layer between one input and one output tensor before the head"
        )
    order = teacher.index
    return dict(sorted(found.items(), key=lambda item: [order[name] for name in item[1].nodes]))


def add_identities(collector: Collector) -> None:
    """Offer leaving a block out wherever it keeps its input's shape."""
    for block in collector.blocks.values():
        if block.in_shape == block.out_shape:
            graph = fx.Graph()
            graph.output(graph.placeholder("x"))
            module = fx.GraphModule(nn.Module(), graph)
            collector.offer(block, module, origin="identity", source="identity", variant="whole")


def add_own_blocks(
    collector: Collector, teacher: LayerGraph, *, wanted: int, rng: np.random.Generator
) -> None:
    """Offer smaller blocks of the teacher with the same shapes, those inside the block first."""
    pool: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Block]] = {}
    for candidate in enumerate_blocks(teacher):
        pool.setdefault((candidate.in_shape, candidate.out_shape), []).append(candidate)
    blocks = list(collector.blocks.values())
    kept = 0
    for _ in range(TRIES * wanted):
        if kept == wanted:
            return
        block = blocks[rng.integers(len(blocks))]
        smaller = [
            candidate
            for candidate in pool.get((block.in_shape, block.out_shape), [])
            if candidate.macs < block.macs
        ]
        inside = [candidate for candidate in smaller if set(candidate.nodes) < set(block.nodes)]
        choice = inside or smaller
        if not choice:
            collector.rejections["teacher has no smaller block of these shapes"] += 1
            continue
        source = choice[rng.integers(len(choice))]
        if not collector.known(block, "teacher", source.key):
            kept += collector.offer(
                block,
                extract(teacher, source),
                origin="teacher",
                source=source.key,
                variant="whole",
            )


def add_donor_blocks(
    collector: Collector,
    donors: Mapping[str, LayerGraph],
    options: HouseOptions,
    rng: np.random.Generator,
) -> None:
    """Offer blocks of the donors, fitted to the shapes of a random block of the teacher."""
    names = sorted(donors)
    blocks = list(collector.blocks.values())
    kept = 0
    for _ in range(TRIES * options.donor_blocks if names else 0):
        if kept == options.donor_blocks:
            return
        block = blocks[rng.integers(len(blocks))]
        name = names[rng.integers(len(names))]
        drawn = [sample_block(donors[name], rng, recall=options.donor_recall) for _ in range(DRAWS)]
        found = [source for source in drawn if source is not None]
        if not found:
            collector.rejections["donor: no block at the drawn layers"] += 1
            continue
        source = min(found, key=lambda candidate: _misfit(candidate, block))
        if not collector.known(block, name, source.key):
            kept += _offer_fitted(collector, block, source, donor=donors[name], name=name, rng=rng)


def _misfit(source: Block, block: Block) -> float:
    """How much of a donor's block has to be cut or adapted: 0 for equal shapes."""
    ends = ((source.in_shape, block.in_shape), (source.out_shape, block.out_shape))
    return sum(
        abs(float(np.log2(mine / theirs))) if len(own) == len(wanted) else float("inf")
        for own, wanted in ends
        for mine, theirs in zip(own, wanted, strict=False)
    )


def _offer_fitted(
    collector: Collector,
    block: Block,
    source: Block,
    *,
    donor: LayerGraph,
    name: str,
    rng: np.random.Generator,
) -> bool:
    if _scale(source.in_shape, source.out_shape) != _scale(block.in_shape, block.out_shape):
        collector.rejections["donor: other change of spatial size"] += 1
        return False
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    try:
        module = fit_shape(
            extract(donor, source),
            block.in_shape,
            block.out_shape,
            native_in=source.in_shape,
            generator=generator,
        )
    except GraphError as error:
        collector.rejections[f"donor: {_reason(error)}"] += 1
        return False
    return collector.offer(block, module, origin=name, source=source.key, variant="whole")


def _scale(in_shape: Sequence[int], out_shape: Sequence[int]) -> tuple[int, int]:
    """Rank kept and the rounded downsampling: a quick test before the exact dry run."""
    before, after = _positions(in_shape), _positions(out_shape)
    return len(in_shape) - len(out_shape), round(before / max(after, 1))


def _positions(shape: Sequence[int]) -> int:
    return int(np.prod(shape[1:])) if len(shape) == 3 else int(np.prod(shape[:-1]))


def _reason(error: GraphError) -> str:
    return str(error).split(":")[0].split(";")[0][:80]
