"""Multiply-accumulates and parameters of architectures, without building a module.

What is counted:

- **MACs**: convolutions and dense layers, squeeze-and-excitation's two included, a
  multiply-accumulate once, one image. Norms, activations, pooling, additions and biases are free.
- **Parameters**: all that is trained: weights, biases (squeeze-and-excitation, classifier), and
  scale and shift of batch norm. Running statistics and the kernel transforms of a supernet aren't
  part of a subnet's parameters.

The once-for-all code counts the same, and so do the 1,265 published evaluations of MobileNetV3
subnets (DyNAS-T): both figures of all of them are equal to these, nothing differs.
"""

from __future__ import annotations

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
    before, after = shape.in_size**2, shape.out_size**2
    inside, mid, out = shape.in_channels, shape.mid_channels, shape.out_channels
    window = shape.kernel**2
    if shape.kind == "conv":
        return after * inside * out * window
    if shape.kind == "linear":
        return inside * out
    if shape.kind == "mbconv":
        expansion = before * inside * mid if shape.expand != 1 else 0
        squeeze = 2 * mid * _squeezed(mid) if shape.se else 0
        return expansion + after * mid * window + squeeze + after * mid * out
    if shape.kind == "bottleneck":
        shortcut = after * inside * out if _projects(shape) else 0
        return before * inside * mid + after * mid * mid * window + after * mid * out + shortcut
    return 0


def layer_params(shape: LayerShape) -> int:
    """Parameters of one layer."""
    inside, mid, out = shape.in_channels, shape.mid_channels, shape.out_channels
    window, norm = shape.kernel**2, 2 if shape.norm else 0
    if shape.kind == "conv":
        return inside * out * window + norm * out
    if shape.kind == "linear":
        return inside * out + out
    if shape.kind == "mbconv":
        expansion = inside * mid + norm * mid if shape.expand != 1 else 0
        squeeze = 2 * mid * _squeezed(mid) + _squeezed(mid) + mid if shape.se else 0
        return expansion + mid * window + norm * mid + squeeze + mid * out + norm * out
    if shape.kind == "bottleneck":
        shortcut = inside * out + norm * out if _projects(shape) else 0
        middle = inside * mid + mid * mid * window + 2 * norm * mid
        return middle + mid * out + norm * out + shortcut
    return 0


def _squeezed(mid: int) -> int:
    """Width inside squeeze-and-excitation."""
    return make_divisible(mid // 4)


def _projects(shape: LayerShape) -> bool:
    return shape.in_channels != shape.out_channels or shape.stride != 1
