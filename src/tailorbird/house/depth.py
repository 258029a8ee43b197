"""Alternatives with fewer branches: depth is what costs time, and trained branches can be spared.

Of the teacher, as it is trained and therefore not distilled:

- each residual branch left out (of a chain without branches each layer that keeps its shape), up to
  ``MOST_PARTS`` of them, spread over the network;
- each run of such parts, such as a stage, with fewer of them: every smaller number up to ``SIZES``
  numbers, once spread evenly and once without the last ones. That is less than 2 n for a run of n,
  and never more than ``2 * SIZES``.

Runs lie in stages and parts in runs, so a search combines what it takes from each stage, and may
leave out single parts of a run where no number of them is right.

Of each donor, each stage with half of its parts is stitched in place of the teacher's, and
distilled like other stitched blocks. Whole networks with fewer parts are made by `shallower`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import TypeVar

from tailorbird.graph.blocks import Block
from tailorbird.graph.depth import Part, Run, left_out, parts, runs, without
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.activations import Activations
from tailorbird.house.donors import largest_block, offer_stitched, stage_blocks
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import Collector
from tailorbird.progress import each

SIZES = 12
"""Numbers of kept parts that are offered of one run at most."""

MOST_PARTS = 64
"""Single parts of one network that are offered to be left out at most."""

SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4)
"""Shares of its depth that a whole network is offered with, beside one and two steps less."""

_Item = TypeVar("_Item")


def add_depth(
    collector: Collector,
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    *,
    seen: Activations,
    options: HouseOptions,
) -> None:
    """Offer the teacher and the donors with fewer branches, stage by stage.

    Args:
        collector: takes what is offered, and the blocks that it stands for.
        teacher: the traced teacher.
        donors: name -> traced donor.
        seen: fits the linear maps around donors' stages.
        options: ``stem`` and ``donor_blocks`` count here as they do elsewhere.
    """
    add_left_out(collector, teacher, options=options)
    add_thinned(collector, teacher, options=options)
    if options.donor_blocks:
        _add_donor_stages(collector, teacher, donors, seen=seen, options=options)


def add_left_out(collector: Collector, teacher: LayerGraph, *, options: HouseOptions) -> None:
    """Offer leaving out each part of the teacher alone."""
    image = teacher.layers[0].name
    found = [part for part in parts(teacher) if options.stem or part.block.input != image]
    for part in each(collector.progress, "sample left out parts", _some(found, MOST_PARTS)):
        _offer(collector, teacher, part.block, (part,), "left out")


def add_thinned(collector: Collector, teacher: LayerGraph, *, options: HouseOptions) -> None:
    """Offer each run of the teacher's parts with fewer of them."""
    image = teacher.layers[0].name
    for run in each(collector.progress, "sample fewer parts", runs(teacher)):
        if not options.stem and run.block.input == image:
            continue
        for variant, kept in thinned(run):
            _offer(collector, teacher, run.block, run.without(kept), variant)


def thinned(run: Run) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The ways to keep fewer steps of a run.

    One step less is left to the parts alone, where a step is one part.

    Yields:
        how many of how many and which, and the positions of those that are kept.

    Example:
        >>> from tailorbird.demo import digits_net
        >>> from tailorbird.graph.trace import trace
        >>> first, second, _ = runs(trace(digits_net(width=8, depth=4), (1, 8, 8)))
        >>> list(thinned(first))
        [('1 of 4', (0,)), ('2 of 4, spread', (0, 2)), ('2 of 4, first', (0, 1))]
        >>> list(thinned(second))
        [('0 of 3', ()), ('1 of 3, spread', (1,)), ('1 of 3, first', (0,))]
    """
    count = len(run.steps)
    most = count - 1 if len(run.steps[0]) > 1 else count - 2
    for size in _some(list(range(0 if run.opened else 1, most + 1)), SIZES):
        spread, first = run.spread(size), tuple(range(size))
        name = f"{size} of {count}"
        if spread == first:
            yield name, first
        else:
            yield f"{name}, spread", spread
            yield f"{name}, first", first


def shallower(graph: LayerGraph) -> Iterator[tuple[str, LayerGraph]]:
    """The network with fewer parts: one step less, two, and with `SHARES` of its depth.

    Every stage keeps its first step, and as much of the rest as its length asks for; of equal
    stages the first ones lose first.

    Yields:
        how many parts of how many are left out, and the network; from deep to shallow.

    Example:
        >>> from tailorbird.demo import digits_net
        >>> from tailorbird.graph.trace import trace
        >>> graph = trace(digits_net(width=8, depth=4), (1, 8, 8))
        >>> for variant, thin in shallower(graph):
        ...     print(variant, 100 * thin.macs // graph.macs)
        1 of 10 parts left out 91
        2 of 10 parts left out 82
        3 of 10 parts left out 74
        4 of 10 parts left out 65
        6 of 10 parts left out 48
        8 of 10 parts left out 31
        9 of 10 parts left out 22
    """
    found = runs(graph)
    lengths = [len(run.steps) + run.opened for run in found]
    depth = sum(lengths)
    wanted = {depth - 1, depth - 2, *(round(share * depth) for share in SHARES)}
    whole = sum(len(run.without(())) for run in found)
    for kept in sorted(wanted, reverse=True):
        if found and len(found) <= kept < depth:
            gone = _thinned_to(found, _portions(lengths, kept))
            yield f"{len(gone)} of {whole} parts left out", without(graph, gone)


def _portions(lengths: Sequence[int], total: int) -> list[int]:
    """``total`` over stages by their lengths, one each at least (Sainte-Lague's method)."""
    counts = [1] * len(lengths)
    for _ in range(total - len(lengths)):
        needs = [(count + 0.5) / length for count, length in zip(counts, lengths, strict=True)]
        counts[max(i for i, need in enumerate(needs) if need == min(needs))] += 1
    return counts


def _thinned_to(found: Sequence[Run], counts: Sequence[int]) -> tuple[Part, ...]:
    """What is left out where runs, with the blocks that open them, keep so many steps."""
    return tuple(
        part
        for run, count in zip(found, counts, strict=True)
        for part in run.without(run.spread(count - run.opened))
    )


def _offer(
    collector: Collector, teacher: LayerGraph, block: Block, gone: tuple[Part, ...], variant: str
) -> None:
    """Offer the teacher's own block without some of its parts, as it is."""
    if collector.known(block, "teacher", block.key, variant):
        return
    collector.blocks.setdefault(block.key, block)
    module = extract(teacher, block, left_out(teacher, gone))
    taken = {a.block for a in collector.alternatives if a.origin == "identity"}
    if block.key in taken and not any(node.op.startswith("call") for node in module.graph.nodes):
        collector.rejections["drawn before"] += 1
        return
    collector.offer(block, module, origin="teacher", source=block.key, variant=variant, as_is=True)


def _add_donor_stages(
    collector: Collector,
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    *,
    seen: Activations,
    options: HouseOptions,
) -> None:
    """Offer single stages of donors with fewer parts; at most one for each stage of each donor."""
    own = _single_stages(teacher, stem=options.stem)
    for name, donor in each(collector.progress, "sample thinner stages", sorted(donors.items())):
        gone = _halved(runs(donor)) if own else ()
        if not gone:
            continue
        thin, whole = without(donor, gone), _single_stages(donor, stem=options.stem)
        for key, source in _single_stages(thin, stem=options.stem).items():
            if key in own and key in whole and source.macs < whole[key].macs:
                offer_stitched(
                    collector,
                    own[key],
                    source,
                    teacher=teacher,
                    donor=thin,
                    name=name,
                    seen=seen,
                    variant="stitched, 1/2 of its depth",
                )
        seen.forget(thin)


def _halved(found: Sequence[Run]) -> tuple[Part, ...]:
    """What is left out where each run keeps half of its depth."""
    return _thinned_to(found, [max(1, round((len(run.steps) + run.opened) / 2)) for run in found])


def _single_stages(graph: LayerGraph, *, stem: bool) -> dict[tuple[int, int], Block]:
    """The blocks of `stage_blocks` that are one stage, and not all but the head of a network."""
    stages, whole = stage_blocks(graph, stem=stem), largest_block(graph, stem=True)
    ends = {after for _, after in stages}
    return {
        (before, after): block
        for (before, after), block in stages.items()
        if block != whole and not any(after < end < (before or inf) for end in ends)
    }


def _some(found: Sequence[_Item], most: int) -> list[_Item]:
    """All of them, or as many as are wanted, spread evenly from the first to the last."""
    if len(found) <= most:
        return list(found)
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]
