"""Parts that can be left out are found on graphs of many families, and left out they are gone."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tailorbird.demo import digits_net
from tailorbird.graph.depth import left_out, parts, runs, without
from tailorbird.graph.surgery import extract, induce
from tailorbird.graph.trace import LayerGraph, trace
from tailorbird.graph.zeros import addends

from .zoo import Head, conv

SMALL = {
    "vit_tiny_patch16_224": (32, {"img_size": 32, "depth": 4, "drop_path_rate": 0.1}),
    "deit_tiny_distilled_patch16_224": (32, {"img_size": 32, "depth": 3, "init_values": 0.1}),
    "swin_tiny_patch4_window7_224": (
        32,
        {
            **{"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 4)},
            **{"num_heads": (1, 2), "drop_path_rate": 0.1},
        },
    ),
    "convnext_atto": (32, {"drop_path_rate": 0.1}),
    "efficientnet_b0": (32, {"drop_path_rate": 0.1}),
    "efficientnet_lite0": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "mobilenetv4_conv_small_035": (32, {}),
    "regnetx_002": (32, {}),
}
RUNS = {  # steps of each run, parts in a step, whether a block of the stage stands before it
    "vit_tiny_patch16_224": [(4, 2, False)],
    "deit_tiny_distilled_patch16_224": [(3, 2, False)],
    "swin_tiny_patch4_window7_224": [(2, 2, False), (4, 2, False)],
    "convnext_atto": [(2, 1, False), (2, 1, False), (6, 1, False), (2, 1, False)],
    "efficientnet_b0": [(2, 1, True), (2, 1, True), (3, 1, True)],
    "efficientnet_lite0": [(2, 1, True), (2, 1, True), (3, 1, True)],
    "mobilenetv3_small_050": [(4, 1, True), (2, 1, True)],
    "mobilenetv4_conv_small_035": [(5, 1, True), (5, 1, True)],
    "regnetx_002": [(3, 1, True), (6, 1, True)],
}


def lived_in(model: nn.Module) -> nn.Module:
    """In eval mode, no weight of it constant: families begin branches near or at zero."""
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.numel() > 1 and tensor.std() == 0:
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model.eval()


def family(name: str) -> LayerGraph:
    size, arguments = SMALL[name]
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # timm's own
        torch.manual_seed(0)
        model = lived_in(timm.create_model(name, num_classes=7, **arguments))
    return trace(model, (3, size, size), ways=["torch.fx"])


class Zeroed(fx.Interpreter):
    """Runs a network with some of its nodes' outputs zero."""

    def __init__(self, graph: LayerGraph, names: set[str]) -> None:
        super().__init__(graph.module)
        self.names = names

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        return torch.zeros_like(value) if n.name in self.names else value


def branch_ends(graph: LayerGraph, gone: object) -> set[str]:
    """The other summands of the additions that the parts end with."""
    return {(set(addends(graph, part.end)) - {part.instead}).pop() for part in gone}


@pytest.mark.parametrize("name", SMALL)
def test_every_family_has_its_runs_and_a_left_out_branch_adds_nothing(name: str) -> None:
    graph = family(name)
    found, chains = parts(graph), runs(graph)
    assert [(len(r.steps), len(r.steps[0]), r.opened) for r in chains] == RUNS[name]
    images = torch.randn(2, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    part, chain = found[len(found) // 2], max(chains, key=lambda one: len(one.steps))
    gone = chain.without(chain.spread(1))
    with torch.no_grad():
        whole = graph.module(images)
        for block, some in ((part.block, [part]), (chain.block, gone)):
            body = extract(graph, block, left_out(graph, some))
            expected = Zeroed(graph, branch_ends(graph, some)).run(images)
            torch.testing.assert_close(induce(graph, {block: body})(images), expected)
            assert not torch.allclose(expected, whole, atol=1e-4)
            dropped = {one.end for one in some}.union(*(one.branch for one in some))
            assert dropped.isdisjoint(node.name for node in body.graph.nodes)


def test_each_branch_of_a_residual_network_and_the_rectifier_behind_it_can_go() -> None:
    graph = trace(lived_in(digits_net(width=4, depth=3)), (1, 8, 8))
    found = parts(graph)
    assert [part.block.in_shape[0] for part in found] == [4, 4, 4, 8, 8, 16, 16]
    images = torch.randn(2, 1, 8, 8)
    for part in found:
        body = extract(graph, part.block, left_out(graph, [part]))
        assert [node.op for node in body.graph.nodes] == ["placeholder", "output"]
        with torch.no_grad():
            expected = Zeroed(graph, branch_ends(graph, [part])).run(images)
            assert torch.equal(induce(graph, {part.block: body})(images), expected)
    thin = without(graph, [found[1], *found[3:5]])
    kinds = Counter(layer.kind for layer in graph.layers)
    assert thin.macs < graph.macs
    for kind, gone in {"conv": 6, "add": 3, "activation": 6, "norm": 6}.items():
        assert sum(layer.kind == kind for layer in thin.layers) == kinds[kind] - gone
    with torch.no_grad():
        expected = Zeroed(graph, branch_ends(graph, [found[1], *found[3:5]])).run(images)
        assert torch.equal(thin.module(images), expected)


class Awkward(nn.Module):
    """Branches side by side, a branch in a branch, and sums that are none."""

    def __init__(self) -> None:
        super().__init__()
        names = ("stem", "left", "right", "outer", "inner", "tail", "pair", "twin", "mixed", "late")
        for name in names:
            self.add_module(name, conv(3 if name == "stem" else 4, 4))
        self.act, self.smooth, self.head = nn.ReLU(), nn.SiLU(), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x + self.left(x) + self.right(x)  # two branches of one tensor
        y = self.outer(x)
        x = self.smooth(x + self.tail(y + self.inner(y)))  # SiLU of SiLU is something else
        x = self.pair(x) + self.twin(x)  # no shortcut
        y = self.mixed(x)
        x = F.relu(x + y)
        x = x + self.late(y)  # the branch's input is not what is added to
        return self.head(2 * x - x)


def test_awkward_sums_are_told_from_branches() -> None:
    graph = trace(lived_in(Awkward()), (3, 6, 6))
    found = {tuple(sorted(part.branch)): part for part in parts(graph)}
    named = {names: part.block.key for names, part in found.items()}
    assert named == {
        ("left",): "left..add",
        ("right",): "left..add_1",
        ("inner",): "inner..add_2",
        ("add_2", "inner", "outer", "tail"): "outer..add_3",
    }
    images = torch.randn(2, 3, 6, 6)
    for part in found.values():
        body = extract(graph, part.block, left_out(graph, [part]))
        with torch.no_grad():
            expected = Zeroed(graph, branch_ends(graph, [part])).run(images)
            torch.testing.assert_close(induce(graph, {part.block: body})(images), expected)


class Nested(nn.Module):
    """Three blocks in a row, each a branch that holds two branches in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 4), Head(4)
        self.inner = nn.ModuleList(conv(4, 4) for _ in range(9))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for first, second, third in zip(*[iter(self.inner)] * 3, strict=True):
            y = F.silu(first(x))
            y = y + second(y)
            y = y + third(y)
            x = x + F.silu(y)
        return self.head(x)


def test_runs_lie_beside_each_other_and_in_branches() -> None:
    graph = trace(lived_in(Nested()), (3, 6, 6))
    assert len(parts(graph)) == 9
    found = sorted((len(run.steps), run.block.nodes[0]) for run in runs(graph))
    assert found == [(2, "inner_1"), (2, "inner_4"), (2, "inner_7"), (3, "inner_0")]
    images = torch.randn(2, 3, 6, 6)
    run = next(run for run in runs(graph) if len(run.steps) == 3)
    gone = run.without((0,))
    with torch.no_grad():
        expected = Zeroed(graph, branch_ends(graph, gone)).run(images)
        torch.testing.assert_close(without(graph, gone).module(images), expected)


def test_chains_without_branches_lose_layers_that_keep_the_shape() -> None:
    layers = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU()]
    for width, wide in ((8, 8), (8, 8), (8, 16), (16, 16)):
        layers += [conv(width, wide), nn.BatchNorm2d(wide), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(16 * 36, 10), nn.ReLU(), nn.Linear(10, 10)]
    graph = trace(nn.Sequential(*layers).eval(), (3, 6, 6))
    assert [part.block.key for part in parts(graph)] == ["_3.._5", "_6.._8", "_12.._14"]
    (run,) = runs(graph)
    assert (run.block.key, len(run.steps), run.opened) == ("_3.._8", 2, False)
    thin = without(graph, parts(graph))
    rest = nn.Sequential(*layers[:3], *layers[9:12], *layers[15:]).eval()
    images = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(thin.module(images), rest(images))


def test_a_spread_keeps_the_first_of_a_stage_and_what_the_measured_networks_kept() -> None:
    first, second, _ = runs(trace(digits_net(width=4, depth=9), (1, 8, 8)))
    assert (len(first.steps), first.opened) == (9, False)
    assert (len(second.steps), second.opened) == (8, True)
    assert first.spread(5) == (0, 1, 3, 5, 7)
    assert second.spread(6) == (0, 1, 2, 4, 5, 6)
    for run in (first, second):
        for count in range(0 if run.opened else 1, len(run.steps) + 1):
            kept = run.spread(count)
            assert len(set(kept)) == count
            assert set(kept) <= set(range(len(run.steps)))
            assert run.opened or kept[0] == 0
    assert second.without(range(8)) == ()
    assert second.without(()) == tuple(part for step in second.steps for part in step)
