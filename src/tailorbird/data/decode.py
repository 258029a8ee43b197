"""Encoded images (PNG, JPEG, WebP, ...) to uint8 tensors, with every fault collected."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, NoReturn, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailorbird.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""How pixels are scaled, by Pillow's names."""

INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
BILINEAR: Interpolation = "bilinear"

_PNG = b"\x89PNG\r\n\x1a\n"
_WEBP = b"RIFF"
_SHOWN = 5


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
        interpolation: how pixels are scaled.
        share: of each side of that centre what is kept, so that less than 1 cuts closer.
    """

    channels: int | None = None
    size: tuple[int, int] | None = None
    interpolation: Interpolation = BILINEAR
    share: float = 1.0

    def plain(self) -> list[object]:
        """What it does, as plain data."""
        usual = self.interpolation == BILINEAR and self.share == 1.0
        return [self.channels, self.size, *(() if usual else (self.interpolation, self.share))]

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
            pixels = cover(pixels, self.size, self.interpolation, self.share)
        return pixels


MOST_PIXELS = 200_000_000
"""Larger images are refused before they are unpacked: a small file may claim any size."""


@contextmanager
def opened(file: BinaryIO) -> Iterator[Image.Image]:
    """A Pillow image of which only the header has been read.

    Raises:
        ValueError: for what is no image, claims too many pixels, or proves not to be whole.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"its header claims more than {MOST_PIXELS // 10**6} million pixels; scale it down"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(str(error).split(" <", maxsplit=1)[0] or type(error).__name__) from error


def _is_plain(content: bytes) -> bool:
    """WebP, or PNG of 8 bits without a palette (torchvision would give the palette's indices)."""
    if content.startswith(_PNG):
        return content[24:25] == b"\x08" and content[25:26] != b"\x03"
    return content.startswith(_WEBP)


def _quick(content: bytes) -> Pixels | None:
    """Torchvision's decoder: lossless small images at a third of Pillow's time; None = not sure."""
    from torchvision.io import decode_image

    with opened(io.BytesIO(content)):
        pass  # it unpacks whatever size the header claims
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
    with opened(io.BytesIO(content)) as image:
        image.load()
        return _from_pillow(image)


def is_grey(image: Image.Image) -> bool:
    """Whether an image has one channel, transparency aside."""
    return image.mode in ("1", "L", "LA") or _is_deep(image)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _from_pillow(image: Image.Image) -> Pixels:
    """(1 or 3, H, W); deep grey images are scaled by their range where that is known.

    Raises:
        ValueError: where it isn't.
    """
    if _is_deep(image):
        return _from_deep(image)
    grey = is_grey(image)
    array = np.asarray(image.convert("L" if grey else "RGB"))
    return np.ascontiguousarray(array[None] if grey else array.transpose(2, 0, 1))


_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose integers Pillow gives in mode I, and whose range is that of 16 bits."""


def _from_deep(image: Image.Image) -> Pixels:
    array = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        scaled: Pixels = (array.astype(np.int64) >> 8).astype(np.uint8)[None]
        return scaled
    if image.mode == "I":
        raise ValueError(
            "its pixels are 32-bit integers of unknown range; convert it to 8 or 16 bits"
        )
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f"its pixels are floats from {array.min():.4g} to {array.max():.4g}, expected 0 to 1; "
            "convert it to 8 or 16 bits"
        )
    rounded: Pixels = np.rint(array * 255).astype(np.uint8)[None]
    return rounded


def as_pixels(image: object) -> Tensor:
    """A Pillow image, (H, W[, C]) array or (C, H, W) tensor as a (C, H, W) tensor.

    Tensors of uint8 and float32 keep their type, other floats become float32; arrays and Pillow
    images have to hold uint8.

    Raises:
        ValueError: for anything else, and for floats that are NaN or infinite.
    """
    from PIL import Image

    if isinstance(image, Tensor):
        if image.dtype in (torch.float64, torch.float16, torch.bfloat16):
            image = image.float()
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
    if isinstance(image, Mapping):
        keys = ", ".join(map(str, image))
        raise ValueError(f"a dictionary with {keys}; say which is what by image_key and label_key")
    raise ValueError(f"expected a Pillow image, tensor or uint8 array, got {type(image).__name__}")


def _pillow(pixels: Pixels) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _recolour(pixels: Pixels, channels: int) -> Pixels:
    if channels == 3:
        return np.repeat(pixels, 3, axis=0)
    return np.asarray(_pillow(pixels).convert("L"))[None]


def cover(
    pixels: Pixels,
    size: tuple[int, int],
    interpolation: Interpolation = BILINEAR,
    share: float = 1.0,
) -> Pixels:
    """Scale (C, h, w) until it covers ``size`` = (H, W), then cut the centre.

    With a ``share`` below 1 it is scaled further, so that the cut shows that share of each side.

    Example:
        >>> cover(np.zeros((3, 40, 80), np.uint8), (32, 32)).shape
        (3, 32, 32)
    """
    from PIL import Image

    box = covering_box((pixels.shape[1], pixels.shape[2]), size, share)
    way = Image.Resampling[interpolation.upper()]
    resized = _pillow(pixels).resize((size[1], size[0]), way, box=box)
    array = np.asarray(resized)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def covering_box(
    image: tuple[int, int], size: tuple[int, int], share: float = 1.0
) -> tuple[float, float, float, float]:
    """The largest part in the middle of an (h, w) image with the proportions of ``size`` = (H, W).

    Args:
        image: (h, w).
        size: (H, W).
        share: of each side of that part what is taken.

    Returns:
        (left, top, right, bottom) in pixels, never outside of the image.

    Example:
        >>> covering_box((40, 80), (32, 32))
        (20.0, 0.0, 60.0, 40.0)
    """
    height, width = image
    scale = max(size[0] / height, size[1] / width)
    # By rounding the part may come out a hair larger than the image.
    inner_height = min(height, size[0] / scale * share)
    inner_width = min(width, size[1] / scale * share)
    left, top = (width - inner_width) / 2, (height - inner_height) / 2
    right, bottom = min(width, left + inner_width), min(height, top + inner_height)
    return float(left), float(top), float(right), float(bottom)


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
