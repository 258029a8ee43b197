"""Many encoded images at once: what their headers say, digests of their files, their pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailorbird.data.contents import Contents, digest
from tailorbird.data.decode import Decoder, Fault, Pixels, is_grey, opened
from tailorbird.data.encoded import Encoded

_CHUNK = 256

Shape = tuple[int, int, int]
"""(C, H, W)."""


@dataclass(frozen=True, eq=False)
class Headers:
    """What images' headers say: the shape that each will have, or why it can't be used.

    Both by the image's index.
    """

    shapes: Mapping[int, Shape]
    reasons: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class Read:
    """What came of reading images.

    Args:
        images: (m, C, H, W) uint8, or None where they were not decoded.
        kept: (m,) indices of the whole images.
        contents: a digest of each one's file.
        faults: the images that are not whole.
    """

    images: Tensor | None
    kept: npt.NDArray[np.int64]
    contents: tuple[str, ...]
    faults: tuple[Fault, ...]


def peek(encoded: Encoded, index: int, decoder: Decoder) -> Shape:
    """The (C, H, W) that image ``index`` will have, from its header alone.

    Raises:
        ValueError: for what is not an image.
        OSError: for a file that can't be read.
    """
    with encoded.open(index) as file:
        if not file.read(1):
            raise ValueError("empty")
        file.seek(0)
        with opened(file) as image:
            grey, (width, height) = is_grey(image), image.size
    channels = decoder.channels or (1 if grey else 3)
    return (channels, *(decoder.size or (height, width)))


def peek_all(encoded: Encoded, decoder: Decoder, *, workers: int = 0) -> Headers:
    """`peek` at every image.

    Args:
        workers: threads; 0 means one per core, at most eight. So in all functions here.
    """
    shapes: dict[int, Shape] = {}

    def work(index: int) -> None:
        shapes[index] = peek(encoded, index, decoder)

    reasons = _in_threads(work, range(len(encoded)), workers)
    return Headers(shapes, reasons)


def decode_all(
    encoded: Encoded, decoder: Decoder, headers: Headers, shape: Shape, *, workers: int = 0
) -> Read:
    """Decode every image into memory, which never holds more than one copy of them.

    Threads do it, since decoders work outside the interpreter's lock.

    Args:
        headers: of these images.
        shape: that of every image; what is grey is repeated where there are three channels.
    """
    found = sorted(headers.shapes)
    rows = {index: row for row, index in enumerate(found)}
    images = np.empty((len(found), *shape), np.uint8)
    contents: dict[int, str] = {}

    def work(index: int) -> None:
        with encoded.open(index) as file:
            content = file.read()
        pixels = decoder(content)
        if pixels.shape[1:] != shape[1:]:
            raise ValueError(f"{pixels.shape[1:]} pixels, its header says {shape[1:]}")
        images[rows[index]] = pixels
        contents[index] = digest(content)

    reasons = _in_threads(work, found, workers)
    kept = _without(images, [rows[index] for index in reasons])
    return _read(encoded, headers, contents, reasons, kept)


def digest_all(encoded: Encoded, headers: Headers, *, workers: int = 0) -> Read:
    """The digests of images that stay where they are."""
    known = Contents(encoded)
    contents: dict[int, str] = {}

    def work(index: int) -> None:
        contents[index] = known.digest(index)

    reasons = _in_threads(work, sorted(headers.shapes), workers)
    known.save()
    return _read(encoded, headers, contents, reasons, None)


def _read(
    encoded: Encoded,
    headers: Headers,
    contents: Mapping[int, str],
    reasons: Mapping[int, str],
    images: Pixels | None,
) -> Read:
    kept = sorted(contents)
    all_reasons = {**headers.reasons, **reasons}
    return Read(
        images=None if images is None else torch.from_numpy(images),
        kept=np.array(kept, np.int64),
        contents=tuple(contents[index] for index in kept),
        faults=tuple(Fault(encoded.name(i), all_reasons[i]) for i in sorted(all_reasons)),
    )


def _without(images: Pixels, dropped: list[int]) -> Pixels:
    """The rows but those ``dropped``, moved together in place."""
    if not dropped:
        return images
    kept = np.setdiff1d(np.arange(len(images)), dropped)
    for row, old in enumerate(kept):
        images[row] = images[old]
    return images[: len(kept)]


def reorder_(images: Tensor, order: Tensor) -> None:
    """Put rows into another order in place: row i becomes what row ``order[i]`` was.

    Example:
        >>> rows = torch.tensor([10, 11, 12, 13])
        >>> reorder_(rows, torch.tensor([0, 2, 3, 1]))
        >>> rows.tolist()
        [10, 12, 13, 11]
    """
    sources = order.tolist()
    for start in range(len(sources)):
        if sources[start] < 0 or sources[start] == start:
            continue
        first, row = images[start].clone(), start
        while (source := sources[row]) != start:
            images[row] = images[source]
            sources[row], row = -1, source
        images[row] = first
        sources[row] = -1


def _in_threads(
    work: Callable[[int], None], indices: range | list[int], workers: int
) -> dict[int, str]:
    """Call ``work`` with each index; index -> why it failed."""
    reasons: dict[int, str] = {}

    def chunk(start: int) -> None:
        for index in indices[start : start + _CHUNK]:
            try:
                work(index)
            except (ValueError, OSError) as error:
                reasons[index] = str(error)

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(chunk, range(0, len(indices), _CHUNK)):
            pass
    return reasons
