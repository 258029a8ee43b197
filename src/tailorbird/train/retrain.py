"""Retraining students after a teacher: labels, its answers, and its activations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tailorbird.data.images import ImageData
from tailorbird.errors import ConfigError, TrainingError
from tailorbird.progress import Progress
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.answers import Teacher
from tailorbird.train.clock import Pause
from tailorbird.train.losses import CrossEntropy, Distillation, Hints, Term
from tailorbird.train.recipe import Recipe
from tailorbird.train.student import Assignment, Epoch
from tailorbird.train.students import Trained, train

__all__ = ["Assignment", "Epoch", "Teacher", "retrain", "retrain_all"]


def retrain(
    student: nn.Module,
    teacher: Teacher,
    data: ImageData,
    *,
    hints: Sequence[tuple[str, str]] = (),
    recipe: Recipe,
    seed: int,
    checkpoint: Path | None = None,
    task: Task = CLASSIFICATION,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    name: str = "student",
) -> Trained:
    """Retrain one student; the best state on validation is returned, as a new module.

    Args:
        student: images (n, C, H, W) to logits (n, classes); copied. All parameters of the copy
            are trained.
        teacher: images to logits, or to activations by name with the logits as ``"output"`` (see
            `tailorbird.graph.surgery.capture`). A module is copied and run in eval mode.
        data: trained on ``train``, chosen on ``validation``; ``test`` is never read. Without
            labels the teacher's answers stand in for them.
        hints: pairs of a submodule of the student and a node that the teacher gives.
        checkpoint: folder for the state of each epoch; a run started again continues there.
        task: what outputs mean.
        device: None is the first CUDA device, else the CPU.
        name: what messages call the student.

    Raises:
        TrainingError: when the loss is not finite. With a checkpoint the best state so far is
            kept there, and `retrain_all` with the same arguments returns it.
        ConfigError: for hints that don't fit, or a loss without any term.
        StoreError: when the checkpoint is of another run; says what differs.

    Example:
        >>> from tailorbird.data.images import Normalisation, TensorSplit
        >>> images = torch.randint(0, 256, (16, 1, 4, 4), dtype=torch.uint8)
        >>> split = TensorSplit(images, None, Normalisation((0.5,), (0.5,)))
        >>> data = ImageData(train=split, validation=split, test=None, classes=None,
        ...     normalisation=split.normalisation, input_shape=(1, 4, 4), labelled=False, name="x")
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> done = retrain(net, net, data, recipe=Recipe(epochs=1, batch_size=8), seed=0)
        >>> done.accuracy_before, done.epochs
        (1.0, 1.0)
    """
    one = Assignment(name=name, student=student, hints=hints, checkpoint=checkpoint)
    [result] = retrain_all(
        [one],
        teacher,
        data,
        recipe=recipe,
        seed=seed,
        task=task,
        device=device,
        progress=progress,
    )
    if result.stopped is not None:
        kept = "" if checkpoint is None else f" (kept in {checkpoint})"
        raise TrainingError(
            f"retraining '{name}': {result.stopped}; the best state before it was that of epoch "
            f"{result.best_epoch:g} with accuracy {result.accuracy:.4f}{kept}. A lower learning "
            "rate (recipe.learning_rate) or a lower clip_norm usually helps",
            step=result.stopped_step,
        )
    return result


def retrain_all(
    assignments: Sequence[Assignment],
    teacher: Teacher,
    data: ImageData,
    *,
    recipe: Recipe,
    seed: int,
    task: Task = CLASSIFICATION,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    pause: Pause | None = None,
) -> list[Trained]:
    """Retrain several students with one pass of the teacher per batch.

    Each ends exactly as it would alone: it has its own optimiser and average, and the random
    numbers of a step depend on the seed and the step only. A student whose loss is not finite
    stops with a reason in ``stopped`` and its best state; the others go on. With ``minutes`` in
    the recipe, the time is shared.

    Args:
        assignments: students with distinct names, their hints and checkpoints; none give none.
            Other args are those of `retrain`.
        pause: where to pause, if not at the end; what is returned is the best state until then. A
            later call goes on from the checkpoints, to the same end as if there had been no pause.

    Raises:
        ConfigError: for hints that don't fit, or a loss without any term.
        StoreError: when the checkpoint is of another run; says what differs.
    """

    def terms(assignment: Assignment) -> list[Term]:
        found: list[Term] = [
            Distillation(weight=recipe.kl_weight, temperature=recipe.temperature, task=task),
        ]
        if assignment.hints:
            found.append(Hints(pairs=tuple(assignment.hints), weight=recipe.mse_weight))
        if data.labelled:
            alone = recipe.ce_weight > 0 and not any(term.weight > 0 for term in found)
            weight, smoothing = 1.0 if alone else recipe.ce_weight, recipe.label_smoothing
            found.append(CrossEntropy(weight=weight, smoothing=smoothing, task=task))
        return found

    idle = [a.name for a in assignments if not any(term.weight > 0 for term in terms(a))]
    if idle:
        raise ConfigError(
            f"nothing to learn from for {', '.join(idle)}: kl_weight is {recipe.kl_weight:g}, "
            f"ce_weight {recipe.ce_weight:g} ({'with' if data.labelled else 'without'} labels), "
            f"mse_weight {recipe.mse_weight:g}; raise one that applies"
        )
    return train(
        assignments,
        data,
        terms=terms,
        recipe=recipe,
        seed=seed,
        teacher=teacher,
        task=task,
        device=device,
        progress=progress,
        title="retrain",
        pause=pause,
    )
