"""What a network's outputs mean: losses, scores, what stands in for labels where there are none.

Everything that trains, judges or compares networks asks a task; nothing else knows of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tailorbird.errors import ConfigError, DataError


@dataclass(frozen=True)
class Score:
    """How well a network answers.

    Networks are ranked by value, and by the lower loss where that ties.

    Args:
        value: higher is better; shares are from 0 to 1.
        loss: mean of the task's loss.
    """

    value: float
    loss: float

    def beats(self, other: Score) -> bool:
        """Whether this is strictly better."""
        return (self.value, -self.loss) > (other.value, -other.loss)


class Scorer(Protocol):
    """Adds up what a network answers, batch by batch."""

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch: outputs (n, ...) float32 and targets (n, ...), on one device."""

    def result(self) -> Score:
        """The score of all that was added.

        Raises:
            DataError: when nothing was.
        """


class Labelled(Protocol):
    """What a task looks at of a split."""

    @property
    def labels(self) -> Tensor | None:
        """Targets (n, ...), or ``None``."""


class Described(Protocol):
    """What a task looks at of the images; `tailorbird.data.images.ImageData` is one."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names, if they are known."""

    @property
    def labelled(self) -> bool:
        """Whether there are targets."""

    @property
    def train(self) -> Labelled:
        """The training split."""

    @property
    def validation(self) -> Labelled:
        """The validation split."""

    @property
    def test(self) -> Labelled | None:
        """The test split."""


class Task(Protocol):
    """What outputs mean. Targets are labels, or what `answers` makes of outputs."""

    @property
    def name(self) -> str:
        """For stored records and job files."""

    @property
    def measure(self) -> str:
        """What the score's value is, for reports, such as ``"top-1"``."""

    def check(self, outputs: object, data: Described | None = None, *, what: str) -> None:
        """See to it that a network's outputs for a batch are of this task, and fit the targets.

        Args:
            outputs: what the network returned for a batch.
            data: whose targets it is to answer; not looked at where ``None``.
            what: the network, for messages.

        Raises:
            ConfigError: for outputs of another form.
            DataError: where the targets don't fit them.
        """

    def answers(self, outputs: Tensor) -> Tensor:
        """Targets (n, ...) that outputs (n, ...) stand for, where there are no labels."""

    def loss(self, outputs: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """The training loss, a mean over the batch; targets may be mixed ones."""

    def distil(
        self,
        outputs: Tensor,
        teacher: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """How far outputs are from a teacher's, 0 where they are equal; mean or sum over images."""

    def scorer(self, device: torch.device) -> Scorer:
        """A fresh scorer, whose sums stay on the device: one transfer for all batches."""


@dataclass(frozen=True)
class Classification:
    """One class per image: logits (n, classes) and labels (n,).

    Example:
        >>> task, logits = Classification(), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> scorer = task.scorer(torch.device("cpu"))
        >>> scorer.add(logits, torch.tensor([0, 0]))
        >>> scorer.result().value
        0.5
        >>> float(task.distil(logits, logits))
        0.0
    """

    name: str = "classification"
    measure: str = "top-1"

    def check(self, outputs: object, data: Described | None = None, *, what: str) -> None:
        """See `Task.check`: one number per class and image, and labels below their number."""
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ConfigError(f"{what}: expected logits of shape (n, classes), got {given}")
        if data is not None and not data.labelled and outputs.shape[1] < 2:
            raise ConfigError(
                f"{what}: one output is the largest of one, so that without labels every network "
                "would agree with every other; give labels, or a network of two outputs"
            )
        if data is not None:
            check_head(data, outputs.shape[1])

    def answers(self, outputs: Tensor) -> Tensor:
        """The class (n,) of the largest logit."""
        return outputs.argmax(1)

    def loss(self, outputs: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy; targets are classes (n,), or probabilities (n, classes)."""
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)

    def distil(
        self,
        outputs: Tensor,
        teacher: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """KL(teacher || outputs) in nats, softened by T and scaled by T^2 (Hinton et al., 2015)."""
        student = F.log_softmax(outputs.float() / temperature, dim=1)
        known = F.log_softmax(teacher.float() / temperature, dim=1)
        over = "batchmean" if reduction == "mean" else "sum"
        return F.kl_div(student, known, reduction=over, log_target=True) * temperature**2

    def scorer(self, device: torch.device) -> Scorer:
        """The share of right answers, and the mean cross-entropy."""
        return _TopOne(device)


class _TopOne:
    def __init__(self, device: torch.device) -> None:
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += (outputs.argmax(1) == targets).sum()
        self.loss += F.cross_entropy(outputs, targets, reduction="sum").double()
        self.count += len(outputs)

    def result(self) -> Score:
        if not self.count:
            raise DataError("this split has no images to evaluate on")
        return Score(int(self.right) / self.count, float(self.loss) / self.count)


CLASSIFICATION = Classification()
"""What a network does unless it is said otherwise."""


def check_head(data: Described, outputs: int) -> None:
    """Make sure that a network with ``outputs`` logits fits the data's classes.

    Raises:
        DataError: naming both numbers and the way out. Unlabelled data fits every head.
    """
    if not data.labelled:
        return
    largest = -1
    for split in (data.train, data.validation, data.test):
        if split is not None and split.labels is not None and len(split.labels):
            largest = max(largest, int(split.labels.max()))
    if data.classes is not None and len(data.classes) != outputs:
        named = ", ".join(data.classes[:3]) + (", ..." if len(data.classes) > 3 else "")
        raise DataError(
            f"data '{data.name}' has {len(data.classes)} classes "
            f"({named}) but the network has {outputs} outputs; load the "
            f"network with num_classes={len(data.classes)} and a checkpoint trained on these "
            "classes, or leave the labels out (label column null) to distil without them"
        )
    if largest >= outputs:
        raise DataError(
            f"data '{data.name}' holds label {largest} but the network has {outputs} outputs "
            f"(labels 0 to {outputs - 1}); check the labels or the network's num_classes"
        )
