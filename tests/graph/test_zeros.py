"""Zeros in place of a branch cost nothing: neither they nor the addition are left."""

from __future__ import annotations

import onnx
import pytest
import torch
from timm.layers import DropPath, LayerScale2d
from torch import Tensor, nn

from tailorbird.export.exporters import OnnxExporter
from tailorbird.graph.blocks import block_between
from tailorbird.graph.serial import load_module, save_module
from tailorbird.graph.surgery import induce
from tailorbird.graph.trace import LayerGraph, trace
from tailorbird.graph.zeros import is_zero, left_out_by, sums_of_zeros, zero_module

from .zoo import Head, conv


class Scaled(nn.Module):
    """Branches with what trained networks put in front of their additions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale, self.drop = conv(3, 4), LayerScale2d(4, 0.5), DropPath(0.2)
        self.one, self.two, self.three, self.four = (conv(4, 4) for _ in range(4))
        self.norm, self.act, self.head = nn.BatchNorm2d(4), nn.ReLU(), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x + self.drop(self.scale(self.one(x)))
        x = torch.tanh(self.two(x)) + x
        x = x + self.norm(self.three(x))
        return self.head(self.act(self.four(x)))


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Scaled(), (3, 6, 6))


def block(graph: LayerGraph, name: str, end: str | None = None):
    found = block_between(graph, name, end or name)
    assert found is not None
    return found


def test_what_is_added_to_its_own_input_is_left_out_by_zeros(graph: LayerGraph) -> None:
    ways = {
        name: left_out_by(graph, block(graph, name)) for name in ("one", "two", "three", "four")
    }
    assert ways == {"one": "zero", "two": "identity", "three": "nothing", "four": "identity"}
    assert left_out_by(graph, block(graph, "two", "tanh")) == "zero"
    assert left_out_by(graph, block(graph, "three", "norm")) == "zero"
    assert left_out_by(graph, block(graph, "three", "add_2")) == "identity"


def test_zeros_their_scales_and_their_additions_vanish_from_network_and_file(
    graph: LayerGraph, tmp_path
) -> None:
    gone = [block(graph, "one"), block(graph, "two", "tanh"), block(graph, "three", "norm")]
    thin = induce(graph, {one: zero_module() for one in gone})
    assert [node.name for node in thin.graph.nodes if node.op.startswith("call")] == [
        *("stem", "act", "four", "act_1", "mean", "head_fc")
    ]
    assert not any(name.startswith("replaced_") for name, _ in thin.named_modules())
    images = torch.randn(2, 3, 6, 6)
    home = graph.module
    with torch.no_grad():
        x = torch.relu(home.stem(images))
        expected = home.head.fc(torch.relu(home.four(x)).mean((2, 3)))
        assert torch.equal(thin(images), expected)
    (path,) = OnnxExporter().quick([(thin, (3, 6, 6))], tmp_path, ["thin"])
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds.isdisjoint({"Add", "Mul", "ConstantOfShape", "Expand"})
    assert "Conv" in kinds


def test_zeros_stay_where_something_else_reads_them(graph: LayerGraph) -> None:
    gone = block(graph, "three")  # its normalisation makes something of them
    assert sums_of_zeros(graph, [gone]) == {}
    thin, images = induce(graph, {gone: zero_module()}), torch.randn(2, 3, 6, 6)
    assert "replaced_0" in dict(thin.named_children())
    with torch.no_grad():
        silent = induce(graph, {gone: conv(4, 4).requires_grad_(False)})
        for tensor in silent.replaced_0.parameters():
            tensor.zero_()
        assert torch.equal(thin(images), silent(images))


def test_what_stands_in_for_another_block_is_not_taken_for_zeros(graph: LayerGraph) -> None:
    thin = induce(
        graph, {block(graph, "one"): zero_module(), block(graph, "two", "tanh"): conv(4, 4)}
    )
    names = [node.name for node in thin.graph.nodes if node.op.startswith("call")]
    assert names == ["stem", "act", "replaced_1", "add_1", *names[4:]]
    both = induce(graph, {block(graph, "two", "add_1"): zero_module()})
    assert "replaced_0" in dict(both.named_children())  # read by a convolution


def test_zeros_are_known_again_after_storing(tmp_path) -> None:
    save_module(zero_module(), tmp_path, "zero", {})
    again, _ = load_module(tmp_path, "zero")
    assert is_zero(again)
    assert torch.equal(again(torch.ones(3, 2, 1, 1)), torch.zeros(3, 2, 1, 1))
    assert not is_zero(nn.Identity())
