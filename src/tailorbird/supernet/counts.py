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

from tailorbird.supernet.layout import ArchitectureSpace
from tailorbird.supernet.slot_table import SlotTable


def macs(space: ArchitectureSpace) -> SlotTable:
    """Table that sums the MACs of genomes (see the module for what is counted).

    Example:
        >>> import numpy as np
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("ofa-mbv3-w1.0", resolutions=[224])
        >>> macs(space).sum(np.zeros((1, 46), dtype=np.int64))
        array([1.21278672e+08])
    """
    return SlotTable(space, lambda shape: space.kind_of(shape).macs(shape))


def params(space: ArchitectureSpace) -> SlotTable:
    """Table that sums the parameters of genomes (see the module for what is counted).

    Example:
        >>> import numpy as np
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("ofa-mbv3-w1.0", resolutions=[224])
        >>> params(space).sum(np.zeros((1, 46), dtype=np.int64))
        array([3410792.])
    """
    return SlotTable(space, lambda shape: space.kind_of(shape).params(shape))
