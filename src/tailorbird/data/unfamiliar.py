"""Images that networks have not memorised: what networks that were trained apart are compared on.

Pretrained networks know the training images, and validation images are mostly taken out of these:
there a network is nearly always right as it was given, and less so the longer it is trained without
them, whatever it is worth on new images. So comparisons use images that no network was trained on,
`ImageData.holdout`, where there are any with labels. Else two validation images each are laid over
each other, one a little stronger, whose label is right (the images are those of mixup; Zhang et
al., ICLR 2018). A network knows both by heart or neither, so that its memory speaks for both, and
what tells them apart is what it has learned to see.

Scaled-up parts, CutMix, noise, changed colours and rotations were tried as well: a network that
knows an image by heart knows it in all these forms, and divergence from the teacher's answers there
says who was trained by it. `bench/unseen_scores.py` compares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tailorbird.data.images import ImageData, Normalisation, Split, TensorSplit, spaced
from tailorbird.task import Classification, Task

UNFAMILIAR = "two of them, one at 0.6"
"""What images that `blended` makes are, for run folders: other ones compare otherwise."""

STRONGER = 0.6
"""Weight of the image whose label is right."""

PAIRINGS, MOST = 4, 10_000
"""How often each image is the stronger one, and how many there are at most."""

MEMORY_MB = 512
"""Pixels that are held, in 10^6 bytes; of more, those of images evenly spaced over the split."""

_CHUNK = 256

Answer = Callable[[Split], Tensor]
"""What is right (n,) on a split's images, in their order, where they have no labels."""


def comparing(data: ImageData, task: Task, answer: Answer, *, pairings: int = PAIRINGS) -> Split:
    """The images that networks are compared on which were trained apart.

    Cost: where they have to be made, a walk over the validation images, with ``answer`` on them if
    they have no labels.

    Args:
        data: with a holdout or without.
        task: of the networks; only classes can be blended, others are compared on what there is.
        answer: what a teacher says.
        pairings: see `blended`.
    """
    unseen = data.holdout is not None and data.choosing is data.holdout
    if unseen or not isinstance(task, Classification):
        return data.choosing
    return blended(data.validation, data.normalisation, answer=answer, pairings=pairings)


def compared_on(data: ImageData) -> str:
    """What images decide between trained networks, in words.

    Example:
        >>> from dataclasses import replace
        >>> from tailorbird.data.sources import digits
        >>> print(compared_on(digits()).partition(", since")[0])
        216 validation images, two laid over each other each time
        >>> data = digits()
        >>> compared_on(replace(data, holdout=data.validation))
        '216 validation images, which no network was trained on'
    """
    if data.holdout is None or data.choosing is not data.holdout:
        return (
            f"{len(data.validation)} validation images, two laid over each other each time, since "
            "networks may know them as they are"
        )
    name = "validation" if data.holdout is data.validation else "holdout"
    return f"{len(data.holdout)} {name} images, which no network was trained on"


def blended(
    split: Split,
    normalisation: Normalisation,
    *,
    answer: Answer | None = None,
    pairings: int = PAIRINGS,
    most: int = MOST,
    seed: int = 0,
    memory_mb: int = MEMORY_MB,
) -> TensorSplit:
    """Each image with another one laid over it, and the label of the stronger.

    The same seed gives the same images.

    Cost: one walk over the split; pixels are held, as bytes where they are such.

    Args:
        split: of classes, or without labels.
        normalisation: that the split's batches come with.
        answer: gives labels where the split has none.
        pairings: how often each image is the stronger one, each time above another.
        most: images at most; of more, each is the stronger one less often, or not all are.
        seed: of who meets whom.
        memory_mb: bound on the pixels.

    Example:
        >>> from tailorbird.data.sources import digits
        >>> data = digits()
        >>> made = blended(data.validation, data.normalisation)
        >>> len(made), made.labelled, made.images.dtype
        (864, True, torch.uint8)
    """
    plain = _held(split, normalisation, most, memory_mb // max(1, pairings))
    count = len(plain)
    labels = plain.labels
    if labels is None and answer is not None:
        labels = answer(plain).cpu()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    times = max(1, min(pairings, count - 1, most // max(1, count)))
    images = torch.cat([_blend(plain.images, _partners(order, 1 + n)) for n in range(times)])
    return TensorSplit(
        images, None if labels is None else labels.repeat(times), plain.normalisation
    )


def _partners(order: Tensor, shift: int) -> Tensor:
    """Whom each image (n,) meets; nobody itself, unless it is alone."""
    partner = torch.empty_like(order)
    partner[order] = order.roll(shift)
    return partner


def _blend(images: Tensor, partner: Tensor) -> Tensor:
    """Images (n, C, H, W) below others of their own."""
    parts = []
    for start in range(0, len(images), _CHUNK):
        above = images[partner[start : start + _CHUNK]].float()
        mixed = STRONGER * images[start : start + _CHUNK].float() + (1 - STRONGER) * above
        parts.append((mixed if images.is_floating_point() else mixed.round()).to(images.dtype))
    return torch.cat(parts)


def _held(split: Split, normalisation: Normalisation, most: int, memory_mb: int) -> TensorSplit:
    """The split in memory, at most so much of it: as bytes, or as it is if its pixels are none."""
    size = split.sample(1).numel()
    most = max(2, min(most, int(memory_mb * 1e6) // max(1, size)))
    take: Callable[[Tensor], Split] | None = getattr(split, "take", None)
    if len(split) > most and take is not None:
        split = take(spaced(len(split), most))
    pixels: list[Tensor] = []
    labels: list[Tensor] = []
    for images, targets in split.batches(_CHUNK):
        pixels.append(_bytes(images.cpu(), normalisation))
        labels += [] if targets is None else [targets.cpu()]
        if sum(map(len, pixels)) >= most:
            break
    if any(part.dtype != torch.uint8 for part in pixels):
        pixels = [normalisation(p) if p.dtype == torch.uint8 else p for p in pixels]
        normalisation = Normalisation.identity(len(normalisation.mean))
    right = torch.cat(labels)[:most] if labels else None
    return TensorSplit(torch.cat(pixels)[:most], right, normalisation)


def _bytes(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Normalised images as bytes; as they are where their pixels are not in 0 to 1."""
    std = images.new_tensor(normalisation.std).view(1, -1, 1, 1)
    mean = images.new_tensor(normalisation.mean).view(1, -1, 1, 1)
    values = ((images * std + mean) * 255).round()
    fits = float(values.min()) >= 0 and float(values.max()) <= 255
    return values.to(torch.uint8) if fits else images
