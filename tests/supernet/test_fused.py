"""Convolution, norm and activation run as one, against the layers run one after the other."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import nn

from tailorbird.supernet.elastic import ElasticConv, ElasticNorm, ElasticSqueezeExcite
from tailorbird.supernet.fused import FusedConv, FusedResidual, FusedSqueezeExcite, fused
from tailorbird.supernet.shortcuts import Residual


def layers(*, outputs=8, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    torch.manual_seed(0)
    conv = nn.Conv2d(
        8, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    norm = nn.BatchNorm2d(outputs, momentum=None)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    return nn.Sequential(conv, norm, activation())


@pytest.mark.parametrize(
    ("outputs", "kernel", "stride", "groups"),
    [(8, 1, 1, 1), (8, 1, 2, 1), (8, 3, 1, 1), (8, 5, 2, 8), (8, 3, 1, 8), (24, 1, 1, 1)],
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.GELU])
@torch.no_grad()
def test_the_same_outputs_and_statistics(outputs, kernel, stride, groups, activation):
    plain = layers(
        outputs=outputs, kernel=kernel, stride=stride, groups=groups, activation=activation
    )
    together = fused(copy.deepcopy(plain))
    assert sum(isinstance(part, FusedConv) for part in together.modules()) == 1
    formats = (torch.contiguous_format, torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    for training, layout in product((True, False), formats):
        images = torch.randn(4, 8, 6, 6, generator=generator).contiguous(memory_format=layout)
        given = images.clone()
        for network in (plain, together):
            for part in network.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.training = training
        torch.testing.assert_close(together(images), plain(images), rtol=1e-4, atol=1e-5)
        assert torch.equal(images, given), "the input is the caller's"
    for mine, expected in zip(together.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_what_can_not_be_fused_is_shared_and_the_original_left_alone():
    network = nn.Sequential(Residual(layers()), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Flatten())
    twin = fused(network)
    assert isinstance(network[0].conv[0], nn.Conv2d)
    assert twin[1] is network[1], "a convolution with a bias keeps its norm"
    assert twin[2] is network[2]
    assert twin[0] is not network[0]
    assert fused(network[3]) is network[3]


@pytest.mark.parametrize("offset", [0.0, 30.0])
@torch.no_grad()
def test_statistics_of_a_wide_layer_follow_from_its_inputs(offset):
    """Also where channels are equal and the mean is far above the spread, up to its rounding."""
    near = 1e-5 * (1.0 + offset)
    plain = layers(outputs=32, kernel=1).train()
    together = fused(copy.deepcopy(plain))
    images = torch.randn(32, 8, 12, 12, generator=torch.Generator().manual_seed(2)) + offset
    images[:, 1] = images[:, 0]
    images = images.contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        torch.testing.assert_close(together(images), plain(images), rtol=1e-4, atol=near)
    for mine, expected in zip(together.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_shortcut_and_squeeze_excite_work_on_tensors_of_their_own():
    torch.manual_seed(0)
    conv, *others = layers().eval()
    excite = ElasticSqueezeExcite(8)
    plain = Residual(nn.Sequential(conv, *others, excite))
    together = fused(plain)
    assert {type(part) for part in together.modules()} >= {FusedResidual, FusedSqueezeExcite}
    images = torch.randn(4, 8, 6, 6)
    given = images.clone()
    torch.testing.assert_close(together(images), plain(images))
    assert torch.equal(images, given), "the input is the caller's"


def test_squeeze_excite_without_a_fused_layer_in_front_leaves_its_input_alone():
    alone = nn.Sequential(nn.Conv2d(3, 8, 1), ElasticSqueezeExcite(8))
    assert fused(alone) is alone


@torch.no_grad()
def test_elastic_pieces_keep_their_active_width():
    conv = nn.Conv2d(8, 16, 1, bias=False)
    pieces = nn.Sequential(
        ElasticConv(conv, inside="in_channels", outside="out_channels"),
        ElasticNorm(nn.BatchNorm2d(16), width="out_channels"),
    ).eval()
    pieces[0]._active, pieces[1]._active = (8, 4, 1), 4
    images = torch.rand(2, 8, 3, 3)
    answers = fused(pieces)(images)
    assert answers.shape == (2, 4, 3, 3)
    torch.testing.assert_close(answers, pieces(images))
