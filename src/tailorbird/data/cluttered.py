"""A harder set made from scikit-learn's digits: one digit to name, among pieces of others.

After "Cluttered Translated MNIST" (Mnih et al. 2014, "Recurrent Models of Visual Attention",
section 4.1), with turned and scaled digits: a whole digit at a random place, and pieces of other
digits around and under it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.data.digits import digits
from tailorbird.data.images import ImageData, Normalisation, TensorSplit
from tailorbird.errors import DataError

_NORMALISATION = Normalisation((0.16,), (0.28,))
_SIDE = 8
_PIECE = 0.45
"""Side of a piece, as a share of a digit's."""


def cluttered_digits(
    *,
    seed: int = 0,
    scenes: int = 6000,
    validation: float = 0.1,
    test: float = 0.25,
    image_size: int = 24,
    pieces: int = 4,
) -> ImageData:
    """Scenes of handwritten digits: grey, the label is that of the one whole digit.

    The scenes of each split are made of digits that occur in no other. The same seed gives the
    same scenes.

    Args:
        seed: of the division of the digits and of all scenes.
        scenes: in all.
        validation: share of the scenes that choose.
        test: share of the scenes that are looked at last.
        image_size: side in pixels.
        pieces: of other digits in a scene.

    Raises:
        DataError: for fewer than 2 scenes in a split, shares outside (0, 1), an image size outside
            16 to 512, or a number of pieces outside 0 to 100.

    Example:
        >>> data = cluttered_digits(scenes=40)
        >>> data.size, data.input_shape
        ({'train': 26, 'validation': 4, 'test': 10}, (1, 24, 24))
    """
    held = {"validation": round(validation * scenes), "test": round(test * scenes)}
    counts = {"train": scenes - sum(held.values()), **held}
    problems = [
        f"cluttered_digits: expected 2 scenes or more for {name}, got {count} of {scenes}"
        for name, count in counts.items()
        if count < 2
    ]
    if not 16 <= image_size <= 512:
        problems.append(f"cluttered_digits: expected image_size of 16 to 512, got {image_size}")
    if not 0 <= pieces <= 100:
        problems.append(f"cluttered_digits: expected 0 to 100 pieces, got {pieces}")
    if problems:
        raise DataError("; ".join(problems))
    splits = _splits(counts, seed, image_size, pieces)
    return ImageData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        classes=tuple(str(digit) for digit in range(10)),
        normalisation=_NORMALISATION,
        input_shape=(1, image_size, image_size),
        labelled=True,
        name="cluttered digits",
    )


def _splits(counts: Mapping[str, int], seed: int, side: int, pieces: int) -> dict[str, TensorSplit]:
    source = digits(seed=seed, image_size=_SIDE)
    found = {}
    for number, (name, count) in enumerate(counts.items()):
        split = getattr(source, name)
        assert isinstance(split, TensorSplit)
        generator = torch.Generator().manual_seed(1000 * seed + number)
        images, labels = _scenes(split, count, side=side, pieces=pieces, generator=generator)
        found[name] = TensorSplit(images, labels, _NORMALISATION, crop_padding=2)
    return found


def _scenes(
    split: TensorSplit, count: int, *, side: int, pieces: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scenes (count, 1, side, side) of digits in 8 by 8 pixels, and their labels (count,)."""
    pixels, labels = split.images, split.labels
    assert labels is not None
    chosen = torch.randint(len(pixels), (count,), generator=generator)
    canvas = _placed(pixels[chosen].float(), side, generator, size=(0.5, 0.65), turn=0.4)
    for _ in range(pieces):
        others = torch.randint(len(pixels), (count,), generator=generator)
        corner = torch.randint(0, _SIDE - round(_PIECE * _SIDE) + 1, (2,), generator=generator)
        piece = torch.zeros(count, 1, _SIDE, _SIDE)
        rows, columns = (slice(int(c), int(c) + round(_PIECE * _SIDE)) for c in corner)
        piece[:, :, rows, columns] = pixels[others][:, :, rows, columns].float()
        placed = _placed(piece, side, generator, size=(0.45, 0.6), turn=3.1, out=0.75)
        canvas = torch.maximum(canvas, placed)
    noise = 12 * torch.randn(canvas.shape, generator=generator)
    return (canvas + noise).clamp(0, 255).round().to(torch.uint8), labels[chosen]


def _placed(
    images: Tensor,
    side: int,
    generator: torch.Generator,
    *,
    size: tuple[float, float],
    turn: float,
    out: float = 0.0,
) -> Tensor:
    """Each image (n, 1, h, w) turned, scaled and put somewhere on a canvas (n, 1, side, side).

    Args:
        size: least and largest side on the canvas, as shares of it.
        turn: the largest angle in radians, either way.
        out: how far it lies from the middle at least, as a share of the way to the border.
    """

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    scale, angle = drawn(*size), drawn(-turn, turn)
    room = 1 - scale  # as far as a digit's middle may lie from the canvas's
    x, y = room * drawn(-1, 1), room * drawn(-1, 1)
    reach = torch.maximum(x.abs(), y.abs()) / room
    further = (out + (1 - out) * reach) / reach.clamp_min(1e-6)
    x, y = x * further, y * further
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack(
        [
            torch.stack([cos, sin, -(cos * x + sin * y)], -1),
            torch.stack([-sin, cos, sin * x - cos * y], -1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [len(images), 1, side, side], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
