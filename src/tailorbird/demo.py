"""The networks of the embedded demonstration: small residual networks for scikit-learn's digits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, H, W) to (n, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network of three stages for one-channel images."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                stages.append(ResidualBlock(inputs, outputs, stride))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, H, W) to logits (n, classes)."""
        features: Tensor = self.stages(self.stem(x))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def digits_net(width: int = 32, depth: int = 3, classes: int = 10) -> DigitsNet:
    """The demonstration's teacher, untrained.

    Example:
        >>> import torch
        >>> digits_net(width=8, depth=1)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """
    return DigitsNet(width, depth, classes)


def narrow_net(width: int = 16, depth: int = 2, classes: int = 10) -> DigitsNet:
    """The demonstration's donor, untrained: the same kind of network, narrower and shallower."""
    return DigitsNet(width, depth, classes)
