"""Samplers and schemes that learn from losses: what they are told, and that they resume exactly."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tailorbird.errors import ConfigError, StoreError
from tailorbird.supernet.samplers import Region, Sandwich, Uniform, observer
from tailorbird.supernet.schemes.deps import DepS, DepSPlan
from tailorbird.supernet.train import train_supernet
from tailorbird.testing import check_sampler
from tests.supernet.bandit import Bandit, Makes
from tests.supernet.test_train import RECIPE, SCHEMES, Interrupt, same
from tests.supernet.tiny import stripes, tiny_supernet


def train(tmp_path, scheme, **options):
    net = tiny_supernet(tmp_path, dropout=0.3)
    return train_supernet(net, stripes(), scheme, **{"seed": 3, "recipe": RECIPE, **options})


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("after", [5, 8])
def test_interrupted_equals_uninterrupted_bit_by_bit(tmp_path, scheme, after):
    whole, cut, rest = Makes(), Makes(), Makes()
    folder = tmp_path / "run"
    expected = train(tmp_path, replace(scheme, sampler=whole), save_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(
            tmp_path,
            replace(scheme, sampler=cut),
            folder=folder,
            save_steps=2,
            progress=Interrupt(after),
        )
    found = train(tmp_path, replace(scheme, sampler=rest), folder=folder, save_steps=2)
    assert same(found.supernet, expected.supernet)
    for one, other in zip(whole.made, rest.made, strict=True):
        assert torch.equal(one.losses, other.losses)
        assert one.told == other.told


def test_what_is_learnt_decides_what_is_drawn(tmp_path):
    makes = Makes()
    net = tiny_supernet(tmp_path)
    plan = replace(SCHEMES["bignas"], epochs=40, sampler=makes).plan(net.architectures, 3)
    [bandit] = makes.made
    for number in range(plan.total):
        step = plan.step(number, np.random.default_rng(number))
        genomes = np.stack([member.genome for member in step.networks])
        plan.observe(genomes, np.where(bandit.bucket(genomes) == 0, 1.0, 0.1))  # small ones are bad
    assert bandit.probabilities[0] > 0.9
    late = bandit.bucket(np.array([genome for genome, _ in bandit.told[-90:]]))
    fresh = Bandit(bandit.region, 90)
    untaught = fresh.bucket(fresh.sample(0, np.random.default_rng(0)))
    assert np.mean(late == 0) > 0.9 > 0.7 > np.mean(untaught == 0)


def test_training_shifts_the_chances_towards_high_losses(tmp_path):
    learns, deaf = Makes(), Makes()
    scheme = replace(SCHEMES["bignas"], epochs=8)
    told = train(tmp_path, replace(scheme, sampler=learns))
    [bandit] = learns.made
    assert bandit.probabilities.argmax() == bandit.losses.argmax()
    assert bandit.probabilities.max() > 1 / 3 + 0.1
    untold = train(tmp_path, replace(scheme, sampler=lambda *of: Hears(deaf(*of))))
    assert deaf.made[0].told == []
    assert not same(told.supernet, untold.supernet)


class Hears:
    """A bandit that is never told anything."""

    def __init__(self, bandit):
        self.name, self.sample = "hears", bandit.sample
        self.state, self.restore = bandit.state, bandit.restore


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_sampler_is_told_the_networks_that_were_trained_in_its_name(tmp_path, scheme):
    makes, seen = Makes(), []
    net = tiny_supernet(tmp_path)
    plan = replace(scheme, sampler=makes).plan(net.architectures, 3)
    for number in range(plan.total):
        before = [len(bandit.told) for bandit in makes.made]
        step = plan.step(number, np.random.default_rng(number))
        genomes = np.stack([member.genome for member in step.networks])
        plan.observe(genomes, np.arange(len(genomes), dtype=np.float64))
        told = [row for b, n in zip(makes.made, before, strict=True) for row in b.told[n:]]
        first = 1 if step.networks[-1].teacher == "full" or step.phase == "full" else 0
        sampled = not (len(genomes) == 1 and step.networks[0].teacher is None)
        expected = [[g.tolist(), float(n)] for n, g in enumerate(genomes)][first:]
        assert told == (expected if sampled else [])
        seen += told
    assert seen
    assert observer(scheme.plan(net.architectures, 3)) is None, "its own samplers don't care"


def test_a_sandwich_passes_on_what_it_is_told(tmp_path):
    whole = Region.whole(tiny_supernet(tmp_path).architectures)
    makes = Makes()
    sandwich = Sandwich(whole, 3, between=makes)
    observer(sandwich)(sandwich.sample(0, np.random.default_rng(0)), np.ones(3))
    assert len(makes.made[0].told) == 3
    assert sandwich.state() == makes.made[0].state()
    assert observer(Sandwich(whole, 3)) is observer(Sandwich(whole, 1)) is None


class Deaf(DepS):
    """A scheme whose plan has no `observe`."""

    def plan(self, architectures, per_epoch):
        plan = super().plan(architectures, per_epoch)
        return type("Plan", (), {"total": plan.total, "samplers": plan.samplers})()


def test_losses_that_would_not_reach_a_sampler_are_said(tmp_path):
    scheme = Deaf(epochs=2, ramp_epochs=0, sampler=Bandit)
    with pytest.raises(ConfigError, match=r"sampler bandit\(3, 3\) learns from losses, but"):
        train(tmp_path, scheme)


def test_what_was_learnt_is_not_taken_for_something_else(tmp_path):
    scheme = replace(SCHEMES["deps"], sampler=Bandit)
    folder = tmp_path / "run"
    train(tmp_path, scheme, folder=folder)
    changed = replace(scheme, sampler=Uniform)
    with pytest.raises(StoreError, match=r"1 that keep \[\['losses', 'told'\]\] there, \[\[\]\]"):
        train(tmp_path, changed, folder=folder, accept_changes=True)


class Careful(DepS):
    """DepS that halves the rate where the last loss of the full network was above average."""

    def plan(self, architectures, per_epoch):
        return CarefulPlan(self, Region.whole(architectures), per_epoch)


class CarefulPlan(DepSPlan):
    def __init__(self, *args):
        super().__init__(*args)
        self.losses = torch.zeros(0, dtype=torch.float64)

    def observe(self, genomes, losses):
        self.losses = torch.cat([self.losses, torch.tensor(losses[:1])])

    def step(self, number, rng):
        step = super().step(number, rng)
        above = len(self.losses) and self.losses[-1] > self.losses.mean()
        return replace(step, rate=step.rate / 2 if above else step.rate)

    def state(self):
        return {"losses": self.losses}

    def restore(self, state):
        self.losses = state["losses"]


def test_a_scheme_may_learn_too(tmp_path):
    settings = {"epochs": 4, "ramp_epochs": 1, "learning_rate": 0.05}
    run = partial(train, tmp_path, Careful(**settings))
    whole = run()
    assert not same(whole.supernet, train(tmp_path, DepS(**settings)).supernet)
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path / "run", progress=Interrupt(8))
    assert same(run(folder=tmp_path / "run").supernet, whole.supernet)


def test_a_sampler_that_learns_keeps_the_contract():
    check_sampler(Bandit)
