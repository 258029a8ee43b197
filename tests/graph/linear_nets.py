"""Networks with parts that are linear, or would be without their activations."""

import torch
import torch.nn.functional as F
from torch import nn

from .zoo import Head


def lived(network, seed=0):
    """The same network with norms that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(like):
        return torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for tensor in network.parameters():
            tensor.copy_((drawn(tensor) - 0.5) * (0.8 if tensor.ndim > 1 else 1.0))
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
                norm.running_mean.copy_(drawn(norm.running_mean) - 0.5)
                norm.running_var.copy_(drawn(norm.running_var) + 0.5)
                if norm.affine:
                    norm.weight.copy_(drawn(norm.weight) + 0.5)
    return network.eval()


class Net(nn.Module):
    """A stem, a body and a head."""

    def __init__(self, body, channels=6):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, channels, 1), body, Head(channels)

    def forward(self, x):
        return self.head(F.relu(self.body(F.relu(self.stem(x)))))


class Branches(nn.Module):
    """What RepVGG trains: 3x3, 1x1 and identity, each with a norm, summed from a number."""

    def __init__(self, channels=6):
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, affine=i != 1) for i in range(3))

    def forward(self, x):
        ways = self.wide(x), self.narrow(x), x
        return sum(norm(way) for norm, way in zip(self.norms, ways, strict=True))


class Inverted(nn.Module):
    def __init__(self, channels=6, act=nn.ReLU6, norm=nn.BatchNorm2d, last=None):
        super().__init__()
        wide = 3 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            norm(wide),
            act(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            norm(wide),
            act(),
            nn.Dropout(0.2),
            nn.Conv2d(wide, channels, 1, bias=False),
            norm(channels) if last is None else last,
        )

    def forward(self, x):
        return x + self.layers(x)
