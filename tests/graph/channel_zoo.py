"""Awkward small bodies and a slow oracle for channel pruning. Inputs are (8, 6, 6) images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tailorbird.graph.trace import trace

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


class Gated(nn.Module):
    """Halves of channels, one of which gates the other, by chunk and by GLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.glu = nn.Conv2d(8, 24, 1), nn.Conv2d(12, 20, 1), nn.GLU(1)
        self.end = nn.Conv2d(10, 8, 1)

    def forward(self, x):
        value, gate = self.a(x).chunk(2, dim=1)
        return self.end(self.glu(self.b(value * torch.sigmoid(gate))))


class Mixed(nn.Module):
    """MixNet's: parts of other sizes, a depthwise layer on each; uneven chunks behind."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(8, 24, 1)
        self.parts = nn.ModuleList(
            nn.Conv2d(n, n, k, padding=k // 2, groups=n) for n, k in ((6, 1), (10, 3), (8, 5))
        )
        self.b, self.c = nn.Conv2d(24, 11, 1), nn.Conv2d(7, 4, 1)

    def forward(self, x):
        pieces = torch.split(self.a(x), [6, 10, 8], 1)
        y = torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=False)], 1)
        first, last, rest = torch.chunk(self.b(y), 3, 1)  # 4, 4 and 3 channels
        return self.c(torch.cat([first[:, 1:] + rest, last], 1))


class DualPath(nn.Module):
    """Slices of channels: some are added to the stream, some joined to it."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 16, 3, padding=1)
        self.end = nn.Conv2d(4 + 6 + 2 + 6, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.a(x))
        stream = x[:, :4, :, :] + y[:, :4]
        joined = torch.cat([stream, x[:, 4:10], y[..., -2:, :, :], y[:, 6:12]], dim=1)
        return self.end(joined)


class Shuffled(nn.Module):
    """ShuffleNet's unit: half of the channels pass, then both halves are shuffled."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 1)
        self.deep, self.shuffle = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ChannelShuffle(4)
        self.end = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        passed, turned = self.stem(x).chunk(2, 1)
        y = torch.cat([passed, self.deep(F.relu(self.a(turned)))], 1)
        y = y.view(y.shape[0], 2, 8, 6, 6).transpose(1, 2).contiguous().view(-1, 16, 6, 6)
        return self.end(self.shuffle(y).chunk(2, 1)[0])


class Grouped(nn.Module):
    """Convolutions of many small groups and of few large ones; norms of whole groups."""

    def __init__(self):
        super().__init__()
        self.a, self.many = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 12, 3, padding=1, groups=6)
        self.norm, self.b = nn.GroupNorm(4, 16), nn.Conv2d(12, 16, 1)
        self.c = nn.Conv2d(16, 24, 1)
        self.few = nn.Conv2d(24, 36, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(36, 24, 2, stride=2, groups=3)
        self.wide = nn.ConvTranspose2d(24, 12, 1, groups=12, bias=False)
        self.end = nn.Conv2d(12, 4, 2, stride=2)

    def forward(self, x):
        y = self.c(self.norm(self.b(F.relu(self.many(self.a(x))))))
        return self.end(self.wide(torch.tanh(self.up(F.relu(self.few(y))))))


class Heads(nn.Module):
    """Attention as timm writes it: one layer makes queries, keys and values of all heads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 1)
        self.qkv, self.out = nn.Linear(8, 3 * 4 * 5), nn.Linear(20, 8)
        self.norm = nn.LayerNorm(5)

    def forward(self, x):
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        n, k, _ = tokens.shape
        made = torch.roll(self.qkv(tokens), (3,), dims=(1,)).flip(1)
        q, key, v = (
            made.flatten(0, 1)
            .reshape_as(made)
            .reshape(n, k, 3, 4, 5)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        y = F.scaled_dot_product_attention(self.norm(q), self.norm(key), v)
        y = self.out(y.transpose(1, 2).reshape(n, k, 20))
        return x + y.transpose(1, 2).reshape(n, 8, 6, 6)


class BiasedHeads(nn.Module):
    """Attention by matrix products, with a bias of each head from a table, and mixed heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 24)
        self.mix, self.out, self.stem = nn.Linear(4, 4), nn.Linear(24, 8), nn.Conv2d(8, 8, 1)
        self.table = nn.Parameter(torch.rand(50, 4))
        self.register_buffer("index", torch.arange(36 * 36).remainder(50))
        self.register_buffer("mask", torch.rand(36, 36))
        self.offsets = nn.Parameter(torch.rand(4, 7))

    def forward(self, x):
        t = self.stem(x).flatten(2).transpose(1, 2)
        q = self.q(t).view(-1, 36, 4, 4).transpose(1, 2) * 0.5
        k = self.k(t).view(-1, 36, 4, 4).permute(0, 2, 3, 1)
        v = self.v(t).view(-1, 36, 4, 6).transpose(1, 2)
        bias = self.table[self.index].view(36, 36, -1).permute(2, 0, 1).contiguous()
        bias = bias + self.offsets[:, self.index.remainder(7).view(36, 36)]
        scores = (F.normalize(q, dim=-1) @ k + bias.unsqueeze(0) + self.mask).softmax(-1)
        scores = self.mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = torch.matmul(scores, v).transpose(1, 2).flatten(2)
        return self.out(y).transpose(1, 2).unflatten(2, (6, 6))


class Pixels(nn.Module):
    """Blocks of channels to positions and back; flattened with every size written out."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.b = nn.Conv2d(8, 24, 1), nn.PixelShuffle(2), nn.Conv2d(6, 5, 1)
        self.c, self.head = nn.Conv2d(20, 7, 3), nn.Linear(7 * 16, 5)

    def forward(self, x):
        y = F.pixel_unshuffle(self.b(F.relu(self.up(self.a(x)))), 2)
        return self.head(self.c(y).view(-1, 7 * 16))


class Waves(nn.Module):
    """Functions of each element, also of several tensors, with and without f(0) = 0."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        y = torch.sin(self.a(x)) + torch.relu(self.a(x)) ** 2
        y = torch.where(y > 0, y, 0.1 * y).type_as(x).clamp(min=-1, max=3)
        z = self.b(torch.maximum(y, 0.5 * y)).abs().sqrt().to(x.dtype)
        z = 1 - torch.exp(-z) + torch.pow(2, z) + z.cos() + torch.atan2(z, y + 2)
        return self.c(torch.where(z >= y, z.pow(y + 3), 0.0))


class OneChannel(nn.Module):
    """Gates of one channel for all, by broadcasting and written out."""

    def __init__(self):
        super().__init__()
        self.a, self.gate = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 1, 3, padding=1)
        self.norm, self.b, self.other = nn.BatchNorm2d(1), nn.Conv2d(12, 9, 1), nn.Linear(8, 1)
        self.end = nn.Conv2d(9, 4, 1)

    def forward(self, x):
        y = F.relu(self.a(x))
        y = self.b(y * torch.sigmoid(self.norm(self.gate(y))))
        weight = self.other(x.mean((2, 3))).view(-1, 1, 1, 1)
        z = y * torch.sigmoid(weight).expand(-1, 9, -1, -1)
        return self.end(z + weight.expand_as(y))


class Paths(nn.Module):
    """SKNet's and ResNeSt's choice among stacked paths."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 10, 1), nn.Conv2d(8, 10, 3, padding=1)
        self.down, self.up = nn.Conv2d(10, 6, 1), nn.Conv2d(6, 20, 1)
        self.radix, self.fc = nn.Conv2d(10, 24, 1), nn.Conv2d(12, 24, 1)
        self.place = nn.Parameter(torch.rand(1, 10, 6, 6))
        self.end = nn.Conv2d(12, 4, 1)

    def forward(self, x):
        both = torch.stack([self.a(x), self.b(x)], dim=1)
        share = self.up(F.relu(self.down(both.sum(1).mean((2, 3), keepdim=True))))
        chosen = (both * share.view(-1, 2, 10, 1, 1).softmax(1)).sum(1) + self.place
        y = self.radix(chosen).reshape(-1, 2, 12, 6, 6)
        gate = self.fc(y.sum(dim=1).mean((2, 3), keepdim=True))
        gate = gate.view(-1, 1, 2, 12).transpose(1, 2).softmax(dim=1).reshape(-1, 24)
        return self.end((y * gate.view(-1, 24, 1, 1).reshape(-1, 2, 12, 1, 1)).sum(dim=1))


PLAIN = [
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
TRACED = [
    Gated,
    Mixed,
    DualPath,
    Shuffled,
    Grouped,
    Heads,
    BiasedHeads,
    Pixels,
    Waves,
    OneChannel,
    Paths,
]
ZOO = PLAIN + TRACED


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
    if kind in TRACED:
        return trace(module, SHAPE).module
    return fx.symbolic_trace(module).eval()


def images(count: int = 3, shape=SHAPE) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(1))


def zeroed(module: fx.GraphModule, channels, removed) -> fx.GraphModule:
    """The oracle: the same network with zeros for ``removed`` where weights read them."""
    oracle = copy.deepcopy(module).eval()
    for reader in channels.readers:
        mask = torch.tensor([float(place not in removed) for place in reader.places])
        oracle.get_submodule(reader.path).register_forward_pre_hook(_masking(mask, reader.axis))
    return oracle


def _masking(mask: Tensor, axis: int):
    def multiply(_module, args):
        shape = [-1 if i == axis else 1 for i in range(args[0].ndim)]
        return (args[0] * mask.reshape(shape), *args[1:])

    return multiply
