"""The loop: gradients by hand, exact continuation, refusals, and that it learns at all."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tailorbird.data.images import Normalisation, TensorSplit
from tailorbird.errors import ConfigError, DataError, StoreError, TrainingError
from tailorbird.progress import Silent
from tailorbird.supernet.samplers import Region, Uniform
from tailorbird.supernet.schemes import compofa
from tailorbird.supernet.schemes.bignas import BigNAS
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.schemes.phases import Phase
from tailorbird.supernet.schemes.progressive_shrinking import PHASES, ProgressiveShrinking, scaled
from tailorbird.supernet.schemes.scheme import SortChannels
from tailorbird.supernet.train import SupernetRecipe, train_supernet
from tailorbird.supernet.train_ledger import Ledger
from tailorbird.supernet.train_state import TrainState
from tailorbird.supernet.train_step import Stepper
from tailorbird.train.checkpoint import digest
from tailorbird.train.clock import Clock
from tailorbird.train.evaluate import score
from tailorbird.train.mixing import Mixer
from tailorbird.train.seeds import derive
from tailorbird.train.world import World
from tests.supernet.tiny import stripes, tiny_supernet

RECIPE = SupernetRecipe(batch_size=12, precision="float32")
RATE = 0.05
SCHEMES = {
    "deps": DepS(epochs=4, ramp_epochs=1, learning_rate=RATE),
    "progressive-shrinking": ProgressiveShrinking(
        phases=scaled(PHASES, epochs=4, learning_rate=RATE)
    ),
    "bignas": BigNAS(epochs=3, learning_rate=RATE),
    "compofa": compofa.comp_ofa(phases=scaled(compofa.PHASES, epochs=4, learning_rate=RATE)),
}


class Interrupt(Silent):
    """Ctrl-C after some steps; notes are kept."""

    def __init__(self, after=10**9):
        self.after, self.steps, self.notes = after, 0, []

    def task(self, name, total):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def advance(self, steps=1, note=""):
        self.steps += steps
        self.notes.append(note)
        if note and self.steps >= self.after:
            raise KeyboardInterrupt


class Alternating:
    """A sampler that learns: which subnet comes next depends on what came before."""

    def __init__(self, region, count):
        self.region, self.count, self.name, self.turn = region, count, "alternating", 0

    def sample(self, step, rng):
        self.turn += 1
        chosen = np.random.default_rng(self.turn)
        return self.region.sample(self.count, chosen)

    def state(self):
        return {"turn": self.turn}

    def restore(self, state):
        self.turn = state["turn"]


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("after", [3, 8])
def test_a_run_that_was_interrupted_ends_in_the_same_bits(tmp_path, scheme, after):
    net, data = tiny_supernet(tmp_path, dropout=0.3), stripes()
    recipe = replace(RECIPE, ema=0.9, clip_norm=1.0, mixup=0.2)
    options = {"seed": 3, "recipe": recipe, "save_steps": 2}
    whole = train_supernet(net, data, scheme, folder=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train_supernet(
            net, data, scheme, folder=tmp_path / "run", progress=Interrupt(after), **options
        )
    rest = Interrupt()
    again = train_supernet(net, data, scheme, folder=tmp_path / "run", progress=rest, **options)
    assert same(again.supernet, whole.supernet)
    assert same(again.average, whole.average)
    assert again.macs == whole.macs
    for one, other in zip(again.history, whole.history, strict=True):
        assert replace(one, seconds=0, images_per_second=0) == replace(
            other, seconds=0, images_per_second=0
        )
    assert rest.notes[0] == ""
    saved = max(step for step in range(after) if step % 2 == 0 or step % 3 == 0)
    assert len(rest.notes) == 1 + whole.history[-1].step - saved
    done = train_supernet(net, data, scheme, folder=tmp_path / "run", **options)
    assert same(done.supernet, whole.supernet)


@pytest.mark.parametrize("optimizer", ["adamw", "adabelief"])
def test_other_optimisers_and_samplers_with_a_memory_go_on_exactly(tmp_path, optimizer):
    net, data = tiny_supernet(tmp_path), stripes()
    scheme = DepS(epochs=3, ramp_epochs=1, learning_rate=0.01, sampler=Alternating)
    options = {"seed": 0, "recipe": replace(RECIPE, optimizer=optimizer)}
    whole = train_supernet(net, data, scheme, **options)
    with pytest.raises(KeyboardInterrupt):
        train_supernet(net, data, scheme, folder=tmp_path, progress=Interrupt(7), **options)
    again = train_supernet(net, data, scheme, folder=tmp_path, **options)
    assert same(again.supernet, whole.supernet)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_is_the_weighted_sum_of_its_networks_gradients(tmp_path, parts):
    net, data = tiny_supernet(tmp_path, resolutions=(12,)), stripes(images=16)
    scheme = DepS(epochs=4, ramp_epochs=2, learning_rate=0.3, reorder=False, sampler=Everything)
    recipe = replace(RECIPE, momentum=0.0, weight_decay=0.0, accumulate=parts)
    plan = scheme.plan(net.architectures, 1)
    assert [plan.epsilon(n) for n in range(4)] == [1e-4, pytest.approx(0.5, abs=1e-3), 1, 1]
    split = replace(data.train, crop_padding=0)
    data = replace(data, train=split)
    expected = copy.deepcopy(net)
    genomes = [net.largest(), *Everything(Region.whole(net.architectures), 2).sample(0, None)]
    for number in range(plan.total):
        order = torch.Generator().manual_seed(derive(0, 0, number))  # which images share a part
        [(images, labels)] = split.batches(12, generator=order)
        weights = [1.0, plan.epsilon(number), plan.epsilon(number)]
        expected.train().zero_grad()
        for some, named in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            teacher = None
            for genome, weight in zip(genomes, weights, strict=True):
                expected.activate(genome)
                logits = expected(some)
                if teacher is None:
                    loss = F.cross_entropy(logits, named, label_smoothing=0.1)
                    teacher = logits.detach().softmax(1)
                else:
                    loss = -(teacher * logits.log_softmax(1)).sum(1).mean()
                (weight * loss / parts).backward()
        rate = plan.step(number, np.random.default_rng(0)).rate
        with torch.no_grad():
            for value in expected.parameters():
                if value.grad is not None:
                    value.sub_(rate * value.grad)
    found = train_supernet(net, data, scheme, seed=0, recipe=recipe).supernet
    for (name, value), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(value, other, atol=2e-5), name


class Deaf(World):
    """One of two processes, which keeps its sums to itself."""

    def sum(self, tensors):
        pass


def test_what_is_random_depends_on_the_part_and_not_on_who_works_on_it(tmp_path):
    nets = [tiny_supernet(tmp_path, dropout=0.5) for _ in range(3)]
    [images] = [images for images, _ in stripes().train.batches(12, drop_last=True)][:1]
    labels = torch.arange(12) % 2
    cpu = torch.device("cpu")
    worlds = [World(cpu), Deaf(cpu, 0, 2), Deaf(cpu, 1, 2)]
    shares = [slice(0, 12), slice(0, 6), slice(6, 12)]
    changes, figures = [], []
    for net, world, share in zip(nets, worlds, shares, strict=True):
        state = TrainState(net, optimizer="sgd", weight_decay=0.0, momentum=0.0)
        stepper = Stepper(
            state,
            world=world,
            parts=2,
            sizes=(8, 12),
            layout=torch.contiguous_format,
            precision="float32",
            mixer=Mixer(mixup=0.4, cutmix=0.0, classes=2),
            clip_norm=None,
            seed=5,
        )
        step = SCHEMES["bignas"].plan(net.architectures, 3).step(4, np.random.default_rng(0))
        before = [value.detach().clone() for value in net.parameters()]
        figures.append(stepper.make(step, images[share], labels[share]))
        after = zip(before, net.parameters(), strict=True)
        changes.append([old - new.detach() for old, new in after])
    torch.testing.assert_close(figures[1] + figures[2], figures[0])
    assert sum(bool(change.any()) for change in changes[0]) > 10
    for whole, *halves in zip(*changes, strict=True):
        torch.testing.assert_close(halves[0] + halves[1], whole, atol=1e-6, rtol=1e-4)


def test_observers_hear_of_every_epoch_and_of_every_look_at_the_losses(tmp_path):
    epochs, steps = [], []
    result = train_supernet(
        tiny_supernet(tmp_path),
        stripes(),
        SCHEMES["deps"],
        seed=0,
        recipe=RECIPE,
        observe=epochs.append,
        observe_steps=steps.append,
    )
    assert tuple(epochs) == result.history
    assert [made.step for made in steps] == list(range(1, 13))
    assert np.mean([made.loss for made in steps[:3]]) == pytest.approx(epochs[0].loss)
    assert (steps[-1].phase, steps[-1].learning_rate) == ("shrink", epochs[-1].learning_rate)


def test_the_full_network_is_left_with_its_own_statistics(tmp_path):
    net, data = tiny_supernet(tmp_path, resolutions=(8, 12)), stripes(images=96)
    scheme = DepS(epochs=10, ramp_epochs=2, learning_rate=0.1)
    result = train_supernet(
        net, data, scheme, seed=0, recipe=replace(RECIPE, ema=0.9), validate_epochs=10
    )
    found = score(result.supernet, data.validation).value
    assert found == pytest.approx(result.history[-1].largest)
    assert score(result.average, data.validation).value > 0.8


class Everything(Uniform):
    """The same subnets at every step."""

    def sample(self, step, rng):
        region = Region.opened(self.region.architectures, {"d": None, "e": 2})
        return np.stack([self.region.smallest, region.smallest])


def test_weights_that_no_network_used_are_left_alone(tmp_path):
    net, data = tiny_supernet(tmp_path), stripes()
    alone = DepS(epochs=2, delay=0.99, ramp_epochs=0, learning_rate=RATE)
    recipe = replace(RECIPE, weight_decay=0.1)
    trained = train_supernet(net, data, alone, seed=0, recipe=recipe).supernet
    matrices = {n for n, _ in net.named_parameters() if n.endswith("_matrix")}
    assert len(matrices) == 2
    changed = {
        name
        for (name, old), new in zip(net.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert not changed & matrices
    assert changed == {name for name, _ in net.named_parameters()} - matrices


def test_decay_can_be_kept_from_what_the_full_network_does_not_use(tmp_path):
    net = tiny_supernet(tmp_path)
    used = frozenset(n for n, _ in net.named_parameters() if not n.endswith("_matrix"))
    state = TrainState(net, optimizer="sgd", weight_decay=0.1, momentum=0.9, decayed=used)
    names = {id(value): name for name, value in net.named_parameters()}
    groups = [
        ({names[id(value)] for value in group["params"]}, group["weight_decay"])
        for group in state.net.optimizer.param_groups
    ]
    assert {n for part, _ in groups for n in part} == set(names.values())
    [with_decay] = [part for part, decay in groups if decay]
    assert with_decay <= used
    assert all(net.get_parameter(name).ndim > 1 for name in with_decay)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_momenta_and_averages_move_with_the_channels(tmp_path, optimizer):
    nets = [tiny_supernet(tmp_path, resolutions=(12,)) for _ in range(2)]
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    states = [
        TrainState(net, optimizer=optimizer, weight_decay=0.0, momentum=0.9, ema=0.5)
        for net in nets
    ]
    closed = Region(nets[0].architectures, nets[0].largest())
    for number in range(4):
        if number == 2:
            states[1].act(SortChannels(closed))
            weights = [dict(s.module.named_parameters()) for s in states]
            assert any(not torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
        for state in states:
            state.module.train()
            state.module(images)[:, 0].logsumexp(0).backward()
            state.net.advance(0.02, None)
    one, other = (state.module.eval()(images) for state in states)
    assert torch.allclose(one, other, atol=1e-4)
    one, other = (state.net.average.module.eval()(images) for state in states)
    assert torch.allclose(one, other, atol=1e-4)


def test_nothing_outside_is_touched(tmp_path):
    net, data = tiny_supernet(tmp_path, dropout=0.3), stripes()
    before = digest(net), net.active.tolist(), net.training
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    recipe = replace(RECIPE, mixup=0.2)
    train_supernet(net, data, SCHEMES["bignas"], seed=0, recipe=recipe, validate_epochs=1)
    assert (digest(net), net.active.tolist(), net.training) == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_validation_has_no_influence_on_training(tmp_path):
    net, data = tiny_supernet(tmp_path, dropout=0.3), stripes()
    with_it, without = (
        train_supernet(net, data, SCHEMES["deps"], seed=0, recipe=RECIPE, validate_epochs=v)
        for v in (2, None)
    )
    assert same(with_it.supernet, without.supernet)
    assert [e.largest is None for e in with_it.history] == [True, False, True, False]
    assert without.history[-1].smallest is None


def test_both_ends_of_the_space_learn(tmp_path):
    net, data = tiny_supernet(tmp_path), stripes(images=96)
    scheme = DepS(epochs=10, ramp_epochs=2, learning_rate=0.1)
    notes = Interrupt()
    result = train_supernet(
        net, data, scheme, seed=0, recipe=RECIPE, validate_epochs=10, progress=notes
    )
    last = result.history[-1]
    assert last.largest > 0.85
    assert last.smallest > 0.7
    assert last.full_loss < result.history[0].full_loss
    assert [epoch.phase for epoch in result.history[::3]] == ["full", "ramp", "shrink", "shrink"]
    assert re.fullmatch(r"shrink, loss \d\.\d{3}, \d+ images/s", notes.notes[-1])
    assert (result.supernet.active == result.supernet.largest()).all()


def test_macs_are_three_passes_of_what_ran_and_one_of_the_teacher(tmp_path):
    net, data = tiny_supernet(tmp_path, resolutions=(12,)), stripes()
    phases = (
        Phase(name="teacher", epochs=1, learning_rate=RATE, opens=None),
        Phase(name="none", epochs=1, learning_rate=RATE, opens={}, networks=2),
    )
    result = train_supernet(net, data, ProgressiveShrinking(phases=phases), seed=0, recipe=RECIPE)
    from tailorbird.supernet.counts import macs

    full = float(macs(net.architectures).sum(net.largest()[None])[0])
    assert result.macs == pytest.approx(36 * full * (3 + 2 * 3 + 1))


def test_bfloat16_keeps_weights_in_float32(tmp_path):
    recipe = replace(RECIPE, precision="bfloat16")
    result = train_supernet(
        tiny_supernet(tmp_path), stripes(), SCHEMES["deps"], seed=0, recipe=recipe
    )
    values = list(result.supernet.parameters())
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in values)


def test_a_loss_that_is_not_finite_says_where_and_what_is_left(tmp_path):
    net, data = tiny_supernet(tmp_path), stripes()
    scheme = replace(SCHEMES["deps"], learning_rate=1e25, lr_warmup_epochs=1)
    with pytest.raises(TrainingError) as caught:
        train_supernet(net, data, scheme, seed=0, recipe=RECIPE)
    text = str(caught.value)
    assert caught.value.step is not None
    assert f"at step {caught.value.step} for the full network" in text or "not finite" in text
    assert "no checkpoints were kept" in text


class Late(Uniform):
    """The full network, and at step 5 the smallest."""

    def sample(self, step, rng):
        return (self.region.smallest if step == 5 else self.region.largest)[None]


def test_the_error_names_the_subnet_and_the_last_good_checkpoint(tmp_path):
    net, data = tiny_supernet(tmp_path), stripes()
    # What only the smaller kernels use is so large that it breaks whoever uses it.
    own = next(name for name, _ in net.named_parameters() if name.endswith("_matrix"))
    with torch.no_grad():
        net.get_parameter(own).fill_(3e38)
    scheme = replace(SCHEMES["bignas"], sampler=Late)
    with pytest.raises(TrainingError) as caught:
        train_supernet(net, data, scheme, seed=0, recipe=RECIPE, folder=tmp_path / "run")
    assert caught.value.step == 5
    text = str(caught.value)
    assert "the loss is nan at step 5 for the subnet {" in text
    assert '"ks": [3' in text
    assert f"the last good checkpoint, of step 3, is in {tmp_path / 'run'}" in text


def test_losses_that_are_looked_at_late_name_the_step_that_they_are_of(tmp_path):
    net = tiny_supernet(tmp_path)
    state = TrainState(net, optimizer="sgd", weight_decay=0.0, momentum=0.0)
    ledger = Ledger(
        state, stripes().train, clock=Clock(9, 3), tell=None, last_good=lambda: "none is left"
    )
    plan = SCHEMES["bignas"].plan(net.architectures, 3)
    for number in range(4):
        step = plan.step(number, np.random.default_rng(0))
        state.net.step += 1
        figures = torch.ones(len(step.networks) + 1)
        figures[1] = float("nan") if number == 2 else 1.0
        ledger.enter(step, figures, 12)
    with pytest.raises(TrainingError, match=r"loss is nan at step 2 for .*none is left"):
        ledger.settle()


def test_images_that_are_not_finite_are_blamed(tmp_path):
    data = stripes()
    pixels = torch.rand(24, 3, 12, 12)
    pixels[5, 0, 0, 0] = float("nan")
    split = TensorSplit(pixels, torch.arange(24) % 2, Normalisation((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(DataError, match="1 of 24 training images hold NaN or infinity"):
        train_supernet(
            tiny_supernet(tmp_path),
            replace(data, train=split),
            SCHEMES["deps"],
            seed=0,
            recipe=RECIPE,
        )


def test_a_changed_run_is_refused_unless_told(tmp_path):
    net, data, scheme = tiny_supernet(tmp_path), stripes(), SCHEMES["deps"]
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_supernet(
            net, data, scheme, seed=0, recipe=RECIPE, folder=folder, progress=Interrupt(8)
        )
    changed = replace(scheme, learning_rate=0.01, sampler=Uniform)
    with pytest.raises(StoreError) as caught:
        train_supernet(net, data, changed, seed=1, recipe=RECIPE, folder=folder)
    text = str(caught.value)
    assert "samplers: ['sandwich(uniform(2))'] there, ['uniform(3)'] now" in text
    assert "scheme.learning_rate: 0.05 there, 0.01 now" in text
    assert "seed: 0 there, 1 now" in text
    rest = Interrupt()
    train_supernet(
        net,
        data,
        changed,
        seed=1,
        recipe=RECIPE,
        folder=folder,
        accept_changes=True,
        progress=rest,
    )
    assert len(rest.notes) == 1 + 12 - 6
    train_supernet(net, data, changed, seed=1, recipe=RECIPE, folder=folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ema": 0.9}, "recipe.ema: without there, with now"),
        ({"optimizer": "adamw"}, "recipe.optimizer: 'sgd' there, 'adamw' now"),
    ],
)
def test_accepted_changes_that_the_checkpoint_cannot_follow_are_refused(tmp_path, change, text):
    net, data, scheme = tiny_supernet(tmp_path), stripes(), SCHEMES["deps"]
    options = {"seed": 0, "folder": tmp_path / "run"}
    train_supernet(net, data, scheme, recipe=RECIPE, **options)
    with pytest.raises(StoreError, match=re.escape(text)):
        train_supernet(
            net, data, scheme, recipe=replace(RECIPE, **change), accept_changes=True, **options
        )


def test_accepted_changes_of_scheme_or_space_name_all_that_does_not_fit(tmp_path):
    options = {"seed": 0, "folder": tmp_path / "run", "recipe": RECIPE}
    train_supernet(tiny_supernet(tmp_path), stripes(), SCHEMES["deps"], **options)
    other = tiny_supernet(tmp_path, "bottleneck")
    phases = [Phase(name=str(n), epochs=1, learning_rate=RATE, opens={"e": n}) for n in (2, 3)]
    scheme = ProgressiveShrinking(phases=phases)
    with pytest.raises(StoreError) as caught:
        train_supernet(other, stripes(), scheme, accept_changes=True, **options)
    text = str(caught.value)
    assert re.search(r"\d+ weights are missing, unexpected or misshaped: blocks\.0\.conv", text)
    assert "samplers: 1 that keep [[]] there, [[], []] now" in text


def test_accepted_changes_hold_for_the_checkpoint_before_the_newest(tmp_path):
    net, data, scheme = tiny_supernet(tmp_path), stripes(), SCHEMES["deps"]
    folder = tmp_path / "run"
    options = {"recipe": RECIPE, "folder": folder}
    with pytest.raises(KeyboardInterrupt):
        train_supernet(net, data, scheme, seed=0, progress=Interrupt(4), **options)
    with pytest.raises(KeyboardInterrupt):
        train_supernet(
            net, data, scheme, seed=1, accept_changes=True, progress=Interrupt(8), **options
        )
    newest = max(folder.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])  # the power went
    rest = Interrupt()
    train_supernet(net, data, scheme, seed=1, accept_changes=True, progress=rest, **options)
    assert len(rest.notes) == 1 + 12 - 3


def test_other_resolutions_or_another_dropout_are_a_changed_run(tmp_path):
    folder = tmp_path / "run"
    net, data, scheme = tiny_supernet(tmp_path), stripes(), SCHEMES["deps"]
    options = {"seed": 0, "recipe": RECIPE, "folder": folder}
    train_supernet(net, data, scheme, **options)
    other = tiny_supernet(tmp_path, resolutions=(8, 16), dropout=0.25)
    with pytest.raises(StoreError) as caught:
        train_supernet(other, data, scheme, **options)
    assert "resolutions: [8, 12] there, [8, 16] now" in str(caught.value)
    assert "dropout: 0.0 there, 0.25 now" in str(caught.value)


def test_what_is_left_holds_no_gradients_and_is_in_eval_mode(tmp_path):
    net, data, scheme = tiny_supernet(tmp_path, dropout=0.5), stripes(), SCHEMES["bignas"]
    options = {"seed": 0, "recipe": replace(RECIPE, ema=0.9), "folder": tmp_path / "run"}
    for _ in ("trained", "found trained"):
        result = train_supernet(net, data, scheme, **options)
        for left in (result.supernet, result.average):
            assert not any(part.training for part in left.modules())
            assert all(value.grad is None for value in left.parameters())


def test_labels_that_nothing_can_be_learnt_from_are_refused_before_training(tmp_path):
    net, data, scheme = tiny_supernet(tmp_path), stripes(), SCHEMES["deps"]
    train, validation = data.train, data.validation
    none = validation.take(torch.arange(0))
    bare = replace(validation, labels=None)
    below = replace(train, labels=train.labels - 1)
    alike = replace(train, labels=torch.ones_like(train.labels))
    for changed, text in [
        ({"validation": none}, "there are no validation images; expected 1 or more"),
        ({"validation": bare}, "the validation images have no labels"),
        ({"train": below}, "18 training images have a label below 0; expected 0 or more"),
        ({"train": alike}, "all training images have the same label; expected 2 classes or more"),
    ]:
        with pytest.raises(DataError, match=f"data 'stripes': {text}"):
            train_supernet(net, replace(data, **changed), scheme, seed=0, validate_epochs=1)
    train_supernet(net, replace(data, validation=none), scheme, seed=0, recipe=RECIPE)
    grey = replace(train, images=train.images[:, :1], normalisation=Normalisation((0.5,), (1.0,)))
    with pytest.raises(DataError, match="grey images are loaded in colour with channels: 3"):
        train_supernet(net, replace(data, train=grey), scheme, seed=0)


def test_what_cannot_be_trained_is_refused_at_once(tmp_path):
    net, scheme = tiny_supernet(tmp_path), SCHEMES["deps"]
    with pytest.raises(DataError, match="'stripes' has no labels"):
        train_supernet(net, stripes(labelled=False), scheme, seed=0)
    three = replace(stripes(), classes=("a", "b", "c"))
    with pytest.raises(DataError, match="has 3 classes"):
        train_supernet(net, three, scheme, seed=0)
    with pytest.raises(ConfigError) as caught:
        train_supernet(net, stripes(), scheme, seed=-1, save_steps=0)
    assert caught.value.problems == (
        "save_steps: expected 1 or more, got 0",
        "seed: expected 0 or more, got -1",
    )
    with pytest.raises(ConfigError, match=r"recipe.momentum.*got 2"):
        SupernetRecipe(momentum=2)
    with pytest.raises(ConfigError) as caught:
        SupernetRecipe(momentum=2, accumulate=0)
    assert caught.value.problems[1] == (
        "recipe.accumulate: expected a whole number of 1 or more, got 0"
    )
    with pytest.raises(ConfigError, match=r"expected a multiple of 5, the number of parts.*got 12"):
        SupernetRecipe(batch_size=12, accumulate=5)
    with pytest.raises(DataError, match="has 3 training images; expected 4 or more"):
        train_supernet(net, stripes(images=4), scheme, seed=0, recipe=SupernetRecipe(accumulate=2))
