"""Networks that are awkward to store."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn


class Basic(nn.Module):
    """The zero-padded shortcut of CIFAR ResNets, a lambda-free copy of the usual code."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.narrow = after != before

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.narrow:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0.0)
        return F.relu(out + x)


class CifarNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Basic(4, 4, 1), Basic(4, 8, 2))
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.head(self.drop(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


class Awkward(nn.Module):
    """Shared modules, tied and frozen weights, buffers, constants of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding="same", padding_mode="reflect")
        self.act = nn.PReLU(3)
        self.up = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False)
        self.pool = nn.AdaptiveAvgPool2d((None, 2))
        self.left = nn.Linear(6, 6)
        self.right = nn.Linear(6, 6, bias=False)
        self.right.weight = self.left.weight
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.scale = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.register_buffer("steps", torch.arange(3), persistent=False)
        self.shift = torch.full((3, 1, 1), 0.25)
        self.left.bias.requires_grad_(False)

    def forward(self, x):
        x = self.act(self.conv(self.act(self.conv(x)))) * self.scale + self.shift
        x = self.pool(self.up(x).to(torch.float64).to(torch.float32)).flatten(2).transpose(1, 2)
        x = x[..., :2].reshape(x.shape[0], -1)
        x = torch.cat([x, x], dim=1)[:, slice(0, 6)].clamp(min=float("-inf"))
        x = self.right(F.gelu(self.left(x), approximate="tanh"))
        x = self.attention(x[:, None], x[:, None], x[:, None])[0].squeeze(1)
        return x.contiguous(memory_format=torch.contiguous_format) + self.steps.sum()


def conv_net(width: int = 8, stride: int = 1, bias: bool = True) -> fx.GraphModule:
    layers = [nn.Conv2d(3, width, 3, stride, 1, bias=bias), nn.ReLU(), nn.Conv2d(width, 3, 1)]
    return fx.symbolic_trace(nn.Sequential(*layers))
