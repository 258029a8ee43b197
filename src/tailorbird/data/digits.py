"""The embedded data set: 1,797 real handwritten digits that come with scikit-learn."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from tailorbird.data.division import divide
from tailorbird.data.images import ImageData, Normalisation, TensorSplit
from tailorbird.errors import DataError

_NORMALISATION = Normalisation((0.3053,), (0.3761,))


def digits(
    *,
    seed: int = 0,
    validation: float = 0.15,
    test: float = 0.2,
    holdout: float = 0.0,
    image_size: int = 16,
    resize: Literal["bilinear", "nearest"] = "bilinear",
    crop_padding: int = 1,
) -> ImageData:
    """Scikit-learn's digits (UCI Optical Recognition of Handwritten Digits), grey, no download.

    Args:
        seed: seeds both divisions, which are stratified.
        validation: share of the images left after ``test``.
        test: share of all images.
        holdout: share of the images left after ``test`` that no network was trained on, as where a
            teacher was trained on ``train`` of the same arguments; choices are made on these.
        image_size: side in pixels; the originals are 8 x 8.
        resize: how larger images are made.
        crop_padding: augmentation, see `TensorSplit`; there is no mirroring.

    Raises:
        DataError: for an image size outside 8 to 512 or a share outside (0, 1).

    Example:
        >>> data = digits()
        >>> data.size, data.input_shape
        ({'train': 1222, 'validation': 216, 'test': 359}, (1, 16, 16))
    """
    from sklearn.datasets import load_digits

    if not 8 <= image_size <= 512:
        raise DataError(f"digits: expected image_size of 8 to 512, got {image_size}")
    raw = load_digits()
    pixels = torch.from_numpy(np.rint(raw.images * (255 / 16)).astype(np.float32))[:, None]
    if image_size != 8:
        pixels = F.interpolate(
            pixels,
            size=(image_size, image_size),
            mode=resize,
            align_corners=False if resize == "bilinear" else None,
        )
    images = pixels.round().to(torch.uint8)
    labels = torch.from_numpy(raw.target.astype(np.int64))
    rest, held = divide(raw.target, len(labels), test, seed=seed, what="test")
    apart = None
    if holdout:
        left, drawn = divide(raw.target[rest], len(rest), holdout, seed=seed + 2, what="holdout")
        rest, apart = rest[left], rest[drawn]
    stay, choose = divide(raw.target[rest], len(rest), validation, seed=seed + 1)

    whole = TensorSplit(images, labels, _NORMALISATION, crop_padding=crop_padding)
    return ImageData(
        train=whole.take(torch.from_numpy(rest[stay])),
        validation=whole.take(torch.from_numpy(rest[choose])),
        test=whole.take(torch.from_numpy(held)),
        classes=tuple(str(digit) for digit in range(10)),
        normalisation=_NORMALISATION,
        input_shape=(1, image_size, image_size),
        labelled=True,
        name="digits",
        holdout=None if apart is None else whole.take(torch.from_numpy(apart)),
    )
