"""The terms of the retraining loss: labels, the teacher's answer, the teacher's activations.

Retraining a student minimises (Model House paper, fine-tuning)::

    ce_weight * CE(student, labels) + kl_weight * KL(teacher || student)
        + mse_weight * sum over hints of |student_h - teacher_h|^2 / |teacher_h|^2

The last term is relative to the teacher's mean square. A plain MSE grows with the square of an
activation's scale, which differs by orders of magnitude between layers (right after a ReLU with
a large BatchNorm gain, or at the end of a residual stage), so one weight could not serve all
hints: the widest layer would set the gradient alone. Relative errors are free of units: 1 means
"as bad as answering zero", whatever the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from tailorbird.task import CLASSIFICATION, Task


@dataclass(frozen=True)
class Seen:
    """What the terms look at after the forward passes of one step.

    Args:
        logits: the student's answer, (n, classes), float32.
        labels: (n,) int64, or (n, classes) probabilities after mixing; None without labels.
        teacher: activations by node name, and the logits as ``"output"``; empty without one.
        student: activations at the hints, by submodule name.
    """

    logits: Tensor
    labels: Tensor | None
    teacher: Mapping[str, Tensor]
    student: Mapping[str, Tensor]


class Term(Protocol):
    """One weighted summand of the loss."""

    @property
    def weight(self) -> float:
        """What the value is multiplied by."""

    def __call__(self, seen: Seen) -> Tensor | None:
        """The unweighted value, a scalar; None where the batch has nothing for this term."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The task's loss with the labels, cross-entropy for classes; nothing without labels."""

    weight: float = 1.0
    smoothing: float = 0.0
    task: Task = CLASSIFICATION

    def __call__(self, seen: Seen) -> Tensor | None:
        """The mean over the batch."""
        if seen.labels is None:
            return None
        return self.task.loss(seen.logits, seen.labels, smoothing=self.smoothing)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How far the student's answer is from the teacher's, KL(teacher || student) for classes.

    Both are softened by the temperature T, and the value is scaled by T^2 so that the gradient
    keeps its size (Hinton et al., 2015).
    """

    weight: float = 0.5
    temperature: float = 1.0
    task: Task = CLASSIFICATION

    def __call__(self, seen: Seen) -> Tensor | None:
        """The mean over the batch."""
        if "output" not in seen.teacher:
            return None
        teacher = seen.teacher["output"]
        return self.task.distil(seen.logits, teacher, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Relative squared error at pairs of a student's submodule and a teacher's node."""

    pairs: tuple[tuple[str, str], ...]
    weight: float = 0.5

    def __call__(self, seen: Seen) -> Tensor | None:
        """The sum over the pairs."""
        total: Tensor | None = None
        for submodule, node in self.pairs:
            error = relative_error(seen.student[submodule], seen.teacher[node])
            total = error if total is None else total + error
        return total


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error relative to the teacher's mean square, a scalar in float32.

    Args:
        student: any shape, gradients flow here.
        teacher: the same shape, a constant.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([3.0, 4.0])
        >>> round(float(relative_error(torch.zeros(2), teacher)), 6)
        1.0
        >>> round(float(relative_error(torch.zeros(2), 100 * teacher)), 6)
        1.0
    """
    wanted = teacher.detach().float()
    scale = wanted.square().mean().clamp_min(1e-12)
    return F.mse_loss(student.float(), wanted) / scale


def total(terms: Sequence[Term], seen: Seen) -> Tensor | None:
    """The weighted sum of the terms that have a value and a weight; None if none has."""
    result: Tensor | None = None
    for term in terms:
        value = term(seen) if term.weight > 0 else None
        if value is not None:
            weighted = value if term.weight == 1.0 else value * term.weight
            result = weighted if result is None else result + weighted
    return result
