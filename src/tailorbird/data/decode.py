"""Encoded images (PNG, JPEG, WebP, ...) to uint8 tensors, with every fault collected."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailorbird.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    from PIL import Image

Pixels = npt.NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
_WEBP = b"RIFF"
_SHOWN = 5
_CHUNK = 256


class Encoded(Protocol):
    """Images as files hold them."""

    def __len__(self) -> int:
        """The number of images."""

    def name(self, index: int) -> str:
        """How a message calls image ``index``."""

    def open(self, index: int) -> BinaryIO:
        """The encoded bytes of image ``index``.

        Raises:
            ValueError: where there is nothing to open.
            OSError: for a file that can't be read.
        """


@dataclass(frozen=True)
class Files:
    """Images in files of their own."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])

    def open(self, index: int) -> BinaryIO:
        """The file, opened."""
        return self.paths[index].open("rb")


@dataclass(frozen=True, eq=False)
class Cells:
    """Images in a table's cells: bytes, or a path beside the table where the bytes are null.

    Args:
        content: binary, one per image.
        paths: strings, one per image, or None.
        files: the tables' files.
        starts: each file's first row in ``content``.
    """

    content: pyarrow.ChunkedArray
    paths: pyarrow.ChunkedArray | None
    files: tuple[Path, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.content)

    def name(self, index: int) -> str:
        """File, row, and the cell's path where there is one."""
        which = bisect_right(self.starts, index) - 1
        path = None if self.paths is None else self.paths[index].as_py()
        row = f"{self.files[which]} row {index - self.starts[which]}"
        return f"{row} ({path})" if path else row

    def open(self, index: int) -> BinaryIO:
        """The cell's bytes, or the file that it names."""
        content = self.content[index].as_py()
        if isinstance(content, bytes):
            return io.BytesIO(content)
        path = None if self.paths is None else self.paths[index].as_py()
        if path is None:
            raise ValueError("neither bytes nor a path")
        which = bisect_right(self.starts, index) - 1
        return (self.files[which].parent / str(path)).open("rb")


@dataclass(frozen=True)
class Fault:
    """One image that can't be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Decoder:
    """Decodes one image to (C, H, W) uint8.

    Args:
        channels: 1 or 3 to convert; None keeps grey images at 1 and gives colour 3.
        size: (H, W) to reach by scaling until both sides are covered and cutting the centre;
            None keeps each image's own size.
    """

    channels: int | None = None
    size: tuple[int, int] | None = None

    def __call__(self, content: bytes) -> Pixels:
        """Decode ``content``.

        Raises:
            ValueError: for what is not a whole image.
        """
        if not content:
            raise ValueError("empty")
        pixels = _quick(content) if _is_plain(content) else None
        if pixels is None:
            pixels = _careful(content)
        if self.channels is not None and len(pixels) != self.channels:
            pixels = _recolour(pixels, self.channels)
        if self.size is not None and pixels.shape[1:] != self.size:
            pixels = cover(pixels, self.size)
        return pixels


def _is_plain(content: bytes) -> bool:
    """WebP, or PNG of 8 bits without a palette (torchvision would give the palette's indices)."""
    if content.startswith(_PNG):
        return content[24:25] == b"\x08" and content[25:26] != b"\x03"
    return content.startswith(_WEBP)


def _quick(content: bytes) -> Pixels | None:
    """Torchvision's decoder: lossless small images at a third of Pillow's time; None = not sure."""
    from torchvision.io import decode_image

    try:
        image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except RuntimeError:
        return None  # Pillow knows more formats, and names the fault of a broken file.
    if image.dtype != torch.uint8:
        return None
    keep = {1: 1, 2: 1, 3: 3, 4: 3}[len(image)]
    pixels: Pixels = image[:keep].numpy()
    return pixels


def _careful(content: bytes) -> Pixels:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return _from_pillow(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error).split(" <", maxsplit=1)[0] or type(error).__name__) from error


def _from_pillow(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):  # Pillow clips 16 bits at 255 instead of scaling.
        deep = np.asarray(image).astype(np.uint16) >> 8
        return deep.astype(np.uint8)[None]
    grey = image.mode in ("1", "L", "LA", "I", "F")
    array = np.asarray(image.convert("L" if grey else "RGB"))
    return np.ascontiguousarray(array[None] if grey else array.transpose(2, 0, 1))


def as_pixels(image: object) -> Tensor:
    """A Pillow image, (H, W[, C]) array or (C, H, W) tensor as a (C, H, W) tensor.

    Tensors keep their type; arrays and Pillow images have to hold uint8.

    Raises:
        ValueError: for anything else, and for floats that are NaN or infinite.
    """
    from PIL import Image

    if isinstance(image, Tensor):
        if image.ndim != 3 or image.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                "expected a (C, H, W) tensor of uint8 or float32, got "
                f"{tuple(image.shape)} of {image.dtype}"
            )
        if image.is_floating_point() and not bool(image.isfinite().all()):
            raise ValueError("it holds NaN or infinity")
        return image
    if isinstance(image, Image.Image):
        return torch.from_numpy(_from_pillow(image).copy())
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        array = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(array))
    raise ValueError(f"expected a Pillow image, tensor or uint8 array, got {type(image).__name__}")


def _pillow(pixels: Pixels) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _recolour(pixels: Pixels, channels: int) -> Pixels:
    if channels == 3:
        return np.repeat(pixels, 3, axis=0)
    return np.asarray(_pillow(pixels).convert("L"))[None]


def cover(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Scale (C, h, w) until it covers ``size`` = (H, W), then cut the centre.

    Example:
        >>> cover(np.zeros((3, 40, 80), np.uint8), (32, 32)).shape
        (3, 32, 32)
    """
    from PIL import Image

    height, width = pixels.shape[1:]
    scale = max(size[0] / height, size[1] / width)
    inner = (size[1] / scale, size[0] / scale)
    left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
    box = (left, top, left + inner[0], top + inner[1])
    resized = _pillow(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    array = np.asarray(resized)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def peek(encoded: Encoded, index: int, decoder: Decoder) -> tuple[int, int, int]:
    """The (C, H, W) that image ``index`` will have, from its header alone.

    Raises:
        ValueError: for what is not an image.
        OSError: for a file that can't be read.
    """
    from PIL import Image

    try:
        with encoded.open(index) as file, Image.open(file) as image:
            grey = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
            width, height = image.size
    except (SyntaxError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(str(error).split(" <", maxsplit=1)[0]) from error
    channels = decoder.channels or (1 if grey else 3)
    return (channels, *(decoder.size or (height, width)))


@dataclass(frozen=True, eq=False)
class Decoded:
    """What came of decoding.

    Args:
        images: (m, C, H, W) uint8; m is 0 where ``problems`` forbid stacking.
        kept: (m,) indices of the whole images.
        faults: the images that are not whole.
        problems: why images don't stack.
    """

    images: Tensor
    kept: npt.NDArray[np.int64]
    faults: tuple[Fault, ...]
    problems: tuple[str, ...]


def decode_all(encoded: Encoded, decoder: Decoder, *, workers: int = 0) -> Decoded:
    """Decode every image into memory, in threads (decoders work outside the interpreter's lock).

    Args:
        workers: threads; 0 means one per core, at most eight.
    """
    count = len(encoded)
    pixels: list[Pixels | None] = [None] * count
    reasons: dict[int, str] = {}

    def work(index: int) -> None:
        try:
            with encoded.open(index) as file:
                content = file.read()
            pixels[index] = decoder(content)
        except (ValueError, OSError) as error:
            reasons[index] = str(error)

    _in_threads(work, count, workers)
    kept = np.array([i for i, image in enumerate(pixels) if image is not None], np.int64)
    problems = shape_problems([image.shape for image in pixels if image is not None])
    faults = tuple(Fault(encoded.name(i), reasons[i]) for i in sorted(reasons))
    shape = next((image.shape for image in pixels if image is not None), (1, 1, 1))
    images = np.empty((0 if problems else len(kept), *shape), np.uint8)
    for row, index in enumerate(kept[: len(images)]):
        images[row] = pixels[index]
        pixels[index] = None  # Frees as it goes: the peak stays near one copy.
    return Decoded(torch.from_numpy(images), kept, faults, tuple(problems))


def peek_all(encoded: Encoded, decoder: Decoder, *, workers: int = 0) -> Decoded:
    """As `decode_all`, from the headers alone; ``images`` stays empty, in the images' shape."""
    count = len(encoded)
    shapes: dict[int, tuple[int, int, int]] = {}
    reasons: dict[int, str] = {}

    def work(index: int) -> None:
        try:
            shapes[index] = peek(encoded, index, decoder)
        except (ValueError, OSError) as error:
            reasons[index] = str(error)

    _in_threads(work, count, workers)
    kept = np.array(sorted(shapes), np.int64)
    faults = tuple(Fault(encoded.name(i), reasons[i]) for i in sorted(reasons))
    shape = next(iter(shapes.values()), (1, 1, 1))
    problems = shape_problems(list(shapes.values()))
    return Decoded(torch.empty((0, *shape), dtype=torch.uint8), kept, faults, tuple(problems))


def _in_threads(work: Callable[[int], None], count: int, workers: int) -> None:
    def chunk(start: int) -> None:
        for index in range(start, min(start + _CHUNK, count)):
            work(index)

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(chunk, range(0, count, _CHUNK)):
            pass


def shape_problems(shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Why images (C, H, W) don't stack: the commonest sizes, grey beside colour, the ways out.

    Example:
        >>> shape_problems([(3, 32, 32), (3, 32, 32)])
        []
        >>> len(shape_problems([(3, 32, 32), (1, 28, 32)]))
        2
    """
    problems = []
    sizes = Counter(shape[1:] for shape in shapes)
    if len(sizes) > 1:
        listed = ", ".join(f"{h}x{w} ({n})" for (h, w), n in sizes.most_common(_SHOWN))
        problems.append(
            f"images of {len(sizes)} different sizes (height x width): {listed}; set image_size "
            "to scale and cut them alike"
        )
    colours = Counter(shape[0] for shape in shapes)
    if len(colours) > 1:
        problems.append(
            f"{colours[1]} grey and {colours[3]} colour images; set channels: 3 (or 1) to convert"
        )
    return problems


def corrupt(faults: Sequence[Fault]) -> str:
    """One line that counts the ``faults``, names the first five and says the way out."""
    named = "; ".join(f"{fault.name}: {fault.reason}" for fault in faults[:_SHOWN])
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    noun = "image" if len(faults) == 1 else "images"
    return (
        f"{len(faults)} corrupt {noun}: {named}{more}; repair or remove them, or set "
        "skip_corrupt: true to leave them out"
    )


def fail(problems: Sequence[str]) -> NoReturn:
    """Raise all ``problems`` as one `DataError`."""
    if len(problems) == 1:
        raise DataError(problems[0])
    lines = "".join(f"\n  - {problem}" for problem in problems)
    raise DataError(f"{len(problems)} problems with the data:{lines}")
