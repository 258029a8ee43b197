"""What supernets need of images: labels and three channels."""

from __future__ import annotations

from dataclasses import replace

from tailorbird.data.images import ImageData, Normalisation, Split, TensorSplit
from tailorbird.errors import DataError


def for_supernets(data: ImageData) -> ImageData:
    """The same images in three channels, if they are labelled.

    A supernet is trained without the validation images, which therefore are the holdout; one that
    was given takes their place.

    Raises:
        DataError: for images without labels, or of neither one channel nor three.
    """
    coloured = in_colour(data)
    apart = coloured.holdout or coloured.validation
    coloured = replace(coloured, validation=apart, holdout=apart)
    if not (data.labelled and coloured.validation.labelled):
        raise DataError(
            f"'{data.name}' has no labels, and training and judging supernets needs them; "
            "give labelled images"
        )
    return coloured


def in_colour(data: ImageData) -> ImageData:
    """The same images in three channels: grey ones three times.

    Raises:
        DataError: for another number of channels.
    """
    channels = data.input_shape[0]
    if channels == 3:
        return data
    splits = [data.train, data.validation, data.test, data.holdout]
    if channels != 1 or not all(one is None or isinstance(one, TensorSplit) for one in splits):
        raise DataError(
            f"'{data.name}' has images of {channels} channels, and the spaces take 3; convert them"
        )
    norm = Normalisation(data.normalisation.mean * 3, data.normalisation.std * 3)
    train, validation, test, holdout = (_tripled(one, norm) for one in splits)
    assert train is not None and validation is not None  # they were given
    shape = (3, *data.input_shape[1:])
    return replace(
        data,
        train=train,
        validation=validation,
        test=test,
        holdout=validation if data.holdout is data.validation else holdout,
        normalisation=norm,
        input_shape=shape,
    )


def _tripled(split: Split | None, norm: Normalisation) -> Split | None:
    if not isinstance(split, TensorSplit):
        return split
    return replace(split, images=split.images.repeat(1, 3, 1, 1), normalisation=norm)
