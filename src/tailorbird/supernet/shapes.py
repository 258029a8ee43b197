"""Layers at concrete shapes, and the places in a network that take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def make_divisible(value: float, divisor: int = 8) -> int:
    """Nearest multiple of ``divisor`` that isn't more than 10 % below ``value``.

    The rounding of all widths in MobileNet and its descendants.

    Example:
        >>> [make_divisible(v) for v in (18, 36, 89.6, 332.8)]
        [24, 40, 88, 336]
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class LayerShape:
    """One layer or block at one concrete shape. Maps are square, sizes in pixels.

    Attributes:
        kind: name of a kind of layer, see :data:`tailorbird.supernet.kinds.table.KINDS`.
        mid_channels: expanded width of a block; ``in_channels`` where nothing is expanded.
        expand: expand ratio that ``mid_channels`` came from; 1 where nothing is expanded.
        se: squeeze-and-excitation after the depthwise convolution.
        activation: ``relu``, ``relu6``, ``h_swish``, ``gelu`` or, where there is none, ``none``.
        residual: the input is added to the output (projected, in a bottleneck that changes shape).
        norm: batch normalisation follows the convolutions; a conv without it has no bias either.
        heads: of a transformer block's attention; 0 elsewhere.
        head_channels: width of each head.
    """

    kind: str
    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    kernel: int = 1
    stride: int = 1
    mid_channels: int = 0
    expand: float = 1
    se: bool = False
    activation: str = "none"
    residual: bool = False
    norm: bool = False
    heads: int = 0
    head_channels: int = 0

    @property
    def attention(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_channels

    @property
    def squeezed(self) -> int:
        """Width inside squeeze-and-excitation."""
        return make_divisible(self.mid_channels // 4)


@dataclass(frozen=True)
class Slot:
    """A place in the network and the shapes that it takes.

    Attributes:
        name: the supernet's own module name (``first_conv``, ``blocks.7``).
        genes: ascending numbers of the genes that the shape depends on; the resolution's, 0, is
            always the first.
        variants: index values of these genes -> shape; ``None`` where the layer is absent.
    """

    name: str
    genes: tuple[int, ...]
    variants: Mapping[tuple[int, ...], LayerShape | None]

    def shapes(self) -> list[LayerShape]:
        """The shapes of all variants that are there, equal ones too."""
        return [shape for shape in self.variants.values() if shape is not None]
