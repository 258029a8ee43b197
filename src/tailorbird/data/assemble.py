"""From encoded images and labels to `ImageData`: check, divide, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from tailorbird.data.bulk import (
    Headers,
    Read,
    Shape,
    decode_all,
    digest_all,
    peek_all,
    reorder_,
)
from tailorbird.data.decode import (
    BILINEAR,
    INTERPOLATIONS,
    Decoder,
    Interpolation,
    corrupt,
    fail,
    shape_problems,
)
from tailorbird.data.division import divide
from tailorbird.data.encoded import Encoded
from tailorbird.data.images import IMAGENET, ImageData, Normalisation, TensorSplit
from tailorbird.data.loader import EncodedImages, LoaderSplit
from tailorbird.runfolder import short_hash

MOST_PADDING = 10_000
HOLDOUT = "holdout"
"""The part of images that no network was trained on."""

Labels = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split as found, with their labels (n,) or None."""

    name: str
    encoded: Encoded
    labels: Labels | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How encoded images are read; the fields are the arguments of `folder` and `parquet`."""

    image_size: int | tuple[int, int] | None
    channels: int | None
    interpolation: Interpolation | None
    crop_share: float | None
    normalisation: Normalisation | None
    validation: float
    seed: int
    crop_padding: int
    flip: bool
    crop_scale: float | None
    memory_mb: int
    workers: int
    skip_corrupt: bool

    def problems(self) -> list[str]:
        """What is wrong with the arguments."""
        found = []
        size = (self.image_size,) if isinstance(self.image_size, int) else self.image_size or (1,)
        if len(size) > 2 or not all(side >= 1 for side in size):
            found.append(f"image_size: expected pixels or [height, width], got {self.image_size}")
        if self.channels not in (None, 1, 3):
            found.append(f"channels: expected 1, 3 or null, got {self.channels}")
        if not 0 < self.validation < 1:
            found.append(
                f"validation: expected a share between 0 and 1 (exclusive), got {self.validation}"
            )
        if self.crop_scale is not None and not 0 < self.crop_scale <= 1:
            found.append(
                f"crop_scale: expected a share of the area in (0, 1], got {self.crop_scale}"
            )
        if self.crop_share is not None and not 0 < self.crop_share <= 1:
            found.append(f"crop_share: expected a share in (0, 1], got {self.crop_share}")
        if self.interpolation not in (None, *INTERPOLATIONS):
            found.append(
                f"interpolation: expected one of {', '.join(INTERPOLATIONS)}, got "
                f"{self.interpolation!r}"
            )
        if not 0 <= self.crop_padding <= MOST_PADDING:
            found.append(f"crop_padding: expected 0 to {MOST_PADDING}, got {self.crop_padding}")
        if self.memory_mb < 0:
            found.append(f"memory_mb: expected 0 or more, got {self.memory_mb}")
        return found

    @property
    def decoder(self) -> Decoder:
        """The decoder that these arguments ask for."""
        size = self.image_size
        return Decoder(
            self.channels,
            (size, size) if isinstance(size, int) else size,
            self.interpolation or BILINEAR,
            self.crop_share or 1.0,
        )


def settle_test(roles: dict[str, T]) -> dict[str, T]:
    """With only one of validation and test beside train, that one is the test split.

    Example:
        >>> settle_test({"train": 1, "validation": 2})
        {'train': 1, 'test': 2}
    """
    if "validation" not in roles or "test" in roles:
        return roles
    return {"test" if role == "validation" else role: held for role, held in roles.items()}


def default_normalisation(channels: int) -> Normalisation:
    """ImageNet's for colour; mean and deviation 0.5 for anything else."""
    return IMAGENET if channels == 3 else Normalisation((0.5,) * channels, (0.5,) * channels)


def assemble(
    name: str,
    parts: Sequence[Part],
    classes: tuple[str, ...] | None,
    reading: Reading,
) -> ImageData:
    """Make the data of ``parts`` named train and, where they exist, validation, test and holdout.

    Validation images that are a part of their own are taken as ones that no network was trained on.
    A holdout may have labels or not; without labels elsewhere they are left out.

    Small images are decoded once into memory; where that would pass ``memory_mb``, or random
    cutting needs the whole image, they are read when a batch wants them.

    Raises:
        DataError: listing every fault found at once.
    """
    problems = [line for part in parts for line in _label_problems(part, classes)]
    labelled = parts[0].labels is not None
    even = [part for part in parts if part.name != HOLDOUT]
    if any((part.labels is not None) != labelled for part in even):
        has = ", ".join(f"{p.name} {'has' if p.labels is not None else 'lacks'}" for p in even)
        problems.append(f"labels in some splits only: {has} them; leave the labels out of all")
    heads = [peek_all(part.encoded, reading.decoder, workers=reading.workers) for part in parts]
    shapes = [shape for head in heads for shape in head.shapes.values()]
    grey = sum(shape[0] == 1 for shape in shapes)
    mixed = 0 < grey < len(shapes)
    if mixed:
        reading = replace(reading, channels=3)
    shape = (3 if mixed else shapes[0][0], *shapes[0][1:]) if shapes else (1, 1, 1)
    uneven = _uneven(parts, heads)
    in_memory = reading.crop_scale is None and not uneven
    in_memory &= _bytes(parts, shape, len(shapes)) <= reading.memory_mb * 1e6
    seen = [
        decode_all(part.encoded, reading.decoder, head, shape, workers=reading.workers)
        if in_memory
        else digest_all(part.encoded, head, workers=reading.workers)
        for part, head in zip(parts, heads, strict=True)
    ]
    faults = [fault for one in seen for fault in one.faults]
    problems += [corrupt(faults)] if faults and not reading.skip_corrupt else []
    problems += uneven
    problems += [
        f"{part.name}: not one whole image"
        for part, one in zip(parts, seen, strict=True)
        if len(part.encoded) and not len(one.kept)
    ]
    if problems:
        fail(problems)

    normalisation = reading.normalisation or default_normalisation(shape[0])
    if len(normalisation.mean) != shape[0]:
        fail(
            [
                f"normalisation is for {len(normalisation.mean)} channels, the images have "
                f"{shape[0]}; set channels, or give one mean and std per channel"
            ]
        )
    splits = {
        part.name: _split(part, one, normalisation, reading)
        for part, one in zip(parts, seen, strict=True)
    }
    holdout = splits.get(HOLDOUT, splits.get("validation"))
    if "validation" not in splits:
        train = splits["train"]
        labels = None if train.labels is None else train.labels.numpy()
        stay, held = divide(labels, len(train), reading.validation, seed=reading.seed)
        splits["train"], splits["validation"] = _divided(train, stay, held)
    contents = [
        list(one.contents) for part, one in zip(parts, seen, strict=True) if part.name != HOLDOUT
    ]
    notes = []
    if mixed and (count := _grey(heads, seen)):
        notes.append(f"{count} grey images among colour ones were given three channels")
    return ImageData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=classes if labelled else None,
        normalisation=normalisation,
        input_shape=shape,
        labelled=labelled,
        name=name,
        skipped=len(faults),
        notes=tuple(notes),
        content=short_hash([reading.decoder.plain(), contents]),
        holdout=holdout,
    )


def _grey(heads: Sequence[Headers], seen: Sequence[Read]) -> int:
    """How many of the whole images have one channel in their files."""
    return sum(
        head.shapes[index][0] == 1
        for head, one in zip(heads, seen, strict=True)
        for index in one.kept.tolist()
    )


def _label_problems(part: Part, classes: tuple[str, ...] | None) -> list[str]:
    if not len(part.encoded):
        return [f"{part.name}: no images"]
    if part.labels is None:
        return []
    problems = []
    top = len(classes) if classes is not None else np.iinfo(np.int64).max
    wrong = np.flatnonzero((part.labels < 0) | (part.labels >= top))
    if len(wrong) == len(part.labels):
        problems.append(
            f"{part.name}: no image has a label; leave these files out, or set "
            f"{part.encoded.unlabelled} to use the images without labels"
        )
    elif len(wrong):
        named = "; ".join(f"{part.encoded.name(i)}: {part.labels[i]}" for i in wrong[:5])
        expected = f"0 to {top - 1}" if classes is not None else "0 or more"
        problems.append(
            f"{part.name}: {len(wrong)} labels out of range (expected {expected}; -1 stands for "
            f"missing): {named}"
        )
    elif part.name == "train" and len(np.unique(part.labels)) == 1:
        problems.append(
            f"train: all {len(part.labels)} images are of one class; give images of two classes or "
            "more, or leave the labels out to distil without them"
        )
    return problems


def _uneven(parts: Sequence[Part], heads: Sequence[Headers]) -> list[str]:
    """Why images don't stack; their colours do, since grey ones can be given three channels."""
    sizes = [[(1, *shape[1:]) for shape in head.shapes.values()] for head in heads]
    problems = [
        f"{part.name}: {line}"
        for part, one in zip(parts, sizes, strict=True)
        for line in shape_problems(one)
    ]
    if not problems:
        lines = shape_problems([one[0] for one in sizes if one])
        problems = [f"between splits: {line}" for line in lines]
    return problems


def _bytes(parts: Sequence[Part], shape: Shape, count: int) -> int:
    """Memory that ``count`` images take, decoded, beside what holds them encoded."""
    return count * int(np.prod(shape)) + sum(part.encoded.held for part in parts)


def _divided(
    train: TensorSplit | LoaderSplit, stay: Labels, held: Labels
) -> tuple[TensorSplit | LoaderSplit, TensorSplit | LoaderSplit]:
    """The images at ``stay`` and those at ``held``; of pixels in memory no copy is made."""
    chosen = torch.from_numpy(stay), torch.from_numpy(held)
    if isinstance(train, LoaderSplit):
        return train.take(chosen[0]), train.take(chosen[1])
    order = torch.cat(chosen)
    reorder_(train.images, order)
    labels = None if train.labels is None else train.labels[order]
    first, second = (
        replace(train, images=train.images[part], labels=None if labels is None else labels[part])
        for part in (slice(len(stay)), slice(len(stay), None))
    )
    return first, second


def _split(
    part: Part, seen: Read, normalisation: Normalisation, reading: Reading
) -> TensorSplit | LoaderSplit:
    kept = torch.from_numpy(seen.kept)
    labels = None if part.labels is None else torch.from_numpy(part.labels)[kept]
    if seen.images is not None:
        return TensorSplit(
            seen.images,
            labels,
            normalisation,
            crop_padding=reading.crop_padding,
            flip=reading.flip,
        )
    plain = EncodedImages(part.encoded, reading.decoder)
    varied = EncodedImages(part.encoded, reading.decoder, reading.crop_scale)
    return LoaderSplit(
        plain,
        labels,
        normalisation,
        augmented=None if reading.crop_scale is None else varied,
        indices=kept,
        crop_padding=reading.crop_padding,
        flip=reading.flip,
        workers=reading.workers,
        skip_corrupt=reading.skip_corrupt,
    )
