"""Images in the size that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images (n, C, h, w) in the last two entries of ``size``, bilinear; the same where they are.

    Example:
        >>> resized(torch.zeros(1, 3, 32, 32), (3, 24, 24)).shape
        torch.Size([1, 3, 24, 24])
    """
    wanted = torch.Size(size[-2:])
    if images.shape[-2:] == wanted:
        return images
    return F.interpolate(
        images, size=list(wanted), mode="bilinear", align_corners=False, antialias=True
    )


class AtSize(nn.Module):
    """A network that takes images of any size and resizes them to its own.

    Args:
        network: of images (n, C, H, W).
        size: (..., H, W), such as an input shape.

    Example:
        >>> AtSize(nn.Flatten(), (3, 2, 2))(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 12])
    """

    def __init__(self, network: nn.Module, size: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.size = tuple(size)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for images (n, C, h, w)."""
        outputs: Tensor = self.network(resized(images, self.size))
        return outputs
