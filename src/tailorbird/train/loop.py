"""The one training loop: students that share a teacher's passes, or a network on its own.

Everything random is derived from the seed and the step: the order and augmentation of an epoch's
images from (seed, epoch), dropout from (seed, step), the same for every student. So a student
trained beside others ends exactly as it would alone, and a resumed run needs no random state.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from tailorbird.data.images import ImageData, blame_images, resident
from tailorbird.errors import ConfigError, DataError
from tailorbird.progress import Progress, Silent, Task
from tailorbird.train.answers import Answers, Teacher
from tailorbird.train.checkpoint import Json, digest
from tailorbird.train.evaluate import predictions
from tailorbird.train.losses import Term
from tailorbird.train.mixing import Mixer
from tailorbird.train.norm_stats import norm_layers, recalibrate
from tailorbird.train.optimisers import rate_factor
from tailorbird.train.precision import (
    compute_device,
    memory_format,
    reproducible,
    reseed,
    set_layout,
)
from tailorbird.train.recipe import Recipe
from tailorbird.train.seeds import derive
from tailorbird.train.trainee import Assignment, Epoch, Trainee

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
        stopped: why training ended early, None if it did not; ``stopped_step`` says where.
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
    stopped: str | None = None
    stopped_step: int | None = None


def train(
    assignments: Sequence[Assignment],
    data: ImageData,
    *,
    terms: Callable[[Assignment], Sequence[Term]],
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    title: str = "train",
) -> list[Trained]:
    """Train several networks on the same batches; see `retrain_all` and `fit`.

    Args:
        terms: the summands of a network's loss.
        title: names the task and the kind of run in the checkpoint.

    Raises:
        ConfigError: for networks that fit neither each other's names, the teacher nor the hints.
        DataError: when there are too few images, or NaN or infinity in them.
        StoreError: when a checkpoint is of another run, or can't be written.
    """
    if not assignments:
        return []
    _check(assignments, data)
    where = compute_device(device)
    with reproducible(where):
        example = data.train.sample(2).to(where)
        asked = None if teacher is None else Answers(teacher, recipe, where, example)
        known = {} if asked is None else asked.answer(example)
        trainees: list[Trainee] = []
        problems: list[str] = []
        for assignment in assignments:
            try:
                trainees.append(
                    Trainee(
                        assignment,
                        terms=terms(assignment),
                        recipe=recipe,
                        device=where,
                        example=example,
                        answers=known,
                    )
                )
            except ConfigError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigError(problems)
        common = _identity(data, recipe, seed, teacher, title)
        for trainee, assignment in zip(trainees, assignments, strict=True):
            if assignment.checkpoint is not None:
                trainee.open(assignment, common)
        loop = _Loop(trainees, data, recipe=recipe, seed=seed, teacher=asked, device=where)
        return loop.run(progress or Silent(), title)


class _Loop:
    """Steps, epochs, time and validation of trainees that walk the same batches.

    Trainees that were interrupted at different epochs catch up: those behind go first, those
    ahead wait until the loop reaches them.
    """

    def __init__(
        self,
        trainees: Sequence[Trainee],
        data: ImageData,
        *,
        recipe: Recipe,
        seed: int,
        teacher: Answers | None,
        device: torch.device,
    ) -> None:
        self.trainees = trainees
        self.recipe = recipe
        self.seed = seed
        self.teacher = teacher
        self.device = device
        self.train_split = resident(data.train, device)
        self.validation = resident(data.validation, device)
        self.mixer = None
        if recipe.mixup or recipe.cutmix:
            self.mixer = Mixer(
                mixup=recipe.mixup, cutmix=recipe.cutmix, classes=trainees[0].classes
            )
        self.drop_last = len(data.train) >= recipe.batch_size
        self.per_epoch = len(data.train) // recipe.batch_size if self.drop_last else 1
        self.planned = max(1, round(recipe.epochs * self.per_epoch))
        self.total = self.planned
        self.step = 0
        self.group: list[Trainee] = []
        self.start = time.monotonic()
        self.pace = _Pace()
        self.sums: list[Tensor] = []
        self.answers: Tensor | None = None
        self.limited: Tensor | None = None

    def run(self, progress: Progress, title: str) -> list[Trained]:
        self._begin()
        with progress.task(title, self.planned) as task:
            task.advance(min((t.at for t in self._waiting()), default=self.planned))
            while waiting := self._waiting():
                self.step = min(trainee.at for trainee in waiting)
                self.group = [trainee for trainee in waiting if trainee.at == self.step]
                rate = self._epoch(task)
                self._close_epoch(rate)
        return [self._finish(trainee) for trainee in self.trainees]

    def _begin(self) -> None:
        """Resume what was interrupted, validate what is new."""
        resumed = [trainee.resume() for trainee in self.trainees]
        self.start -= max((trainee.seconds for trainee in self._waiting()), default=0.0)
        self.total = min((t.total or self.planned for t in self._waiting()), default=self.planned)
        self._prepare_answers()
        self.group = [t for t, old in zip(self.trainees, resumed, strict=True) if not old]
        for trainee in self.group:
            score = trainee.evaluate(trainee.module, self.validation, self.answers)
            trainee.before = score.accuracy
        self._close_epoch(0.0)

    def _waiting(self) -> list[Trainee]:
        return [t for t in self.trainees if t.stopped is None and not t.done]

    def _running(self) -> list[Trainee]:
        return [trainee for trainee in self.group if trainee.stopped is None]

    def _epoch(self, task: Task) -> float:
        """Train the group until the epoch or the run ends. Returns the last learning rate."""
        walk = self.train_split.batches(
            self.recipe.batch_size,
            generator=self._generator(_ORDER, self.step // self.per_epoch),
            augment=True,
            drop_last=self.drop_last,
            device=self.device,
        )
        for trainee in self.group:
            trainee.module.train()
        self.pace.start()
        every = 1 if self.device.type == "cpu" else _SYNC_STEPS
        rate, unsettled = 0.0, 0
        for images, labels in walk:
            rate = self._step(images, labels)
            unsettled += 1
            if unsettled == every or self.step >= self.total:
                self._settle(task, unsettled)
                unsettled = 0
            if self.step >= self.total or not self._running():
                break
        if unsettled:
            self._settle(task, unsettled)
        return rate

    def _step(self, images: Tensor, labels: Tensor | None) -> float:
        self.sums.append(images.sum())
        if self.mixer is not None:
            mixing = derive(self.seed, _MIXING, self.step)
            images, labels = self.mixer(images, labels, seed=mixing)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=memory_format(images.shape[1:]))
        answers = {} if self.teacher is None else self.teacher.answer(images)
        done = (self.step + 1) / (self.total + 1)
        rate = self.recipe.learning_rate * rate_factor(
            done, warmup=self.recipe.warmup, schedule=self.recipe.schedule
        )
        dropout = derive(self.seed, _DROPOUT, self.step)
        self.step += 1
        for trainee in self._running():
            reseed(self.device, dropout)
            trainee.step(images, labels, answers, rate=rate, number=self.step)
        return rate

    def _settle(self, task: Task, steps: int) -> None:
        running = self._running()
        losses = [trainee.settle(self.step) for trainee in running]
        for step in {t.stopped_step for t in running if t.stopped_step is not None}:
            blame_images([self.sums[step - self.step - 1]], self.train_split, "training")
        self.sums.clear()
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
            self.total = self.planned if possible >= 0.98 * self.planned else possible

    def _close_epoch(self, rate: float) -> None:
        """Validate and save the group."""
        began = time.monotonic()
        running = self._running()
        for trainee in running:
            trainee.validate(
                self.validation,
                self.answers if self.limited is None else self.limited,
                epoch=self.step / self.per_epoch,
                rate=rate,
                seconds=self._seconds(),
            )
        if any(trainee.stopped is not None for trainee in running):
            walk = self.validation.batches(self.recipe.batch_size, device=self.device)
            blame_images([images.sum() for images, _ in walk], self.validation, "validation")
        self.pace.validation = time.monotonic() - began
        for trainee in self.group:
            trainee.done = self.step >= self.total
            trainee.total, trainee.seconds = self.total, self._seconds()
            trainee.save(-(-self.step // self.per_epoch))

    def _finish(self, trainee: Trainee) -> Trained:
        """Take the best state, with re-estimated statistics if they validate better."""
        module = trainee.release()
        score = trainee.evaluate(module, self.validation, self.answers)
        recalibrated = False
        if self.recipe.recalibrate_batches and norm_layers(module):
            other = copy.deepcopy(module)
            recalibrate(other, self._statistics_images(trainee.format))
            again = trainee.evaluate(other, self.validation, self.answers)
            if again.beats(score):
                module.load_state_dict(other.state_dict())
                score, recalibrated = again, True
        set_layout(module, torch.contiguous_format)
        return Trained(
            name=trainee.name,
            module=module.cpu(),
            history=tuple(trainee.history),
            accuracy=score.accuracy,
            accuracy_before=trainee.before,
            epochs=trainee.history[-1].epoch if trainee.history else 0.0,
            best_epoch=trainee.best_epoch,
            seconds=trainee.seconds,
            recalibrated=recalibrated,
            stopped=trainee.stopped,
            stopped_step=trainee.stopped_step,
        )

    def _statistics_images(self, layout: torch.memory_format) -> Iterator[Tensor]:
        walk = self.train_split.batches(
            self.recipe.batch_size,
            generator=self._generator(_STATISTICS, 0),
            drop_last=self.drop_last,
            device=self.device,
        )
        for images, _ in islice(walk, self.recipe.recalibrate_batches):
            yield images.contiguous(memory_format=layout)

    def _prepare_answers(self) -> None:
        """Without labels, right is what the teacher says: asked once, in float32."""
        if self.validation.labelled:
            return
        if self.teacher is None:
            raise DataError("training without a teacher needs labels, and this data has none")
        plain = self.teacher.in_float32()
        self.answers = predictions(plain, self.validation, device=self.device)
        limit = self.recipe.validation_limit
        if limit is not None:
            self.limited = predictions(plain, self.validation, device=self.device, limit=limit)

    def _seconds(self) -> float:
        return time.monotonic() - self.start

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.seed, purpose, number))


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


def _check(assignments: Sequence[Assignment], data: ImageData) -> None:
    names = [assignment.name for assignment in assignments]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"two students are called '{name}'; names have to differ" for name in twice]
    if problems:
        raise ConfigError(problems)
    if len(data.train) < 2 or not len(data.validation):
        raise DataError(
            f"data '{data.name}' has {len(data.train)} training and {len(data.validation)} "
            "validation images; training needs at least 2 and 1"
        )


def _identity(
    data: ImageData, recipe: Recipe, seed: int, teacher: Teacher | None, title: str
) -> dict[str, Json]:
    """What has to be the same for a run to go on from a checkpoint, whatever the student."""
    known: dict[str, Json] = {"kind": title, "seed": seed, "data": data.fingerprint}
    known |= {f"recipe.{name}": value for name, value in recipe.as_record().items()}
    known["teacher"] = digest(teacher) if isinstance(teacher, nn.Module) else teacher is not None
    return known
