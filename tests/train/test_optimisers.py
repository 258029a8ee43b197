import itertools

import pytest
import torch
from torch import nn

from tailorbird.train.optimisers import build_optimizer, parameter_groups, rate_factor, set_rate


def test_norms_and_biases_are_not_decayed_and_shared_weights_come_once():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), shared, shared)
    net[0].bias.requires_grad_(False)
    decayed, plain = parameter_groups(net, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 1, 3, 3), (4, 4)]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_decay_can_be_kept_to_named_weights():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    decayed, plain = parameter_groups(net, 0.1, decayed={"1.weight", "1.bias"})
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert len(plain["params"]) == 3


def test_what_a_module_names_is_not_decayed():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(1, 2, 3))
            self.scale = nn.Linear(3, 3, bias=False)

        def no_weight_decay(self):
            return {"positions"}

    for net, decays in ((Placed(), [(3, 3)]), (nn.Sequential(Placed()), [(3, 3)])):
        decayed, plain = parameter_groups(net, 0.1)
        assert [tuple(p.shape) for p in decayed["params"]] == decays
        assert [tuple(p.shape) for p in plain["params"]] == [(1, 2, 3)]


@pytest.mark.parametrize("name", ["sgd", "adabelief", "adamw"])
def test_a_gradient_may_come_later_than_others(name):
    nets = [nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    before = nets[0][1].weight.clone()
    late = build_optimizer(name, nets[0], learning_rate=0.1)
    fresh = build_optimizer(name, nets[1][1], learning_rate=0.1)
    for step in range(4):
        late.zero_grad()
        fresh.zero_grad()
        nets[0][0](torch.ones(1, 2)).sum().backward()
        if step >= 2:
            nets[0][1](torch.ones(1, 2)).square().sum().backward()
            nets[1][1](torch.ones(1, 2)).square().sum().backward()
            fresh.step()
        late.step()
        if step < 2:
            assert torch.equal(nets[0][1].weight, before)
    assert torch.equal(nets[0][1].weight, nets[1][1].weight)
    assert not torch.equal(nets[0][1].weight, before)


@pytest.mark.parametrize(("name", "rate"), [("sgd", 0.1), ("adabelief", 0.05), ("adamw", 0.1)])
def test_each_optimiser_fits_a_line(name, rate):
    inputs = torch.linspace(-1, 1, 32).view(-1, 1)
    net = nn.Linear(1, 1)
    optimizer = build_optimizer(name, net, learning_rate=1.0, weight_decay=0.0)
    set_rate(optimizer, rate)
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(inputs), 3 * inputs + 1)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-2


def test_the_rate_rises_then_falls_and_never_jumps():
    curve = [rate_factor(i / 100, warmup=0.1, schedule="cosine") for i in range(101)]
    assert curve[:11] == sorted(curve[:11])
    assert curve[10:] == sorted(curve[10:], reverse=True)
    assert max(abs(a - b) for a, b in itertools.pairwise(curve)) <= 0.11
    assert rate_factor(0.0, warmup=0.0, schedule="cosine") == 1.0
    assert rate_factor(0.9, warmup=0.1, schedule="constant") == 1.0
