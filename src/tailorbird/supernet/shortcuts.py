"""Blocks with a shortcut: a branch's result is added to the input, or to a projection of it."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Shortcut(nn.Module):
    """A block that adds a branch's result to what came in."""

    @property
    @abstractmethod
    def branch(self) -> nn.Module:
        """The branch up to its last layer: with zeros there, the block is its shortcut alone."""


class Residual(Shortcut):
    """Adds its input to what ``conv`` makes of it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    @property
    def branch(self) -> nn.Module:
        """All of it."""
        return self.conv

    def forward(self, images: Tensor) -> Tensor:
        """(n, ...) to the same shape."""
        change: Tensor = self.conv(images)
        return change + images


class Bottleneck(Shortcut):
    """The block of ResNet-D: three convolutions, a projected shortcut where the shape changes.

    Args:
        conv1: to the middle width.
        conv2: with the stride.
        conv3: to the outgoing width, without activation.
        downsample: the shortcut; the input itself when ``None``.
    """

    def __init__(
        self, conv1: nn.Module, conv2: nn.Module, conv3: nn.Module, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.conv3 = conv3
        self.downsample = nn.Identity() if downsample is None else downsample
        self.final_act = nn.ReLU()

    @property
    def branch(self) -> nn.Module:
        """Its last convolution."""
        return self.conv3

    def forward(self, images: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        change: Tensor = self.conv3(self.conv2(self.conv1(images)))
        summed: Tensor = self.final_act(change + self.downsample(images))
        return summed
