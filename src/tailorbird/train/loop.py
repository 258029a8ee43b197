"""The one training loop: students that share a teacher's passes, or a network on its own.

Everything random is derived from the seed and the step: the order and augmentation of an epoch's
images from (seed, epoch), dropout from (seed, step), the same for every student. So a student
trained beside others ends exactly as it would alone, and a resumed run needs no random state.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.data.images import ImageData, Split
from tailorbird.errors import ConfigError, DataError
from tailorbird.progress import Progress, Silent, Task
from tailorbird.train.checkpoint import Checkpoint, Json, digest
from tailorbird.train.evaluate import predictions
from tailorbird.train.losses import Term
from tailorbird.train.mixing import Mixer
from tailorbird.train.norm_stats import norm_layers, recalibrate
from tailorbird.train.optimisers import rate_factor
from tailorbird.train.precision import (
    autocast,
    compute_device,
    reproducible,
    reseed,
    resolve,
    runs_channels_last,
)
from tailorbird.train.recipe import Recipe
from tailorbird.train.trainee import Epoch, Student, Trainee, snapshot

Teacher = Callable[[Tensor], "Mapping[str, Tensor] | Tensor"]
"""Images (n, C, H, W) to logits, or to activations by name with the logits as ``"output"``."""

_ORDER, _DROPOUT, _MIXING, _STATISTICS = range(4)
"""What a derived seed is for."""

_SYNC_STEPS = 32
"""Steps between two looks at the losses on a GPU, each of which waits for the device."""

_TIMING_STEPS = 5
"""Steps after which their speed is trusted enough to shorten the schedule."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training leaves.

    Args:
        name: the student's.
        module: the best state on validation, on the CPU in eval mode, without hooks.
        history: figures per epoch; the first is the state before training.
        accuracy: of ``module`` on all validation images, float32, 0 to 1; agreement with the
            teacher where there are no labels.
        accuracy_before: the same before training.
        epochs: passes over the training split that were made.
        best_epoch: the pass after which the best state was seen, 0 for the start.
        seconds: wall time of the run, shared by students trained together.
        recalibrated: whether re-estimated BatchNorm statistics were kept.
        failed: why training stopped early, None if it did not; ``failed_step`` says where.
    """

    name: str
    module: nn.Module
    history: tuple[Epoch, ...]
    accuracy: float
    accuracy_before: float
    epochs: float
    best_epoch: float
    seconds: float
    recalibrated: bool = False
    failed: str | None = None
    failed_step: int | None = None


def train(
    students: Sequence[Student],
    data: ImageData,
    *,
    terms: Callable[[Student], Sequence[Term]],
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None = None,
    checkpoint: Path | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    title: str = "train",
) -> list[Trained]:
    """Train several networks on the same batches; see `retrain_all` and `fit`.

    Args:
        terms: the summands of a student's loss.
        title: names the task and the kind of run in the checkpoint.

    Raises:
        ConfigError: for students that fit neither each other's names, the teacher nor the hints.
        DataError: when there are too few images.
        StoreError: when the checkpoint is of another run, or can't be written.
    """
    where = compute_device(device)
    with reproducible(where):
        loop = _Loop(students, data, terms, recipe, seed, teacher, checkpoint, where, title)
        return loop.run(progress or Silent())


class _Loop:
    def __init__(
        self,
        students: Sequence[Student],
        data: ImageData,
        terms: Callable[[Student], Sequence[Term]],
        recipe: Recipe,
        seed: int,
        teacher: Teacher | None,
        checkpoint: Path | None,
        device: torch.device,
        title: str,
    ) -> None:
        _check(students, data)
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.title = title
        self.train_split = _resident(data.train, device)
        self.validation = _resident(data.validation, device)
        example = data.train.sample(2).to(device)
        self.teacher = None if teacher is None else _Answers(teacher, recipe, device, example)
        answers = {} if self.teacher is None else self.teacher.answer(example)
        self.trainees = [
            Trainee(
                student,
                terms=terms(student),
                recipe=recipe,
                device=device,
                example=example,
                answers=answers,
            )
            for student in students
        ]
        self.mixer = None
        if recipe.mixup or recipe.cutmix:
            self.mixer = Mixer(
                mixup=recipe.mixup, cutmix=recipe.cutmix, classes=self.trainees[0].classes
            )
        self.drop_last = len(data.train) >= recipe.batch_size
        self.per_epoch = len(data.train) // recipe.batch_size if self.drop_last else 1
        self.planned = max(1, round(recipe.epochs * self.per_epoch))
        self.total = self.planned
        self.step = 0
        self.before: list[float] = []
        self.seconds_before = 0.0
        self.start = time.monotonic()
        self.pace = _Pace()
        self.store = None
        if checkpoint is not None:
            identity = _identity(students, data, recipe, seed, teacher, title)
            self.store = Checkpoint(checkpoint, identity)
        self.answers: Tensor | None = None
        self.limited: Tensor | None = None

    def run(self, progress: Progress) -> list[Trained]:
        resumed = self._resume()
        self._prepare_answers()
        if not resumed:
            self.before = [
                t.evaluate(t.module, self.validation, self.answers).accuracy for t in self.trainees
            ]
            self._validate(0.0)
            self._save(0)
        with progress.task(self.title, self.planned) as task:
            task.advance(self.step)
            while self.step < self.total and self._alive():
                rate = self._epoch(task)
                self._validate(rate)
                self._save(-(-self.step // self.per_epoch))
        return [
            self._finish(trainee, before)
            for trainee, before in zip(self.trainees, self.before, strict=True)
        ]

    def _alive(self) -> list[Trainee]:
        return [trainee for trainee in self.trainees if trainee.failed is None]

    def _epoch(self, task: Task) -> float:
        """Train until the epoch or the run ends. Returns the last learning rate."""
        order = self._generator(_ORDER, self.step // self.per_epoch)
        for trainee in self.trainees:
            trainee.module.train()
        walk = self.train_split.batches(
            self.recipe.batch_size,
            generator=order,
            augment=True,
            drop_last=self.drop_last,
            device=self.device,
        )
        self.pace.start()
        every = 1 if self.device.type == "cpu" else _SYNC_STEPS
        rate, unsettled = 0.0, 0
        for images, labels in walk:
            rate = self._step(images, labels)
            unsettled += 1
            if unsettled == every or self.step >= self.total:
                self._settle(task, unsettled)
                unsettled = 0
            if self.step >= self.total or not self._alive():
                break
        if unsettled:
            self._settle(task, unsettled)
        return rate

    def _step(self, images: Tensor, labels: Tensor | None) -> float:
        if self.mixer is not None:
            mixing = _derive(self.seed, _MIXING, self.step)
            images, labels = self.mixer(images, labels, seed=mixing)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        answers = {} if self.teacher is None else self.teacher.answer(images)
        done = (self.step + 1) / (self.total + 1)
        rate = self.recipe.learning_rate * rate_factor(
            done, warmup=self.recipe.warmup, schedule=self.recipe.schedule
        )
        dropout = _derive(self.seed, _DROPOUT, self.step)
        self.step += 1
        for trainee in self._alive():
            reseed(self.device, dropout)
            trainee.step(images, labels, answers, rate=rate, number=self.step)
        return rate

    def _settle(self, task: Task, steps: int) -> None:
        losses = [trainee.settle(self.step) for trainee in self._alive()]
        self.pace.count(steps)
        self._shorten()
        mean = sum(losses) / len(losses) if losses else 0.0
        task.advance(steps, note=f"loss {mean:.3f}")

    def _shorten(self) -> None:
        """Fit the schedule into the minutes; it grows back where the run gets faster."""
        if self.recipe.minutes is None:
            return
        left = self.recipe.minutes * 60 - self._seconds()
        if left <= 0:
            self.total = self.step
        elif self.pace.steps >= _TIMING_STEPS:
            possible = self.step + max(1, int(left / self.pace.per_step(self.per_epoch)))
            # A guess within 2 % of the plan is no reason to leave it.
            fits = possible >= 0.98 * self.planned
            self.total = self.planned if fits else possible

    def _validate(self, rate: float) -> None:
        began = time.monotonic()
        for trainee in self._alive():
            trainee.validate(
                self.validation,
                self.answers if self.limited is None else self.limited,
                epoch=self.step / self.per_epoch,
                step=self.step,
                rate=rate,
                seconds=self._seconds(),
            )
        self.pace.validation = time.monotonic() - began

    def _finish(self, trainee: Trainee, before: float) -> Trained:
        """Take the best state, with re-estimated statistics if they validate better."""
        module = trainee.release().to(self.device)
        if trainee.format is torch.channels_last:
            module.to(memory_format=torch.channels_last)
        score = trainee.evaluate(module, self.validation, self.answers)
        recalibrated = False
        if self.recipe.recalibrate_batches and norm_layers(module):
            other = copy.deepcopy(module)
            recalibrate(other, self._statistics_images(trainee.format))
            again = trainee.evaluate(other, self.validation, self.answers)
            if again.beats(score):
                module.load_state_dict(snapshot(other))
                score, recalibrated = again, True
        return Trained(
            name=trainee.name,
            module=module.cpu().to(memory_format=torch.contiguous_format),
            history=tuple(trainee.history),
            accuracy=score.accuracy,
            accuracy_before=before,
            epochs=self.step / self.per_epoch,
            best_epoch=trainee.best_epoch,
            seconds=self._seconds(),
            recalibrated=recalibrated,
            failed=trainee.failed,
            failed_step=trainee.failed_step,
        )

    def _statistics_images(self, layout: torch.memory_format) -> Iterator[Tensor]:
        walk = self.train_split.batches(
            self.recipe.batch_size,
            generator=self._generator(_STATISTICS, 0),
            drop_last=self.drop_last,
            device=self.device,
        )
        for count, (images, _) in enumerate(walk, 1):
            yield images.contiguous(memory_format=layout)
            if count == self.recipe.recalibrate_batches:
                return

    def _prepare_answers(self) -> None:
        """Without labels, right is what the teacher says: asked once, in float32."""
        if self.validation.labelled:
            return
        if self.teacher is None:
            raise DataError("training without a teacher needs labels, and this data has none")
        limit = self.recipe.validation_limit
        plain = self.teacher.in_float32()
        self.answers = predictions(plain, self.validation, device=self.device)
        if limit is not None:
            self.limited = predictions(plain, self.validation, device=self.device, limit=limit)

    def _resume(self) -> bool:
        state = None if self.store is None else self.store.load()
        if state is None:
            return False
        tensors, record = state
        self.step = cast("int", record["step"])
        self.total = cast("int", record["total"])
        self.seconds_before = cast("float", record["seconds"])
        self.before = cast("list[float]", record["before"])
        records = cast("list[dict[str, Json]]", record["students"])
        for index, (trainee, own) in enumerate(zip(self.trainees, records, strict=True)):
            prefix = f"{index}/"
            trainee.restore(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, own
            )
        return True

    def _save(self, epoch: int) -> None:
        if self.store is None:
            return
        tensors = {
            f"{index}/{name}": value
            for index, trainee in enumerate(self.trainees)
            for name, value in trainee.tensors().items()
        }
        record: dict[str, Json] = {
            "step": self.step,
            "total": self.total,
            "seconds": self._seconds(),
            "before": list(self.before),
            "students": [trainee.record() for trainee in self.trainees],
        }
        self.store.save(epoch, tensors, record)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.start

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(_derive(self.seed, purpose, number))


class _Pace:
    """Seconds per step, validation included."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0
        self.validation = 0.0
        self._since = 0.0

    def start(self) -> None:
        self._since = time.monotonic()

    def count(self, steps: int) -> None:
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        self.steps += steps

    def per_step(self, per_epoch: int) -> float:
        return self.seconds / self.steps + self.validation / per_epoch


class _Answers(nn.Module):
    """The teacher as the loop asks it: a frozen copy on the device, answering with a mapping."""

    def __init__(
        self, teacher: Teacher, recipe: Recipe, device: torch.device, example: Tensor
    ) -> None:
        super().__init__()
        self.device = device
        self.layout = torch.contiguous_format
        network = teacher if isinstance(teacher, nn.Module) else None
        self.precision = resolve(recipe.precision, device, network)
        self.ask: Teacher = teacher
        if network is not None:
            own = copy.deepcopy(network).to(device).eval().requires_grad_(False)
            if recipe.channels_last and example.ndim == 4:
                own.to(memory_format=torch.channels_last)
                if runs_channels_last(own, example):
                    self.layout = torch.channels_last
                else:
                    own.to(memory_format=torch.contiguous_format)
            self.ask = own

    def answer(self, images: Tensor) -> Mapping[str, Tensor]:
        with torch.no_grad(), autocast(self.device, self.precision):
            given = self.ask(images.contiguous(memory_format=self.layout))
        answers = {"output": given} if isinstance(given, Tensor) else given
        if "output" not in answers:
            known = ", ".join(sorted(answers)) or "nothing"
            raise ConfigError(f"the teacher has to give its logits as 'output'; it gives {known}")
        return answers

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images)["output"]

    def in_float32(self) -> nn.Module:
        other = copy.copy(self)
        other.precision = "float32"
        return other


def _check(students: Sequence[Student], data: ImageData) -> None:
    names = [student.name for student in students]
    problems = []
    if not students:
        problems.append("no students to train; give at least one")
    twice = sorted({name for name in names if names.count(name) > 1})
    problems.extend(f"two students are called '{name}'; names have to differ" for name in twice)
    if problems:
        raise ConfigError(problems)
    if len(data.train) < 2 or not len(data.validation):
        raise DataError(
            f"data '{data.name}' has {len(data.train)} training and {len(data.validation)} "
            "validation images; training needs at least 2 and 1"
        )


def _identity(
    students: Sequence[Student],
    data: ImageData,
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None,
    title: str,
) -> dict[str, Json]:
    """What has to be the same for a run to go on from a checkpoint."""
    known: dict[str, Json] = {"kind": title, "seed": seed, "data": data.fingerprint}
    known |= {f"recipe.{name}": value for name, value in recipe.as_record().items()}
    known["teacher"] = digest(teacher) if isinstance(teacher, nn.Module) else teacher is not None
    known["students"] = [student.name for student in students]
    for student in students:
        hints: list[Json] = [f"{submodule} -> {node}" for submodule, node in student.hints]
        known[f"student '{student.name}'"] = {"weights": digest(student.module), "hints": hints}
    return known


def _resident(split: Split, device: torch.device) -> Split:
    """The split with its images on the GPU, where it offers that."""
    move = getattr(split, "to", None)
    return cast("Split", move(device)) if device.type == "cuda" and callable(move) else split


def _derive(seed: int, purpose: int, number: int) -> int:
    """A seed of its own for each purpose and step, the same on every machine.

    Example:
        >>> _derive(0, 1, 2) == _derive(0, 1, 2), _derive(0, 1, 2) == _derive(0, 2, 1)
        (True, False)
    """
    mixed = np.random.SeedSequence([seed, purpose, number]).generate_state(1, np.uint64)
    return int(mixed[0] >> np.uint64(1))
