"""Sampling the house: blocks of the teacher and, for each, modules that could replace it.

Algorithm 2 of Bespoke, as far as it concerns the teacher: its blocks, its own smaller blocks as
alternatives and, where the shapes allow, the identity. `tailorbird.house.donors` adds the donors'.
An alternative is kept if a dry run gives exactly its block's output shape at fewer MACs; where it
will be timed, at up to `HEAVIEST` times as many, see `tailorbird.house.faster`.

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
from tailorbird.graph.structure import structure_key
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.graph.zeros import left_out_by, zero_module
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.options import HouseOptions
from tailorbird.measure.counts import count
from tailorbird.progress import Progress, Silent

TRIES = 30

HEAVIEST = 4.0
"""A candidate's MACs at most, as a multiple of its block's, where its latency is to decide."""

HEAVIER = "not smaller than the teacher's block"

Rule = Callable[[int, int], str | None]
"""(a candidate's MACs, its block's) -> why it is turned away; ``None`` where it isn't."""


def fewer_macs(macs: int, block_macs: int) -> str | None:
    """A candidate is smaller than its block if it has fewer MACs."""
    return None if macs < block_macs else HEAVIER


def to_be_timed(macs: int, block_macs: int) -> str | None:
    """What is smaller is decided later, by latency; what is much heavier is not even timed."""
    if macs <= HEAVIEST * block_macs:
        return None
    return f"more than {HEAVIEST:g} times the MACs of the teacher's block"


class Collector:
    """Gathers alternatives, refuses twins and those that save nothing, counts rejections.

    Args:
        blocks: of the teacher, by key.
        storable: whether a module can be stored, and thus survive a kill; ``None`` where all can.
        progress: of what is offered.
        rule: which candidates are too heavy for their block.
    """

    def __init__(
        self,
        blocks: Mapping[str, Block],
        storable: Callable[[fx.GraphModule], bool] | None = None,
        progress: Progress | None = None,
        rule: Rule = fewer_macs,
    ) -> None:
        self.blocks = dict(blocks)
        self._storable, self._rule = storable, rule
        self.progress = progress or Silent()
        self.alternatives: list[Alternative] = []
        self.modules: dict[str, fx.GraphModule] = {}
        self.rejections: Counter[str] = Counter()
        self._seen: set[tuple[str, str, str, str]] = set()
        self._light = 0
        self._heavy_left: int | None = None  # in draws

    def known(self, block: Block, origin: str, source: str, variant: str = "whole") -> bool:
        """Whether this candidate was offered before; it is counted as a duplicate if so."""
        key = (block.key, origin, source, variant)
        if key in self._seen:
            self.rejections["drawn before"] += 1
            return True
        self._seen.add(key)
        return False

    def draws(self, name: str, wanted: int) -> Iterator[int]:
        """How many came of earlier draws, until ``wanted`` did or ``TRIES`` draws for each.

        Those that are no lighter than their block come on top, as many again at most: few of them
        turn out to be faster, and each costs an export and its runs on every device.
        """
        light = self._light
        self._heavy_left = wanted
        with self.progress.task(name, wanted) as shown:
            for _ in range(TRIES * wanted):
                kept = self._light - light
                if kept == wanted:
                    break
                yield kept
                shown.advance(self._light - light - kept)
        self._heavy_left = None

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
        """Keep ``module`` as an alternative of ``block`` if it runs and isn't too heavy.

        Args:
            block: of the teacher.
            module: maps its input's shape to its output's.
            origin: as in `Alternative`, like ``source`` and ``variant``.
            as_is: it keeps its weights.

        Returns:
            Whether it is kept; why not is counted.
        """
        try:
            counts = count(module, block.in_shape)
        except MeasurementError:
            self.rejections["does not run"] += 1
            return False
        heavy = counts.macs >= block.macs
        if reason := self._rule(counts.macs, block.macs):
            self.rejections[reason] += 1
            return False
        if heavy and self._heavy_left == 0:
            self.rejections["no lighter than the teacher's block, more than are timed"] += 1
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
        self._light += not heavy
        if heavy and self._heavy_left is not None:
            self._heavy_left -= 1
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
