"""Activations at blocks' borders: the network's own, in as few passes as memory allows."""

import math

import pytest
import torch

from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.surgery import capture
from tailorbird.graph.trace import trace
from tailorbird.house.activations import Activations

from .makers import donor, net

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Noting:
    """Reads as the package does and notes the nodes of each pass."""

    def __init__(self):
        self.passes = []

    def __call__(self, graph, names):
        self.passes.append(list(names))
        return capture(graph, names)


def ask_for_all(seen, graphs):
    for block in enumerate_blocks(graphs[0]):
        for graph in graphs:
            here = (
                block if graph is graphs[0] else max(enumerate_blocks(graph), key=lambda b: b.macs)
            )
            names = [here.input, here.output]
            given, own = seen.at(graph, names), capture(graph, names)(IMAGES)
            assert all(torch.equal(given[name], own[name]) for name in names)


@torch.no_grad()
def test_each_network_runs_once_where_memory_allows():
    reader = Noting()
    graphs = [trace(net(), (1, 8, 8)), trace(donor(), (1, 8, 8))]
    ask_for_all(Activations(IMAGES, limit=2**30, reader=reader), graphs)
    assert len(reader.passes) == 2


@torch.no_grad()
@pytest.mark.parametrize("limit", [0, 40_000])
def test_memory_is_bounded_by_what_was_asked_for_and_the_limit(limit):
    reader = Noting()
    graph = trace(net(), (1, 8, 8))
    ask_for_all(Activations(IMAGES, limit=limit, reader=reader), [graph])
    assert len(reader.passes) > 2
    beyond = [
        sum(4 * len(IMAGES) * math.prod(graph.layer(name).shape) for name in names[2:])
        for names in reader.passes
    ]
    assert max(beyond) <= limit
    assert (max(beyond) > 0) == (limit > 0)
