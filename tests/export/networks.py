"""Networks that files in lower precisions are made of, one of which has learnt something."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Convolution, BatchNorm, ReLU, and a sum; ``depthwise`` with its own channels only."""

    def __init__(self, width: int, *, depthwise: bool = False) -> None:
        super().__init__()
        groups = width if depthwise else 1
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        out = F.relu6(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + x)


class Squeeze(nn.Module):
    """Squeeze and excite, with Hardswish before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x):
        x = F.hardswish(self.conv(x))
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class Branches(nn.Module):
    """Two branches side by side, and a sum that is taken before its activation as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(width, width // 2, 1)
        self.right = nn.Conv2d(width, width // 2, 3, padding=1)
        self.after = nn.Conv2d(width, width, 1)

    def forward(self, x):
        both = torch.cat([self.left(x), F.max_pool2d(self.right(x), 3, 1, 1)], 1)
        return self.after(F.relu(both)) + both


class Convolutional(nn.Module):
    """All of these; images (n, 1, 8, 8) -> 10 logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        )
        self.residual = Residual(width)
        self.depthwise = Residual(width, depthwise=True)
        self.squeeze, self.branches = Squeeze(width), Branches(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.depthwise(self.residual(F.relu(self.stem(x))))
        return self.head(self.branches(self.squeeze(x)).mean((2, 3)))


def transformer():
    """A vision transformer of timm's for images (n, 1, 8, 8)."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2
    )


def taught(network, images, labels, *, epochs, seed=0):
    """The network after some epochs of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        optimiser = torch.optim.Adam(network.parameters(), 5e-3)
        network.train()
        for _ in range(epochs):
            for part in torch.randperm(len(images)).split(50):
                optimiser.zero_grad()
                F.cross_entropy(network(images[part]), labels[part]).backward()
                optimiser.step()
    return network.eval()


def accuracy(outputs, labels):
    """Percent of the labels that are at the largest output."""
    return 100 * float((torch.as_tensor(outputs).argmax(1) == labels).float().mean())
