"""What every scheme owes the loop, then each scheme's own rules, then the work on channels."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tailorbird.errors import ConfigError
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.samplers import MacsBalanced, Region, Sandwich, Uniform
from tailorbird.supernet.schemes import channels, compofa
from tailorbird.supernet.schemes.bignas import BigNAS
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.schemes.progressive_shrinking import PHASES, ProgressiveShrinking, scaled
from tailorbird.supernet.schemes.scheme import (
    FreezeTeacher,
    FreshOptimizer,
    SortChannels,
    ZeroResidualGains,
)
from tailorbird.testing import check_scheme
from tailorbird.train.losses import CrossEntropy, Distillation
from tests.supernet.tiny import tiny_supernet

MBV3 = load_space("ofa-mbv3-w1.0", resolutions=[128, 160, 224])
NAMES = [choice.name for choice in MBV3.space.choices]
PER_EPOCH = 4
SCHEMES = {
    "deps": DepS(epochs=20),
    "progressive-shrinking": ProgressiveShrinking(
        phases=scaled(PHASES, epochs=30, learning_rate=0.1)
    ),
    "bignas": BigNAS(epochs=10),
    "compofa": compofa.comp_ofa(phases=scaled(compofa.PHASES, epochs=15, learning_rate=0.1)),
}


def steps(scheme, space=MBV3, seed=0):
    plan = scheme.plan(space, PER_EPOCH)
    return [plan.step(n, np.random.default_rng([seed, n])) for n in range(plan.total)]


def kinds(step):
    return [type(action) for action in step.before]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
class TestEveryScheme:
    def test_the_contract_is_kept(self, scheme):
        check_scheme(scheme, MBV3)

    def test_who_learns_in_place_comes_after_the_full_network(self, scheme):
        for step in steps(scheme):
            assert step.networks[0].teacher != "full"
            if any(member.teacher == "full" for member in step.networks):
                assert (step.networks[0].genome[1:] == MBV3.space.sizes[1:] - 1).all()

    def test_a_frozen_teacher_was_frozen_before(self, scheme):
        frozen = False
        for step in steps(scheme):
            frozen |= FreezeTeacher in kinds(step)
            assert frozen or all(member.teacher != "frozen" for member in step.networks)

    def test_another_sampler_can_be_plugged_in(self, scheme):
        other = replace(scheme, sampler=MacsBalanced)
        plan = other.plan(MBV3, PER_EPOCH)
        assert all("macs-balanced" in sampler.name for sampler in plan.samplers)
        plan.step(plan.total - 1, np.random.default_rng(0))

    def test_the_record_holds_all_settings(self, scheme):
        assert scheme.record()["name"] == scheme.name
        assert replace(scheme, label_smoothing=0.05).record() != scheme.record()


def test_deps_ramps_epsilon_by_equal_amounts_to_the_end_of_the_delay():
    plan = DepS(epochs=20, delay=0.5, ramp_epochs=5).plan(MBV3, PER_EPOCH)
    epsilons = [plan.epsilon(n) for n in range(plan.total)]
    assert epsilons[:20] == [0] * 20
    assert epsilons[20] == pytest.approx(1e-4)
    assert epsilons[40:] == [1] * 40
    rises = [b - a for a, b in pairwise(epsilons[20:41])]
    assert max(rises) == pytest.approx(min(rises))
    weights = [member.weight for member in steps(DepS(epochs=20))[30].networks]
    assert weights == [1.0, *[epsilons[30]] * 3]


def test_deps_gives_labels_to_the_full_network_alone():
    scheme = DepS(epochs=20)
    alone, last = steps(scheme)[19], steps(scheme)[-1]
    assert len(alone.networks) == 1
    full, *others = last.networks
    assert full.terms == (CrossEntropy(smoothing=0.1),)
    assert all([type(t) for t in member.terms] == [Distillation] for member in others)
    assert (others[0].genome[1:] == 0).all()
    assert len({int(member.genome[0]) for member in last.networks}) == 1


@pytest.mark.parametrize(
    ("switches", "networks", "weight", "terms", "sorted_at"),
    [
        ({}, [1, 1, 4], 1e-4, Distillation, 20),
        ({"warm_up_full": False}, [4, 4, 4], None, Distillation, 0),
        ({"ramp": False}, [1, 1, 4], 1.0, Distillation, 20),
        ({"distil": False}, [1, 1, 4], 1e-4, CrossEntropy, 20),
        ({"reorder": False}, [1, 1, 4], 1e-4, Distillation, None),
    ],
)
def test_each_part_of_deps_can_be_switched_off(switches, networks, weight, terms, sorted_at):
    found = steps(DepS(epochs=20, **switches))
    assert [len(found[n].networks) for n in (0, 19, 20)] == networks
    if weight is not None:
        assert found[20].networks[1].weight == pytest.approx(weight)
    assert type(found[-1].networks[1].terms[0]) is terms
    assert [n for n, step in enumerate(found) if SortChannels in kinds(step)] == (
        [] if sorted_at is None else [sorted_at]
    )


def test_deps_draws_the_full_network_only_once():
    space = load_space("compofa-mbv3-w1.0", resolutions=[32])
    region_of_one = replace(DepS(epochs=20), fixed=("d",))
    for step in steps(region_of_one, space):
        assert len(step.networks) == 1


def test_progressive_shrinking_opens_kernel_then_depth_then_expand():
    found = steps(SCHEMES["progressive-shrinking"])
    opened = {}
    for step in found:
        seen = opened.setdefault(step.phase, {"k": set(), "d": set(), "e": set()})
        for member in step.networks:
            active = MBV3.space.active(member.genome[None])[0]
            for name, value, used in zip(NAMES, member.genome, active, strict=True):
                if used and name[0] in seen:
                    seen[name[0]].add(int(value))
    full, two = {2}, {1, 2}
    every = {0, 1, 2}
    assert list(opened) == [phase.name for phase in PHASES]
    assert opened["teacher"] == {"k": full, "d": full, "e": full}
    assert opened["kernel"] == {"k": every, "d": full, "e": full}
    assert opened["depth-1"] == {"k": every, "d": two, "e": full}
    assert opened["depth-2"] == {"k": every, "d": every, "e": full}
    assert opened["expand-1"] == {"k": every, "d": every, "e": two}
    assert opened["expand-2"] == {"k": every, "d": every, "e": every}


def test_phases_have_their_own_rates_networks_and_beginnings():
    found = steps(SCHEMES["progressive-shrinking"])
    phases = {}
    for step in found:
        phases.setdefault(step.phase, []).append(step)
    assert max(s.rate for s in phases["teacher"]) == pytest.approx(0.1)
    assert max(s.rate for s in phases["kernel"]) == pytest.approx(0.1 * 0.96 / 2.6, rel=0.02)
    assert phases["kernel"][-1].rate < phases["kernel"][len(phases["kernel"]) // 2].rate
    assert [len(s[0].networks) for s in phases.values()] == [1, 1, 2, 2, 4, 4]
    assert [kinds(s[0]) for s in phases.values()] == [
        [],
        [FreezeTeacher, FreshOptimizer],
        [FreshOptimizer],
        [FreshOptimizer],
        [SortChannels, FreshOptimizer],
        [SortChannels, FreshOptimizer],
    ]
    assert not any(s.before for steps_ in phases.values() for s in steps_[1:])
    known = phases["expand-2"][0].before[0].region  # two widths are there already
    assert known.floor[NAMES.index("e1_1")] == 1
    assert known.floor[NAMES.index("d1")] == 0
    [ce, kd] = phases["kernel"][0].networks[0].terms
    assert (ce, kd) == (CrossEntropy(smoothing=0.1), Distillation(weight=1.0, temperature=1.0))


def test_compofa_goes_from_the_teacher_to_the_whole_space():
    space = load_space("compofa-mbv3-w1.0", resolutions=[160])
    found = steps(SCHEMES["compofa"], space)
    after = [step for step in found if step.phase != "teacher"]
    assert all(len(step.networks) == 4 for step in after)
    drawn = {tuple(m.genome[1:].tolist()) for step in after for m in step.networks}
    assert {max(genome) for genome in drawn} | {min(genome) for genome in drawn} == {0, 1, 2}
    assert sum(FreezeTeacher in kinds(step) for step in found) == 1


def test_bignas_regularises_the_full_network_alone_and_ends_in_a_tail():
    scheme = BigNAS(epochs=10, learning_rate=0.1, tail=0.05, tail_from=0.5)
    found = steps(scheme)
    assert [m.dropout for m in found[5].networks] == [True, False, False, False]
    assert [m.teacher for m in found[5].networks] == [None, "full", "full", "full"]
    assert kinds(found[0]) == [ZeroResidualGains]
    assert not any(step.before for step in found[1:])
    rates = [step.rate for step in found]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.1 * 0.05**0.5)
    assert rates[20:] == [pytest.approx(0.005)] * 20
    assert scheme.decays_largest_only
    # Each network has its own image size: the full one the largest, the smallest the smallest.
    assert all(step.networks[0].genome[0] == 2 for step in found)
    assert all(step.networks[1].genome[0] == 0 for step in found)


def test_all_faults_of_a_scheme_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        DepS(epochs=0, learning_rate=-1, delay=1.5)
    assert "deps.epochs: expected a number above 0, got 0" in caught.value.problems
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError) as caught:
        DepS(epochs=2, ramp_epochs=3, networks=1.5, lr_warmup_epochs=2, label_smoothing="much")
    assert caught.value.problems == (
        "deps.label_smoothing: expected a number of 0 or more and below 1, got 'much'",
        "deps.networks: expected a whole number of 2 or more, got 1.5",
        "deps.lr_warmup_epochs: expected less than the 2 epochs of training, got 2",
        "deps.ramp_epochs: expected at most the 1 epochs of the delay, got 3",
    )
    broken = [replace(PHASES[1], epochs=0), replace(PHASES[2], networks=0)]
    with pytest.raises(ConfigError) as caught:
        ProgressiveShrinking(phases=[*broken, replace(PHASES[3], warmup_epochs=200)], distil=-1)
    assert caught.value.problems == (
        "progressive-shrinking.distil: expected a number of 0 or more, got -1",
        "progressive-shrinking.kernel.epochs: expected a number above 0, got 0",
        "progressive-shrinking.depth-1.networks: expected a whole number of 1 or more, got 0",
        "progressive-shrinking.depth-2.warmup_epochs: expected less than the 125 epochs of "
        "training, got 200",
    )
    with pytest.raises(ConfigError, match="expected 1 or more, got none"):
        ProgressiveShrinking(phases=())
    with pytest.raises(ConfigError) as caught:
        BigNAS(networks=1, tail=2)
    assert caught.value.problems == (
        "bignas.networks: expected a whole number of 2 or more, got 1",
        "bignas.tail: expected at most 1, the peak itself, got 2",
    )
    resnet = load_space("ofa-resnet50d")
    with pytest.raises(ConfigError, match="space 'ofa-resnet50d': expected kinds of genes among"):
        ProgressiveShrinking().plan(resnet, 1)


def logits(net, genome):
    images = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    net.eval().activate(genome)
    with torch.no_grad():
        return net(images)


@pytest.mark.parametrize("kind", ["mbconv", "bottleneck"])
def test_sorting_leaves_the_full_network_as_it_is_and_puts_important_channels_first(tmp_path, kind):
    net = tiny_supernet(tmp_path, kind)
    full, small = net.largest(), net.smallest()
    before, small_before = logits(net, full), logits(net, small)
    closed = Region(net.architectures, net.largest())
    channels.reorder_channels(net, channels.channel_orders(net, closed))
    assert torch.allclose(logits(net, full), before, atol=1e-5)
    assert not torch.allclose(logits(net, small), small_before, atol=1e-3)
    inner = channels.inner_channels(net)
    assert len(inner) == 4  # two blocks: middle and squeezed, or the two middles of a bottleneck
    for one in inner:
        importance = one.reader.abs().flatten(2).sum(dim=(0, 2))
        assert (importance.diff() <= 1e-6).all()


@pytest.mark.parametrize("kind", ["mbconv", "bottleneck"])
def test_widths_that_were_there_keep_their_channels(tmp_path, kind):
    net = tiny_supernet(tmp_path, kind)
    known = Region.opened(net.architectures, {"e": 2, "d": None})
    subnets = known.sample(6, np.random.default_rng(0))
    before = [logits(net, genome) for genome in subnets]
    orders = channels.channel_orders(net, known)
    assert any((order != torch.arange(len(order))).any() for order in orders)
    channels.reorder_channels(net, orders)
    for genome, expected in zip(subnets, before, strict=True):
        assert torch.allclose(logits(net, genome), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["mbconv", "bottleneck"])
def test_residual_blocks_start_as_identities(tmp_path, kind):
    net = tiny_supernet(tmp_path, kind)
    channels.zero_residual_gains(net)
    zeroed = [
        name
        for name, part in net.named_modules()
        if isinstance(part, nn.BatchNorm2d) and not part.weight.any()
    ]
    expected = {"mbconv": "blocks.1.conv.point_linear", "bottleneck": "blocks.1.conv3"}[kind]
    assert zeroed[-1].startswith(expected)
    assert all(name.endswith(("point_linear.bn.bn", "conv3.bn.bn")) for name in zeroed)


def test_samplers_are_named_with_their_settings():
    region = Region.whole(MBV3)
    assert Sandwich(region, 3).name == "sandwich(uniform(2))"
    assert Uniform(region, 2).name != Uniform(region, 3).name
