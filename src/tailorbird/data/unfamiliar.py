"""Images that networks have not memorised: what choices are made by.

Pretrained networks know the training images, and validation images are mostly taken out of these:
there a network is nearly always right, and what a change costs it hardly shows. So choices use
images that no network was trained on, `ImageData.holdout`, where there are any. Else of a tenth of
the validation images a part is scaled up, which is not what networks know by heart: about as many
as they would get wrong if all were new.

Labels don't always say what is right there; the teacher does: how far a network's answers are from
the teacher's is what it loses by not being the teacher.

Changing all images, or putting parts of other images on top (CutMix; Yun et al., ICCV 2019), was
tried, and ranks networks less well than plain validation images do: on images that are unlike any
photograph networks which were trained apart differ where they are equally right on test images.
`bench/unseen_scores.py` compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.data.images import ImageData, Normalisation, Split, TensorSplit, spaced

UNFAMILIAR = "a tenth cropped to 0.5 to 0.9"
"""What images that `unfamiliar` makes are, for run folders: other ones have another number."""

MEMORY_MB = 512
"""Pixels that are held, in 10^6 bytes; of more, those of images evenly spaced over the split."""

Range = tuple[float, float]
"""From and to."""

SHARE = 0.1
"""Share of the images that are changed."""

AREA: Range = (0.5, 0.9)
"""Share of an image's area that its part has."""

_RATIO = 4 / 3
"""Most that a part's sides differ beyond those of the image."""

_CHUNK = 256


def unfamiliar(
    split: Split,
    normalisation: Normalisation,
    *,
    share: float = SHARE,
    area: Range = AREA,
    pasted: Range | None = None,
    seed: int = 0,
    memory_mb: int = MEMORY_MB,
) -> TensorSplit:
    """As many images, some changed so that memory of them helps little, without labels.

    The same seed gives the same images. Nothing is mirrored, since digits and words must not be.

    Cost: one walk over the split; its pixels are held, as bytes where they are such.

    Args:
        split: two images or more.
        normalisation: that the split's batches come with.
        share: of the images is changed, one at least.
        area: share of an image's area that its part has.
        pasted: share of the area that a rectangle of another image's part covers; None for none.
        seed: of parts, partners and rectangles.
        memory_mb: bound on the pixels.

    Example:
        >>> from tailorbird.data.sources import digits
        >>> data = digits()
        >>> made = unfamiliar(data.validation, data.normalisation)
        >>> len(made), made.labelled, made.images.dtype
        (216, False, torch.uint8)
    """
    pixels, told = _pixels(split, normalisation, memory_mb)
    draws = _Draws.of(len(pixels), area, pasted, torch.Generator().manual_seed(seed))
    made = pixels.clone()
    count = max(1, round(share * len(pixels)))
    for start in range(0, count, _CHUNK):
        own = draws.order[start : min(start + _CHUNK, count)]
        changed = _parts(pixels[own].float(), draws.parts[own])
        if draws.pasted is not None:
            other = draws.partner[own]
            above = _parts(pixels[other].float(), draws.parts[other])
            where = _rectangles(draws.pasted[own], pixels.shape[2:])
            changed = torch.where(where, above, changed)
        made[own] = (changed if pixels.is_floating_point() else changed.round()).to(pixels.dtype)
    return TensorSplit(made, None, told)


def scoring_split(data: ImageData) -> Split:
    """The images that say how far networks are from the teacher."""
    if data.holdout is not None:
        return data.holdout
    return unfamiliar(data.validation, data.normalisation)


def scored_on(data: ImageData) -> str:
    """What images decide, in words.

    Example:
        >>> from dataclasses import replace
        >>> from tailorbird.data.sources import digits
        >>> print(scored_on(digits()).partition(", since")[0])
        216 validation images, a tenth of them strongly cropped
        >>> scored_on(replace(digits(), holdout=digits().validation))
        '216 holdout images, which no network was trained on'
    """
    if data.holdout is None:
        return (
            f"{len(data.validation)} validation images, a tenth of them strongly cropped, since "
            "networks may know them as they are"
        )
    name = "validation" if data.holdout is data.validation else "holdout"
    return f"{len(data.holdout)} {name} images, which no network was trained on"


@dataclass(frozen=True)
class _Draws:
    """What is random about each image.

    Args:
        parts: (n, 4) height, width, and where in the rest of the image: row, column, in 0 to 1.
        order: (n,) of the images, in which they are changed.
        partner: (n,) whose part is put on top.
        pasted: (n, 4) the same of the rectangle that it covers; None where nothing is.
    """

    parts: Tensor
    order: Tensor
    partner: Tensor
    pasted: Tensor | None

    @staticmethod
    def of(count: int, area: Range, pasted: Range | None, generator: torch.Generator) -> _Draws:
        """Draws for so many images; nobody is its own partner, where there are two."""
        parts = _boxes(count, area, generator)
        order = torch.randperm(count, generator=generator)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        on_top = None if pasted is None else _boxes(count, pasted, generator)
        return _Draws(parts, order, partner, on_top)


def _boxes(count: int, area: Range, generator: torch.Generator) -> Tensor:
    """Random boxes (n, 4): height and width as shares of the sides, and place in 0 to 1."""
    drawn = torch.rand(count, 4, generator=generator)
    size = area[0] + (area[1] - area[0]) * drawn[:, 0]
    skew = torch.exp((2 * drawn[:, 1] - 1) * math.log(_RATIO) / 2)
    sides = torch.stack([size.sqrt() * skew, size.sqrt() / skew], 1)
    return torch.cat([sides.clamp(max=1.0), drawn[:, 2:]], 1)


def _parts(images: Tensor, boxes: Tensor) -> Tensor:
    """Of images (n, C, H, W) the parts in ``boxes`` (n, 4), scaled to the images' size."""
    sides, place = boxes[:, :2], boxes[:, 2:]
    middle = (2 * place - 1) * (1 - sides)
    where = torch.zeros(len(images), 2, 3)
    where[:, 0, 0], where[:, 1, 1] = sides[:, 1], sides[:, 0]
    where[:, 0, 2], where[:, 1, 2] = middle[:, 1], middle[:, 0]
    grid = F.affine_grid(where, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def _rectangles(boxes: Tensor, size: torch.Size) -> Tensor:
    """Where an image of ``size`` (H, W) is covered by ``boxes`` (n, 4): (n, 1, H, W)."""
    inside = []
    for axis, length in enumerate(size):
        side = (boxes[:, axis] * length).round()
        start = (boxes[:, 2 + axis] * (length - side)).round()
        at = torch.arange(length)
        inside.append((at >= start[:, None]) & (at < (start + side)[:, None]))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _pixels(
    split: Split, normalisation: Normalisation, memory_mb: int
) -> tuple[Tensor, Normalisation]:
    """Pixels (n, C, H, W), and what normalises them: bytes, or as they are if they are none."""
    count = len(split)
    most = max(2, int(memory_mb * 1e6) // max(1, split.sample(1).numel()))
    if count > most and (take := _taker(split)) is not None:
        split = take(spaced(count, most))
    parts: list[Tensor] = []
    for images, _ in split.batches(_CHUNK):
        parts.append(_bytes(images.cpu(), normalisation))
        if sum(map(len, parts)) >= most:
            break
    if all(part.dtype == torch.uint8 for part in parts):
        return torch.cat(parts)[:most], normalisation
    plain = [normalisation(part) if part.dtype == torch.uint8 else part for part in parts]
    return torch.cat(plain)[:most], Normalisation.identity(len(normalisation.mean))


def _taker(split: Split) -> Callable[[Tensor], Split] | None:
    take: Callable[[Tensor], Split] | None = getattr(split, "take", None)
    return take


def _bytes(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Normalised images as bytes; as they are where their pixels are not in 0 to 1."""
    std = images.new_tensor(normalisation.std).view(1, -1, 1, 1)
    mean = images.new_tensor(normalisation.mean).view(1, -1, 1, 1)
    values = ((images * std + mean) * 255).round()
    fits = float(values.min()) >= 0 and float(values.max()) <= 255
    return values.to(torch.uint8) if fits else images
