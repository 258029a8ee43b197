import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tailorbird.errors import DataError
from tailorbird.train.norm_stats import norm_layers, recalibrate


def make_net():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), BatchNormAct2d(3), nn.Dropout(0.9))
    net.train()
    net[2].eval()
    return net


def test_statistics_become_plain_averages_and_modes_stay():
    net, momentum = make_net(), 0.1
    batches = [torch.randn(4, 2, 3, 3) * k + k for k in (1.0, 3.0)]
    recalibrate(net, iter(batches))
    means = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0)
    assert torch.allclose(net[0].running_mean, means, atol=1e-6)
    assert torch.allclose(net[0].running_var, variances, atol=1e-5)
    assert [part.training for part in net] == [True, True, False, True]
    assert [layer.momentum for layer in norm_layers(net)] == [momentum, momentum]


def test_an_error_leaves_the_old_statistics():
    net = make_net()
    net[0].running_mean.fill_(7.0)
    with pytest.raises(DataError, match="no batch"):
        recalibrate(net, [])
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.randn(4, 2, 3, 3), torch.randn(4, 5, 3, 3)])
    assert net[0].running_mean.tolist() == [7.0, 7.0]
    assert net[0].momentum == 0.1


def test_networks_without_running_statistics_are_left_alone():
    net = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.LayerNorm(2))
    recalibrate(net, [])
    assert norm_layers(net) == []
