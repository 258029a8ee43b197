"""Whole networks as alternatives of the whole teacher: nothing of them is distilled.

One block covers the teacher from the image to its output. Its alternatives are trained networks
with heads of their own:

- every donor that answers to the teacher's classes (equal shapes of outputs), as it is,
- the teacher and these donors, narrowed a little by the size of their weights: a network just over
  a limit is often better narrowed than passed over for the next smaller one,
- and with fewer parts, from one less to a quarter of the depth, see
  `tailorbird.house.depth.shallower`.

They keep their weights: to score one costs a forward pass over the validation images, where
distilling them used to take about half of a house's work. If one is chosen it is trained further
as every student is, after labels and the teacher's answers.

A donor that answers to other classes has no use for its head. It is offered once, without it, in
place of all of the teacher but its head, behind a linear map that is fitted by least squares. What
follows that map was trained for other tensors, so this one is distilled, as other stitched blocks
are; it is not narrowed besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from torch import fx

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block, whole_network
from tailorbird.graph.importance import magnitude_scores, prune_interior
from tailorbird.graph.structure import structure_key
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.activations import Activations
from tailorbird.house.depth import shallower
from tailorbird.house.donors import largest_block, offer_stitched
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import Collector
from tailorbird.progress import each

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Shares of the inner channels that whole networks are narrowed by."""


def add_wholes(
    collector: Collector,
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    *,
    seen: Activations,
    options: HouseOptions,
) -> None:
    """Offer donors as they are, and them and the teacher narrowed, in place of the whole teacher.

    Nothing is offered where blocks may not begin at the image (``options.stem``), no donors where
    none are wanted (``options.donor_blocks``), and none narrowed without ``options.pruned``.

    Args:
        collector: takes what is offered.
        teacher: the traced teacher.
        donors: name -> traced donor.
        seen: fits the maps of donors that answer to other classes.
        options: sizes of the house.
    """
    if not options.stem:
        return
    taken = donors if options.donor_blocks else {}
    block = whole_network(teacher)
    networks = {"teacher": teacher}
    networks |= {n: d for n, d in sorted(taken.items()) if same_outputs(teacher, d)}
    for name, graph in each(collector.progress, "sample whole networks", networks.items()):
        _offer_network(collector, block, name, graph, options)
    for name, graph in sorted(taken.items()):
        if name not in networks:
            _offer_trunk(collector, teacher, name, graph, seen)


def same_outputs(teacher: LayerGraph, donor: LayerGraph) -> bool:
    """Whether a donor answers to the teacher's classes, as far as shapes tell."""
    return donor.layer(donor.output).shape == teacher.layer(teacher.output).shape


def _offer_network(
    collector: Collector, block: Block, name: str, graph: LayerGraph, options: HouseOptions
) -> None:
    """Offer a network as it is, unless it is the teacher, and what is made from it."""
    own = whole_network(graph)
    body = extract(graph, own)
    offered = {structure_key(body, own.in_shape)}
    found = [("whole", body)] if name != "teacher" else []
    for variant, module in chain(found, _made_from(collector, graph, body, options)):
        structure = structure_key(module, own.in_shape)
        if module is not body and structure in offered:
            collector.rejections["whole network: nothing new"] += 1
            continue
        offered.add(structure)
        if collector.offer(block, module, origin=name, source=own.key, variant=variant, as_is=True):
            collector.blocks.setdefault(block.key, block)


def _made_from(
    collector: Collector, graph: LayerGraph, body: fx.GraphModule, options: HouseOptions
) -> Iterator[tuple[str, fx.GraphModule]]:
    """What is made from one network without training it: (variant, module)."""
    if options.pruned:
        yield from _narrowed(collector, body, graph.input_shape, multiple=options.width_multiple)
    if options.depth:
        for variant, thin in shallower(graph):
            yield variant, extract(thin, whole_network(thin))


def _narrowed(
    collector: Collector, body: fx.GraphModule, in_shape: Sequence[int], *, multiple: int
) -> Iterator[tuple[str, fx.GraphModule]]:
    scores = magnitude_scores(body, in_shape)
    for ratio in RATIOS:
        try:
            module = prune_interior(body, in_shape, ratio=ratio, scores=scores, multiple=multiple)
        except GraphError as error:
            collector.rejections[f"pruning: {str(error).split(':')[0][:80]}"] += 1
            continue
        yield f"magnitude {ratio:g}", module


def _offer_trunk(
    collector: Collector, teacher: LayerGraph, name: str, donor: LayerGraph, seen: Activations
) -> None:
    """Offer a donor's largest block in place of the teacher's: both all but the head."""
    block, source = largest_block(teacher, stem=True), largest_block(donor, stem=True)
    if block is not None and source is not None:
        offer_stitched(collector, block, source, teacher=teacher, donor=donor, name=name, seen=seen)
