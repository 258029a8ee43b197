"""Training networks on labels or after a teacher: students that share a teacher's passes.

Order and augmentation of an epoch follow from (seed, epoch), dropout from (seed, step), the same
for every student. So a student trained beside others ends exactly as it would alone. On a GPU their
steps are recorded and replayed at the same time (`tailorbird.train.recorded`), to the same bits. On
a CPU they come one after the other, each on all cores: threads of their own would round otherwise
than one alone does, and hold the activations of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tailorbird.copying import copy_network
from tailorbird.data.images import ImageData, blame_images, resident
from tailorbird.errors import ConfigError, DataError
from tailorbird.progress import Progress, Silent, each
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.answers import Answers, Teacher
from tailorbird.train.beside import Beside, Crew
from tailorbird.train.checkpoint import Json, digest, prefixed, under
from tailorbird.train.clock import Clock
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
from tailorbird.train.recorded import CudaGraphs, Streams
from tailorbird.train.seeds import derive
from tailorbird.train.student import Assignment, Batch, Epoch, Student
from tailorbird.train.walk import Walk, look_steps, run

_ORDER, _DROPOUT, _MIXING, _STATISTICS = range(4)
"""What a derived seed is for."""


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

    def tell(self, progress: Progress, *, doing: str) -> None:
        """Say that training ended early, if it did; ``doing`` is what it was, "retraining"."""
        if self.stopped is not None:
            progress.say(
                f"{self.name}: {doing} stopped: {self.stopped}; going on with the best weights, of "
                f"epoch {self.best_epoch:g}"
            )


def train(
    assignments: Sequence[Assignment],
    data: ImageData,
    *,
    terms: Callable[[Assignment], Sequence[Term]],
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None = None,
    task: Task = CLASSIFICATION,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    title: str = "train",
    beside: Beside | None = None,
) -> list[Trained]:
    """Train several networks on the same batches; see `retrain_all` and `fit`.

    Args:
        terms: the summands of a network's loss.
        task: what outputs mean.
        title: names the task and the kind of run in the checkpoint.
        beside: makes the students' steps; None for what suits the device.

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
        beside = beside or _beside(where, progress or Silent())
        asked = None if teacher is None else Answers(teacher, recipe, where, example)
        known = {} if asked is None else asked.answer(example)
        students: list[Student] = []
        problems: list[str] = []
        for assignment in assignments:
            try:
                students.append(
                    Student(
                        assignment,
                        terms=terms(assignment),
                        recipe=recipe,
                        task=task,
                        device=where,
                        example=example,
                        answers=known,
                        recorded=beside.records,
                    )
                )
            except ConfigError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigError(problems)
        common = _identity(data, recipe, seed, teacher, title)
        fresh = [
            student
            for student, assignment in zip(students, assignments, strict=True)
            if not student.resume(assignment, common)
        ]
        work = _Retraining(
            students,
            fresh,
            data,
            recipe=recipe,
            seed=seed,
            teacher=asked,
            beside=beside,
        )
        with (progress or Silent()).task(title, work.clock.planned) as shown:
            run(work, work.walk, work.clock, shown, every=look_steps(where))
        return [work.finish(student) for student in each(progress, f"{title}: judge", students)]


class _Retraining:
    """A step: one pass of the teacher, and each student's own step on what it said.

    Students that were interrupted at different epochs catch up: those behind go first, those
    ahead wait until the walk reaches them.
    """

    def __init__(
        self,
        students: Sequence[Student],
        fresh: Sequence[Student],
        data: ImageData,
        *,
        recipe: Recipe,
        seed: int,
        teacher: Answers | None,
        beside: Beside,
    ) -> None:
        self.students, self.group = students, list(fresh)
        self.recipe, self.seed, self.teacher = recipe, seed, teacher
        self.device = students[0].device
        self.validation = resident(data.validation, self.device)
        self.walk = Walk(
            resident(data.train, self.device),
            recipe.batch_size,
            lambda epoch: derive(seed, _ORDER, epoch),
            self.device,
        )
        planned = self.walk.steps(recipe.epochs)
        limit = None if recipe.minutes is None else 60 * recipe.minutes
        self.clock = Clock(planned, self.walk.per_epoch, limit=limit)
        waiting = self._waiting()
        self.clock.resume(
            max((student.state.seconds for student in waiting), default=0.0),
            min((student.total or planned for student in waiting), default=planned),
        )
        self.mixer = None
        if recipe.mixup or recipe.cutmix:
            self.mixer = Mixer(
                mixup=recipe.mixup, cutmix=recipe.cutmix, classes=students[0].classes
            )
        self.made, self.rate, self.dropout = 0, 0.0, 0
        self.beside = beside
        self.inputs: Mapping[str, Tensor] = {}
        self.steps = {s.name: s.step(self._prepare, self._batch) for s in students}
        self.pixels: list[Tensor] = []
        self.answers = self._answers(None)
        limited = recipe.validation_limit
        self.limited = self.answers if limited is None else self._answers(limited)

    @property
    def step(self) -> int:
        """Where the student is that is furthest behind."""
        return min((s.state.step for s in self._waiting()), default=self.clock.total)

    def begin(self) -> None:
        """Validate and save the students that are new."""
        for student in self.group:
            score = student.evaluate(student.state.module, self.validation, self.answers)
            student.before = score.value
        self.close()
        self.save()

    def open(self) -> None:
        """Train those who are furthest behind."""
        self.made = self.step
        self.group = [s for s in self._waiting() if s.state.step == self.made]
        for student in self.group:
            student.state.module.train()

    def make(self, images: Tensor, labels: Tensor | None) -> None:
        """Mix, ask the teacher, and let each student make its step."""
        self.pixels.append(images.sum())
        if self.mixer is not None:
            mixing = derive(self.seed, _MIXING, self.made)
            images, labels = self.mixer(images, labels, seed=mixing)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=memory_format(images.shape[1:]))
        answers = {} if self.teacher is None else self.teacher.answer(images)
        done = (self.made + 1) / (self.clock.total + 1)
        self.rate = self.recipe.learning_rate * rate_factor(
            done, warmup=self.recipe.warmup, schedule=self.recipe.schedule
        )
        self.dropout = derive(self.seed, _DROPOUT, self.made)
        self.made += 1
        inputs = {"images": images} | ({} if labels is None else {"labels": labels})
        self.inputs = self.beside.take(inputs | prefixed("teacher/", answers))
        self.beside.make([self.steps[student.name] for student in self._running()])

    def settle(self) -> str:
        """Stop students whose loss is not finite, unless the images are to blame."""
        running = self._running()
        losses = [student.settle() for student in running]
        for step in {s.state.stopped_step for s in running if s.state.stopped_step is not None}:
            blame_images([self.pixels[step - self.made - 1]], self.walk.split, "training")
        self.pixels.clear()
        return f"loss {sum(losses) / len(losses) if losses else 0.0:.3f}"

    def close(self) -> None:
        """Validate the group."""
        running = self._running()
        for student in running:
            student.validate(
                self.validation,
                self.limited,
                epoch=self.made / self.walk.per_epoch,
                rate=self.rate,
                seconds=self.clock.seconds,
            )
        if any(student.state.stopped is not None for student in running):
            walk = self.validation.batches(self.recipe.batch_size, device=self.device)
            blame_images([images.sum() for images, _ in walk], self.validation, "validation")

    def save(self) -> None:
        """Write the group's checkpoints."""
        for student in self.group:
            student.done = self.made >= self.clock.total
            student.total, student.state.seconds = self.clock.total, self.clock.seconds
            student.save(-(-self.made // self.walk.per_epoch))

    def finish(self, student: Student) -> Trained:
        """Take the best state, with re-estimated statistics if they validate better."""
        module, state = student.release(), student.state
        score = student.evaluate(module, self.validation, self.answers)
        recalibrated = False
        if self.recipe.recalibrate_batches and norm_layers(module):
            other = copy_network(module)
            drawn = derive(self.seed, _STATISTICS, 0)
            batches = self.recipe.recalibrate_batches
            recalibrate(other, self.walk.plain(batches, seed=drawn, layout=student.format))
            again = student.evaluate(other, self.validation, self.answers)
            if again.beats(score):
                module.load_state_dict(other.state_dict())
                score, recalibrated = again, True
        set_layout(module, torch.contiguous_format)
        return Trained(
            name=student.name,
            module=module.cpu(),
            history=tuple(state.history),
            accuracy=score.value,
            accuracy_before=student.before,
            epochs=state.history[-1].epoch if state.history else 0.0,
            best_epoch=state.best_epoch,
            seconds=state.seconds,
            recalibrated=recalibrated,
            stopped=state.stopped,
            stopped_step=state.stopped_step,
        )

    def _prepare(self, student: Student) -> None:
        reseed(self.device, self.dropout)
        student.state.set_rate(self.rate)

    def _batch(self) -> Batch:
        inputs = self.inputs
        return Batch(inputs["images"], inputs.get("labels"), under("teacher/", inputs))

    def _waiting(self) -> list[Student]:
        return [student for student in self.students if student.waits]

    def _running(self) -> list[Student]:
        return [student for student in self.group if student.state.stopped is None]

    def _answers(self, limit: int | None) -> Tensor | None:
        """Without labels, right is what the teacher says: asked once, in float32."""
        if self.validation.labelled:
            return None
        if self.teacher is None:
            raise DataError("training without a teacher needs labels, and this data has none")
        plain = self.teacher.in_float32()
        return predictions(
            plain, self.validation, device=self.device, limit=limit, task=self.students[0].task
        )


def _beside(device: torch.device, progress: Progress) -> Beside:
    return Streams(CudaGraphs(device), progress.say) if device.type == "cuda" else Crew()


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
