"""What can be left out of a network as it is: residual branches, layers of plain chains, and runs.

A residual branch is found on the graph, not by the names of classes: two paths from one tensor meet
in an addition, and one of them has no layer. Leaving the branch out means to take that path's
tensor in place of the sum. In a network without branches a convolution or dense layer, with the
normalisation and activation behind it, can be left out where its input has its output's shape.

Such parts follow each other in runs: the blocks of a stage of a ResNet, or of a transformer, where
a part is an attention branch and the dense branch behind it. Dropping residual branches of trained
networks is known from stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382) and
from Veit et al. 2016 (https://arxiv.org/abs/1605.06431): one alone costs little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod

import torch
from torch import nn
from torch.nn import functional as F

from tailorbird.graph.blocks import Block, block_between, heads
from tailorbird.graph.kinds import CONSTANT, HEAVY, SIZE
from tailorbird.graph.surgery import bypass
from tailorbird.graph.trace import Layer, LayerGraph, retraced
from tailorbird.graph.zeros import addends, summands

_STILL = (CONSTANT, SIZE)
_BEHIND = ("norm", "activation", "dropout")
"""Kinds of layers that go with the convolution or dense layer in front of them."""
_BETWEEN = ("activation", "dropout", "shape")
"""Kinds of layers without weights that may stand between two parts of a run."""
_END = ""
"""Stands for the end of the network among the readers of a node."""
_RECTIFIERS = (torch.relu, F.relu, "relu")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a network that can be left out.

    Args:
        block: from its input to its output; left out, the output has the input's shape.
        end: the node whose value is another one's when it is left out, such as an addition.
        instead: that other one, such as the addition's shortcut.
        branch: the nodes that make what is then not computed.
        likeness: equal for parts of equal shapes, multiply-accumulates and parameters.
    """

    block: Block
    end: str
    instead: str
    branch: frozenset[str]
    likeness: tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Parts that follow each other on a tensor of one size.

    Args:
        block: from the first one's input to the last one's output.
        steps: what is kept or left out together: single parts, or the period of a pattern, such as
            attention and the dense branch behind it.
        opened: whether a block stands before it that brings the tensor to its shape, the first of
            its stage; then the run may be left out whole.
    """

    block: Block
    steps: tuple[tuple[Part, ...], ...]
    opened: bool

    def spread(self, count: int) -> tuple[int, ...]:
        """Positions of ``count`` steps that are kept, spread evenly, the first of a stage first.

        Example:
            >>> from tailorbird.demo import digits_net
            >>> from tailorbird.graph.trace import trace
            >>> run = runs(trace(digits_net(width=8, depth=7), (1, 8, 8)))[0]
            >>> run.spread(3), run.spread(5)
            ((0, 2, 4), (0, 1, 2, 4, 5))
        """
        extra = int(self.opened)  # the block before the run is the stage's first
        every, kept = len(self.steps) + extra, count + extra
        return tuple(place * every // kept - extra for place in range(extra, kept))

    def without(self, kept: Collection[int]) -> tuple[Part, ...]:
        """The parts of all steps but those at the positions ``kept``."""
        return tuple(part for i, step in enumerate(self.steps) if i not in kept for part in step)


def parts(graph: LayerGraph) -> tuple[Part, ...]:
    """All residual branches that can be left out, in order; layers where there is no branch.

    Example:
        >>> from torch import nn
        >>> from tailorbird.graph.trace import trace
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [part.block.key for part in parts(trace(net, (2, 2, 2)))]
        ['_1.._2']
    """
    return tuple(_branches(graph)) or tuple(_links(graph))


def runs(graph: LayerGraph) -> tuple[Run, ...]:
    """Parts that follow each other, at least two, with nothing but reshaping between them."""
    found, known = [], parts(graph)
    for chain in _chains(graph, known):
        block = block_between(graph, chain[0].block.nodes[0], chain[-1].block.output)
        if block is not None and block.input == chain[0].block.input:
            width = _period([part.likeness for part in chain])
            steps = tuple(tuple(chain[i : i + width]) for i in range(0, len(chain), width))
            found.append(Run(block=block, steps=steps, opened=_opened(graph, known, block.input)))
    return tuple(found)


def left_out(graph: LayerGraph, gone: Iterable[Part]) -> dict[str, str]:
    """What is taken in place of what when parts are left out, for ``extract`` and ``bypass``.

    A rectifier behind an addition goes with its branch where its input is then rectified already.
    """
    instead = {part.end: part.instead for part in gone}
    for layer in graph.layers:
        if layer.inputs and layer.inputs[0] in instead and _idle(graph, layer, instead):
            instead[layer.name] = layer.inputs[0]
    return instead


def without(graph: LayerGraph, gone: Iterable[Part]) -> LayerGraph:
    """A copy of the network without some of its parts; all other nodes keep names and weights."""
    return retraced(bypass(graph, left_out(graph, gone)), graph)


# branches ---------------------------------------------------------------------------------------


def _branches(graph: LayerGraph) -> Iterator[Part]:
    last = heads(graph)
    users = _users(graph)
    for layer in graph.layers:
        pair = addends(graph, layer.name)
        for shortcut, branch in (pair, pair[::-1]) if pair else ():
            part = _branch(graph, layer.name, shortcut, branch, users)
            if part is not None and last.isdisjoint(part.branch):
                yield part
                break


def _branch(
    graph: LayerGraph, end: str, shortcut: str, branch: str, users: Mapping[str, set[str]]
) -> Part | None:
    """The branch that an addition closes, or ``None`` where that is no branch of one tensor."""
    for source in summands(graph, shortcut):
        inner = _closure(graph, branch, source)
        if not inner or any(not users[name] <= inner | {end} for name in inner):
            continue
        if not any(graph.layer(name).macs or graph.layer(name).params for name in inner):
            continue
        members = _closure(graph, end, source)
        start = min(members, key=graph.index.__getitem__)
        block = block_between(graph, start, end)
        if block is None or block.input != source:
            continue
        return Part(
            block=_rectified(graph, block, end, shortcut, users),
            end=end,
            instead=shortcut,
            branch=frozenset(inner),
            likeness=_likeness(graph, inner, block),
        )
    return None


def _closure(graph: LayerGraph, end: str, source: str) -> set[str]:
    """The nodes that ``end`` needs besides ``source``; empty where one lies before it."""
    first = graph.index[source]
    found: set[str] = set()
    pending = [end] if end != source else []
    while pending:
        name = pending.pop()
        if graph.index[name] < first:
            return set()
        found.add(name)
        pending += [
            other
            for other in graph.layer(name).inputs
            if other != source and other not in found and graph.layer(other).kind not in _STILL
        ]
    return found


def _rectified(
    graph: LayerGraph,
    block: Block,
    end: str,
    shortcut: str,
    users: Mapping[str, set[str]],
) -> Block:
    """The block with the rectifier behind it, where that does nothing once its branch is gone."""
    behind = _reader(graph, end, users)
    if behind is not None and _idle(graph, behind, {end: shortcut}):
        return block_between(graph, block.nodes[0], behind.name) or block
    return block


# plain chains -----------------------------------------------------------------------------------


def _links(graph: LayerGraph) -> Iterator[Part]:
    """Layers that all paths pass, with what stands behind them, where the shape is kept."""
    last, users, trunk = heads(graph), _users(graph), _trunk(graph)
    for layer in graph.layers:
        heavy = layer.kind in HEAVY or layer.kind == "composite"
        if not heavy or not layer.macs or layer.name in last:
            continue
        end = layer.name
        while (
            (behind := _reader(graph, end, users)) is not None
            and behind.kind in _BEHIND
            and behind.shape == layer.shape
        ):
            end = behind.name
        block = block_between(graph, layer.name, end)
        if block is None or block.in_shape != block.out_shape or not {layer.name, end} <= trunk:
            continue
        nodes = frozenset(block.nodes)
        yield Part(
            block=block,
            end=end,
            instead=block.input,
            branch=nodes,
            likeness=_likeness(graph, nodes, block),
        )


def _trunk(graph: LayerGraph) -> set[str]:
    """The nodes that every path from the image to the output passes."""
    users, order = _users(graph), {**graph.index, _END: len(graph.layers)}
    found, furthest = set(), 0
    for layer in graph.layers:
        if layer.kind in _STILL:
            continue
        if furthest <= order[layer.name]:
            found.add(layer.name)
        furthest = max([furthest, *(order[name] for name in users[layer.name])])
    return found


# runs -------------------------------------------------------------------------------------------


def _chains(graph: LayerGraph, found: Sequence[Part]) -> Iterator[list[Part]]:
    """Longest sequences of at least two parts, each fed by the one before it."""
    users = _users(graph)
    for level in _levels(found):
        chain: list[Part] = []
        for part in level:
            if chain and not _feeds(graph, chain[-1].block.output, part.block.input, users):
                if len(chain) > 1:
                    yield chain
                chain = []
            chain.append(part)
        if len(chain) > 1:
            yield chain


def _levels(found: Sequence[Part]) -> list[list[Part]]:
    """Parts that lie in the same branch of another one, or in none: branches may hold branches."""
    levels: dict[str, list[Part]] = {}
    for part in found:
        around = [other for other in found if part.end in other.branch and other is not part]
        nearest = min(around, key=lambda other: len(other.branch), default=None)
        levels.setdefault(nearest.end if nearest else _END, []).append(part)
    return list(levels.values())


def _feeds(graph: LayerGraph, output: str, entering: str, users: Mapping[str, set[str]]) -> bool:
    """Whether a tensor is another one but for layers without weights that keep its size."""
    size = prod(graph.layer(output).shape)
    while output != entering:
        layer = _reader(graph, output, users)
        if layer is None or layer.kind not in _BETWEEN or layer.params or prod(layer.shape) != size:
            return False
        output = layer.name
    return True


def _period(likenesses: Sequence[object]) -> int:
    """The length of the shortest pattern that the sequence repeats, 1 where it repeats none."""
    count = len(likenesses)
    for width in range(1, count // 2 + 1):
        if count % width == 0 and all(
            left == right for left, right in zip(likenesses, likenesses[width:], strict=False)
        ):
            return width
    return 1


def _opened(graph: LayerGraph, found: Sequence[Part], entering: str) -> bool:
    """Whether at least two heavy layers lie between a tensor and the nearest part before it.

    That is what a block that changes the shape has; stems and patch embeddings have one.
    """
    order = graph.index
    ends = [order[part.end] for part in found if order[part.end] <= order[entering]]
    between = graph.layers[max(ends, default=0) + 1 : order[entering] + 1]
    return sum(layer.kind in HEAVY or layer.kind == "composite" for layer in between) > 1


# common -----------------------------------------------------------------------------------------


def _users(graph: LayerGraph) -> dict[str, set[str]]:
    """Node -> what reads it and holds data of images, the end of the network among them."""
    users: dict[str, set[str]] = {layer.name: set() for layer in graph.layers}
    users[graph.output].add(_END)
    for layer in graph.layers:
        if layer.kind not in _STILL:
            for name in layer.inputs:
                users[name].add(layer.name)
    return users


def _reader(graph: LayerGraph, name: str, users: Mapping[str, set[str]]) -> Layer | None:
    """The one node that reads a tensor; ``None`` where several do, or the end of the network."""
    readers = users[name]
    return None if len(readers) != 1 or _END in readers else graph.layer(next(iter(readers)))


def _likeness(graph: LayerGraph, inner: Collection[str], block: Block) -> tuple[object, ...]:
    layers = [graph.layer(name) for name in inner]
    macs, params = sum(layer.macs for layer in layers), sum(layer.params for layer in layers)
    return prod(block.out_shape), macs, params


def _idle(graph: LayerGraph, layer: Layer, instead: Mapping[str, str]) -> bool:
    """Whether a rectifier's input, as it is then, is within its range already."""
    limits = _limits(graph, layer.name)
    if limits is None or layer.inputs[0] not in instead:
        return False
    low, high = _range(graph, layer.inputs[0], instead)
    return limits[0] <= low and high <= limits[1]


def _limits(graph: LayerGraph, name: str) -> tuple[float, float] | None:
    """What a rectifier cuts off at: those values that it leaves as they are."""
    node = graph.nodes[name]
    if node.op != "call_module":
        return (0.0, inf) if node.target in _RECTIFIERS and len(node.args) == 1 else None
    module = graph.module.get_submodule(str(node.target))
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return module.min_val, module.max_val
    return (0.0, inf) if type(module) is nn.ReLU else None


def _range(graph: LayerGraph, name: str, instead: Mapping[str, str]) -> tuple[float, float]:
    """Bounds of a node's values, as far as rectifiers tell."""
    while name in instead:
        name = instead[name]
    if (limits := _limits(graph, name)) is not None:
        return limits
    layer = graph.layer(name)
    if layer.kind in ("pool", "dropout") and _range(graph, layer.inputs[0], instead)[0] >= 0:
        return 0.0, inf
    return -inf, inf
