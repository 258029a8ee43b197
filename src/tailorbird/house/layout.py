"""Memory layout of the networks of a house."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tailorbird.train import precision


def lay_out(module: nn.Module, shape: Sequence[int], device: torch.device) -> None:
    """Put convolution weights, in place, into the layout that suits inputs of ``shape``.

    Images take channels last, unless the network reshapes them in a way that forbids it.

    Args:
        module: in eval mode, on ``device``.
    """
    precision.lay_out(module, torch.zeros(2, *shape, device=device))
