"""The CIFAR ResNets of He et al. 2015 (https://arxiv.org/abs/1512.03385), 6n+2 layers.

Shortcut option A: where the shape changes, every second pixel, zero-padded in the channels. The
tensor names are those of akamaster/pytorch_resnet_cifar10, whose trained weights are read here.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS = (20, 32, 44, 56)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.padding = planes // 4 if stride != 1 or in_planes != planes else 0

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """``depth`` layers, widths 16, 32 and 64; images (n, 3, 32, 32) -> logits (n, classes)."""

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: expected 6n + 2, such as 20 or 56, got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]  # a module's call is Any


def _stage(in_planes: int, planes: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


def resnet(depth: int = 56, classes: int = 10) -> CifarResNet:
    """A network with random weights; the factory that a job file names."""
    return CifarResNet(depth, classes)


def trained(depth: int, data: Path) -> CifarResNet:
    """The trained CIFAR-10 network of ``depth`` layers from the folder ``data``, eval mode."""
    network = CifarResNet(depth)
    network.load_state_dict(load_file(data / "weights" / f"cifar10_resnet{depth}.safetensors"))
    return network.eval()
