import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tailorbird.data.images import ImageData, Normalisation, TensorSplit
from tailorbird.errors import ConfigError, DataError, StoreError, TrainingError
from tailorbird.progress import Silent
from tailorbird.train.clock import Pause
from tailorbird.train.evaluate import accuracy, agreement
from tailorbird.train.fit import fit
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain, retrain_all

RECIPE = Recipe.named("standard", epochs=3, batch_size=16, learning_rate=0.05, precision="float32")


def make_data(*, labelled=True, images=80, seed=0):
    """Two classes: the brighter half is at the top or at the bottom."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (images, 1, 8, 8), generator=generator)
    labels = torch.arange(images) % 2
    pixels[labels == 0, :, :4] += 60
    pixels[labels == 1, :, 4:] += 60
    norm = Normalisation((0.35,), (0.2,))
    split = TensorSplit(pixels.to(torch.uint8), labels if labelled else None, norm, crop_padding=1)
    cut = images - images // 4
    unseen = split.take(torch.arange(cut, images))
    return ImageData(
        train=split.take(torch.arange(cut)),
        validation=unseen,
        test=None,
        classes=None,
        normalisation=norm,
        input_shape=(1, 8, 8),
        labelled=labelled,
        name="stripes",
        holdout=unseen,
    )


class Net(nn.Module):
    """Stem, body, head; ``early`` and ``late`` are where hints go."""

    def __init__(self, width=6, *, seed=0, dropout=0.3, inplace=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.early = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
            self.relu = nn.ReLU(inplace=inplace)
            self.late = nn.Sequential(nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width))
            self.drop = nn.Dropout(dropout)
            self.head = nn.Linear(width * 9, 2)

    def forward(self, x):
        x = self.late(self.relu(self.early(x)))
        return self.head(self.drop(x.relu().flatten(1)))


class Probe(nn.Module):
    """What a capture gives: activations by name, and how often it was asked."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        early = self.net.early(x)
        late = self.net.late(early.relu())
        return {"early": early, "late": late, "output": self.net.head(late.relu().flatten(1))}


class Poison(nn.Module):
    """Gives NaN from its n-th training batch on."""

    def __init__(self, net, after):
        super().__init__()
        self.net, self.after, self.calls = net, after, 0

    def forward(self, x):
        self.calls += self.training
        return self.net(x) * (math.nan if self.calls > self.after else 1.0)


class Killed(Silent):
    """Progress that pulls the plug after some steps."""

    class Task:
        def __init__(self, steps):
            self.left = steps
            self.begun = False

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, steps=1, note=""):
            if self.begun:
                self.left -= steps
            self.begun = True  # The first call tells what was done by earlier runs.
            if self.left < 0:
                raise KeyboardInterrupt

    def __init__(self, steps):
        self.steps = steps

    def task(self, name, total):
        return super().task(name, total) if name.endswith("judge") else self.Task(self.steps)


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


HINTS = (("early", "early"), ("late", "late"))


def test_training_learns_and_touches_nothing_it_was_given():
    data, student, teacher = make_data(), Net(seed=1), Probe(Net(seed=2))
    student.train()
    before, told = state(student), state(teacher)
    torch.manual_seed(5)
    random = torch.get_rng_state()
    numpy_random = np.random.get_state()[1].copy()
    recipe = Recipe.named(
        "standard", epochs=6, batch_size=16, mixup=0.2, cutmix=0.5, kl_weight=0, mse_weight=0
    )
    done = retrain(student, teacher, data, hints=HINTS, recipe=recipe, seed=3)
    assert done.accuracy > 0.9 > done.accuracy_before
    assert done.accuracy == accuracy(done.module, data.validation)
    assert [epoch.epoch for epoch in done.history] == list(range(7))
    assert same(before, state(student))
    assert student.training
    assert same(told, state(teacher))
    assert torch.equal(random, torch.get_rng_state())
    assert np.array_equal(numpy_random, np.random.get_state()[1])
    assert not any(part._forward_hooks for part in done.module.modules())
    assert not done.module.training


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_students_together_end_as_each_alone_with_one_teacher_pass_per_batch(precision):
    data, teacher = make_data(), Probe(Net(8, seed=9))
    recipe = Recipe.named(
        "standard", epochs=2.5, batch_size=16, precision=precision, ema=0.9, mixup=0.2
    )
    wide = Assignment(name="wide", student=Net(8, seed=1), hints=HINTS)
    narrow = Assignment(name="narrow", student=Net(4, seed=2))
    calls = []

    def ask(images):
        calls.append(len(images))
        return teacher(images)

    teacher.eval()
    together = retrain_all([wide, narrow], ask, data, recipe=recipe, seed=3)
    # 2.5 epochs of 3 batches (60 images), and one dry run.
    assert len(calls) == 8 + 1
    for result, one in zip(together, (wide, narrow), strict=True):
        [alone] = retrain_all([one], ask, data, recipe=recipe, seed=3)
        assert same(state(result.module), state(alone.module))
        assert result.accuracy == alone.accuracy
    [other] = retrain_all([narrow], ask, data, recipe=recipe, seed=4)
    assert not same(state(together[1].module), state(other.module))


def test_nan_stops_one_student_only_and_says_where():
    data, teacher = make_data(), Net(seed=9)
    good = Assignment(name="good", student=Net(seed=1))
    bad = Assignment(name="bad", student=Poison(Net(seed=2), after=4))
    [first, second] = retrain_all([bad, good], teacher, data, recipe=RECIPE, seed=0)
    assert first.stopped == "the loss is nan at step 5"
    assert first.stopped_step == 5
    assert first.epochs == 1
    assert all(value.isfinite().all() for value in first.module.state_dict().values())
    assert second.stopped is None
    assert second.epochs == 3
    [alone] = retrain_all([good], teacher, data, recipe=RECIPE, seed=0)
    assert same(state(alone.module), state(second.module))


def spoilt(data, role, index, value):
    """The data with one pixel of one image not finite."""
    split = getattr(data, role)
    images = split.images.float() / 255
    images[index, 0, 0, 0] = value
    return replace(data, holdout=None, **{role: replace(split, images=images)})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_are_not_taken_for_a_learning_rate(value, tmp_path):
    students = [Assignment(name=n, student=Net(seed=1), checkpoint=tmp_path / n) for n in "ab"]

    def run(students, data):
        return retrain_all(students, Net(seed=9), data, recipe=RECIPE, seed=0)

    with pytest.raises(DataError, match=r"^1 of 60 training images hold NaN.*: image 57 \(count"):
        run(students, spoilt(make_data(), "train", 57, value))
    mended = [replace(student, checkpoint=None) for student in students]
    assert [one.stopped for one in run(mended, make_data())] == [None, None]
    with pytest.raises(DataError, match="1 of 20 validation images hold NaN or infinity"):
        run(mended[:1], spoilt(make_data(), "validation", 3, value))


def test_a_single_student_with_nan_raises_and_keeps_its_best(tmp_path):
    data, teacher = make_data(), Net(seed=9)
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"loss is nan at step 5; .* lower learning") as caught:
        retrain(
            Poison(Net(seed=2), 4), teacher, data, recipe=RECIPE, seed=0, checkpoint=folder,
            name="bad",
        )  # fmt: skip
    assert caught.value.step == 5
    kept = Assignment(name="bad", student=Poison(Net(seed=2), 4), checkpoint=folder)
    [result] = retrain_all([kept], teacher, data, recipe=RECIPE, seed=0)
    assert result.stopped_step == 5
    assert result.accuracy >= result.accuracy_before


@pytest.mark.parametrize("optimizer", ["sgd", "adabelief", "adamw"])
def test_interrupted_equals_uninterrupted(tmp_path, optimizer):
    data, teacher = make_data(), Probe(Net(seed=9))
    recipe = Recipe.named(
        "standard",
        epochs=3.4,
        batch_size=16,
        optimizer=optimizer,
        learning_rate=0.01,
        ema=0.9,
        cutmix=1.0,
    )

    def run(folder, progress=None):
        students = [
            Assignment(name="a", student=Net(seed=1), hints=HINTS, checkpoint=folder / "a"),
            Assignment(name="b", student=Net(4, seed=2), checkpoint=folder / "b"),
        ]
        return retrain_all(students, teacher, data, recipe=recipe, seed=3, progress=progress)

    whole = run(tmp_path / "whole")
    for steps in (2, 4, 5, 3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", Killed(steps))
    # Killed between the two students' files: one is an epoch behind the other.
    for path in sorted((tmp_path / "cut" / "b").glob("*.json"))[-1:]:
        path.unlink()
    for first, second in zip(whole, run(tmp_path / "cut"), strict=True):
        assert same(state(first.module), state(second.module))
        assert [(e.step, e.loss, e.accuracy) for e in first.history] == [
            (e.step, e.loss, e.accuracy) for e in second.history
        ]
    again = run(tmp_path / "cut", Killed(0))
    assert same(state(again[0].module), state(whole[0].module))


def test_paused_equals_uninterrupted_whoever_trains_beside(tmp_path):
    data, teacher = make_data(), Probe(Net(seed=9))
    recipe = Recipe(epochs=3.4, batch_size=16, learning_rate=0.01, ema=0.9, cutmix=1.0)

    def run(folder, names, *, pause=None, progress=None):
        students = [
            Assignment(name=name, student=Net(seed=ord(name)), checkpoint=folder / name)
            for name in names
        ]
        return retrain_all(
            students, teacher, data, recipe=recipe, seed=3, progress=progress, pause=pause
        )

    whole = run(tmp_path / "whole", "ab")
    steps = whole[0].history[-1].step
    per_epoch = 3
    assert steps == 10
    cut = tmp_path / "cut"
    paused = run(cut, "ac", pause=Pause(at=0.4))  # step 4, within the second epoch
    assert [one.history[-1].step for one in paused] == [4, 4]
    again = run(cut, "ac", pause=Pause(at=0.4))
    assert same(state(again[0].module), state(paused[0].module)), "what is said of it, too"
    assert again[0].accuracy == paused[0].accuracy
    [behind] = run(cut, "b", pause=Pause(at=0.1))
    assert behind.history[-1].step == 1
    with pytest.raises(KeyboardInterrupt):
        run(cut, "ab", pause=Pause(at=0.6), progress=Killed(per_epoch))
    further = run(cut, "ab", pause=Pause(at=0.6))  # the end of an epoch
    assert [one.history[-1].step for one in further] == [6, 6]
    assert [one.epochs for one in run(cut, "a", pause=Pause(at=0.1))] == [2.0], "never goes back"
    for first, second in zip(whole, run(cut, "ab"), strict=True):
        assert same(state(first.module), state(second.module))
        assert [(e.step, e.loss, e.accuracy) for e in first.history] == [
            (e.step, e.loss, e.accuracy) for e in second.history
        ]


def test_damaged_files_fall_back_to_the_state_before(tmp_path):
    data = make_data()
    whole = fit(Net(seed=1), data, recipe=RECIPE, seed=0)
    with pytest.raises(KeyboardInterrupt):
        fit(Net(seed=1), data, recipe=RECIPE, seed=0, checkpoint=tmp_path, progress=Killed(7))
    assert sorted(p.stem for p in tmp_path.glob("*.json")) == ["epoch-000001", "epoch-000002"]
    newest = tmp_path / "epoch-000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    done = fit(Net(seed=1), data, recipe=RECIPE, seed=0, checkpoint=tmp_path)
    assert same(state(whole.module), state(done.module))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    data = make_data()
    fit(Net(seed=1), data, recipe=RECIPE, seed=0, checkpoint=tmp_path)
    other = Recipe(**{**RECIPE.as_record(), "epochs": 9})
    with pytest.raises(
        StoreError, match=r"(?s)recipe.epochs: 3 there, 9 now.*seed: 0 there, 1 now"
    ):
        fit(Net(seed=1), data, recipe=other, seed=1, checkpoint=tmp_path)
    with pytest.raises(StoreError, match=r"student: '.*' there"):
        fit(Net(seed=2), data, recipe=RECIPE, seed=0, checkpoint=tmp_path)
    with pytest.raises(StoreError, match=r"data: '.*' there"):
        fit(Net(seed=1), make_data(seed=1), recipe=RECIPE, seed=0, checkpoint=tmp_path)


def test_an_unwritable_folder_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("here")
    with pytest.raises(StoreError, match=r"can't write .*file"):
        fit(Net(), make_data(), recipe=RECIPE, seed=0, checkpoint=blocked / "run")


def test_without_labels_accuracy_is_agreement_with_the_teacher():
    labelled, data = make_data(), make_data(labelled=False)
    teacher = fit(Net(seed=4), labelled, recipe=RECIPE, seed=0).module
    recipe = Recipe.named(
        "standard", epochs=6, batch_size=16, kl_weight=1.0, cutmix=1.0, validation_limit=10
    )
    done = retrain(Net(seed=1), teacher, data, recipe=recipe, seed=0)
    assert done.accuracy == agreement(done.module, teacher, data.validation)
    assert done.accuracy > 0.8
    with pytest.raises(ConfigError, match="nothing to learn from for student: kl_weight is 0"):
        retrain(
            Net(), teacher, data, recipe=Recipe.named("standard", kl_weight=0, mse_weight=0), seed=0
        )  # fmt: skip


def test_hints_pull_activations_to_the_teachers():
    data, teacher = make_data(), Probe(Net(seed=9))
    recipe = Recipe.named(
        "standard", epochs=6, batch_size=16, mse_weight=1.0, kl_weight=0, ce_weight=0, warmup=0.2
    )
    done = retrain(
        Net(seed=1, dropout=0.0), teacher, data, hints=HINTS, recipe=recipe, seed=0
    )  # fmt: skip
    assert done.history[-1].loss < 0.5 * done.history[1].loss


def test_a_hint_is_read_before_an_in_place_layer_writes_over_it():
    data, teacher = make_data(), Probe(Net(seed=9))
    results = [
        retrain(Net(seed=1, inplace=inplace), teacher, data, hints=HINTS, recipe=RECIPE, seed=0)
        for inplace in (False, True)
    ]
    losses = [[e.loss for e in result.history] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_all_wrong_hints_are_reported_at_once():
    data, teacher = make_data(), Probe(Net(8, seed=9))
    with pytest.raises(ConfigError) as caught:
        retrain_all(
            [
                Assignment(name="a", student=Net(6), hints=[("erly", "early")]),
                Assignment(name="b", student=Net(6), hints=[("late", "nowhere"), ("late", "late")]),
            ],
            teacher,
            data,
            recipe=RECIPE,
            seed=0,
        )
    assert "'a': no submodule 'erly' for a hint; near: early" in str(caught.value)
    assert "the teacher gives no 'nowhere'; it gives early, late, output" in str(caught.value)
    assert "hint late -> late: shapes (2, 6, 3, 3) and (2, 8, 3, 3)" in str(caught.value)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_state_is_kept_even_if_it_is_the_first_or_the_last_if_asked_for(keep):
    data = make_data()
    teacher = fit(Net(seed=4), data, recipe=RECIPE, seed=0).module
    ruin = replace(
        RECIPE, epochs=2, learning_rate=50.0, clip_norm=None, warmup=0, recalibrate_batches=0,
        keep=keep,
    )  # fmt: skip
    [done] = retrain_all(
        [Assignment(name="x", student=teacher)], teacher, data, recipe=ruin, seed=0
    )
    assert done.best_epoch == (0 if keep == "best" else 2)
    assert (done.accuracy == done.accuracy_before) == (keep == "best")
    assert same(state(done.module), state(teacher)) == (keep == "best")


def test_stale_statistics_are_re_estimated_if_that_validates_better():
    data = make_data()
    student = fit(Net(seed=4), data, recipe=RECIPE, seed=0).module
    student.early[1].running_mean.fill_(30.0)
    student.late[1].running_var.fill_(1e-4)
    tiny = Recipe.named("standard", epochs=0.3, batch_size=16, learning_rate=1e-9, kl_weight=0)
    done = fit(student, data, recipe=tiny, seed=0)
    assert done.recalibrated
    assert done.accuracy > done.accuracy_before


def test_minutes_shorten_the_run():
    recipe = Recipe.named("standard", epochs=100_000, batch_size=16, minutes=0.003)
    done = fit(Net(seed=1), make_data(), recipe=recipe, seed=0)
    assert 0 < done.epochs < 100_000
    assert done.history[-1].epoch == done.epochs


def test_minutes_hold_over_a_pause(tmp_path):
    recipe = Recipe.named("standard", epochs=100_000, batch_size=16, minutes=0.006)
    asked = [Assignment(name="a", student=Net(seed=1), checkpoint=tmp_path)]
    [paused], [done] = (
        retrain_all(asked, Net(seed=9), make_data(), recipe=recipe, seed=0, pause=pause)
        for pause in (Pause(at=0.4, spent=0.5), None)
    )
    assert 0 < paused.epochs < done.epochs < 100_000
    before = [(one.step, one.loss) for one in paused.history[:-1]]
    assert [(one.step, one.loss) for one in done.history[: len(before)]] == before, "it goes on"


def test_fractional_epochs_and_batches_larger_than_the_split():
    data = make_data()
    done = fit(Net(), data, recipe=Recipe.named("standard", epochs=0.5, batch_size=10), seed=0)
    assert [(e.epoch, e.step) for e in done.history] == [(0.0, 0), (0.5, 3)]
    done = fit(
        Net(), data, recipe=Recipe.named("standard", epochs=2, batch_size=512, cutmix=1.0), seed=0
    )
    assert [e.step for e in done.history] == [0, 1, 2]


def test_networks_that_need_contiguous_images_still_train():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.head = nn.Linear(144, 2)

        def forward(self, x):
            x = self.conv(x)
            return self.head(x.view(x.shape[0], -1))

    done = fit(Viewed(), make_data(), recipe=RECIPE, seed=0)
    assert done.accuracy > 0.8
    done = retrain(Viewed(), Viewed(), make_data(), recipe=RECIPE, seed=0)
    assert len(done.history) == 4


def test_frozen_weights_are_trained_too():
    student = Net(seed=1).requires_grad_(False)
    done = fit(student, make_data(), recipe=RECIPE, seed=0)
    assert done.accuracy > 0.8
    assert not student.head.weight.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_students_together_end_as_each_alone(tmp_path: Path):
    data, teacher = make_data(), Probe(Net(seed=9))
    students = [
        Assignment(name="a", student=Net(seed=1), hints=HINTS, checkpoint=tmp_path / "a"),
        Assignment(name="b", student=Poison(Net(4, seed=2), 4)),
    ]
    [first, second] = retrain_all(students, teacher, data, recipe=RECIPE, seed=0)
    alone = retrain(Net(seed=1), teacher, data, hints=HINTS, recipe=RECIPE, seed=0)
    assert same(state(first.module), state(alone.module))
    assert second.stopped_step == 5


def test_labels_weigh_fully_where_they_are_all_there_is():
    data, recipe = make_data(), Recipe.named("standard", epochs=1, batch_size=16, ce_weight=0.1)
    few, alone = fit(Net(), data, recipe=recipe, seed=0), replace(recipe, kl_weight=0)
    losses = [
        done.history[1].loss
        for done in (
            few,
            fit(Net(), data, recipe=replace(recipe, ce_weight=1.0), seed=0),
            retrain(Net(), Probe(Net(seed=2)), data, recipe=alone, seed=0),
        )
    ]
    assert losses == pytest.approx([losses[0]] * 3)


def test_a_student_s_best_state_is_chosen_by_the_holdout():
    data = make_data()
    wrong = replace(data.validation, labels=1 - data.validation.labels)
    data = replace(data, validation=wrong, holdout=data.validation)
    teacher = fit(Net(seed=4), make_data(), recipe=RECIPE, seed=0).module
    recipe = replace(RECIPE, epochs=6, recalibrate_batches=0)
    done = retrain(Net(seed=1), teacher, data, recipe=recipe, seed=0)
    assert done.best_epoch > 0, "by the wrong labels the first state would be the best"
    assert done.accuracy == accuracy(done.module, data.holdout)


class Knowing(nn.Module):
    """A network that knows some images by heart, until it has been trained without them."""

    def __init__(self, net, images, labels):
        super().__init__()
        self.net = net
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("answers", 20 * F.one_hot(labels, 2).float() - 10)

    def forward(self, x):
        self.steps += self.training
        out, apart = self.net(x), torch.cdist(x.flatten(1), self.images)
        known = (apart.min(1).values < 1e-3)[:, None] & (self.steps == 0)
        return torch.where(known, self.answers[apart.argmin(1)], out)


@pytest.mark.parametrize("labelled", [True, False])
def test_what_a_student_knows_by_heart_does_not_count(labelled):
    data = replace(make_data(), holdout=None)
    teacher = fit(Net(seed=4), data, recipe=RECIPE, seed=0).module
    images, labels = next(iter(data.validation.batches(len(data.validation))))
    if not labelled:
        data, labels = make_data(labelled=False), teacher(images).argmax(1)
        data = replace(data, holdout=None)
    student = Knowing(Net(seed=1), images, labels)
    recipe = replace(RECIPE, epochs=6, recalibrate_batches=0)
    done = retrain(student, teacher, data, recipe=recipe, seed=0)
    assert done.accuracy_before == 1.0
    assert done.best_epoch > 0


def test_a_network_that_lost_more_is_trained_at_a_higher_rate():
    data = make_data()
    teacher = fit(Net(seed=4), data, recipe=RECIPE, seed=0).module
    recipe = Recipe(epochs=2, batch_size=16, schedule="constant", warmup=0)
    students = [
        Assignment(name=name, student=net)
        for name, net in {"intact": teacher, "new": Net(seed=1)}.items()
    ]
    intact, new = retrain_all(students, teacher, data, recipe=recipe, seed=0)
    lost = 1 - new.accuracy_before / intact.accuracy_before
    assert lost > 0.2
    rates = [done.history[-1].learning_rate for done in (intact, new)]
    assert rates == pytest.approx([recipe.peak(6, 0.0), recipe.peak(6, lost)])
