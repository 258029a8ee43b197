"""Networks that do more in train mode: at random, or with further outputs."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from tailorbird.graph.trace import LayerGraph, trace
from tests.graph.zoo import Head, conv


class OwnDropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep


def connect(x: Tensor, rate: float, training: bool) -> Tensor:
    if not training:
        return x
    keep = 1 - rate
    noise = keep + torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
    return x / keep * torch.floor(noise)


class Block(nn.Module):
    def __init__(self, drop: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.norm = conv(4, 4), conv(4, 4), nn.BatchNorm2d(4)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.two(torch.relu(self.one(x))))
        return torch.relu(x + self.drop(y, self.training))


class ByModule(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.conv, self.path = conv(4, 4), OwnDropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(self.conv(x))


def network(*blocks: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 4), *blocks, Head(4)).eval()


def check(model: nn.Module, graph: LayerGraph) -> None:
    for batch in (1, 4):
        images = torch.randn(batch, 3, 6, 6)
        assert torch.equal(graph.module(images), model(images))


def drops(graph: LayerGraph) -> list[float]:
    return [m.drop_prob for m in graph.module.modules() if isinstance(m, DropPath)]


def test_drop_path_of_ones_own_becomes_timms_with_its_rate() -> None:
    inline = [Block(lambda y, training, p=p: connect(y, p, training)) for p in (0.1, 0.25)]
    model = network(*inline, ByModule(0.3), ByModule(0.0))
    graph = trace(model, (3, 6, 6))
    check(model, graph)
    assert drops(graph) == pytest.approx([0.1, 0.25, 0.3], abs=1e-4)
    assert len(graph.notes) == 3
    assert "'1' (Block): its drop path of train mode became timm's DropPath(0.1)" in graph.notes
    assert {layer.kind for layer in graph.layers} >= {"conv", "norm"}


def test_drop_path_in_place_drops_the_branch_alone() -> None:
    model = network(ByModule(0.5))
    module = copy.deepcopy(trace(model, (3, 6, 6)).module).train()
    images = torch.randn(64, 3, 6, 6)
    features = model[0](images)
    branch = model[1].conv(features)
    head = model[2]
    kept, dropped = head(features + 2 * branch), head(features)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = module(images)
    is_kept = torch.isclose(found, kept, atol=1e-5).all(1)
    is_dropped = torch.isclose(found, dropped, atol=1e-5).all(1)
    assert (is_kept | is_dropped).all()
    assert 16 < is_kept.sum() < 48


class Twice(nn.Module):
    """Both addends are dropped, and one of them is read by a third."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        left = connect(self.one(x), 0.2, self.training)
        right = connect(self.two(x), 0.4, self.training)
        return left + right + x * left


def test_two_dropped_branches_meet() -> None:
    model = network(Twice())
    graph = trace(model, (3, 6, 6))
    check(model, graph)
    read = {str(n.target): len(n.users) for n in graph.module.graph.nodes if "drop" in n.name}
    assert drops(graph) == pytest.approx([0.2, 0.4], abs=1e-4)
    assert sorted(read.values()) == [1, 2]


def test_other_noise_is_left_out_and_said() -> None:
    def noise(y: Tensor, training: bool) -> Tensor:
        return y + 0.1 * torch.randn_like(y) if training else y

    model = network(Block(noise), nn.Dropout(0.2))
    graph = trace(model, (3, 6, 6))
    check(model, graph)
    assert graph.notes == ("'1' (Block): the random regularisation of train mode is left out",)
    module = copy.deepcopy(graph.module)
    assert [m.p for m in module.modules() if isinstance(m, nn.Dropout)] == [0.2]


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor


@pytest.mark.parametrize(
    "pack", [lambda y, a: (y, a), Outputs, lambda y, a: [y, a], lambda y, a: {"y": y, "a": a}]
)
def test_auxiliary_heads_are_left_out(pack: Callable[[Tensor, Tensor], object]) -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.later, self.head, self.aux = conv(3, 4), conv(4, 4), Head(4), Head(4)

        def forward(self, x: Tensor) -> object:
            x = self.body(x)
            aux = self.aux(x) if self.training else None
            y = self.head(self.later(x))
            return y if aux is None else pack(y, aux)

    model = Auxiliary().eval()
    graph = trace(model, (3, 6, 6))
    check(model, graph)
    assert graph.notes == ("outputs that only train mode returns (auxiliary heads) are left out",)
    assert not any(name.startswith("aux") for name, _ in graph.module.named_parameters())
    module = copy.deepcopy(graph.module).train()
    assert isinstance(module(torch.randn(2, 3, 6, 6)), Tensor)
