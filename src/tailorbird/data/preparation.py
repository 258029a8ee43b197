"""How images were prepared for a network when it was trained, where timm says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from tailorbird.data.decode import INTERPOLATIONS, Interpolation
from tailorbird.data.images import ImageData, Normalisation, Split, TensorSplit
from tailorbird.data.loader import LoaderSplit
from tailorbird.errors import DataError
from tailorbird.prepare import wrapped_by


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What timm's ``pretrained_cfg`` says of a network's images.

    Args:
        normalisation: of the pixels.
        interpolation: by which they were scaled, where it is one that is known.
        crop_share: of each side what was kept where images were scaled and cut, in (0, 1].
    """

    normalisation: Normalisation
    interpolation: Interpolation | None = None
    crop_share: float | None = None


def preparation_of(network: nn.Module) -> Preparation | None:
    """What timm says of the images that ``network`` was trained on.

    Networks of timm carry it as ``pretrained_cfg``, whoever built them; so may any other.

    Returns:
        ``None`` for a network that says nothing readable.

    Example:
        >>> class Net(nn.Linear):
        ...     pretrained_cfg = {"mean": (0.5,), "std": (0.25,), "crop_pct": 0.9}
        >>> preparation_of(Net(1, 1)).crop_share, preparation_of(nn.Linear(1, 1))
        (0.9, None)
    """
    while (inner := wrapped_by(network)) is not None:
        network = inner
    told = getattr(network, "pretrained_cfg", None)
    if not isinstance(told, Mapping):
        return None
    try:
        mean, std = (tuple(float(value) for value in told[key]) for key in ("mean", "std"))
        normalisation = Normalisation(mean, std)
    except (KeyError, TypeError, ValueError, DataError):
        return None
    share = told.get("crop_pct")
    known = [name for name in INTERPOLATIONS if name == told.get("interpolation")]
    return Preparation(
        normalisation=normalisation,
        interpolation=known[0] if known else None,
        crop_share=float(share) if isinstance(share, int | float) and 0 < share <= 1 else None,
    )


def renormalised(data: ImageData, normalisation: Normalisation) -> ImageData:
    """The same images, normalised otherwise.

    Args:
        data: images in memory, or read when they are needed.
        normalisation: for as many channels.

    Raises:
        DataError: for another number of channels.

    Example:
        >>> from tailorbird.data.sources import digits
        >>> renormalised(digits(), Normalisation((0.0,), (1.0,))).train.sample(2).min()
        tensor(0.)
    """
    channels = data.input_shape[0]
    if len(normalisation.mean) != channels:
        raise DataError(
            f"normalisation: expected a mean and a std for each of {channels} channels, got "
            f"{len(normalisation.mean)}"
        )
    validation, holdout = _renormalised(data.validation, normalisation), data.holdout
    if holdout is not None:
        same = holdout is data.validation
        holdout = validation if same else _renormalised(holdout, normalisation)
    return replace(
        data,
        train=_renormalised(data.train, normalisation),
        validation=validation,
        test=None if data.test is None else _renormalised(data.test, normalisation),
        holdout=holdout,
        normalisation=normalisation,
    )


def _renormalised(split: Split, normalisation: Normalisation) -> Split:
    if not isinstance(split, TensorSplit | LoaderSplit):
        raise DataError(f"normalisation: images of a {type(split).__name__} come normalised")
    return replace(split, normalisation=normalisation)
