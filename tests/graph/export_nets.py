"""Networks whose code torch.fx can't read, or reads wrongly, and torch.export can."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vmap

from tests.graph.zoo import Head, conv

SHAPE = (3, 8, 8)


class Around(nn.Module):
    """A convolution with batch norm, something done to its channels, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.part, self.head = conv(3, 8), nn.Conv2d(8, 8, 1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.conv(x)))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ChunkWritten(Around):
    """Half of the channels written in place; the whole is read afterwards."""

    def middle(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        left.add_(1).mul_(right)
        x.unbind(1)[5].relu_()
        return self.part(x)


class ViewsWritten(Around):
    """In-place writes through views of several kinds."""

    def middle(self, x: Tensor) -> Tensor:
        x = x * 1
        x.transpose(1, 2)[:, 0].sub_(1)
        x.view(x.shape[0], -1)[:, :7].clamp_(min=0)
        x.narrow(1, 3, 5).neg_()
        x.flatten(2)[..., ::9] = 0.5
        return self.part(x)


class Tries(Around):
    """Takes whatever works."""

    def middle(self, x: Tensor) -> Tensor:
        try:
            return self.part(torch.cat([x, x[:, :, :4]], 1))
        except RuntimeError:
            return self.part(x)


@dataclass
class Pack:
    features: Tensor
    scale: float


class Packs(nn.Module):
    """A record goes from one module to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, pack: Pack, *, power: float = 1.0, **more: Tensor) -> Pack:
        if not isinstance(pack, Pack):
            raise TypeError(type(pack))
        return Pack(self.conv(pack.features) * pack.scale**power + more["bias"], 0.5)


class Records(Around):
    def __init__(self) -> None:
        super().__init__()
        self.packs, self.bias = Packs(), nn.Parameter(torch.ones(8, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return self.packs(Pack(x, 2.0), power=2.0, bias=self.bias).features


class Listed(Around):
    """Constant buffers are turned into Python's numbers, and steer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))
        self.register_buffer("seen", torch.tensor(0), persistent=False)

    def middle(self, x: Tensor) -> Tensor:
        rows = [x[:, i] for i in self.order.flip(0).tolist()]
        self.seen += 1
        return self.part(torch.stack([row * (k + 1) for k, row in enumerate(rows)], 1))


class Iterates(Around):
    """Rows of a tensor one by one, through Python's own tools."""

    def middle(self, x: Tensor) -> Tensor:
        rows = x.permute(1, 0, 2, 3)
        sums = functools.reduce(torch.add, itertools.islice(rows, 4))
        pairs = list(zip(reversed(rows[:4]), rows[4:], strict=True))
        return self.part(x + sums[:, None] + sum(a * b for a, b in pairs)[:, None])


def blend(x: Tensor, weights: Tensor, *, share: float) -> Tensor:
    return share * x + (1 - share) * torch.einsum("bchw,cd->bdhw", x, weights)


class Partly(Around):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.eye(8) / 2)
        self.blend = functools.partial(blend, share=0.25)

    def middle(self, x: Tensor) -> Tensor:
        return self.part(self.blend(x, self.weights))


class Mapped(Around):
    """One function over a dimension, by torch.vmap."""

    def middle(self, x: Tensor) -> Tensor:
        scaled = vmap(lambda row: row / (1 + row.square().mean()), in_dims=1, out_dims=1)
        return self.part(scaled(x))


class Called(Around):
    """A layer with weights that are made while it runs."""

    def middle(self, x: Tensor) -> Tensor:
        weights = {name: 2 * w - w.mean() for name, w in self.part.named_parameters()}
        return functional_call(self.part, weights, (x,))


class Hooked(Around):
    """Hooks change what a module is given and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.inner.register_forward_hook(lambda _module, given, found: found + given[0])
        self.inner.register_forward_pre_hook(lambda _module, given: (given[0].tanh(),))
        self.part.register_forward_hook(lambda _module, _given, found: found * 2)

    def middle(self, x: Tensor) -> Tensor:
        return self.part(self.inner(x))


class Checked(Around):
    """Types, numbers of dimensions and numbers are checked as strict code does."""

    def middle(self, x: Tensor) -> Tensor:
        assert type(x) is Tensor
        assert torch.overrides.is_tensor_like(x) and x.is_contiguous() and x.stride(-1) == 1
        steps = math.isqrt(x.size(1) * x.stride()[2] // x.size(3)) if len(x.shape) == 4 else 0
        while steps > 1:
            x, steps = x + 1 / steps, steps // 2
        count = len(x)
        return self.part(x.reshape(int(count * 2 / 2), *x.shape[1:]))


def halves(x: Tensor) -> Iterator[Tensor]:
    yield from (x[:, :4], x[:, 4:])


class Stored(Around):
    """Intermediate values on the module, generators, and a region without gradients."""

    def middle(self, x: Tensor) -> Tensor:
        self.kept = {"sum": sum(halves(x))}
        with torch.no_grad():
            gate = self.kept["sum"].mean((2, 3), keepdim=True).sigmoid()
        return self.part(x * torch.cat([gate, 1 - gate], 1))


class Chosen(Around):
    """A condition on values that are the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def middle(self, x: Tensor) -> Tensor:
        branches = [self.first, self.second]
        y = sum(b(x) for b, gate in zip(branches, self.gates.tolist(), strict=True) if gate > 0)
        z = self.act(y)
        return y + z


class Bands(Around):
    """A band of the image changes places with another, in place, by numpy-like code."""

    def middle(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        for k, (top, low) in enumerate(zip(x.split(2, 2), x.flip(2).split(2, 2), strict=True)):
            y.narrow(2, 2 * k, 2).copy_(top + low)
        y[..., ::2] *= 0.5
        return self.part(F.pad(y, (1, 1, 0, 0), mode="replicate")[..., 1:-1])


class Numbers(Around):
    """Numbers that follow from the number of images, and are alike for two and for three."""

    def middle(self, x: Tensor) -> Tensor:
        count = x.numel() // x[0].numel()
        return self.part(x) * math.ceil(count / 4) + count**0.5 / max(count, 1)


class Doubled(Function):
    """Its own backward gives twice the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.abs()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Sequences(Around):
    """Layers that are given and give several tensors, beside writes that torch.fx loses."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.cell, self.drop = nn.GRUCell(8, 8), nn.Dropout(0.5)

    def middle(self, x: Tensor) -> Tensor:
        rows = x.mean(-1).transpose(1, 2)
        rows = torch.cat([self.token.expand(len(rows), -1, -1), rows], 1)
        rows[:, 1:].view(len(rows), -1, 4)[..., 0] = Doubled.apply(rows[:, 0, :1])
        found, weights = self.attention(rows, rows, rows, average_attn_weights=False)
        state = self.cell(found[:, 0], weights.sum((1, 2))[:, :8])
        return x + self.drop(state)[..., None, None]


KINDS = (
    *(ChunkWritten, ViewsWritten, Tries, Records, Listed, Iterates, Partly, Mapped, Called),
    *(Hooked, Checked, Stored, Chosen, Bands, Numbers, Sequences),
)
NETS = {kind.__name__: kind for kind in KINDS}
READ_BY_FX = {"Tries", "Records", "Listed", "Partly", "Checked", "Chosen"}
"""Those that torch.fx reads as well; torch.export has to, too."""
