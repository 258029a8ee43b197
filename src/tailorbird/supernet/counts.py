"""Multiply-accumulates and parameters of architectures, without building a module.

What is counted:

- **MACs**: convolutions and dense layers, squeeze-and-excitation's two included, and the two matrix
  products of attention (queries with keys, weights with values: tokens squared times the width of
  all heads, each); a multiply-accumulate once, one image. Norms, activations, softmax, pooling,
  additions and biases are free. :mod:`tailorbird.measure.counts` counts the same.
- **Parameters**: all that is trained: weights, biases (squeeze-and-excitation, classifier, all
  layers of a transformer), scale and shift of norms, a transformer's positions at its resolution.
  Running statistics and the kernel transforms of a supernet aren't part of a subnet's parameters.

The once-for-all code counts the same, and so do the 1,265 published evaluations of MobileNetV3
subnets (DyNAS-T): both figures of all of them are equal to these, nothing differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tailorbird.supernet.architecture import (
    ArchitectureSpace,
    LayerShape,
    SlotTable,
    make_divisible,
)


def macs(space: ArchitectureSpace) -> SlotTable:
    """Table that sums the MACs of genomes (see the module for what is counted).

    Example:
        >>> import numpy as np
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("ofa-mbv3-w1.0", resolutions=[224])
        >>> macs(space).sum(np.zeros((1, 46), dtype=np.int64))
        array([1.21278672e+08])
    """
    return SlotTable(space, layer_macs)


def params(space: ArchitectureSpace) -> SlotTable:
    """Table that sums the parameters of genomes (see the module for what is counted).

    Example:
        >>> import numpy as np
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("ofa-mbv3-w1.0", resolutions=[224])
        >>> params(space).sum(np.zeros((1, 46), dtype=np.int64))
        array([3410792.])
    """
    return SlotTable(space, layer_params)


def layer_macs(shape: LayerShape) -> int:
    """MACs of one layer for one image."""
    return _FIGURES[shape.kind][0](shape) if shape.kind in _FIGURES else 0


def layer_params(shape: LayerShape) -> int:
    """Parameters of one layer."""
    return _FIGURES[shape.kind][1](shape) if shape.kind in _FIGURES else 0


def _conv_macs(shape: LayerShape) -> int:
    return shape.out_size**2 * shape.in_channels * shape.out_channels * shape.kernel**2


def _conv_params(shape: LayerShape) -> int:
    return (shape.in_channels * shape.kernel**2 + _norm(shape)) * shape.out_channels


def _mbconv_macs(shape: LayerShape) -> int:
    after, mid = shape.out_size**2, shape.mid_channels
    expansion = shape.in_size**2 * shape.in_channels * mid if shape.expand != 1 else 0
    squeeze = 2 * mid * _squeezed(mid) if shape.se else 0
    return expansion + after * mid * shape.kernel**2 + squeeze + after * mid * shape.out_channels


def _mbconv_params(shape: LayerShape) -> int:
    inside, mid, out, norm = shape.in_channels, shape.mid_channels, shape.out_channels, _norm(shape)
    expansion = inside * mid + norm * mid if shape.expand != 1 else 0
    squeeze = 2 * mid * _squeezed(mid) + _squeezed(mid) + mid if shape.se else 0
    return expansion + mid * shape.kernel**2 + norm * mid + squeeze + mid * out + norm * out


def _bottleneck_macs(shape: LayerShape) -> int:
    before, after = shape.in_size**2, shape.out_size**2
    inside, mid, out = shape.in_channels, shape.mid_channels, shape.out_channels
    shortcut = after * inside * out if _projects(shape) else 0
    middle = before * inside * mid + after * mid * mid * shape.kernel**2
    return middle + after * mid * out + shortcut


def _bottleneck_params(shape: LayerShape) -> int:
    inside, mid, out, norm = shape.in_channels, shape.mid_channels, shape.out_channels, _norm(shape)
    shortcut = inside * out + norm * out if _projects(shape) else 0
    middle = inside * mid + mid * mid * shape.kernel**2 + 2 * norm * mid
    return middle + mid * out + norm * out + shortcut


def _linear_macs(shape: LayerShape) -> int:
    return shape.in_channels * shape.out_channels


def _linear_params(shape: LayerShape) -> int:
    return (shape.in_channels + 1) * shape.out_channels


def _patch_params(shape: LayerShape) -> int:
    places = shape.out_size**2
    return (shape.in_channels * shape.kernel**2 + 1 + places) * shape.out_channels


def _transformer_macs(shape: LayerShape) -> int:
    tokens, mid, attended = shape.in_size**2, shape.mid_channels, shape.attention
    dense = shape.in_channels * (3 * attended + mid) + (attended + mid) * shape.out_channels
    return tokens * dense + 2 * tokens**2 * attended


def _transformer_params(shape: LayerShape) -> int:
    inside, mid, out = shape.in_channels, shape.mid_channels, shape.out_channels
    attention = (inside + 1) * 3 * shape.attention + (shape.attention + 1) * out
    return attention + (inside + 1) * mid + (mid + 1) * out + 4 * inside


def _token_mean_params(shape: LayerShape) -> int:
    return 2 * shape.in_channels


def _nothing(_: LayerShape) -> int:
    return 0


_FIGURES: Mapping[str, tuple[Callable[[LayerShape], int], Callable[[LayerShape], int]]] = {
    "conv": (_conv_macs, _conv_params),
    "mbconv": (_mbconv_macs, _mbconv_params),
    "bottleneck": (_bottleneck_macs, _bottleneck_params),
    "linear": (_linear_macs, _linear_params),
    "patch_embed": (_conv_macs, _patch_params),
    "transformer_block": (_transformer_macs, _transformer_params),
    "token_mean": (_nothing, _token_mean_params),
}
"""Kind of layer -> its MACs and its parameters; other kinds have neither."""


def _norm(shape: LayerShape) -> int:
    """Scale and shift per channel."""
    return 2 if shape.norm else 0


def _squeezed(mid: int) -> int:
    """Width inside squeeze-and-excitation."""
    return make_divisible(mid // 4)


def _projects(shape: LayerShape) -> bool:
    return shape.in_channels != shape.out_channels or shape.stride != 1
