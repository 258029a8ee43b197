"""Images that stay where they are until a batch wants them: any torch Dataset, with workers."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch._C import _error_if_any_worker_fails
from torch.utils.data import DataLoader, Dataset

from tailorbird.data.decode import Decoder, as_pixels, cover
from tailorbird.data.encoded import Encoded
from tailorbird.data.images import (
    ALONE,
    Batch,
    Normalisation,
    Share,
    check_walk,
    draw_moves,
    shift,
    spaced,
    spans,
)
from tailorbird.errors import DataError

_Key = tuple[int, int | None]
_Item = tuple[int, Tensor | None, str]
_Read = tuple[Tensor, list[Tensor], list[str]]


@runtime_checkable
class Indexed(Protocol):
    """A map-style dataset: an image, or a sequence that starts with one; see also `Named`."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int, /) -> object:
        """Image ``index``: Pillow image, (C, H, W) tensor or uint8 array; then maybe a label."""


@dataclass(frozen=True)
class Named:
    """A dataset whose items are dictionaries, as one of images or of images and labels.

    Args:
        dataset: gives mappings.
        image: the key of the image.
        label: the key of the label; None gives images alone.

    Example:
        >>> Named([{"image": "a picture", "digit": 7}], "image", "digit")[0]
        ('a picture', 7)
    """

    dataset: Indexed
    image: str
    label: str | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> object:
        """Image ``index``, with its label where there is a key of it.

        Raises:
            DataError: for an item that is no mapping, or lacks a key.
        """
        item = self.dataset[index]
        keys = [self.image] if self.label is None else [self.image, self.label]
        if not isinstance(item, Mapping):
            raise DataError(
                f"image {index}: expected a dictionary with {' and '.join(keys)}, got "
                f"{type(item).__name__}; leave image_key and label_key out"
            )
        if lacking := [key for key in keys if key not in item]:
            raise DataError(
                f"image {index}: its dictionary lacks {', '.join(lacking)}; it has "
                f"{', '.join(map(str, item))}; set image_key and label_key"
            )
        return item[self.image] if self.label is None else (item[self.image], item[self.label])


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run a block under a seed of its own and put every global generator back afterwards.

    Transforms draw from global generators and take no argument; so the state is borrowed, never
    left changed.
    """
    if seed is None:
        yield
        return
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images as a dataset; ``crop_scale`` cuts a random part of at least that area."""

    encoded: Encoded
    decoder: Decoder
    crop_scale: float | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int, /) -> Tensor:
        """Image ``index`` (C, H, W) uint8, cut at random where ``crop_scale`` is given."""
        try:
            with self.encoded.open(index) as file:
                content = file.read()
            if self.crop_scale is None:
                return torch.from_numpy(self.decoder(content).copy())
            whole = Decoder(self.decoder.channels)(content)
        except (ValueError, OSError) as error:
            raise DataError(f"{self.encoded.name(index)}: {error}") from error
        from torchvision.transforms.v2 import RandomResizedCrop

        size = self.decoder.size or whole.shape[1:]
        crop = RandomResizedCrop(size, scale=(self.crop_scale, 1.0), antialias=True)
        top, left, height, width = crop.make_params([torch.from_numpy(whole)]).values()
        part = whole[:, top : top + height, left : left + width]
        shown = cover(part, (size[0], size[1]), self.decoder.interpolation)
        return torch.from_numpy(shown.copy())


@dataclass(frozen=True)
class _Keyed(Dataset[_Item]):
    """Reads ``(position, seed)`` keys and hands faults on as values: an error loses its type on
    the way out of a worker."""

    dataset: Indexed
    indices: Tensor | None

    def __getitem__(self, key: _Key, /) -> _Item:
        position, seed = key
        index = position if self.indices is None else int(self.indices[position])
        try:
            with seeded(seed):
                item = self.dataset[index]
            image = item[0] if isinstance(item, tuple | list) else item
            return position, as_pixels(image), ""
        except DataError as error:
            return position, None, str(error)
        except (Exception, SystemExit) as error:  # the user's code may raise anything: a fault
            return position, None, f"image {index}: {type(error).__name__}: {error}"


def _collate(items: list[_Item]) -> _Read:
    positions = torch.tensor([at for at, image, _ in items if image is not None], dtype=torch.int64)
    images = [image for _, image, _ in items if image is not None]
    if len({(image.shape, image.dtype) for image in images}) == 1:
        images = [torch.stack(images)]
    elif images:
        images = [image[None] for image in images]
    return positions, images, [reason for _, image, reason in items if image is None]


TIME_LIMIT_S = 600
"""Seconds that worker processes may take over one batch; in this process nothing interrupts it."""


@dataclass(frozen=True, eq=False)
class LoaderSplit:
    """Images read when needed, through `torch.utils.data.DataLoader`.

    Batches are the same for any number of workers: every image is read under a seed of its own.

    Args:
        dataset: gives images in (C, H, W) of one size; its labels are not looked at.
        labels: (n,) integers, or None.
        normalisation: applied to every batch.
        augmented: gives the same images with random augmentation; None means ``dataset``.
        indices: the images of ``dataset`` that belong to this split; None means all.
        crop_padding: augmentation as in `TensorSplit`.
        flip: augmentation as in `TensorSplit`.
        workers: processes that read; 0 reads in this one.
        skip_corrupt: leave out images that can't be read, with a warning that names each once.

    Raises:
        DataError: while walking, naming an image that can't be read or has another size.
    """

    dataset: Indexed
    labels: Tensor | None
    normalisation: Normalisation
    augmented: Indexed | None = None
    indices: Tensor | None = None
    crop_padding: int = 0
    flip: bool = False
    workers: int = 0
    skip_corrupt: bool = False
    _named: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self):
            raise DataError(f"labels: expected {len(self)}, got {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    @property
    def labelled(self) -> bool:
        """Whether batches carry labels."""
        return self.labels is not None

    def take(self, indices: Tensor) -> LoaderSplit:
        """The images at positions ``indices`` (m,), in that order."""
        chosen = indices if self.indices is None else self.indices[indices]
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, labels=labels, indices=chosen)

    def sample(self, count: int) -> Tensor:
        """Up to ``count`` images, normalised, evenly spaced over the split."""
        keys: list[_Key] = [(int(position), 0) for position in spaced(len(self), count)]
        return torch.cat([self.normalisation(x) for _, x in self._read(self.dataset, [keys], 0)])

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
        """Walk the images once; see `Split.batches`. An image left out makes its batch smaller."""
        check_walk(size, generator, augment)
        count = len(self)
        order = torch.arange(count)
        seeds: Tensor | None = None
        moves: Tensor | None = None
        dataset = self.dataset
        if generator is not None:
            order = torch.randperm(count, generator=generator)
            seeds = torch.randint(2**31, (count,), generator=generator)
            if augment:
                moves = draw_moves(count, self.crop_padding, self.flip, generator)
                dataset = self.augmented or dataset
        keys: list[_Key] = [
            (position, 0 if seeds is None else int(seeds[position])) for position in order.tolist()
        ]
        where = spans(count, size, drop_last=drop_last, share=share)
        plan = [keys[start:stop] for start, stop in where]
        return self._walk(dataset, plan, moves, device or torch.device("cpu"))

    def _walk(
        self,
        dataset: Indexed,
        plan: Sequence[list[_Key]],
        moves: Tensor | None,
        device: torch.device,
    ) -> Iterator[Batch]:
        for positions, images in self._read(dataset, plan, self.workers):
            labels = None if self.labels is None else self.labels[positions].to(device)
            pixels = images.to(device, non_blocking=True)
            if moves is not None:
                pixels = shift(pixels, moves[positions].to(device), self.crop_padding)
            yield self.normalisation(pixels), labels

    def _read(
        self, dataset: Indexed, plan: Sequence[list[_Key]], workers: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader[_Item] = DataLoader(
            _Keyed(dataset, self.indices),
            batch_sampler=plan,
            num_workers=min(workers, _cores()),
            collate_fn=_collate,
            generator=torch.Generator(),  # its own, or it would draw from the global one
            pin_memory=False,
            timeout=TIME_LIMIT_S if workers else 0,
        )
        for positions, images, faults in _watched(loader):
            self._report(faults)
            if len(images) > 1:
                shapes = sorted({str(tuple(image.shape[1:])) for image in images})
                raise DataError(
                    f"images of different shapes (C, H, W) in one batch: {', '.join(shapes[:5])}; "
                    "set image_size, or resize in the dataset"
                )
            if images:
                yield positions, images[0]

    def _report(self, faults: Sequence[str]) -> None:
        if faults and not self.skip_corrupt:
            raise DataError(
                f"{faults[0]}; repair or remove the image, or set skip_corrupt: true to leave it "
                "out"
            )
        for fault in faults:
            if fault not in self._named:
                self._named.add(fault)
                warnings.warn(f"left out {fault}", stacklevel=2)


def _watched(loader: DataLoader[_Item]) -> Iterator[_Read]:
    """What a loader gives; a worker that is killed or hangs is a sentence.

    Raises:
        DataError: for such a worker.
    """
    awaited = _Awaited(loader)
    while True:
        try:
            batch = awaited.next()
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
                raise
            hung = "timed out" in str(error)
            raise DataError(
                f"a process that reads images {'gave' if hung else 'was killed'}"
                f"{f' nothing for {TIME_LIMIT_S} s' if hung else ', perhaps for want of memory'}; "
                "look at the data set, or read with workers: 0; what was finished is kept, run "
                "again to continue"
            ) from error
        yield batch


class _Awaited:
    """A loader's batches; that a worker was killed is told where a batch is awaited, nowhere else.

    torch's own handler of SIGCHLD raises wherever the main thread happens to be: in a training
    step as well as here. So it is left out, and asked for only during `next`.
    """

    def __init__(self, loader: DataLoader[_Item]) -> None:
        self._watching = bool(
            loader.num_workers
            and hasattr(signal, "SIGCHLD")
            and threading.current_thread() is threading.main_thread()
        )
        found = signal.getsignal(signal.SIGCHLD) if self._watching else None
        self._batches: Iterator[_Read] = iter(loader)
        if found is not None:
            signal.signal(signal.SIGCHLD, found)

    def next(self) -> _Read:
        """The next batch.

        Raises:
            StopIteration: at the end.
            RuntimeError: torch's word on a worker that was killed or gave nothing in time.
            OSError: a worker was killed while it handed a batch over.
        """
        found = signal.getsignal(signal.SIGCHLD) if self._watching else None
        if found is None:  # no workers, or a handler that is not Python's to put back
            return next(self._batches)

        def ask(number: int, frame: FrameType | None) -> None:
            _error_if_any_worker_fails()
            if callable(found):
                found(number, frame)

        signal.signal(signal.SIGCHLD, ask)
        try:
            _error_if_any_worker_fails()
            return next(self._batches)
        finally:
            signal.signal(signal.SIGCHLD, found)


def _cores() -> int:
    """Cores that this process may use: more workers than that only get in each other's way."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
