"""Awkward small bodies and a slow oracle for channel pruning. Inputs are (8, 6, 6) images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

SHAPE = (8, 6, 6)


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = (
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 8, 1),
        )

    def forward(self, x):
        return self.b(torch.sigmoid(self.n(self.a(x))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.an = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b, self.bn = nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.act(self.an(self.a(x)))
        out = self.bn(self.b(out))
        out += x
        return self.act(out)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.n = nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.down, self.up = nn.Linear(24, 6), nn.Linear(6, 24)
        self.project = nn.Conv2d(24, 8, 1)

    def forward(self, x):
        y = F.silu(self.depth(F.hardswish(self.n(self.expand(x)))))
        s = self.up(F.relu(self.down(y.mean((2, 3)))))
        return x + self.project(y * torch.sigmoid(s).view(s.shape[0], 24, 1, 1))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.n, self.end = nn.BatchNorm2d(24), nn.Conv2d(24, 4, 1)
        self.side = nn.Conv2d(8, 16, 1)

    def forward(self, x):
        y = torch.cat([x, self.a(x)], 1)
        y = torch.cat([y, self.b(y + self.side(x))], dim=1)
        return self.end(F.relu(self.n(y)))


class PaddedShortcut(nn.Module):
    """The zero-padded shortcut of CIFAR ResNets (option A)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 1)
        self.a, self.b = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.end = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(F.relu(self.a(x)))
        return self.end(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.end = (
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(16, 16, 1),
            nn.Conv2d(16, 4, 1),
        )

    def forward(self, x):
        return self.end(F.relu(self.twice(F.relu(self.twice(self.stem(x))))))


class Multiplier(nn.Module):
    """A depthwise layer with two outputs per input, then a flattened head."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 24, 3, stride=2, groups=12)
        self.scale = nn.Parameter(torch.rand(24, 1, 1))
        self.head = nn.Linear(24 * 2 * 2, 5)

    def forward(self, x):
        return self.head(torch.flatten(self.depth(self.stem(x)) * self.scale, 1))


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.n, self.a = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.n2, self.b = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = x + self.a(F.relu(self.n(x)))
        return self.b(F.elu(self.n2(y)))


class Mlp(nn.Module):
    """ConvNeXt's: channels last inside, a layer scale at the end."""

    def __init__(self):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.gamma = nn.Parameter(torch.rand(8))

    def forward(self, x):
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


ZOO = [
    Chain,
    Residual,
    SqueezeExcite,
    Dense,
    PaddedShortcut,
    Shared,
    Multiplier,
    PreActivation,
    Mlp,
]


def body(kind: type[nn.Module], seed: int = 0) -> fx.GraphModule:
    """A traced member of the zoo with random weights and batch norm statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = kind()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor in (part.weight, part.bias, part.running_mean):
                    nn.init.normal_(tensor)
                nn.init.uniform_(part.running_var, 0.5, 2)
    return fx.symbolic_trace(module).eval()


def images(count: int = 3, shape=SHAPE) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(1))


def zeroed(module: fx.GraphModule, channels, removed) -> fx.GraphModule:
    """The oracle: the same network with zeros for ``removed`` where weights read them."""
    oracle = copy.deepcopy(module).eval()
    for reader in channels.readers:
        weight = oracle.get_submodule(reader.path).weight
        off = [j for j, place in enumerate(reader.places) if place in removed]
        with torch.no_grad():
            weight[:, off] = 0
    return oracle
