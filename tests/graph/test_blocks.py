import time

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import blocks_from, enumerate_blocks, sample_block, whole_network
from tailorbird.graph.kinds import CONSTANT, SIZE
from tailorbird.graph.surgery import capture, extract, induce, split
from tailorbird.graph.trace import LayerGraph, trace
from tests.graph.zoo import ZOO, RandomNet


def brute_force(graph: LayerGraph) -> dict[str, tuple[str, tuple[str, ...]]]:
    """All blocks by their definition: every pair of tensors, every node between them."""
    free = {layer.name for layer in graph.layers if layer.kind in (CONSTANT, SIZE)}

    def behind(name: str) -> set[str]:
        found: set[str] = set()
        for source in graph.layer(name).inputs:
            found |= behind(source) if source in free else {source}
        return found

    names = [layer.name for layer in graph.layers if layer.name not in free]
    inputs = {name: behind(name) for name in names}
    below = {name: {name} for name in names}  # the node and all that depends on it
    for name in names:
        for other in names:
            if not inputs[name].isdisjoint(below[other]):
                below[other].add(name)
    users = {n: {m for m in names if n in inputs[m]} for n in names}
    users[graph.output].add("the end")
    found = {}
    for source in names:
        for output in names:
            inside = {n for n in below[source] if output in below[n]} - {source}
            if source == output or not inside or output not in inside:
                continue
            if not graph.layer(source).boundary or not graph.layer(output).boundary:
                continue
            closed = all(inputs[n] <= inside | {source} for n in inside)
            tight = all(users[n] <= inside for n in inside - {output})
            if closed and tight:
                nodes = tuple(sorted(inside, key=graph.index.__getitem__))
                found[f"{nodes[0]}..{output}"] = (source, nodes)
    return found


def all_blocks(graph: LayerGraph) -> dict[str, tuple[str, tuple[str, ...]]]:
    blocks = [block for layer in graph.layers for block in blocks_from(graph, layer.name)]
    assert len({block.key for block in blocks}) == len(blocks)
    return {block.key: (block.input, block.nodes) for block in blocks}


@pytest.mark.parametrize("name", ZOO)
def test_a_whole_network_is_a_block_from_the_image_to_the_output(name: str) -> None:
    case = ZOO[name]
    graph = trace(case.build(), case.shape)
    block, module = whole_network(graph), graph.module
    held = sum(parameter.numel() for parameter in module.parameters())
    assert (block.macs, block.params) == (graph.macs, held)
    assert (block.in_shape, block.out_shape) == (case.shape, graph.layer(graph.output).shape)
    images = torch.randn(2, *case.shape, generator=torch.Generator().manual_seed(0))
    cut = split(graph, block)
    with torch.no_grad():
        expected = module(images)
        own = extract(graph, block)
        assert torch.equal(own(images), expected)
        assert torch.equal(induce(graph, {block: own})(images), expected)
        assert torch.equal(capture(graph, [block.output])(images)["output"], expected)
        first, *others = cut.prefix(images)
        assert torch.equal(cut.suffix(own(first), *others), expected)


@pytest.mark.parametrize("name", ZOO)
def test_every_network_has_the_blocks_expected_of_it(name: str) -> None:
    case = ZOO[name]
    graph = trace(case.build(), case.shape)
    assert {block.key for block in enumerate_blocks(graph)} == set(case.blocks)
    assert all_blocks(graph) == brute_force(graph)


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[int, ...]]:
    size = draw(st.integers(1, 12))
    plan: list[tuple[int, ...]] = []
    for i in range(1, size + 1):
        near = st.integers(max(0, i - 3), i - 1)
        first = draw(near)
        second = draw(st.none() | near)
        plan.append((first,) if second is None or second == first else (first, second))
    return plan


@settings(max_examples=60, deadline=None)
@given(plans())
def test_random_networks_agree_with_the_definition(plan: list[tuple[int, ...]]) -> None:
    graph = trace(RandomNet(plan), (2, 2, 2))
    assert all_blocks(graph) == brute_force(graph)


def test_leak_is_not_a_block_and_smallest_come_first() -> None:
    graph = trace(ZOO["leak"].build(), ZOO["leak"].shape)
    blocks = blocks_from(graph, "a")
    assert [block.output for block in blocks] == ["a", "add", "mean", "head_fc"]
    assert blocks[1].nodes == ("a", "b", "c", "add")
    assert (blocks[1].in_shape, blocks[1].out_shape) == ((3, 6, 6), (4, 6, 6))
    assert blocks[1].macs == 36 * 9 * (3 * 4 + 2 * 4 * 4)
    assert blocks[1].params == 9 * (3 * 4 + 2 * 4 * 4) + 12


def test_shared_parameters_count_once_and_macs_twice() -> None:
    graph = trace(ZOO["shared"].build(), ZOO["shared"].shape)
    block = next(b for b in blocks_from(graph, "conv") if b.output == "norm_1")
    assert block.macs == 2 * 36 * 9 * 16
    assert block.params == 9 * 16 + 4 + 8


def test_constants_go_with_the_block_that_reads_them() -> None:
    graph = trace(ZOO["tokens"].build(), ZOO["tokens"].shape)
    block = next(b for b in blocks_from(graph, "norm") if b.output == "mul")
    weights = 8 + (4 * 12 + 12) + (4 * 4 + 4) + 4
    assert block.params == weights


def test_stem_can_be_kept_out_and_large_blocks_left_out() -> None:
    graph = trace(ZOO["dense"].build(), ZOO["dense"].shape)
    assert all(block.input != "image" for block in enumerate_blocks(graph, stem=False))
    small = enumerate_blocks(graph, max_share=0.5)
    assert small
    assert all(block.macs <= graph.macs / 2 for block in small)


def test_sampling_stays_in_recall_and_in_the_list() -> None:
    graph = trace(ZOO["shared"].build(), ZOO["shared"].shape)
    listed = enumerate_blocks(graph, stem=False)
    seen = {
        sample_block(graph, np.random.default_rng(i), recall=1.0, stem=False) for i in range(150)
    }
    assert seen == set(listed)
    first = {
        block.key
        for i in range(20)
        if (block := sample_block(graph, np.random.default_rng(i), recall=0.01, stem=False))
    }
    assert first == {f"{start}..conv_1" for start in ("relu_1", "mode_dropout", "conv_1")} | {
        "conv..conv"
    }
    with pytest.raises(GraphError, match=r"recall: expected a share in \(0, 1\], got 0"):
        sample_block(graph, np.random.default_rng(0), recall=0)


def test_no_block_where_there_is_none() -> None:
    graph = trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), (3, 2, 2))
    assert enumerate_blocks(graph) == []
    assert sample_block(graph, np.random.default_rng(0), recall=1.0) is None


def test_touching_blocks_do_not_overlap() -> None:
    graph = trace(ZOO["dense"].build(), ZOO["dense"].shape)
    blocks = {block.key: block for block in enumerate_blocks(graph)}
    assert not blocks["one..cat"].overlaps(blocks["two..cat_1"])
    assert blocks["one..cat_1"].overlaps(blocks["two..two"])
    assert isinstance(hash(blocks["one..cat"]), int)


def test_all_blocks_of_efficientnet_b2_in_seconds() -> None:
    graph = trace(timm.create_model("efficientnet_b2"), (3, 32, 32))
    start = time.perf_counter()
    blocks = enumerate_blocks(graph)
    assert time.perf_counter() - start < 5
    assert len(blocks) > 1000


def test_unknown_start_is_named() -> None:
    graph = trace(ZOO["leak"].build(), ZOO["leak"].shape)
    with pytest.raises(GraphError, match=r"no layer 'head_fx'; near matches: \['head_fc'"):
        blocks_from(graph, "head_fx")
