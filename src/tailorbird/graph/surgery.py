"""Cutting blocks out of a traced network and stitching others in. Everything returned is a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block
from tailorbird.graph.kinds import CONSTANT, SIZE
from tailorbird.graph.trace import LayerGraph, near
from tailorbird.graph.zeros import is_zero, sums_of_zeros


@dataclass(frozen=True)
class Split:
    """A network around one block, so that what lies before it need run only once.

    ``suffix(block(first), *others)`` with ``first, *others = prefix(images)`` is the network.

    Args:
        prefix: images -> tuple of the block's input and every other tensor that the suffix needs.
        suffix: (block's output, *others) -> logits.
        names: nodes of the network that the prefix returns, in order.
    """

    prefix: fx.GraphModule
    suffix: fx.GraphModule
    names: tuple[str, ...]


def extract(
    graph: LayerGraph, block: Block, instead: Mapping[str, str] | None = None
) -> fx.GraphModule:
    """A copy of the block as a network of its own, in eval mode.

    Args:
        graph: the network that the block was found in.
        block: one of its blocks.
        instead: node -> node of the block, or its input, whose value is taken in its place, such as
            an addition -> its shortcut; what nobody reads then is left out.

    Returns:
        A module with one placeholder ``x``: (n, *in_shape) -> (n, *out_shape). Node and module
        names are those of the network.

    Raises:
        GraphError: the block is not of this graph.
    """
    _check(graph, block)
    new = fx.Graph()
    made = {graph.nodes[block.input]: new.placeholder("x")}
    _closed(graph, block)
    new.output(*_copy_into(new, made, graph, [block.output], instead))
    return _own(graph, new, f"Block_{block.nodes[0]}")


def bypass(graph: LayerGraph, instead: Mapping[str, str]) -> fx.GraphModule:
    """A copy of the network in eval mode in which nodes are left out.

    Args:
        graph: the traced network.
        instead: node -> earlier node of the same shape whose value is taken in its place; what
            nobody reads then is left out.
    """
    new, image = fx.Graph(), graph.layers[0].name
    made = {graph.nodes[image]: new.placeholder(image)}
    new.output(*_copy_into(new, made, graph, [graph.output], instead))
    return _own(graph, new, "Bypassed")


def induce(
    graph: LayerGraph, replacements: Mapping[Block, nn.Module], *, prefix: str = "replaced_"
) -> fx.GraphModule:
    """A copy of the network with blocks replaced, in eval mode.

    With the extracted originals the result equals the network bit for bit in either mode. (Where
    a block runs in parallel to another branch and both draw random numbers, such as for dropout,
    the draws may come in another order.) A replacement by zeros costs nothing: where it would be
    added to something, that is taken as it is, see `tailorbird.graph.zeros`.

    Args:
        graph: the traced network.
        replacements: block -> module from (n, *in_shape) to (n, *out_shape). Modules are copied.
        prefix: replacement i, in the mapping's order, is the submodule ``f"{prefix}{i}"``, if
            anything reads it.

    Raises:
        GraphError: blocks overlap or are not of this graph, or a replacement fails or gives
            another shape in a dry run on two samples. All faults are named.
    """
    faults: list[str] = []
    owner: dict[str, Block] = {}
    for block in replacements:
        _check(graph, block)
        for rival in {owner[name] for name in block.nodes if name in owner}:
            faults.append(f"blocks {rival.key} and {block.key} overlap; replace one of them")
        owner |= dict.fromkeys(block.nodes, block)
    copies = {block: copy.deepcopy(module).eval() for block, module in replacements.items()}
    faults += [fault for b, m in copies.items() if (fault := _dry_run(graph, b, m))]
    names = {block: f"{prefix}{i}" for i, block in enumerate(replacements)}
    taken = [name for name in names.values() if hasattr(graph.module, name)]
    if taken:
        faults.append(f"the network already has submodules {taken}; choose another prefix=")
    if faults:
        raise GraphError("; ".join(faults))
    ends = {graph.nodes[block.output]: block for block in replacements}
    zeros = [block for block, module in copies.items() if is_zero(module)]
    other = _followed(graph, sums_of_zeros(graph, zeros, owner))
    inner = {graph.nodes[name] for name in owner}
    needed = _needed(graph, other(graph.nodes[graph.output]), ends, other)
    new = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in graph.module.graph.nodes:
        if node not in needed:
            continue
        if node in ends:
            block = ends[node]
            made[node] = new.call_module(names[block], (made[other(graph.nodes[block.input])],))
        elif node not in inner:
            made[node] = new.node_copy(node, lambda n: made[other(n)])
    new.output(made[other(graph.nodes[graph.output])])
    read = {names[block]: copies[block] for node, block in ends.items() if node in needed}
    return _own(graph, new, "Induced", read)


def split(graph: LayerGraph, block: Block) -> Split:
    """The network before and after ``block``, as copies in eval mode.

    Raises:
        GraphError: the block is not of this graph.
    """
    _check(graph, block)
    data = _data(graph)
    after: set[str] = set()
    for layer in graph.layers:
        if layer.name in data and layer.name not in block.nodes:
            behind = _behind(graph, layer.name, data)
            if block.output in behind or not after.isdisjoint(behind):
                after.add(layer.name)
    others: dict[str, None] = {}
    for name in (layer.name for layer in graph.layers if layer.name in after):
        for source in _behind(graph, name, data):
            if source not in after and source != block.output:
                others[source] = None
    before, image = fx.Graph(), graph.layers[0].name
    made = {graph.nodes[image]: before.placeholder(image)}
    wanted = [block.input, *others]
    before.output(tuple(_copy_into(before, made, graph, wanted)))
    rest = fx.Graph()
    made = {graph.nodes[name]: rest.placeholder(name) for name in [block.output, *others]}
    rest.output(*_copy_into(rest, made, graph, [graph.output]))
    return Split(_own(graph, before, "Prefix"), _own(graph, rest, "Suffix"), tuple(wanted))


def capture(graph: LayerGraph, names: Sequence[str]) -> fx.GraphModule:
    """The network as a map from images to the outputs of the named nodes and the logits.

    Args:
        graph: the traced network.
        names: nodes, such as blocks' outputs.

    Returns:
        A copy in eval mode: images -> {name: tensor, ..., "output": logits}.

    Raises:
        GraphError: naming unknown nodes and nodes that hold no tensor of the images.
    """
    faults = [
        f"no layer {n!r} (near: {near(n, graph.index)})" for n in names if n not in graph.index
    ]
    faults += [
        f"layer {n!r} gives no single tensor of the images"
        for n in names
        if n in graph.index and not graph.layer(n).boundary
    ]
    if "output" in names and graph.output != "output":
        faults.append("'output' is the key of the logits; leave it out of the names")
    if faults:
        raise GraphError("; ".join(faults))
    new, image = fx.Graph(), graph.layers[0].name
    made = {graph.nodes[image]: new.placeholder(image)}
    outputs = _copy_into(new, made, graph, [*names, graph.output])
    new.output(dict(zip([*names, "output"], outputs, strict=True)))
    return _own(graph, new, "Capture")


class _Home(nn.Module):
    """Where a new graph finds its modules: the replacements, else the network."""

    def __init__(self, network: nn.Module, extra: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in network.named_children():
            self.add_module(name, module)
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in network.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, module in extra.items():
            self.add_module(name, module)


def _check(graph: LayerGraph, block: Block) -> None:
    """Whether the block is of this graph."""
    missing = [name for name in (block.input, *block.nodes) if name not in graph.index]
    if missing or not block.nodes or block.nodes[-1] != block.output:
        raise GraphError(
            f"block {block.key} is not of this graph: it has no layers {missing[:5]}; "
            "take blocks from blocks_from or enumerate_blocks on the same trace"
        )


def _closed(graph: LayerGraph, block: Block) -> None:
    data, inside = _data(graph), {block.input, *block.nodes}
    strays = {u for name in block.nodes for u in _behind(graph, name, data)} - inside
    if strays:
        raise GraphError(f"block {block.key} also reads {sorted(strays)}; expected one input")


def _data(graph: LayerGraph) -> set[str]:
    return {layer.name for layer in graph.layers if layer.kind not in (CONSTANT, SIZE)}


def _behind(graph: LayerGraph, name: str, data: set[str]) -> list[str]:
    """The data nodes that a node reads, directly or through sizes."""
    found: dict[str, None] = {}
    for source in graph.layer(name).inputs:
        if source in data:
            found[source] = None
        else:
            found |= dict.fromkeys(_behind(graph, source, data))
    return list(found)


def _followed(graph: LayerGraph, instead: Mapping[str, str]) -> Callable[[fx.Node], fx.Node]:
    """A map from each node to the one whose value is taken in its place, itself by default."""

    def follow(node: fx.Node) -> fx.Node:
        while node.name in instead:
            node = graph.nodes[instead[node.name]]
        return node

    return follow


def _needed(
    graph: LayerGraph,
    output: fx.Node,
    stops: Mapping[fx.Node, Block],
    other: Callable[[fx.Node], fx.Node],
) -> set[fx.Node]:
    """What the output needs; at a stop, the block's input in place of what it reads."""
    pending = [output]
    needed = set(pending) | {graph.nodes[graph.layers[0].name]}
    while pending:
        node = pending.pop()
        sources = [graph.nodes[stops[node].input]] if node in stops else node.all_input_nodes
        for source in map(other, sources):
            if source not in needed:
                needed.add(source)
                pending.append(source)
    return needed


def _copy_into(
    new: fx.Graph,
    made: dict[fx.Node, fx.Node],
    graph: LayerGraph,
    outputs: Sequence[str],
    instead: Mapping[str, str] | None = None,
) -> list[fx.Node]:
    """Copy what the outputs need and is not made yet, in the network's order."""
    other = _followed(graph, instead or {})
    pending, needed = [other(graph.nodes[name]) for name in outputs], set[fx.Node]()
    while pending:
        node = pending.pop()
        if node not in made and node not in needed:
            needed.add(node)
            pending.extend(map(other, node.all_input_nodes))
    for name in sorted((node.name for node in needed), key=graph.index.__getitem__):
        node = graph.nodes[name]
        made[node] = new.node_copy(node, lambda n: made[other(n)])
    return [made[other(graph.nodes[name])] for name in outputs]


def _own(
    graph: LayerGraph,
    new: fx.Graph,
    name: str,
    replacements: Mapping[str, nn.Module] | None = None,
) -> fx.GraphModule:
    """A graph module in eval mode with weights of its own; replacements are taken as they are."""
    new.lint()
    extra = dict(replacements or {})
    module = fx.GraphModule(_Home(graph.module, extra), new, name)
    memo: dict[int, Any] = {}
    for child, part in list(module.named_children()):
        if child not in extra:
            setattr(module, child, copy.deepcopy(part, memo))
    for key, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, key, copy.deepcopy(parameter, memo))
    for key, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, key, copy.deepcopy(buffer, memo))
    return module.eval()


def _dry_run(graph: LayerGraph, block: Block, module: nn.Module) -> str | None:
    """What is wrong with a replacement, if anything."""
    like = next((p for p in graph.module.parameters() if p.is_floating_point()), torch.zeros(0))
    sample = torch.zeros((2, *block.in_shape), device=like.device, dtype=like.dtype)
    expected = (2, *block.out_shape)
    where = f"replacement of block {block.key}"
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            given: Any = module(sample)
    except Exception as error:
        return f"{where}: expected (2, *{block.in_shape}) -> {expected}, it fails with: {error}"
    if not isinstance(given, Tensor):
        return f"{where}: expected one tensor {expected}, it returns {type(given).__name__}"
    if tuple(given.shape) != expected:
        return f"{where}: expected output {expected}, given {tuple(given.shape)}; add an adapter"
    return None
