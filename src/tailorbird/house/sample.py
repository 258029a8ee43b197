"""Sampling the house: blocks of the teacher and, for each, modules that could replace it.

Algorithm 2 of Bespoke, as far as it concerns the teacher: its blocks, its own smaller blocks as
alternatives and, where the shapes allow, the identity. `tailorbird.house.donors` adds the donors'.
An alternative is kept if a dry run gives exactly its block's output shape at fewer MACs.

Every loop is bounded: ``TRIES`` draws for each candidate wanted, and all that is turned away is
counted by its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import fx, nn

from tailorbird.errors import GraphError, MeasurementError
from tailorbird.graph.blocks import Block, enumerate_blocks, sample_block
from tailorbird.graph.serial import structure_key
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.graph.zeros import left_out_by, zero_module
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.options import HouseOptions
from tailorbird.measure.counts import count
from tailorbird.progress import Progress, Silent

TRIES = 30


class Collector:
    """Gathers alternatives, refuses twins and those that save nothing, counts rejections.

    Args:
        blocks: of the teacher, by key.
        storable: whether a module can be stored, and thus survive a kill; ``None`` where all can.
        progress: of what is offered.
    """

    def __init__(
        self,
        blocks: Mapping[str, Block],
        storable: Callable[[fx.GraphModule], bool] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.blocks = dict(blocks)
        self._storable = storable
        self.progress = progress or Silent()
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

    def draws(self, name: str, wanted: int) -> Iterator[int]:
        """How many came of earlier draws, until ``wanted`` did or ``TRIES`` draws for each."""
        before = len(self.alternatives)
        with self.progress.task(name, wanted) as shown:
            for _ in range(TRIES * wanted):
                kept = len(self.alternatives) - before
                if kept == wanted:
                    return
                yield kept
                shown.advance(len(self.alternatives) - before - kept)

    def offer(
        self,
        block: Block,
        module: fx.GraphModule,
        *,
        origin: str,
        source: str,
        variant: str,
        as_is: bool = False,
    ) -> bool:
        """Keep ``module`` as an alternative of ``block`` if it is smaller and runs; ``as_is`` keeps
        its weights.
        """
        try:
            counts = count(module, block.in_shape)
        except MeasurementError:
            self.rejections["does not run"] += 1
            return False
        if counts.macs >= block.macs:
            self.rejections["not smaller than the teacher's block"] += 1
            return False
        if self._storable is not None and not self._storable(module):
            self.rejections["can't be stored"] += 1
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
                as_is=as_is,
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
    teacher: LayerGraph,
    options: HouseOptions,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> dict[str, Block]:
    """Distinct random blocks of the teacher, at most ``options.teacher_blocks``, by key.

    Raises:
        GraphError: when the teacher holds no block at all.
    """
    found: dict[str, Block] = {}
    with (progress or Silent()).task("sample blocks", options.teacher_blocks) as shown:
        for _ in range(TRIES * options.teacher_blocks):
            if len(found) == options.teacher_blocks:
                break
            block = sample_block(teacher, rng, recall=options.recall)
            if block is None or (not options.stem and block.input == teacher.layers[0].name):
                continue
            shown.advance(block.key not in found)
            found[block.key] = block
    if not found:
        raise GraphError(
            "the teacher holds no block that could be replaced: expected at least one part with "
            "a convolution or dense layer between one input and one output tensor before the head"
        )
    order = teacher.index
    return dict(sorted(found.items(), key=lambda item: [order[name] for name in item[1].nodes]))


def add_identities(collector: Collector, teacher: LayerGraph) -> None:
    """Offer leaving a block out wherever it keeps its input's shape.

    Where its output is added to its own input, zeros stand in for it: then the input is left as it
    is, see `tailorbird.graph.zeros`.
    """
    for block in collector.blocks.values():
        if block.in_shape != block.out_shape:
            continue
        way = left_out_by(teacher, block)
        if way == "nothing":
            collector.rejections["its input would be added to itself"] += 1
            continue
        module, variant = (zero_module(), "zero") if way == "zero" else (_identity(), "whole")
        collector.offer(block, module, origin="identity", source="identity", variant=variant)


def _identity() -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    return fx.GraphModule(nn.Module(), graph)


def add_own_blocks(
    collector: Collector, teacher: LayerGraph, *, wanted: int, rng: np.random.Generator
) -> None:
    """Offer smaller blocks of the teacher with the same shapes, those inside the block first."""
    pool: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Block]] = {}
    for candidate in enumerate_blocks(teacher):
        pool.setdefault((candidate.in_shape, candidate.out_shape), []).append(candidate)
    blocks = list(collector.blocks.values())
    for _ in collector.draws("sample the teacher's own", wanted):
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
            collector.offer(
                block,
                extract(teacher, source),
                origin="teacher",
                source=source.key,
                variant="whole",
            )
