"""Accuracy, agreement and logits of a network on a split, without touching the network.

Always in float32, so that figures of different networks compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tailorbird.copying import copy_network
from tailorbird.data.images import Split
from tailorbird.errors import DataError
from tailorbird.task import CLASSIFICATION, Score, Task
from tailorbird.train.precision import memory_format

_ORDER = 0x7A11
"""Seed of the order in which a limited evaluation picks its images: one choice for all."""


def accuracy(
    module: nn.Module,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    limit: int | None = None,
    task: Task = CLASSIFICATION,
) -> float:
    """Share of images, 0 to 1, whose largest logit is at the label.

    Args:
        module: images (n, C, H, W) to logits (n, classes); its modes are put back afterwards.
        split: labelled images.
        batch_size: images per forward pass.
        device: where to run (a copy, if the module is elsewhere); None is where the module is.
        limit: only this many images, an unordered choice that is the same for every network.
        task: what outputs mean.

    Raises:
        DataError: when the split has no labels or no images.

    Example:
        >>> from tailorbird.data.images import Normalisation, TensorSplit
        >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        >>> split = TensorSplit(images, torch.tensor([0, 1]), Normalisation((0.5,), (1.0,)))
        >>> class Sign(nn.Module):
        ...     def forward(self, x):
        ...         return torch.cat([-x.flatten(1), x.flatten(1)], dim=1)
        >>> accuracy(Sign(), split)
        1.0
    """
    if not split.labelled:
        raise DataError("accuracy needs labels and this split has none; use agreement() instead")
    return score(module, split, batch_size=batch_size, device=device, limit=limit, task=task).value


def agreement(
    module: nn.Module,
    teacher: nn.Module,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    limit: int | None = None,
    task: Task = CLASSIFICATION,
) -> float:
    """Share of images, 0 to 1, on which two networks give the same answer. No labels needed.

    Args are those of `accuracy`; ``teacher`` is run in the same way as ``module``.

    Raises:
        DataError: when the split has no images.
    """
    answers = predictions(
        teacher, split, batch_size=batch_size, device=device, limit=limit, task=task
    )
    return score(
        module, split, answers=answers, batch_size=batch_size, device=device, limit=limit, task=task
    ).value


def score(
    module: nn.Module,
    split: Split,
    *,
    answers: Tensor | None = None,
    batch_size: int = 256,
    device: torch.device | None = None,
    limit: int | None = None,
    channels_last: bool = False,
    task: Task = CLASSIFICATION,
) -> Score:
    """Accuracy and cross-entropy in one pass, against the labels or given answers.

    Args:
        answers: (n,) int64 as `predictions` gives with the same ``limit``, used in place of the
            labels; needed where there are none.
        channels_last: give images in this layout. Other args are those of `accuracy`.

    Raises:
        DataError: when there is nothing to compare with, or no images.
    """
    if answers is None and not split.labelled:
        raise DataError("score needs labels or answers; this split has no labels")
    with _ready(module, device) as (net, where):
        walk, scorer = _walk(split, batch_size, where, limit), task.scorer(where)
        for images, targets in walk if answers is None else _with_answers(walk, answers.to(where)):
            if targets is None:
                raise DataError("a batch without labels came from a split that says it has them")
            layout = memory_format(images.shape[1:])
            given = images.contiguous(memory_format=layout) if channels_last else images
            scorer.add(_forward(net, given), targets)
        return scorer.result()


def logits(
    module: nn.Module,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    limit: int | None = None,
) -> Tensor:
    """All logits, (n, classes) float32 on the CPU, in the split's order if there is no limit.

    Args are those of `accuracy`.

    Raises:
        DataError: when the split has no images.
    """
    return logits_and_targets(module, split, batch_size=batch_size, device=device, limit=limit)[0]


def logits_and_targets(
    module: nn.Module,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    limit: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same, and the labels (n, ...) in that order where there are any, on the CPU.

    Args are those of `accuracy`.

    Raises:
        DataError: when the split has no images.
    """
    with _ready(module, device) as (net, where):
        parts = [
            (_forward(net, images).cpu(), targets)
            for images, targets in _walk(split, batch_size, where, limit)
        ]
    if not parts:
        raise DataError("this split has no images to evaluate on")
    labels = [targets.cpu() for _, targets in parts if targets is not None]
    whole = len(labels) == len(parts)
    return torch.cat([outputs for outputs, _ in parts]), torch.cat(labels) if whole else None


def predictions(
    module: nn.Module,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    limit: int | None = None,
    task: Task = CLASSIFICATION,
) -> Tensor:
    """The target answered for each image, (n, ...) on the CPU. Args are those of `accuracy`."""
    outputs = logits(module, split, batch_size=batch_size, device=device, limit=limit)
    return task.answers(outputs)


Batches = Iterator[tuple[Tensor, Tensor | None]]


@contextmanager
def _ready(
    module: nn.Module, device: torch.device | None
) -> Iterator[tuple[nn.Module, torch.device]]:
    """The module in eval mode on the device (a copy if it lives elsewhere); modes put back."""
    tensor = next(iter([*module.parameters(), *module.buffers()]), None)
    home = torch.device("cpu") if tensor is None else tensor.device
    where = home if device is None else device
    moved = where.type != home.type or where.index not in (None, home.index)
    net = copy_network(module).to(where) if moved else module
    modes = [(part, part.training) for part in net.modules()]
    try:
        net.eval()
        yield net, where
    finally:
        for part, training in modes:
            part.training = training


def _walk(split: Split, batch_size: int, device: torch.device, limit: int | None) -> Batches:
    if limit is None or limit >= len(split):
        yield from split.batches(batch_size, device=device)
        return
    generator = torch.Generator().manual_seed(_ORDER)
    left = limit
    for images, labels in split.batches(batch_size, generator=generator, device=device):
        yield images[:left], None if labels is None else labels[:left]
        left -= len(images)
        if left <= 0:
            return


def _with_answers(walk: Batches, answers: Tensor) -> Batches:
    start = 0
    for images, _ in walk:
        yield images, answers[start : start + len(images)]
        start += len(images)


def _forward(net: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        answer: Tensor = net(images)
    return answer.float()
