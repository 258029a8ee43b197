"""Single-input single-output blocks of a layer graph (Bespoke, Algorithm 1, made right).

The printed algorithm takes a node as a block's output when it is alone on the stack. With
``a -> b -> c`` and ``a -> add`` that accepts {a, b} although ``a`` also feeds the pending ``add``.
Here a block's output is looked for where it must be: every path from the first node to the
network's output passes it, so it lies on the first node's chain of post-dominators. Walking up that
chain, the set grows by what the next output needs; each node and edge is met once per start. The
set is a block where no edge leaves it but from its output, and the walk ends where the set would
need a tensor besides the block's input, or a node before the first one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np

from tailorbird.errors import GraphError
from tailorbird.graph.kinds import BOUNDARIES, CONSTANT, HEAVY, SIZE
from tailorbird.graph.trace import LayerGraph, own_parameters

ENDS = BOUNDARIES | {"conv", "linear"}


@dataclass(frozen=True)
class Block:
    """A part of a network with one tensor in and one tensor out.

    Constants and sizes are not listed: a copy goes with every block that reads them.

    Args:
        input: name of the node whose output feeds the block; it is not part of the block.
        nodes: names of the block's nodes in topological order.
        output: the last of them.
        in_shape: of the input without the batch dimension.
        out_shape: of the output without the batch dimension.
        macs: multiply-accumulate operations for one image.
        params: parameters read, each counted once.
    """

    input: str
    nodes: tuple[str, ...]
    output: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    macs: int
    params: int

    @property
    def key(self) -> str:
        """``"first..output"``: unique within one graph."""
        return f"{self.nodes[0]}..{self.output}"

    def overlaps(self, other: Block) -> bool:
        """Whether the two share a node; touching is not overlapping."""
        return not set(self.nodes).isdisjoint(other.nodes)


class _Flow(NamedTuple):
    """The nodes that carry image data, numbered in topological order; the image is 0."""

    names: list[str]
    number: dict[str, int]
    inputs: list[list[int]]
    users: list[list[int]]  # the end of the network is a user, numbered len(names)
    next_output: list[int]  # immediate post-dominator
    macs: list[int]
    params: list[dict[int, int]]  # id of parameter -> size
    heavy: list[bool]
    heads: frozenset[int]


def blocks_from(graph: LayerGraph, start: str) -> list[Block]:
    """All blocks whose first node is ``start``, smallest first.

    The time is linear in the size of what is walked over, besides writing the blocks out. No rule
    of taste applies here: blocks without weights and blocks with the classifier head are listed.

    Raises:
        GraphError: there is no such node.

    Example:
        >>> from torch import nn
        >>> from tailorbird.graph.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
        >>> [block.nodes for block in blocks_from(trace(net, (3, 4, 4)), "_1")]
        [('_1',), ('_1', '_2'), ('_1', '_2', '_3')]
    """
    graph.layer(start)
    flow = _flow(graph)
    return (
        [block for block, _ in _walk(graph, flow, flow.number[start])]
        if (start in flow.number)
        else []
    )


def block_between(graph: LayerGraph, start: str, output: str) -> Block | None:
    """The block from the node ``start`` to the node ``output``, or ``None`` where that is none.

    Raises:
        GraphError: there is no node ``start``.
    """
    graph.layer(start)
    flow = _flow(graph)
    blocks = _walk(graph, flow, flow.number[start]) if start in flow.number else iter(())
    return next((block for block, _ in blocks if block.output == output), None)


def heads(graph: LayerGraph) -> frozenset[str]:
    """The layers that make the logits: the last with weights on each path to the output."""
    flow = _flow(graph)
    return frozenset(flow.names[v] for v in flow.heads)


def enumerate_blocks(
    graph: LayerGraph,
    *,
    stem: bool = True,
    starts: Collection[str] = BOUNDARIES,
    ends: Collection[str] = ENDS,
    max_share: float = 1.0,
) -> list[Block]:
    """All blocks worth replacing, in order of their first node, smallest first.

    Each holds a convolution, linear or attention layer and never the classifier head.

    Args:
        graph: the traced network.
        stem: list blocks fed by the image.
        starts: kinds of layer whose output may feed a block.
        ends: kinds of layer that may be a block's output.
        max_share: leave out blocks with more than this share of the network's MACs.
    """
    flow = _flow(graph)
    found: list[Block] = []
    for start in range(1, len(flow.names)):
        found += _wanted(graph, flow, start, stem=stem, starts=starts, ends=ends, share=max_share)
    return found


def whole_network(graph: LayerGraph) -> Block:
    """All of the network, from the image to its output, head included.

    Example:
        >>> from torch import nn
        >>> from tailorbird.graph.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
        >>> block = whole_network(trace(net, (3, 4, 4)))
        >>> block.key, block.in_shape, block.out_shape, block.params
        ('_0.._3', (3, 4, 4), (10,), 554)
    """
    flow = _flow(graph)
    members, pending = set[int](), [flow.number[graph.output]]
    while pending:
        v = pending.pop()
        if v and v not in members:
            members.add(v)
            pending.extend(flow.inputs[v])
    parameters: dict[int, int] = {}
    for v in members:
        parameters |= flow.params[v]
    image, output = graph.layers[0], graph.layer(graph.output)
    return Block(
        input=image.name,
        nodes=tuple(flow.names[v] for v in sorted(members)),
        output=output.name,
        in_shape=image.shape,
        out_shape=output.shape,
        macs=sum(flow.macs[v] for v in members),
        params=sum(parameters.values()),
    )


def sample_block(
    graph: LayerGraph,
    rng: np.random.Generator,
    *,
    recall: float,
    stem: bool = True,
    starts: Collection[str] = BOUNDARIES,
    ends: Collection[str] = ENDS,
) -> Block | None:
    """One random block: a uniform start, then uniform among the smallest blocks that start there.

    Args:
        graph: the traced network.
        rng: drawn from.
        recall: share (0, 1] of a start's blocks, smallest first, that is drawn from; the paper's r.
        stem: allow blocks fed by the image.
        starts: kinds of layer whose output may feed a block.
        ends: kinds of layer that may be a block's output.

    Returns:
        A block that ``enumerate_blocks`` would list, or ``None`` where it would list none.

    Raises:
        GraphError: ``recall`` is not in (0, 1].
    """
    if not 0 < recall <= 1:
        raise GraphError(f"recall: expected a share in (0, 1], got {recall}")
    flow = _flow(graph)
    for start in rng.permutation(np.arange(1, len(flow.names))):
        blocks = _wanted(graph, flow, int(start), stem=stem, starts=starts, ends=ends, share=1.0)
        if blocks:
            return blocks[int(rng.integers(ceil(recall * len(blocks))))]
    return None


def _wanted(
    graph: LayerGraph,
    flow: _Flow,
    start: int,
    *,
    stem: bool,
    starts: Collection[str],
    ends: Collection[str],
    share: float,
) -> list[Block]:
    if len(flow.inputs[start]) != 1:
        return []
    source = flow.inputs[start][0]
    if (source == 0 and not stem) or graph.layer(flow.names[source]).kind not in starts:
        return []
    blocks = []
    for block, members in _walk(graph, flow, start):
        if not flow.heads.isdisjoint(members) or block.macs > share * graph.macs:
            break
        if graph.layer(block.output).kind in ends and any(flow.heavy[v] for v in members):
            blocks.append(block)
    return blocks


def _walk(graph: LayerGraph, flow: _Flow, start: int) -> Iterator[tuple[Block, list[int]]]:
    """The blocks that begin with ``start``, and their nodes' numbers."""
    if start == 0 or len(flow.inputs[start]) != 1:
        return
    source = flow.inputs[start][0]
    if not graph.layer(flow.names[source]).boundary:
        return
    members: list[int] = []
    inside: set[int] = set()
    parameters: dict[int, int] = {}
    macs = leaving = 0
    output, end = start, len(flow.names)
    while output < end:
        pending = [output]
        inside.add(output)
        while pending:
            v = pending.pop()
            if v < start:
                return  # a second input, or a block whose first node is another
            members.append(v)
            macs += flow.macs[v]
            parameters |= flow.params[v]
            leaving += len(flow.users[v])
            for u in flow.inputs[v]:
                if u == source:
                    continue
                leaving -= 1
                if u not in inside:
                    inside.add(u)
                    pending.append(u)
        members.sort()
        layer = graph.layer(flow.names[output])
        if leaving == len(flow.users[output]) and layer.boundary:
            names = tuple(flow.names[v] for v in members)
            in_shape = graph.layer(flow.names[source]).shape
            total = sum(parameters.values())
            yield (
                Block(flow.names[source], names, layer.name, in_shape, layer.shape, macs, total),
                members,
            )
        output = flow.next_output[output]


@lru_cache(maxsize=16)
def _flow(graph: LayerGraph) -> _Flow:
    names = [layer.name for layer in graph.layers if layer.kind not in (CONSTANT, SIZE)]
    number = {name: i for i, name in enumerate(names)}
    sources: dict[str, set[int]] = {}  # the data nodes behind each node, through sizes
    owned: dict[str, tuple[int, dict[int, int]]] = {}
    inputs: list[list[int]] = []
    macs, params = [], []
    for layer in graph.layers:
        behind: set[int] = set()
        cost, held = (
            layer.macs,
            {id(p): p.numel() for p in own_parameters(graph.nodes[layer.name], graph.module)},
        )
        for name in layer.inputs:
            if name in number:
                behind.add(number[name])
            else:  # a copy goes with its reader
                behind |= sources[name]
                cost += owned[name][0]
                held |= owned[name][1]
        if layer.name in number:
            inputs.append(sorted(behind))
            macs.append(cost)
            params.append(held)
        else:
            sources[layer.name], owned[layer.name] = behind, (cost, held)
    count = len(names)
    users: list[list[int]] = [[] for _ in range(count)]
    for v, behind_v in enumerate(inputs):
        for u in behind_v:
            users[u].append(v)
    if graph.output in number:
        users[number[graph.output]].append(count)
    heavy = [
        graph.layer(n).kind in HEAVY or (graph.layer(n).kind == "composite" and macs[i] > 0)
        for i, n in enumerate(names)
    ]
    weighty = [graph.layer(n).kind in ("conv", "linear", "composite") for n in names]
    heads = _heads(number.get(graph.output), inputs, weighty)
    chain = _post_dominators(users, count)
    return _Flow(names, number, inputs, users, chain, macs, params, heavy, heads)


def _heads(output: int | None, inputs: list[list[int]], weighty: list[bool]) -> frozenset[int]:
    """The layers that produce the logits: the last with weights on each path to the output."""
    heads, pending = set(), [] if output is None else [output]
    seen = set(pending)
    while pending:
        v = pending.pop()
        if weighty[v]:
            heads.add(v)
            continue
        for u in inputs[v]:
            if u not in seen:
                seen.add(u)
                pending.append(u)
    return frozenset(heads)


def _post_dominators(users: list[list[int]], count: int) -> list[int]:
    """For each node the nearest one that all its ways to the end pass; ``count`` is the end."""
    chain = [count] * (count + 1)
    for v in reversed(range(count)):
        meet: int | None = None
        for u in users[v]:
            meet = u if meet is None else _meet(chain, meet, u)
        chain[v] = count if meet is None else meet
    return chain


def _meet(chain: list[int], left: int, right: int) -> int:
    while left != right:  # numbers grow along the chain, so the smaller one steps
        if left < right:
            left = chain[left]
        else:
            right = chain[right]
    return left
