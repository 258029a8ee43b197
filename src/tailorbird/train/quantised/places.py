"""Where a file is quantised and how: grids of its activations, constants that are held in int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers that a quantised tensor may hold: ``scale * (q - zero_point)``.

    Args:
        scale: above 0.
        zero_point: the whole number that stands for 0.
        low: the least whole number q.
        high: the largest.

    Example:
        >>> import torch
        >>> Grid(scale=0.5, zero_point=0, low=0, high=255).whole(torch.tensor([-1.0, 0.6, 1e3]))
        tensor([  0.,   1., 255.])
    """

    scale: float
    zero_point: int
    low: int
    high: int

    def whole(self, values: Tensor) -> Tensor:
        """The numbers q nearest to some values, as floating point numbers."""
        return (values / self.scale).round().add(self.zero_point).clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Place:
    """An activation that a file quantises.

    Args:
        name: of the tensor in the file.
        grid: what it is rounded to.
        values: what the file has there, rounded, for the images that it was read with.
        sole: whether nothing in the file reads these values without rounding, in another shape
            neither.
    """

    name: str
    grid: Grid
    values: Tensor
    sole: bool = False


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Weights that a file holds as whole numbers.

    Args:
        name: in the file.
        values: the numbers that they stand for.
        steps: the scale of each, in a shape that broadcasts to ``values``.
        axis: of the channels that have a scale each; ``None`` where there is one scale for all.
        zero_points: whole numbers that stand for 0, shaped as ``steps``.
        low: the least whole number in use.
        high: the largest.
        symmetric: whether scales follow from the largest absolute value alone.
        largest: what that value is in steps; ``None`` for ``high``.
        share: of the largest absolute value of all channels, which that of each counts as at least.
        least: what it counts as at least, whatever the others are.
        bias: (channels,), what the file adds to products of these weights, where its tool may have
            shifted it.
        bias_steps: (channels,), the scale of the layer's input times that of its weights, where
            the bias is held in units of that; ``None`` for one in float32.
    """

    name: str
    values: Tensor
    steps: Tensor
    axis: int | None
    zero_points: Tensor
    low: int
    high: int
    symmetric: bool
    largest: float | None = None
    share: float = 0.0
    least: float = 0.0
    bias: Tensor | None = None
    bias_steps: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Places:
    """All that is quantised in a file.

    Args:
        activations: in the order in which they are computed.
        constants: weights, and other constants that are held in 8 bits.
        images: how many of the images were read with, from the first on; ``None`` for all.
    """

    activations: tuple[Place, ...]
    constants: tuple[Constant, ...]
    images: int | None = None


ReadPlaces = Callable[[Path, Tensor], Places]
"""A file and images (n, C, H, W), as the file takes them, to what is quantised in it. A file that
takes batches of one size only is read with the first so many."""
