import copy

import pytest
import torch
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block, blocks_from, enumerate_blocks
from tailorbird.graph.surgery import capture, extract, induce, split
from tailorbird.graph.trace import LayerGraph, trace
from tests.graph.zoo import ZOO


def graph_of(name: str) -> LayerGraph:
    torch.manual_seed(0)
    return trace(ZOO[name].build(), ZOO[name].shape)


def every_block(graph: LayerGraph) -> list[Block]:
    return [block for layer in graph.layers for block in blocks_from(graph, layer.name)]


def run(model: nn.Module, images: Tensor, *, training: bool) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return model.train(training)(images)


def fresh(graph: LayerGraph) -> fx.GraphModule:
    return copy.deepcopy(graph.module)


@pytest.mark.parametrize("name", ZOO)
def test_stitching_the_originals_back_changes_no_bit(name: str) -> None:
    graph = graph_of(name)
    images = torch.randn(3, *graph.input_shape)
    for block in every_block(graph):
        for training in (False, True):
            stitched = induce(graph, {block: extract(graph, block)})
            teacher = fresh(graph)
            assert torch.equal(
                run(stitched, images, training=training), run(teacher, images, training=training)
            ), block.key
            here, there = statistics(stitched), statistics(teacher)
            for key, value in here.items():
                if len([k for k in stitched.state_dict() if k.endswith(key)]) == 1:
                    assert torch.equal(value, there[key]), block.key  # they moved alike


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("replaced_0."): value
        for name, value in module.named_buffers()
        if "running" in name
    }


def test_several_blocks_at_once_in_the_order_given() -> None:
    graph = graph_of("dense")
    blocks = {block.key: block for block in enumerate_blocks(graph)}
    chosen = [blocks["two..cat_1"], blocks["stem..relu"], blocks["one..cat"]]
    student = induce(graph, {block: extract(graph, block) for block in chosen})
    images = torch.randn(2, *graph.input_shape)
    assert torch.equal(student(images), graph.module(images))
    for i, block in enumerate(chosen):
        inner = student.get_submodule(f"replaced_{i}")
        assert [n.name for n in inner.graph.nodes][1:-1] == list(block.nodes)
    assert not student.training


@pytest.mark.parametrize("name", ZOO)
def test_split_equals_the_network(name: str) -> None:
    graph = graph_of(name)
    images = torch.randn(3, *graph.input_shape)
    for block in every_block(graph):
        parts = split(graph, block)
        first, *others = parts.prefix(images)
        assert parts.names[0] == block.input
        assert tuple(first.shape[1:]) == block.in_shape
        body = extract(graph, block)
        assert torch.equal(parts.suffix(body(first), *others), graph.module(images)), block.key
        calls = {n.target for n in parts.suffix.graph.nodes if n.op == "call_module"}
        assert "stem" not in calls or block.input != "relu"


def test_capture_gives_named_tensors_and_logits() -> None:
    graph = graph_of("nested_skips")
    images = torch.randn(2, *graph.input_shape)
    seen = capture(graph, ["relu", "add"])(images)
    assert list(seen) == ["relu", "add", "output"]
    assert torch.equal(seen["output"], graph.module(images))
    assert torch.equal(seen["relu"], graph.module.stem(images).relu())
    with pytest.raises(GraphError, match=r"no layer 'ad' \(near: \['add'"):
        capture(graph, ["ad"])
    with pytest.raises(GraphError, match="'token' gives no single tensor of the images"):
        capture(graph_of("tokens"), ["token"])


def test_the_teacher_stays_as_it_is() -> None:
    graph = graph_of("shared")
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    block = blocks_from(graph, "conv")[2]
    body = extract(graph, block)
    student = induce(graph, {block: body})
    parts = split(graph, block)
    for module in (body, student, parts.prefix, parts.suffix, capture(graph, ["relu"])):
        module.train()
        for parameter in module.parameters():
            parameter.data.zero_()
        for buffer in module.buffers():
            buffer.zero_()
    after = graph.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in graph.module.modules())
    given = extract(graph, block)
    induce(graph, {block: given})(torch.randn(2, *graph.input_shape))
    assert all(
        torch.equal(a, b)
        for a, b in zip(given.parameters(), extract(graph, block).parameters(), strict=True)
    )


def test_unused_modules_do_not_travel() -> None:
    graph = graph_of("leak")
    block = blocks_from(graph, "a")[1]
    assert {name for name, _ in extract(graph, block).named_children()} == {"a", "b", "c"}
    student = induce(graph, {block: nn.Conv2d(3, 4, 1)})
    assert {name for name, _ in student.named_children()} == {"replaced_0", "head"}


def test_a_student_can_be_traced_and_cut_again() -> None:
    graph = graph_of("shared")
    block = blocks_from(graph, "conv")[3]
    student = induce(graph, {block: extract(graph, block)})
    again = trace(student, graph.input_shape)
    images = torch.randn(2, *graph.input_shape)
    inner = enumerate_blocks(again)[0]
    with pytest.raises(GraphError, match=r"already has submodules \['replaced_0'\]"):
        induce(again, {inner: extract(again, inner)})
    stitched = induce(again, {inner: extract(again, inner)}, prefix="second_")
    assert torch.equal(stitched(images), graph.module(images))


def test_all_faults_of_replacements_are_named() -> None:
    graph = graph_of("dense")
    blocks = {block.key: block for block in enumerate_blocks(graph)}
    wrong = {
        blocks["stem..cat"]: nn.Conv2d(3, 6, 3, padding=1),
        blocks["one..cat"]: nn.Conv2d(4, 5, 1),
        blocks["two..cat_1"]: nn.Conv2d(4, 8, 1),
    }
    with pytest.raises(GraphError) as caught:
        induce(graph, wrong)
    text = str(caught.value)
    assert "blocks stem..cat and one..cat overlap" in text
    assert "block one..cat: expected output (2, 6, 6, 6), given (2, 5, 6, 6)" in text
    assert "block two..cat_1: expected (2, *(6, 6, 6)) -> (2, 8, 6, 6), it fails with" in text
    with pytest.raises(GraphError, match=r"expected one tensor \(2, 6, 6, 6\), it returns tuple"):
        induce(graph, {blocks["one..cat"]: nn.MaxPool2d(2, return_indices=True)})


def test_foreign_and_open_blocks_are_refused() -> None:
    graph = graph_of("leak")
    other = enumerate_blocks(graph_of("dense"))[-1]
    for cut in (extract, split, lambda g, b: induce(g, {b: nn.Identity()})):
        with pytest.raises(GraphError, match=f"block {other.key} is not of this graph"):
            cut(graph, other)
    opened = Block("b", ("c", "add"), "add", (4, 6, 6), (4, 6, 6), 0, 0)
    with pytest.raises(GraphError, match=r"block c..add also reads \['a'\]; expected one input"):
        extract(graph, opened)
