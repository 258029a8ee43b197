import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.errors import GraphError
from tailorbird.graph.trace import trace
from tests.graph.zoo import ZOO, Head, RandomNet, conv


def state_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value.clone()) for name, value in model.state_dict().items()]


def run(model: nn.Module, images: Tensor, *, training: bool) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return model.train(training)(images)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_trace_equals_the_network_for_any_batch_in_either_mode(name: str, batch: int) -> None:
    case = ZOO[name]
    model = case.build()
    graph = trace(model, case.shape)
    module = copy.deepcopy(graph.module)
    images = torch.randn(batch, *case.shape)
    for training in (False, True):
        assert torch.equal(
            run(module, images, training=training), run(model, images, training=training)
        )


@pytest.mark.parametrize("name", ZOO)
def test_the_network_is_left_as_it_is(name: str) -> None:
    case = ZOO[name]
    model = case.build().train()
    flags = [getattr(module, "inplace", None) for module in model.modules()]
    before = state_of(model)
    random = torch.random.get_rng_state()
    trace(model, case.shape)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before, state_of(model), strict=True))
    assert [name for name, _ in before] == list(model.state_dict())
    assert all(module.training for module in model.modules())
    assert flags == [getattr(module, "inplace", None) for module in model.modules()]
    assert torch.equal(random, torch.random.get_rng_state())


def test_macs_params_and_shapes_by_hand() -> None:
    graph = trace(ZOO["tokens"].build(), (3, 8, 8))
    layer = {layer.name: layer for layer in graph.layers}
    assert layer["patch"].macs == 4 * (3 * 4 * 4) * 4
    assert layer["qkv"].macs == 5 * 4 * 12
    assert layer["mode_scaled_dot_product_attention"].macs == 2 * 2 * 5 * 5 * 2
    assert layer["cat"].shape == (5, 4)
    assert layer["token"].params == 4
    assert (layer["token"].kind, layer["token"].shape) == ("constant", (1, 1, 4))
    assert graph.params == sum(p.numel() for p in ZOO["tokens"].build().parameters())
    assert graph.layers[0].kind == "input"
    assert graph.output == "fc"


def test_functional_layers_count_macs() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(4, 1, 3, 3))
            self.matrix = nn.Parameter(torch.ones(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.kernel, padding=1, groups=4).flatten(2)
            return torch.einsum("bcn,ck->bkn", x, self.matrix).mean(2)

    graph = trace(Functional(), (4, 3, 3))
    assert {layer.kind: layer.macs for layer in graph.layers if layer.macs} == {
        "conv": 9 * 9 * 4,
        "matmul": 9 * 4 * 5,
    }


def test_torch_attention_layer_counts_its_fused_kernel() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).transpose(1, 2)
            y, _ = self.attend(x, x, x, need_weights=False)
            return y.mean(1)

    graph = trace(Attend(), (4, 3, 2))
    assert graph.layer("attend").kind == "attention"
    assert graph.macs == 6 * 4 * 16 + 2 * 6 * 6 * 4


class Steered(nn.Module):
    """Shapes steer Python, batch sizes are multiplied, factories take the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(3, 4), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.shape[-1] % 4 == 0 and x.shape[0] > 0:
            count, channels, height, width = x.size()
            x = x.view(count * 4, channels, height // 2, width // 2)
            x = x.reshape(x.shape[0] // 4, channels, height, width)
        mask = torch.zeros(x.shape[0], 1, 1, 1) + torch.arange(4).view(1, 4, 1, 1)
        return self.head(x * mask)


def test_shapes_may_steer_the_program() -> None:
    model = Steered().eval()
    graph = trace(model, (3, 8, 8))
    images = torch.randn(7, 3, 8, 8)
    assert torch.equal(graph.module(images), model(images))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x + torch.randn_like(x)


class Drop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * 2
        return self.two(self.one(x))


def test_what_depends_on_the_mode_becomes_one_layer() -> None:
    model = nn.Sequential(conv(3, 4), Noise(), Drop(), Noise(), Head(4))
    graph = trace(model, (3, 4, 4))
    called = [str(n.target) for n in graph.module.graph.nodes if n.op == "call_module"]
    assert called == ["0", "1", "2", "3", "4.fc"]
    assert graph.layer("_2").kind == "composite"
    assert graph.layer("_2").macs == 2 * 16 * 16
    images = torch.randn(4, 3, 4, 4)
    module = copy.deepcopy(graph.module)
    assert torch.equal(run(module, images, training=True), run(model, images, training=True))


def test_in_place_writes_are_made_plain() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.head = conv(3, 4), nn.ReLU(inplace=True), Head(4)

        def forward(self, x: Tensor) -> Tensor:
            a = self.conv(x)
            b = self.act(a)
            b.mul_(2)
            return self.head(a + F.relu(b, inplace=True))

    model = Writes().eval()
    graph = trace(model, (3, 4, 4))
    assert not any(getattr(m, "inplace", False) for m in graph.module.modules())
    assert "mul_" not in {n.target for n in graph.module.graph.nodes}
    images = torch.randn(3, 3, 4, 4)
    assert torch.equal(graph.module(images), model(images))


class Chooser(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_untraceable_module_is_named_with_its_line_and_the_way_out() -> None:
    body = nn.Sequential(conv(3, 4), nn.Sequential(Chooser()))
    model = nn.Sequential(body, Head(4))
    text = (
        r"can't trace '0\.1\.0' \(Chooser\) at .*test_trace\.py, line \d+ \(if x\.sum\(\) > 0:\): "
        r".*depends on the images.* Mark it.*leaves=\['0\.1\.0'\]"
    )
    with pytest.raises(GraphError, match=text) as caught:
        trace(model, (3, 4, 4))
    assert caught.value.module == "0.1.0"
    for leaf in ("0.1.0", "0.1", Chooser):
        graph = trace(model, (3, 4, 4), leaves=[leaf])
        assert graph.layers[-1].shape == (3,)


def test_batch_size_in_python_is_refused() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[i] for i in range(x.shape[0])]).mean((2, 3))

    with pytest.raises(
        GraphError, match=r"Loop.forward at .*depends on the images or on the batch"
    ):
        trace(Loop(), (3, 4, 4))


@pytest.mark.parametrize(
    ("model", "shape", "text"),
    [
        (
            nn.Conv2d(3, 4, 3),
            (1, 8, 8),
            r"Conv2d does not run on images of shape \(1, 8, 8\).*Check",
        ),
        (nn.Flatten(0), (3, 2, 2), r"Flatten returns \(12,\) for one image; expected one tensor"),
        (nn.LSTM(4, 4, batch_first=True), (3, 4), "LSTM returns tuple for one image"),
    ],
)
def test_wrong_input_or_output_is_explained(
    model: nn.Module, shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(GraphError, match=text):
        trace(model, shape)


def test_unknown_leaf_and_layer_are_named() -> None:
    model = ZOO["leak"].build()
    with pytest.raises(GraphError, match=r"no module called 'heads' \(near: \['head'"):
        trace(model, (3, 6, 6), leaves=["heads"])
    with pytest.raises(GraphError, match=re.escape("no layer 'aa'")):
        trace(model, (3, 6, 6)).layer("aa")


def test_mode_dependence_of_the_whole_network_is_left_out_and_said() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) * (2 if self.training else 1)

    with pytest.raises(GraphError, match=r"Auxiliary\.forward itself does something else in train"):
        trace(Auxiliary(), (3, 4, 4), ways=["torch.fx"])
    graph = trace(Auxiliary(), (3, 4, 4))
    assert graph.told[0] == "read by torch.export"
    assert "train mode alone is left out" in graph.notes[0]


def test_state_kept_between_calls_is_found_out() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.mean((2, 3)) * self.calls

    with pytest.raises(GraphError, match="the traced network differs from Counter by up to"):
        trace(Counter(), (3, 4, 4))


def test_a_traced_network_can_be_traced_again() -> None:
    graph = trace(RandomNet([(0,), (0, 1), (2,)]), (2, 2, 2))
    again = trace(graph.module, (2, 2, 2))
    assert [layer.shape for layer in again.layers] == [layer.shape for layer in graph.layers]
    assert again.macs == graph.macs
