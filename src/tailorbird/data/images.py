"""Labelled or unlabelled images in splits, served as normalised batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.errors import DataError

Batch = tuple[Tensor, Tensor | None]
"""Images (n, C, H, W) float32 normalised, and labels (n,) int64 or None."""


@dataclass(frozen=True)
class Normalisation:
    """Per-channel ``(x - mean) / std`` on pixels in [0, 1].

    Raises:
        DataError: where the lengths differ or a deviation is not positive.

    Example:
        >>> Normalisation((0.5,), (0.25,))(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[[[-2., 2.]]]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise DataError(
                f"normalisation: expected one mean and one std per channel, got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        if not all(value > 0 for value in self.std):
            raise DataError(f"normalisation: every std has to be positive, got {self.std}")

    @staticmethod
    def identity(channels: int) -> Normalisation:
        """Leaves pixels as they are: for images that come normalised."""
        return Normalisation((0.0,) * channels, (1.0,) * channels)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise (n, C, H, W): uint8 is scaled from 0..255, floats are taken in [0, 1]."""
        full = 255.0 if images.dtype == torch.uint8 else 1.0
        shape = (1, -1, 1, 1)
        scale = [1.0 / (full * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        out = images.to(torch.float32, copy=True)
        out.mul_(out.new_tensor(scale).view(shape))
        return out.add_(out.new_tensor(shift).view(shape))


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What most pretrained networks were trained with."""


Share = tuple[int, int]
"""Which part of a batch, counted from 0, and of how many equal ones."""

ALONE: Share = (0, 1)
"""The whole batch."""


class Split(Protocol):
    """A set of images that is walked in batches."""

    def __len__(self) -> int:
        """The number of images."""

    @property
    def labelled(self) -> bool:
        """Whether batches carry labels."""

    @property
    def labels(self) -> Tensor | None:
        """All labels (n,) int64 in order, or None."""

    def batches(
        self,
        size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        drop_last: bool = False,
        device: torch.device | None = None,
        share: Share = ALONE,
    ) -> Iterator[Batch]:
        """Walk the images once, ``size`` at a time.

        Args:
            size: images per batch; the last batch may be smaller.
            generator: shuffles and drives augmentation, on the CPU; None means in order. All of
                a walk's randomness is drawn when this is called, so that a walk given up early
                leaves the generator as a full one does.
            augment: apply the split's own augmentation; needs a generator.
            drop_last: leave out a last batch that is smaller than ``size``.
            device: where the batches go.
            share: of each batch only this part, as one of several processes that walk together;
                the parts make up the batches that one process alone would get, and nothing is
                read for the others.

        Raises:
            DataError: for a size below 1, or augmentation without a generator.
        """

    def sample(self, count: int) -> Tensor:
        """Up to ``count`` images (n, C, H, W), normalised, evenly spaced, not augmented."""


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Images in memory. Batches are gathered, cropped and flipped without a loop over images.

    Args:
        images: (n, C, H, W) uint8 in 0..255, or float32 in [0, 1].
        labels: (n,) integers, or None.
        normalisation: applied to every batch.
        crop_padding: augmentation: pad by this many black pixels, then crop at random.
        flip: augmentation: mirror left to right with probability one half.

    Raises:
        DataError: listing every fault of shapes and types.

    Example:
        >>> pixels = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
        >>> split = TensorSplit(pixels, torch.tensor([0, 1]), Normalisation.identity(1))
        >>> [(tuple(x.shape), y.tolist()) for x, y in split.batches(2)]
        [((2, 1, 2, 2), [0, 1])]
    """

    images: Tensor
    labels: Tensor | None
    normalisation: Normalisation
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            problems.append(
                "images: expected (n, C, H, W) of uint8 or float32, got "
                f"{tuple(self.images.shape)} of {self.images.dtype}"
            )
        elif self.images.shape[1] != len(self.normalisation.mean):
            problems.append(
                f"images have {self.images.shape[1]} channels, the normalisation is for "
                f"{len(self.normalisation.mean)}"
            )
        if self.labels is not None and self.labels.shape[:1] != self.images.shape[:1]:
            problems.append(
                f"labels: expected {len(self.images)} of them, got shape {tuple(self.labels.shape)}"
            )
        side = max(self.images.shape[2:], default=0)
        if not 0 <= self.crop_padding <= side:
            problems.append(
                f"crop_padding: expected 0 to the image's side, {side}, got {self.crop_padding}"
            )
        if problems:
            raise DataError("; ".join(problems))
        if self.labels is not None and self.labels.dtype != torch.int64:
            object.__setattr__(self, "labels", self.labels.to(torch.int64))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether batches carry labels."""
        return self.labels is not None

    def to(self, device: torch.device | str) -> TensorSplit:
        """The same split with its images held on ``device``."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def take(self, indices: Tensor) -> TensorSplit:
        """The images at ``indices`` (m,), in that order."""
        index = indices.to(self.images.device)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)

    def sample(self, count: int) -> Tensor:
        """Up to ``count`` images, normalised, evenly spaced over the split."""
        return self.normalisation(self.images[spaced(len(self), count).to(self.images.device)])

    def batches(
        self,
        size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        drop_last: bool = False,
        device: torch.device | None = None,
        share: Share = ALONE,
    ) -> Iterator[Batch]:
        """Walk the images once; see `Split.batches`."""
        check_walk(size, generator, augment)
        order = None if generator is None else torch.randperm(len(self), generator=generator)
        moves = None
        if augment and generator is not None:
            moves = draw_moves(len(self), self.crop_padding, self.flip, generator)
        where = spans(len(self), size, drop_last=drop_last, share=share)
        return self._walk(where, order, moves, device or self.images.device)

    def _walk(
        self,
        where: Sequence[tuple[int, int]],
        order: Tensor | None,
        moves: Tensor | None,
        device: torch.device,
    ) -> Iterator[Batch]:
        for start, stop in where:
            if order is None:
                images = self.images[start:stop]
                labels = None if self.labels is None else self.labels[start:stop]
            else:
                index = order[start:stop].to(self.images.device)
                images = self.images[index]
                labels = None if self.labels is None else self.labels[index]
            images = images.to(device)
            if moves is not None:
                images = shift(images, moves[start:stop].to(device), self.crop_padding)
            yield self.normalisation(images), None if labels is None else labels.to(device)


def draw_moves(count: int, padding: int, flip: bool, generator: torch.Generator) -> Tensor | None:
    """Random row, column and mirror (count, 3) for `shift`; None where nothing moves."""
    if not (padding or flip):
        return None
    offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator) * int(flip)
    return torch.cat([offsets, mirrored], dim=1)


def shift(images: Tensor, moves: Tensor, padding: int) -> Tensor:
    """Crop (n, C, H, W) out of its zero-padded self at ``moves`` (n, 3): row, column, mirror.

    One gather over flattened pixels; an image costs its own size, whatever the padding.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4).flatten(2)
    row, column, mirror = moves.unbind(1)
    rows = row[:, None] + torch.arange(height, device=images.device)
    steps = torch.arange(width, device=images.device)
    columns = column[:, None] + torch.where(mirror[:, None].bool(), width - 1 - steps, steps)
    index = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(count, 1, -1)
    gathered = padded.gather(2, index.expand(count, channels, -1))
    return gathered.view(count, channels, height, width)


def check_walk(size: int, generator: torch.Generator | None, augment: bool) -> None:
    """Refuse what `Split.batches` can't do.

    Raises:
        DataError: for a size below 1, or augmentation without a generator.
    """
    if size < 1:
        raise DataError(f"batches: expected a size of 1 or more, got {size}")
    if augment and generator is None:
        raise DataError("batches: augmentation draws random numbers; give a generator")


def spans(count: int, size: int, *, drop_last: bool, share: Share = ALONE) -> list[tuple[int, int]]:
    """Where each batch of a walk over ``count`` images, or a share of it, begins and ends.

    Example:
        >>> spans(7, 3, drop_last=False), spans(7, 3, drop_last=True)
        ([(0, 3), (3, 6), (6, 7)], [(0, 3), (3, 6)])
        >>> spans(8, 4, drop_last=True, share=(1, 2))
        [(2, 4), (6, 8)]
    """
    end = count - count % size if drop_last else count
    part, parts = share
    found = []
    for start in range(0, end, size):
        length = min(size, end - start)
        found.append((start + length * part // parts, start + length * (part + 1) // parts))
    return found


def spaced(total: int, count: int) -> Tensor:
    """Up to ``count`` distinct indices spread evenly over ``range(total)``.

    Example:
        >>> spaced(10, 4).tolist()
        [0, 2, 5, 7]
    """
    count = min(total, count)
    return torch.arange(count) * total // max(count, 1)


def resident(split: Split, device: torch.device) -> Split:
    """The split with its images held on a GPU, where it offers that; else as it is."""
    move: Callable[[torch.device], Split] | None = getattr(split, "to", None)
    return move(device) if device.type == "cuda" and move is not None else split


def blame_images(sums: Sequence[Tensor], split: Split, role: str) -> None:
    """Where a loss is not finite: raise if that is the images' fault.

    Args:
        sums: of all pixels of each batch that came before. They cost next to nothing and are on
            the device, so nobody waits for them while all is well.
        split: where the batches came from; walked once, to name the images.
        role: ``"training"`` or ``"validation"``.

    Raises:
        DataError: naming the first images that hold NaN or infinity.

    Example:
        >>> blame_images([torch.tensor(1.0)], TensorSplit(torch.zeros(1, 1, 2, 2), None,
        ...     Normalisation.identity(1)), "training")
    """
    if not sums or bool(torch.stack(list(sums)).isfinite().all()):
        return
    found: list[int] = []
    start = 0
    for images, _ in split.batches(256):
        bad = ~images.flatten(1).isfinite().all(dim=1)
        found += (torch.nonzero(bad).flatten() + start).tolist()
        start += len(images)
    if not found:
        raise DataError(
            f"augmentation makes {role} images NaN or infinite, and so the loss; mend it, or train "
            "without it"
        )
    named = ", ".join(str(index) for index in found[:5])
    raise DataError(
        f"{len(found)} of {len(split)} {role} images hold NaN or infinity, and so does the loss: "
        f"{'image' if len(found) == 1 else 'images'} {named}{', ...' if len(found) > 5 else ''} "
        "(counted from 0); repair or remove them"
    )


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """What a job reads: splits, class names, and how pixels are normalised.

    Choices are made on ``holdout``, or else on ``validation``, which comes out of the training
    images (`tailorbird.data.unfamiliar`); ``test`` is read once, at the end.

    Args:
        input_shape: (C, H, W) of one image.
        skipped: corrupt images left out because the user said so.
        notes: what else was done to the images or their division, in words.
        content: digest of all images as they were read, but for ``holdout``; of the pixels where
            ``None``.
        holdout: images that no network was trained on, with or without labels. Where that is so of
            ``validation``, it may be given here, too.
    """

    train: Split
    validation: Split
    test: Split | None
    classes: tuple[str, ...] | None
    normalisation: Normalisation
    input_shape: tuple[int, int, int]
    labelled: bool
    name: str
    skipped: int = 0
    notes: tuple[str, ...] = ()
    content: str | None = None
    holdout: Split | None = None

    def __repr__(self) -> str:
        counts = ", ".join(f"{number} {name}" for name, number in self.size.items() if number)
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"<ImageData '{self.name}': {counts} images {self.input_shape}{classes}>"

    @property
    def told(self) -> tuple[str, ...]:
        """What a user should know of how the images were taken."""
        left_out = f"{self.skipped} corrupt images left out"
        return (*((left_out,) if self.skipped else ()), *self.notes)

    @property
    def size(self) -> dict[str, int]:
        """Images per split."""
        test = 0 if self.test is None else len(self.test)
        found = {"train": len(self.train), "validation": len(self.validation), "test": test}
        apart = self.holdout is not None and self.holdout is not self.validation
        return found | ({"holdout": len(self.holdout)} if apart and self.holdout else {})

    @property
    def choosing(self) -> Split:
        """What accuracies are of while something is chosen: ``holdout`` if it has labels where
        ``validation`` does, else that.
        """
        told = self.holdout is not None and self.holdout.labelled >= self.validation.labelled
        return self.holdout if told and self.holdout is not None else self.validation

    @property
    def scoring(self) -> Split:
        """What says how far networks are from their teacher, which needs no labels: ``holdout``,
        or else ``validation``.
        """
        return self.validation if self.holdout is None else self.holdout

    @property
    def augmentation(self) -> dict[str, float | bool | None]:
        """How training images are varied, as plain data; a split of another kind tells nothing."""
        train = self.train
        scale = getattr(getattr(train, "augmented", None), "crop_scale", None)
        return {
            "crop_padding": getattr(train, "crop_padding", 0),
            "flip": getattr(train, "flip", False),
            "crop_scale": scale,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over sizes, classes, normalisation, labels and every image.

        Equal data gives equal digits on every machine; a run folder keeps them to notice that it
        belongs to another job. Of images that only their own data set can read, and of which there
        are many, a few thousand count.
        """
        content = self.content or [
            _pixels_of(split, self.normalisation)
            for split in (self.train, self.validation, self.test)
        ]
        return hashlib.sha256(json.dumps([self.sampled, content]).encode()).hexdigest()[:16]

    @cached_property
    def held_out(self) -> str:
        """The same of ``holdout``; empty without one, ``"validation"`` where that is what it is."""
        if self.holdout is None or self.holdout is self.validation:
            return "" if self.holdout is None else "validation"
        return _pixels_of(self.holdout, self.normalisation)

    @cached_property
    def sampled(self) -> str:
        """The fingerprint of earlier versions, over sixteen images of each split."""
        digest = hashlib.sha256()
        norm = self.normalisation
        size = {name: count for name, count in self.size.items() if name != "holdout"}
        head = [size, self.classes, norm.mean, norm.std, self.input_shape, self.labelled]
        digest.update(json.dumps(head).encode())
        for split in (self.train, self.validation, self.test):
            if split is None:
                continue
            if split.labels is not None:
                digest.update(split.labels.cpu().numpy().tobytes())
            digest.update(_whole_pixels(split.sample(16).cpu(), norm).numpy().tobytes())
        return digest.hexdigest()[:16]


_COUNTED = 5000
"""Images of a data set of the user's own that its fingerprint is over, evenly spaced."""


def _pixels_of(split: Split | None, normalisation: Normalisation) -> str:
    """A digest of the pixels of a split: of all that are in memory, or of `_COUNTED`."""
    if split is None:
        return ""
    take: Callable[[Tensor], Split] | None = getattr(split, "take", None)
    if len(split) > _COUNTED and take is not None and not isinstance(split, TensorSplit):
        split = take(spaced(len(split), _COUNTED))
    digest = hashlib.blake2b(digest_size=8)
    for images, _ in split.batches(256):
        digest.update(_whole_pixels(images.cpu(), normalisation).to(torch.uint8).numpy().data)
    return digest.hexdigest()


def _whole_pixels(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Back to whole pixel values, so that the last bit of float arithmetic can't matter."""
    std = images.new_tensor(normalisation.std).view(1, -1, 1, 1)
    mean = images.new_tensor(normalisation.mean).view(1, -1, 1, 1)
    return ((images * std + mean) * 255).round().to(torch.int32).contiguous()


def classes_in(data: ImageData) -> int:
    """How many classes labelled images have: those named, else the largest label and one more."""
    if data.classes is not None:
        return len(data.classes)
    splits = (data.train, data.validation, data.test, data.holdout)
    labels = [one.labels for one in splits if one is not None and one.labels is not None]
    return 1 + max(int(one.max()) for one in labels if len(one))
