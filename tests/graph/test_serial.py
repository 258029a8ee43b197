"""Stored networks come back the same, in a fresh process, and are told apart by structure."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.masks import ChannelMask
from tailorbird.graph.serial import (
    from_spec,
    load_module,
    save_module,
    to_spec,
)
from tailorbird.graph.structure import structure_key
from tailorbird.graph.trace import trace

from .serial_nets import Awkward, CifarNet, conv_net


class Gate(nn.Module):
    """A user's own leaf, which a stored network must not need any more."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.mix(x.mean((2, 3), keepdim=True)))


class Leafy(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, Gate) or super().is_leaf_module(m, module_qualified_name)


def shaken(module: fx.GraphModule, seed: int = 0) -> fx.GraphModule:
    """With statistics and weights that no constructor gives."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return module


def leafy(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, Leafy().trace(model))


def nested() -> fx.GraphModule:
    outer = nn.Sequential(fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1))), nn.ReLU(), Gate())

    class Tracer(Leafy):
        def is_leaf_module(self, m, name):
            return isinstance(m, fx.GraphModule) or super().is_leaf_module(m, name)

    return fx.GraphModule(outer, Tracer().trace(outer))


NETS = {
    "cifar": lambda: fx.symbolic_trace(CifarNet()),
    "awkward": lambda: fx.symbolic_trace(Awkward()),
    "own leaf": lambda: leafy(nn.Sequential(Gate(), nn.Hardswish(), nn.GroupNorm(3, 3))),
    "nested": nested,
    "containers": lambda: fx.symbolic_trace(
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, groups=1, dilation=2), nn.ELU(0.5)))
    ),
}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def logits(module: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad(), torch.random.fork_rng():
        torch.random.default_generator.manual_seed(7)
        return module(images)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_round_trip_is_bit_equal_in_both_modes(name, training, tmp_path):
    module = shaken(NETS[name]()).train(training)
    save_module(module, tmp_path, "net", {"score": 1.5})
    before = torch.get_rng_state()
    again, extra = load_module(tmp_path, "net")
    assert torch.equal(before, torch.get_rng_state())
    assert extra == {"score": 1.5}
    assert again.training is training
    for mode in (training, not training):
        module.train(mode)
        again.train(mode)
        assert torch.equal(logits(module), logits(again))
    assert structure_key(module, (3, 8, 8)) == structure_key(again, (3, 8, 8))
    assert [node.name for node in module.graph.nodes] == [node.name for node in again.graph.nodes]
    assert to_spec(module) == to_spec(again)


def test_sharing_freezing_modes_and_buffers_survive(tmp_path):
    module = NETS["awkward"]().train()
    module.attention.eval()
    save_module(module, tmp_path, "net", {})
    again, _ = load_module(tmp_path, "net")
    assert again.left.weight is again.right.weight
    assert sum(node.target == "conv" for node in again.graph.nodes) == 2
    assert not again.left.bias.requires_grad
    assert again.left.weight.requires_grad
    assert again.training
    assert not again.attention.training
    assert "steps" not in again.state_dict()
    fresh = from_spec(to_spec(module))
    assert fresh.left.weight is fresh.right.weight


def test_a_fresh_process_needs_no_user_code(tmp_path):
    module = shaken(NETS["own leaf"]()).eval()
    save_module(module, tmp_path, "net", {})
    safetensors.torch.save_file({"x": IMAGES, "y": logits(module)}, tmp_path / "io.safetensors")
    code = (
        "import sys, torch, safetensors.torch as st\n"
        "from pathlib import Path\n"
        "from tailorbird.graph.serial import load_module\n"
        "folder = Path(sys.argv[1]); io = st.load_file(folder / 'io.safetensors')\n"
        "net, _ = load_module(folder, 'net')\n"
        "assert torch.equal(net(io['x']), io['y'])\n"
    )
    source = Path(__file__).parents[2] / "src"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(source)})


def test_hooks_and_foreign_functions_are_refused():
    module = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1)))
    hook = module.get_submodule("0").register_forward_hook(lambda *_: None)
    with pytest.raises(GraphError, match=r"'0' \(Conv2d\) has forward hooks"):
        to_spec(module)
    hook.remove()
    graph = fx.Graph()
    graph.output(graph.call_function(lambda: 1))
    with pytest.raises(GraphError, match=r"lambda.*can't be stored by name"):
        to_spec(fx.GraphModule(nn.Module(), graph))


def test_the_argument_is_left_alone(tmp_path):
    module = shaken(NETS["own leaf"]()).train()
    twin = copy.deepcopy(module)
    save_module(module, tmp_path, "net", {})
    assert [child.training for child in module.modules()] == [
        child.training for child in twin.modules()
    ]
    pairs = zip(module.state_dict().values(), twin.state_dict().values(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def timm_net(name: str, **arguments: object) -> fx.GraphModule:
    model = pytest.importorskip("timm").create_model(name, num_classes=4, **arguments)
    return trace(model, (3, 32, 32)).module


def with_masks() -> fx.GraphModule:
    layers = [nn.Conv2d(3, 4, 1), ChannelMask(torch.tensor([1, 0, 1, 1])), nn.ReLU()]
    return trace(nn.Sequential(*layers), (3, 8, 8)).module


TRACED = {
    "cifar": lambda: trace(CifarNet(), (3, 8, 8)).module,
    "masks": with_masks,
    "mobilenetv3": lambda: timm_net("mobilenetv3_small_050"),
    "regnet": lambda: timm_net("regnety_002"),
    "vit": lambda: timm_net(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=2,
        embed_dim=24,
        drop_path_rate=0.2,
        attn_drop_rate=0.2,
    ),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_networks_round_trip_in_both_modes(name, tmp_path):
    module = TRACED[name]()
    save_module(module, tmp_path, "net", {})
    again, _ = load_module(tmp_path, "net")
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    for training in (False, True):
        module.train(training)
        again.train(training)
        assert torch.equal(logits(module, images), logits(again, images))
    assert structure_key(module, (3, 32, 32)) == structure_key(again, (3, 32, 32))


# ---------------------------------------------------------------- structure


def two_branches(swap_order: bool, swap_use: bool) -> fx.GraphModule:
    root = nn.ModuleDict({"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 3, padding=1)})
    graph = fx.Graph()
    x = graph.placeholder("x" if swap_order else "image")
    names = ["b", "a"] if swap_order else ["a", "b"]
    found = {name: graph.call_module(name, (x,)) for name in names}
    first, second = ("b", "a") if swap_use else ("a", "b")
    graph.output(graph.call_function(torch.sub, (found[first], found[second])))
    return fx.GraphModule(root, graph)


def one_or_two(shared: bool) -> fx.GraphModule:
    root = nn.ModuleDict({"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1)})
    graph = fx.Graph()
    x = graph.call_module("a", (graph.placeholder("x"),))
    graph.output(graph.call_module("a" if shared else "b", (x,)))
    return fx.GraphModule(root, graph)


def test_structure_key_ignores_names_order_and_weights_only():
    base = structure_key(conv_net(), (3, 8, 8))
    assert structure_key(shaken(conv_net()), (3, 8, 8)) == base
    renamed = nn.Module()
    renamed.add_module("deep", nn.Module())
    renamed.deep.first, renamed.deep.second = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 1)
    renamed.act = nn.ReLU()
    graph = fx.Graph()
    x = graph.call_module("deep.first", (graph.placeholder("other"),))
    graph.output(graph.call_module("deep.second", (graph.call_module("act", (x,)),)))
    assert structure_key(fx.GraphModule(renamed, graph), (3, 8, 8)) == base
    others = [conv_net(16), conv_net(stride=2), conv_net(bias=False)]
    keys = {structure_key(net, (3, 8, 8)) for net in others} | {
        structure_key(conv_net(), (3, 9, 9))
    }
    assert len(keys | {base}) == 5


def test_structure_key_sees_connections_and_sharing():
    key = {
        (order, use): structure_key(two_branches(order, use), (3, 4, 4))
        for order in (False, True)
        for use in (False, True)
    }
    assert key[False, False] == key[True, False]
    assert key[False, True] == key[True, True]
    assert key[False, False] != key[False, True]
    assert structure_key(one_or_two(True), (3, 4, 4)) != structure_key(one_or_two(False), (3, 4, 4))
