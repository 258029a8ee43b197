"""Each elastic piece against slices written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tailorbird.supernet.architecture import LayerShape, load_space, make_divisible
from tailorbird.supernet.elastic import (
    ElasticConv,
    ElasticLinear,
    ElasticNorm,
    ElasticSqueezeExcite,
)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def shape(**values) -> LayerShape:
    """A block of the MobileNetV3 space with some attributes changed."""
    block = load_space("ofa-mbv3-w1.0", resolutions=[32]).slots[2].variants[0, 0, 0]
    return LayerShape(**{**vars(block), **values})


def filled(module, draw):
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(draw(*value.shape))
    return module


def test_dense_convolution_takes_leading_inputs_and_outputs(draw):
    full = nn.Conv2d(6, 8, 1, bias=False)
    conv = filled(ElasticConv(full, inside="in_channels", outside="mid_channels"), draw)
    active = shape(in_channels=4, mid_channels=5)
    conv.activate(active)
    images = draw(2, 4, 3, 3)
    assert torch.equal(conv(images), F.conv2d(images, full.weight[:5, :4]))
    assert torch.equal(conv.extract(active)(images), conv(images))


def test_a_small_kernel_is_a_centre_transformed_twice(draw):
    full = nn.Conv2d(4, 4, 7, stride=2, groups=4, bias=False)
    conv = ElasticConv(full, inside="mid_channels", outside="mid_channels", kernels=(3, 5, 7))
    filled(conv, draw)
    conv.activate(shape(mid_channels=3, kernel=3))
    to_5 = conv.get_parameter("7to5_matrix")
    to_3 = conv.get_parameter("5to3_matrix")
    images = draw(1, 3, 9, 9)
    kernels = []
    for channel in range(3):
        five = (to_5 @ full.weight[channel, 0, 1:6, 1:6].flatten()).view(5, 5)
        kernels.append((to_3 @ five[1:4, 1:4].flatten()).view(1, 3, 3))
    expected = F.conv2d(images, torch.stack(kernels), stride=2, padding=1, groups=3)
    torch.testing.assert_close(conv(images), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(conv.extract(shape(mid_channels=3, kernel=3))(images), conv(images))


def test_the_largest_kernel_is_used_as_it_is(draw):
    full = nn.Conv2d(4, 4, 7, groups=4, bias=False)
    conv = ElasticConv(full, inside="mid_channels", outside="mid_channels", kernels=(3, 5, 7))
    filled(conv, draw)
    conv.activate(shape(mid_channels=4, kernel=7))
    images = draw(1, 4, 9, 9)
    assert torch.equal(conv(images), F.conv2d(images, full.weight, padding=3, groups=4))


@pytest.mark.parametrize("width", [3, 5])
def test_norm_of_the_leading_channels_in_both_modes(draw, width):
    norm = ElasticNorm(nn.BatchNorm2d(5), width="mid_channels")
    alone = nn.BatchNorm2d(width)
    with torch.no_grad():
        norm.bn.weight.copy_(draw(5))
        alone.weight.copy_(norm.bn.weight[:width])
    active = shape(mid_channels=width)
    norm.activate(active)
    for _ in range(2):
        images = draw(4, width, 2, 2)
        assert torch.equal(norm(images), alone(images))
    assert torch.equal(norm.bn.running_var[:width], alone.running_var)
    assert torch.equal(norm.bn.running_mean[width:], torch.zeros(5 - width))
    assert int(norm.bn.num_batches_tracked) == 2
    norm.eval()
    alone.eval()
    assert torch.equal(norm(images), alone(images))
    assert torch.equal(norm.extract(active)(images), alone(images))


def test_a_narrow_norm_averages_plainly_without_a_momentum(draw):
    norm = ElasticNorm(nn.BatchNorm2d(5, momentum=None), width="mid_channels")
    norm.activate(shape(mid_channels=2))
    batches = [draw(4, 2, 2, 2) for _ in range(3)]
    for images in batches:
        norm(images)
    expected = torch.stack([images.mean((0, 2, 3)) for images in batches]).mean(0)
    torch.testing.assert_close(norm.bn.running_mean[:2], expected)


def test_squeeze_excite_narrows_its_inside_too(draw):
    layer = filled(ElasticSqueezeExcite(96), draw)
    active = shape(mid_channels=40)
    layer.activate(active)
    inner = make_divisible(40 // 4)
    assert inner < make_divisible(96 // 4)
    reduce, expand = layer.fc.reduce, layer.fc.expand
    images = draw(2, 40, 3, 3)
    means = images.mean((2, 3), keepdim=True)
    hidden = F.relu(F.conv2d(means, reduce.weight[:inner, :40], reduce.bias[:inner]))
    scale = F.conv2d(hidden, expand.weight[:40, :inner], expand.bias[:40])
    expected = images * F.relu6(scale + 3) / 6
    torch.testing.assert_close(layer(images), expected)
    assert torch.equal(layer.extract(active)(images), layer(images))


def test_linear_takes_leading_features_and_keeps_all_outputs(draw):
    layer = filled(ElasticLinear(nn.Linear(6, 3)), draw)
    active = shape(in_channels=4)
    layer.activate(active)
    features = draw(2, 4)
    full = layer.linear
    assert torch.equal(layer(features), F.linear(features, full.weight[:, :4], full.bias))
    assert torch.equal(layer.extract(active)(features), layer(features))


def test_what_was_extracted_shares_no_memory_and_draws_nothing(draw):
    conv = ElasticConv(nn.Conv2d(6, 8, 1, bias=False), inside="in_channels", outside="out_channels")
    before = torch.get_rng_state()
    alone = conv.extract(shape(in_channels=6, out_channels=8))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        alone.weight.zero_()
    assert conv.conv.weight.abs().sum() > 0
