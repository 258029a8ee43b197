"""Plain supervised training, for a teacher that does not exist yet."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tailorbird.data.images import ImageData
from tailorbird.errors import DataError, TrainingError
from tailorbird.progress import Progress
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.losses import CrossEntropy
from tailorbird.train.recipe import Recipe
from tailorbird.train.student import Assignment
from tailorbird.train.students import Trained, train


def fit(
    module: nn.Module,
    data: ImageData,
    *,
    recipe: Recipe,
    seed: int,
    checkpoint: Path | None = None,
    task: Task = CLASSIFICATION,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a network on labels; the best state on validation is returned, as a new module.

    The recipe's weights of terms play no part: there is one term. The seed drives the order of the
    images, augmentation and dropout; initial weights are those that ``module`` has.

    Args:
        module: images (n, C, H, W) to logits (n, classes); copied.
        data: trained on ``train``, chosen on ``validation``; ``test`` is never read.
        checkpoint: folder for the state of each epoch; a run started again continues there.
        task: what outputs mean.
        device: None is the first CUDA device, else the CPU.

    Raises:
        DataError: when the data has no labels.
        TrainingError: when the loss is not finite.
        StoreError: when the checkpoint is of another run; says what differs.
    """
    if not data.labelled:
        raise DataError(f"data '{data.name}' has no labels, and training from scratch needs them")
    term = CrossEntropy(smoothing=recipe.label_smoothing, task=task)
    [result] = train(
        [Assignment(name="network", student=module, checkpoint=checkpoint)],
        data,
        terms=lambda _: [term],
        recipe=recipe,
        seed=seed,
        task=task,
        device=device,
        progress=progress,
        title="train",
    )
    if result.stopped is not None:
        raise TrainingError(
            f"training: {result.stopped}; a lower learning rate (recipe.learning_rate) or a longer "
            "warm-up usually helps",
            step=result.stopped_step,
        )
    return result
