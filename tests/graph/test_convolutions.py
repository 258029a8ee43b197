"""Convolutions as values: what comes out merged is what the layers give."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tailorbird.errors import GraphError
from tailorbird.graph.convolutions import Convolution, Window, read_convolution, shortcut
from tailorbird.graph.serial import is_storable

GENERATOR = torch.Generator().manual_seed(0)


def layer(inputs, outputs, kernel, **arguments):
    made = nn.Conv2d(inputs, outputs, kernel, **arguments)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=GENERATOR) / 3)
    return made


def image(channels, size=(11, 12)):
    return torch.randn(2, channels, *size, generator=GENERATOR)


def run(*layers, size=(11, 12)):
    """The layers one after the other, and their merger, on the same image."""
    x = image(layers[0].in_channels, size)
    made, expected = shortcut(layers[0].in_channels), x
    with torch.no_grad():
        for one in layers:
            made = made.then(read_convolution(one, tuple(expected.shape[2:])))
            expected = one(expected)
        return expected, made.module()(x), made


def close(left, right):
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


KINDS = {
    "plain": {"stride": 1},
    "stride": {"stride": (2, 3)},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
def test_two_that_pad_nothing_are_one_everywhere(first, second):
    chain = [
        layer(4, 8, (3, 2), **KINDS[first]),
        layer(8, 12, 2, **{**KINDS[second], "stride": 1} if first == second else KINDS[second]),
    ]
    expected, given, made = run(*chain, size=(19, 19))
    assert made.borders
    close(given, expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(11, 12), (13, 15), (16, 14)])
def test_two_that_pad_differ_at_borders_at_most_and_have_the_same_size(stride, size):
    chain = layer(3, 5, 3, padding=1, stride=stride), layer(5, 4, 5, padding=2)
    expected, given, made = run(*chain, size=size)
    assert not made.borders
    assert given.shape == expected.shape
    inside = [slice(2, n - 2) for n in expected.shape[2:]]
    if min(expected.shape[2:]) > 4:
        close(given[:, :, *inside], expected[:, :, *inside])
    assert not torch.allclose(given, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("first", "second", "exact"),
    [
        ({"kernel": 1, "bias": False}, {"kernel": 3, "padding": 1}, True),
        ({"kernel": 1, "bias": False, "stride": 2}, {"kernel": 3, "padding": 1}, True),
        ({"kernel": 1}, {"kernel": 3, "padding": 1}, False),
        ({"kernel": 3, "padding": 2, "bias": False}, {"kernel": 3, "padding": 1}, True),
        (
            {"kernel": 3, "padding": 2, "bias": False, "stride": 2},
            {"kernel": 3, "padding": 1},
            True,
        ),
        ({"kernel": 3, "padding": 1, "bias": False}, {"kernel": 3, "padding": 1}, False),
        ({"kernel": 3, "padding": 1}, {"kernel": 1}, True),
        ({"kernel": 3, "padding": 1}, {"kernel": 3, "padding": "valid"}, True),
    ],
)
@pytest.mark.parametrize("size", [(11, 12), (8, 9)])
def test_borders_are_equal_exactly_where_it_says_so(first, second, exact, size):
    first, second = dict(first), dict(second)
    chain = layer(3, 5, first.pop("kernel"), **first), layer(5, 4, second.pop("kernel"), **second)
    expected, given, made = run(*chain, size=size)
    assert made.borders is exact
    assert torch.allclose(given, expected, atol=1e-4) is exact


def test_depthwise_ones_stay_depthwise_and_dilation_is_kept():
    chain = layer(6, 6, 3, groups=6, bias=False, padding=2), layer(6, 6, 3, groups=6, padding=1)
    expected, given, made = run(*chain)
    assert (made.groups, made.weight.shape) == (6, (6, 1, 5, 5))
    close(given, expected)
    expected, given, made = run(layer(6, 4, 1), layer(4, 4, 3, dilation=3))
    conv = made.module().conv
    assert (conv.kernel_size, conv.dilation) == ((3, 3), (3, 3))
    close(given, expected)
    expected, given, made = run(layer(6, 4, 1, stride=2), layer(4, 4, 3), layer(4, 4, 1))
    conv = made.module().conv
    assert (conv.dilation, made.cost) == ((2, 2), conv.weight.numel())
    close(given, expected)


def test_weights_that_are_zero_by_chance_are_kept():
    empty = layer(4, 4, 3, padding=1, bias=False)
    nn.init.zeros_(empty.weight)
    both = shortcut(4).plus(read_convolution(empty, (8, 8)).then(read_convolution(empty, (8, 8))))
    conv = both.module().conv
    assert (conv.kernel_size, conv.dilation) == ((5, 5), (1, 1))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (9, 10), (7, 6)])
def test_branches_of_any_kernel_are_one(stride, size):
    branches = [
        layer(4, 4, 1, stride=stride),
        layer(4, 4, 3, stride=stride, padding=1, groups=2),
        layer(4, 4, (1, 5), stride=stride, padding=(0, 2)),
    ]
    made = [read_convolution(one, size) for one in branches]
    x = image(4, size)
    expected = sum(one(x) for one in branches)
    merged = made[0].plus(made[1]).plus(made[2])
    if stride == 1:
        merged, expected = shortcut(4).plus(merged), expected + x
    assert merged.borders
    close(merged.module()(x), expected.detach())
    with pytest.raises(GraphError, match="branches of other strides"):
        merged.plus(read_convolution(layer(4, 4, 3, stride=3), size))


def test_a_norm_behind_is_part_of_it():
    conv, scale, shift = layer(3, 5, 3), torch.rand(5) + 0.5, torch.randn(5)
    x = image(3)
    expected = conv(x) * scale[:, None, None] + shift[:, None, None]
    merged = read_convolution(conv, (11, 12)).scaled(scale.double(), shift.double())
    close(merged.module()(x), expected.detach())


class PadsBehind(nn.Conv2d):
    """As TensorFlow pads: the odd zero comes last."""

    def forward(self, x):
        total = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:]]
        rows, columns = ((t // 2, t - t // 2) for t in total)
        return F.conv2d(F.pad(x, (*columns, *rows)), self.weight, self.bias, self.stride)


class PadsInFront(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (2, 0, 2, 0)), self.weight, self.bias, self.stride)


class OfItsOwn(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9, 9)])
@pytest.mark.parametrize("kind", [PadsBehind, PadsInFront])
def test_a_layer_with_a_forward_of_its_own_is_found_out(kind, size):
    seeded = layer(3, 4, 3, stride=2)
    own = kind(3, 4, 3, stride=2)
    own.load_state_dict(seeded.state_dict())
    expected, given, made = run(own, layer(4, 4, 1), size=size)
    assert made.borders
    close(given, expected)
    assert is_storable(made.module())


def test_what_is_no_convolution_padded_with_zeros_is_refused_by_name():
    with pytest.raises(GraphError, match="a OfItsOwn that does more than to pad and convolve"):
        read_convolution(OfItsOwn(3, 4, 3), (8, 8))
    with pytest.raises(GraphError, match="padding of kind reflect"):
        read_convolution(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (8, 8))
    with pytest.raises(GraphError, match="a ConvTranspose2d"):
        read_convolution(nn.ConvTranspose2d(3, 4, 3), (8, 8))


def test_shapes_alone_cost_no_arithmetic_and_agree():
    chain = [layer(4, 6, 1), layer(6, 6, 3, groups=6, padding=1, stride=2), layer(6, 5, 1)]
    real, shapes = shortcut(4), shortcut(4, "meta")
    for one in chain:
        real = real.then(read_convolution(one, (9, 9)))
        shapes = shapes.then(read_convolution(one, (9, 9), "meta"))
    assert isinstance(shapes, Convolution)
    assert shapes.weight.is_meta
    assert (shapes.cost, shapes.rows, shapes.groups) == (real.cost, real.rows, real.groups)
    assert real.rows == Window(kernel=3, stride=2, before=1, after=1, dilation=1)
