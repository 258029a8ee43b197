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
from functools import cached_property

import torch
from torch import Tensor, nn

from tailorbird.copying import copy_network
from tailorbird.data.images import ImageData, Split, blame_images, resident
from tailorbird.data.unfamiliar import UNFAMILIAR, comparing
from tailorbird.errors import ConfigError, DataError
from tailorbird.progress import Progress, Silent, each
from tailorbird.task import CLASSIFICATION, Classification, Task
from tailorbird.train.answers import Answers, Teacher
from tailorbird.train.beside import Beside, Crew
from tailorbird.train.checkpoint import Json, digest, prefixed, under
from tailorbird.train.clock import Clock, Pause
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
from tailorbird.train.state import UNSCORED
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
    pause: Pause | None = None,
    beside: Beside | None = None,
) -> list[Trained]:
    """Train several networks on the same batches; see `retrain_all` and `fit`.

    Args:
        terms: the summands of a network's loss.
        task: what outputs mean.
        title: names the task and the kind of run in the checkpoint.
        pause: where to pause, if not at the end: a call without it, or with a later one, goes on
            from the checkpoints, to the same end as if there had been no pause.
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
            pause=pause,
            beside=beside,
        )
        with (progress or Silent()).task(title, work.clock.end) as shown:
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
        pause: Pause | None,
        beside: Beside,
    ) -> None:
        self.students, self.group = students, list(fresh)
        self.recipe, self.seed, self.teacher = recipe, seed, teacher
        self.device = students[0].device
        # A teacher's students are made of trained parts, which may know the validation images.
        chosen = data.validation if teacher is None else data.choosing
        self.validation = resident(chosen, self.device)
        self.deciding = self.validation
        if teacher is not None:
            found = comparing(data, students[0].task, self._said, pairings=1)
            self.deciding = self.validation if found is chosen else resident(found, self.device)
        self.walk = Walk(
            resident(data.train, self.device),
            recipe.batch_size,
            lambda epoch: derive(seed, _ORDER, epoch),
            self.device,
        )
        planned = self.walk.steps(recipe.epochs)
        limit = None if recipe.minutes is None else 60 * recipe.minutes
        self.clock = Clock(planned, self.walk.per_epoch, limit=limit, pause=pause)
        waiting = [student for student in students if student.waits]
        self.clock.resume(
            max((student.state.seconds for student in waiting), default=0.0),
            min((student.total or planned for student in waiting), default=planned),
        )
        self.mixer = None
        # Targets of other tasks can't be mixed: a half of one and a half of another is no target.
        mixes = isinstance(students[0].task, Classification) or not data.labelled
        if mixes and (recipe.mixup or recipe.cutmix):
            self.mixer = Mixer(
                mixup=recipe.mixup, cutmix=recipe.cutmix, classes=students[0].classes
            )
        self.made, self.walking = 0, False
        self.factor, self.dropout = 0.0, 0
        self.beside = beside
        self.inputs: Mapping[str, Tensor] = {}
        self.steps = {s.name: s.step(self._prepare, self._batch) for s in students}
        self.pixels: list[Tensor] = []
        self.answers = self._answers(self.validation)
        limited = recipe.validation_limit
        self.limited = self._answers(self.validation, limited)
        self.decided = self._answers(self.deciding, limited)

    @property
    def step(self) -> int:
        """Where the walk is; between two epochs, where the student is that is furthest behind."""
        if self.walking:  # past students, perhaps, that were paused within this epoch
            return self.made
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
        self.made, self.walking = self.step, True
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
        self.factor = rate_factor(done, warmup=self.recipe.warmup, schedule=self.recipe.schedule)
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
            self._look(student)
        if any(student.state.stopped is not None for student in running):
            walk = self.validation.batches(self.recipe.batch_size, device=self.device)
            blame_images([images.sum() for images, _ in walk], self.validation, "validation")

    def save(self) -> None:
        """Write the group's checkpoints."""
        for student in self.group:
            student.done = self.made >= self.clock.total
            student.total, student.state.seconds = self.clock.total, self.clock.seconds
            student.save(-(-self.made // self.walk.per_epoch))
        self.walking = False

    def finish(self, student: Student) -> Trained:
        """Take the best state, with re-estimated statistics if they validate better.

        A student that was paused within an epoch is validated for this, which leaves no trace in
        its checkpoint.
        """
        if student.unseen:
            self._look(student)
        module, state = student.release(), student.state
        best, limit, recalibrated = state.best_score, self.recipe.validation_limit, False
        if best == UNSCORED:  # no validation came to a number
            best = student.evaluate(module, self.deciding, self.decided, limit)
        if self.recipe.recalibrate_batches and norm_layers(module):
            other = copy_network(module)
            drawn = derive(self.seed, _STATISTICS, 0)
            batches = self.recipe.recalibrate_batches
            recalibrate(other, self.walk.plain(batches, seed=drawn, layout=student.format))
            again = student.evaluate(other, self.deciding, self.decided, limit)
            if recalibrated := again.beats(best):
                module.load_state_dict(other.state_dict())
                best = again
        if self.deciding is not self.validation or limit is not None:
            best = student.evaluate(module, self.validation, self.answers)
        set_layout(module, torch.contiguous_format)
        return Trained(
            name=student.name,
            module=module.cpu(),
            history=tuple(state.history),
            accuracy=best.value,
            accuracy_before=student.before,
            epochs=state.history[-1].epoch if state.history else 0.0,
            best_epoch=state.best_epoch,
            seconds=state.seconds,
            recalibrated=recalibrated,
            stopped=state.stopped,
            stopped_step=state.stopped_step,
        )

    def _peak(self, student: Student) -> float:
        """The learning rate after the warm-up."""
        whole = self.whole
        lost = 1.0 if not whole else 1.0 - student.before / whole
        return self.recipe.peak(self.clock.total, lost)

    @cached_property
    def whole(self) -> float:
        """The teacher's accuracy where `Student.before` is of; 0 where nobody asks, or without."""
        if self.teacher is None or self.recipe.learning_rate is not None:
            return 0.0
        return (
            self.students[0]
            .evaluate(self.teacher.in_float32(), self.validation, self.answers)
            .value
        )

    def _look(self, student: Student) -> None:
        student.validate(
            (self.validation, self.limited),
            (self.deciding, self.decided),
            epoch=student.state.step / self.walk.per_epoch,
            seconds=self.clock.seconds,
        )

    def _prepare(self, student: Student) -> None:
        reseed(self.device, self.dropout)
        student.rate = self.factor * self._peak(student)
        student.state.set_rate(student.rate)

    def _batch(self) -> Batch:
        inputs = self.inputs
        return Batch(inputs["images"], inputs.get("labels"), under("teacher/", inputs))

    def _waiting(self) -> list[Student]:
        """Students with steps to make in this sitting."""
        return [s for s in self.students if s.waits and s.state.step < self.clock.end]

    def _running(self) -> list[Student]:
        return [student for student in self.group if student.state.stopped is None]

    def _answers(self, split: Split, limit: int | None = None) -> Tensor | None:
        """Without labels, right is what the teacher says."""
        return None if split.labelled else self._said(split, limit)

    def _said(self, split: Split, limit: int | None = None) -> Tensor:
        """What the teacher says, in float32."""
        if self.teacher is None:
            raise DataError("training without a teacher needs labels, and this data has none")
        plain = self.teacher.in_float32()
        return predictions(
            plain, split, device=self.device, limit=limit, task=self.students[0].task
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
    if teacher is not None:
        known["kept by"] = data.held_out or UNFAMILIAR
    known["teacher"] = digest(teacher) if isinstance(teacher, nn.Module) else teacher is not None
    return known
