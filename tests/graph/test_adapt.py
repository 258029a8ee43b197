import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from tailorbird.errors import GraphError
from tailorbird.graph.adapt import fit_shape
from tailorbird.graph.channels import analyse

from .channel_zoo import SHAPE, ZOO, Mlp, PaddedShortcut, PreActivation, Residual, body, images


def fit(module, in_shape, out_shape, native=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return fit_shape(module, in_shape, out_shape, native_in=native, generator=generator)


def adapters(module):
    return [name for name, _ in module.named_children() if name.startswith("adapter")]


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("given", [4, 8, 11])
@pytest.mark.parametrize("wanted", [2, 8, 13])
def test_every_body_fits_every_width(kind, given, wanted):
    module = body(kind)
    channels = analyse(module, SHAPE)
    out_shape = list(channels.out_shape)
    out_shape[channels.out_axis] = wanted
    fitted = fit(module, (given, 6, 6), out_shape)
    assert fitted(images(shape=(given, 6, 6))).shape == (3, *out_shape)
    assert [n.name for n in fitted.graph.nodes if n.op == "placeholder"] == ["x"]
    fitted.train()(images(shape=(given, 6, 6))).sum().backward()


def test_same_shapes_change_nothing():
    module = body(Residual)
    fitted = fit(module, SHAPE, SHAPE)
    assert torch.equal(fitted(images()), module(images())) and not adapters(fitted)
    assert fitted is not module and fitted.a.weight is not module.a.weight


def test_largest_norms_stay():
    module = fx.symbolic_trace(nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1))).eval()
    first, last = module.get_submodule("0"), module.get_submodule("1")
    first.weight.data = torch.arange(8.0)[None, :, None, None] * torch.ones(16, 8, 1, 1)
    last.weight.data = (7 - torch.arange(8.0))[:, None, None, None] * torch.ones(8, 16, 1, 1)
    fitted = fit(module, (3, 6, 6), (2, 6, 6))
    assert not adapters(fitted)
    assert fitted.get_submodule("0").weight[0].flatten().tolist() == [5, 6, 7]
    assert fitted.get_submodule("1").weight[:, 0].flatten().tolist() == [7, 6]


def test_residual_is_cut_alike_at_both_ends():
    """The stream's score counts readers at the input and makers at the output."""
    module = body(Residual)
    module.b.weight.data[:] = 0
    module.a.weight.data = torch.tensor([0.0, 9, 0, 9, 9, 0, 0, 9])[None, :, None, None].expand(
        16, 8, 3, 3
    )
    fitted = fit(module, (4, 6, 6), (4, 6, 6))
    assert not adapters(fitted)
    x, kept = images(), [1, 3, 4, 7]
    torch.testing.assert_close(
        fitted(x[:, kept]), module(_only(x, kept))[:, kept], atol=1e-5, rtol=1e-5
    )


def _only(x, kept):
    out = torch.zeros_like(x)
    out[:, kept] = x[:, kept]
    return out


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [(4, 4, []), (4, 6, ["adapter_in"]), (6, 4, ["adapter_out"]), (10, 8, ["adapter_in"]),
     (8, 10, ["adapter_out"]), (10, 10, ["adapter_in", "adapter_out"])],
)  # fmt: skip
def test_stream_keeps_what_the_wider_end_needs(given, wanted, expected):
    assert adapters(fit(body(Residual), (given, 6, 6), (wanted, 6, 6))) == expected


def test_adapter_starts_as_partial_identity_and_is_reproducible():
    state = torch.get_rng_state()
    layer = fit(body(Residual), (10, 6, 6), (8, 6, 6)).adapter_in
    assert torch.equal(torch.get_rng_state(), state)
    assert (layer.weight[:, :, 0, 0] - torch.eye(8, 10)).abs().max() < 0.1
    assert not layer.bias.any()
    again = fit(body(Residual), (10, 6, 6), (8, 6, 6)).adapter_in
    assert torch.equal(layer.weight, again.weight)


def test_other_spatial_size():
    assert fit(body(Mlp), (4, 9, 5), (4, 9, 5))(images(shape=(4, 9, 5))).shape == (3, 4, 9, 5)
    # 7 -> 4, and not 7 -> 3, as the teacher would need
    fit(body(PaddedShortcut), (8, 7, 7), (4, 4, 4))
    with pytest.raises(
        GraphError, match=r"gives another output size: expected \(4, 3, 3\), got \(4, 4, 4\)"
    ):
        fit(body(PaddedShortcut), (8, 7, 7), (4, 3, 3))


def test_tokens_get_linear_adapters():
    net = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    fitted = fit(fx.symbolic_trace(net), (5, 12), (5, 10), native=(7, 8))
    assert fitted(torch.zeros(2, 5, 12)).shape == (2, 5, 10)
    assert isinstance(fitted.adapter_in, nn.Linear) and isinstance(fitted.adapter_out, nn.Linear)


def test_pinned_ends_get_narrowing_adapters():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU())
    fitted = fit(fx.symbolic_trace(net), (4, 6, 6), (2, 6, 6))
    assert adapters(fitted) == ["adapter_in", "adapter_out"]


def test_errors_give_both_shapes_and_nothing_is_mutated():
    module = body(PreActivation)
    code, state = module.code, {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(GraphError, match=r"layouts differ: .*\(5, 8\).*\(8, 6, 6\)"):
        fit(module, (5, 8), (5, 4))
    head = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5)))
    with pytest.raises(GraphError, match=r"can't run at the teacher's size: made for \(8, 6, 6\)"):
        fit(head, (8, 5, 5), (5,))
    fit(module, (3, 6, 6), (9, 6, 6))
    assert module.code == code
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())


def test_placeholder_is_renamed():
    class Named(nn.Module):
        def forward(self, image):
            return F.relu(image)

    fitted = fit(fx.symbolic_trace(Named()), (8, 6, 6), (9, 6, 6))
    assert fitted(x=images()).shape == (3, 9, 6, 6)
