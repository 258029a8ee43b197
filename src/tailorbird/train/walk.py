"""The one training loop: a walk over the images, from wherever a run was left to its end.

What a step does is the affair of a `Work`: retraining, distilling a house and training a supernet
are one each. The loop knows when to make a step, to look at losses, to validate and to save.

Everything random is derived from the run's seed and the step (or epoch, or part of the batch), and
nothing that came before: so a checkpoint needs no random state, and a run can go on at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from tailorbird.data.images import ALONE, Batch, Share, Split
from tailorbird.errors import ConfigError, DataError
from tailorbird.progress import Task
from tailorbird.train.clock import Clock
from tailorbird.train.seeds import generator


class Work(Protocol):
    """What a training run does, as the loop calls it, from top to bottom."""

    @property
    def step(self) -> int:
        """Steps made so far: where the walk goes on. The clock's total or more at the end."""

    def begin(self) -> None:
        """The run starts or goes on: validate what is new."""

    def open(self) -> None:
        """An epoch begins, or goes on in the middle."""

    def make(self, images: Tensor, labels: Tensor | None) -> None:
        """Make a step on a batch: images (n, C, H, W), labels (n,). Waits for nothing."""

    def settle(self) -> str:
        """Look at the losses since the last look, which may wait; a note for who watches."""

    def close(self) -> None:
        """An epoch is over, or the run: validate, enter figures."""

    def save(self) -> None:
        """Write a checkpoint, where one is kept."""


MOST_STEPS = 2**40
"""More is a slip of the pen: at a thousand steps a second it would take decades."""


def batches_of(images: int, size: int) -> int:
    """Batches of ``size`` in an epoch, 1 at least.

    Example:
        >>> batches_of(100, 32), batches_of(10, 32)
        (3, 1)
    """
    return max(1, images // size)


def steps_of(epochs: float, batches: int) -> int:
    """Steps in so many epochs of so many batches, rounded, 1 at least.

    Raises:
        ConfigError: for more than can be counted.

    Example:
        >>> steps_of(1.5, 100), steps_of(0.001, 100)
        (150, 1)
    """
    steps = epochs * batches
    if steps > MOST_STEPS:
        raise ConfigError(f"epochs: {epochs:g} are more than {MOST_STEPS:,} steps; give fewer")
    return max(1, round(steps))


@dataclass(frozen=True)
class Walk:
    """Batches of a split, epoch after epoch, in an order that follows from the epoch's number.

    A last batch that is short is left out, for one of a single image would break BatchNorm; a
    split that is smaller than a batch is one batch.

    Args:
        split: of the images.
        size: images per batch.
        order: epoch -> seed of its order and augmentation.
        device: where batches go.
        share: of each batch only this part, as one of several processes.
    """

    split: Split
    size: int
    order: Callable[[int], int]
    device: torch.device
    share: Share = ALONE

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch, 1 at least."""
        return batches_of(len(self.split), self.size)

    def steps(self, epochs: float) -> int:
        """Steps in so many epochs, see `steps_of`."""
        return steps_of(epochs, self.per_epoch)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch, augmented."""
        return self.split.batches(
            self.size,
            generator=generator(self.order(number)),
            augment=True,
            drop_last=len(self.split) >= self.size,
            device=self.device,
            share=self.share,
        )

    def plain(self, batches: int, *, seed: int, layout: torch.memory_format) -> Iterator[Tensor]:
        """Images of so many whole batches, drawn by ``seed``, not augmented: for statistics."""
        walk = self.split.batches(
            self.size,
            generator=generator(seed),
            drop_last=len(self.split) >= self.size,
            device=self.device,
        )
        for images, _ in islice(walk, batches):
            yield images.contiguous(memory_format=layout)


def look_steps(device: torch.device) -> int:
    """Steps between two looks at the losses, each of which waits for the device: 32 on a GPU."""
    return 32 if device.type == "cuda" else 1


def run(
    work: Work, walk: Walk, clock: Clock, task: Task, *, every: int, save_steps: int | None = None
) -> None:
    """Make steps until the clock's end; the state is saved there and at the end of each epoch.

    A pause within an epoch is not the epoch's end: nothing is validated, so that a run which goes
    on later ends as one that was never paused.

    Args:
        every: steps between two looks at the losses; there is one before each save in any case.
        save_steps: steps between saves within an epoch; None for none.

    Raises:
        DataError: when an epoch ends before its batches.
    """
    task.advance(min(work.step, clock.planned))
    with clock.validating():
        work.begin()
    while (start := work.step) < clock.end:
        epoch, skipped = divmod(start, walk.per_epoch)
        work.open()
        clock.open()
        unsettled, ended = 0, False
        for images, labels in islice(walk.epoch(epoch), skipped, None):
            work.make(images, labels)
            unsettled += 1
            saves = save_steps is not None and work.step % save_steps == 0
            if saves or unsettled == every or _over(work, walk, clock):
                note = work.settle()
                clock.count(unsettled, at=work.step)
                task.advance(unsettled, note)
                unsettled = 0
            ended = _over(work, walk, clock)
            if ended and (work.step % walk.per_epoch == 0 or work.step >= clock.total):
                with clock.validating():
                    work.close()
            if saves or ended:
                work.save()
            if ended:
                break
        if not ended:
            raise DataError(
                f"epoch {epoch} ended after step {work.step - 1}, before its {walk.per_epoch} "
                "batches; whole batches could not be read"
            )


def _over(work: Work, walk: Walk, clock: Clock) -> bool:
    """Whether the last step ended an epoch, or the sitting."""
    return work.step % walk.per_epoch == 0 or work.step >= clock.end
