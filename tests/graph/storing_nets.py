"""Networks that trace and export, and were once not stored: each with what it takes to be."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision import ops

SHAPE = (3, 8, 8)


def around(*middle: nn.Module, width: int = 8) -> nn.Sequential:
    """A classifier of (3, 8, 8) images with (width, 4, 4) features where the layers go."""
    stem = (nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*stem, *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# ---------------------------------------------------------------- results of several tensors

Halves = namedtuple("Halves", "left right")


def largest(x):
    return x * torch.sigmoid(x.max(1, keepdim=True).values) + torch.max(x, 1)[0].unsqueeze(1)


def order(x):
    flat = x.flatten(2)
    best, where = flat.topk(3, dim=-1)
    spread = flat.sort(-1).values[..., -1] - flat.aminmax(dim=-1).min
    return x * (best.mean(-1) + spread + 0 * where.sum(-1))[..., None, None]


def parts(x):
    left, middle, right = torch.split(x, [2, 2, 4], 1)
    return torch.stack(torch.unbind(torch.cat([right, left, middle], 1), 1)[::-1], 1)


def spread(x):
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1)


def named(x):
    halves = Halves(*x.chunk(2, 1))
    return torch.cat([halves.right.relu(), halves.left], 1)


def squares(x):
    return 0.5 * torch.relu(x) ** 2 + 2.0 ** (-x.abs())


# ---------------------------------------------------------------- layers of torch and torchvision


class Recurrent(nn.Module):
    """Columns of the image, one after the other; the last answer, or the last state."""

    def __init__(self, layer: nn.RNNBase, *, state: bool = False) -> None:
        super().__init__()
        self.stem, self.layer, self.state = nn.Conv2d(3, 4, 3, 2, 1), layer, state
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 5)

    def forward(self, x):
        columns = self.stem(x).permute(0, 3, 1, 2).flatten(2)
        answers, state = self.layer(columns)
        return self.head(state[0][-1] if self.state else answers[:, -1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cell, self.head = (
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.GRUCell(16, 6),
            nn.Linear(6, 5),
        )

    def forward(self, x):
        columns = self.stem(x).permute(0, 3, 1, 2).flatten(2)
        state = x.new_zeros(x.shape[0], 6)
        for number in range(columns.shape[1]):
            state = self.cell(columns[:, number], state)
        return self.head(state)


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.conv = nn.Conv2d(8, 18, 3, 1, 1), ops.DeformConv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x, self.shift(x))


class Tokens(nn.Module):
    """Patches through a composite layer of torch."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.patches, self.body, self.head = nn.Conv2d(3, 8, 4, 4), body, nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        answer, weights = self.layer(x, x, x)
        return answer + weights.mean((1, 2), keepdim=False)[:, None, None]


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.questions = nn.Parameter(torch.randn(1, 3, 8))

    def forward(self, x):
        return self.layer(x, self.questions.expand(x.shape[0], -1, -1))


def encoder(**changes: object) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **changes)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


# ---------------------------------------------------------------- weights made of weights


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight + 0.5 * weight.flip(-1)


def own_parametrization() -> nn.Module:
    layer = nn.Conv2d(8, 8, 3, 1, 1)
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    return around(layer, parametrizations.weight_norm(nn.Conv2d(8, 8, 1)))


def frozen_norm() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
    return around(layer.requires_grad_(False))


def masked() -> nn.Module:
    return around(prune.l1_unstructured(nn.Conv2d(8, 8, 3, 1, 1), "weight", 0.5))


# ---------------------------------------------------------------- names


class Named(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Conv2d(8, 8, 1))

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class NamedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"a-b": torch.rand(8), "lambda": torch.rand(8)})
        self.register_buffer("steps", torch.ones(8, 1, 1), persistent=False)

    def forward(self, x):
        weights = self.weights["a-b"] * self.weights["lambda"]
        return x * weights[:, None, None] + self.steps


# ---------------------------------------------------------------- gradients of their own


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Hard(torch.autograd.Function):
    """With a context set up apart, and an argument that is no tensor."""

    @staticmethod
    def forward(x, scale):
        return torch.sign(x) * scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() < 1), None


class Swish(torch.autograd.Function):
    """Saves memory, and has the gradient that its forward has."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(x)
        return gradient * (sigmoid * (1 + x * (1 - sigmoid)))


def straight(x):
    return Straight.apply(3 * x)


def hard(x):
    return Hard.apply(x, 2.0)


def swish(x):
    return Swish.apply(x)


class Rounded(nn.Module):
    """The function stands in the network's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(Straight.apply(3 * self.conv(x)).mean((2, 3)))


# ---------------------------------------------------------------- leaves of the user's own


class Written(nn.Module):
    """Writes a part of its channels, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, 1, 1)

    def forward(self, x):
        x = x.clone()
        x[:, :2] = self.conv(x[:, :2])
        return x.contiguous() if bool((x == x).all()) else x


@dataclass
class Settings:
    kernel: int = 3
    names: tuple[str, ...] = ("a", "b")


def double(x, by=2.0):
    return x * by


class Configured(nn.Module):
    """Holds all that a class of one's own may hold: settings, functions, lists of own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.act = double
        self.half = partial(double, by=0.5)
        self.a, self.b = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
        self.weights = [self.a, self.b]
        self.ramp = torch.arange(8.0)
        self.add_module("conv 1", nn.Conv2d(8, 8, self.settings.kernel, 1, 1))
        self.layers = {"conv": self.get_submodule("conv 1")}

    def forward(self, x):
        x = self.half(self.act(self.layers["conv"](x)))
        for weight in [*self.weights, self.ramp]:
            x = x + weight[:, None, None]
        return x if bool((x == x).all()) else -x


class Counting(nn.Module):
    """Keeps state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls - self.calls


class Silenced(nn.Module):
    """Gives one of its layers no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        with torch.no_grad():
            gate = torch.sigmoid(self.one(x))
        return self.two(x) * gate


class Closed(Written):
    """Holds what stands nowhere: it can't be stored."""

    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x + 1

    def forward(self, x):
        return self.act(super().forward(x))


HERE = "tests.graph.storing_nets"
FREE: dict[str, Callable[[], nn.Module]] = {
    "largest": lambda: around(Apply(largest)),
    "order": lambda: around(Apply(order)),
    "parts": lambda: around(Apply(parts)),
    "spread": lambda: around(Apply(spread)),
    "named tuple": lambda: around(Apply(named)),
    "powers": lambda: around(Apply(squares)),
    "lstm": lambda: Recurrent(nn.LSTM(16, 6, 2, batch_first=True, bidirectional=True, dropout=0.1)),
    "lstm state": lambda: Recurrent(nn.LSTM(16, 6, 2, batch_first=True), state=True),
    "gru": lambda: Recurrent(nn.GRU(16, 6, batch_first=True)),
    "rnn": lambda: Recurrent(nn.RNN(16, 6, batch_first=True, nonlinearity="relu")),
    "cells": Cells,
    "deformed": lambda: around(Deformed()),
    "stochastic depth": lambda: around(ops.StochasticDepth(0.3, "row")),
    "frozen norm": lambda: around(ops.FrozenBatchNorm2d(8)),
    "squeeze": lambda: around(ops.SqueezeExcitation(8, 2)),
    "dropped blocks": lambda: around(ops.DropBlock2d(0.1, 3)),
    "encoder": lambda: Tokens(encoder()),
    "encoder first": lambda: Tokens(encoder(norm_first=True, activation="gelu")),
    "attention": lambda: Tokens(Attend()),
    "transformer": lambda: Tokens(Asked()),
    "weight norm": lambda: around(nn.utils.weight_norm(nn.Conv2d(8, 8, 3, 1, 1))),
    "new weight norm": own_parametrization,
    "frozen weight norm": frozen_norm,
    "spectral norm": lambda: around(nn.utils.spectral_norm(nn.Conv2d(8, 8, 3, 1, 1))),
    "new spectral norm": lambda: around(parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))),
    "orthogonal": lambda: around(parametrizations.orthogonal(nn.Conv2d(8, 8, 1))),
    "masked": masked,
    "names": lambda: around(
        Named("conv 1", "conv/1", "conv_1", "pw-1", "global", "class", "1x1", "ünï", "__h", "-"),
        Named('x"y', "back\\slash", "new\nline", "self", "a(),b", "def", "def_", "forward2"),
    ),
    "named weights": lambda: around(NamedWeights()),
    "swish": lambda: around(Apply(swish)),
}
"""Networks that are rebuilt without any code of the user's own."""

CODED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], set[str]]] = {
    "straight": (lambda: around(Apply(straight)), (), {"Straight"}),
    "hard": (lambda: around(Apply(hard)), (), {"Hard"}),
    "rounded": (Rounded, (), {"Straight"}),
    "straight in a leaf": (lambda: around(Apply(straight)), ("2",), {"Apply", "straight"}),
    "written": (lambda: around(Written(), Written()), ("2", "3"), {"Written"}),
    "configured": (
        lambda: around(Configured()),
        ("2",),
        {"Configured", "Settings", "double"},
    ),
    "counting": (lambda: around(Counting()), ("2",), {"Counting"}),
    "silenced": (lambda: around(Silenced()), ("2",), {"Silenced"}),
}
"""Networks that need the user's code: how they are made, leaves, and names in this file."""
