"""Small awkward networks, each with the blocks that it must have; and random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(i: int, o: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, padding=kernel // 2)


class Head(nn.Module):
    """Pool and classify."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Leak(nn.Module):
    """a -> b -> c with a -> add: the printed algorithm takes {a, b} for a block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 4), conv(4, 4), conv(4, 4), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.head(a + self.c(self.b(a)))


class NestedSkips(nn.Module):
    """A skip in a skip; the outer one closes on the block's own input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c, self.head = (
            conv(3, 4),
            conv(4, 4),
            conv(4, 4),
            conv(4, 4),
            Head(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        y = self.a(x)
        y = self.b(y) + y
        return self.head(x + self.c(y))


class SqueezeExcite(nn.Module):
    """A gate computed from the pooled tensor that it scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = conv(3, 4), nn.ReLU(inplace=True)
        self.down, self.up, self.head = conv(4, 2, 1), conv(2, 4, 1), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return self.head(x * torch.sigmoid(gate))


class Inception(nn.Module):
    """Three branches joined by concatenation, on odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 4, stride=2), conv(4, 2, 1), conv(4, 2, 3)
        self.two_act, self.head = nn.ReLU(), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pooled = F.max_pool2d(x, 3, 1, 1)
        return self.head(torch.cat([self.one(x), self.two_act(self.two(x)), pooled], 1))


class Dense(nn.Module):
    """Dense links: each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = conv(3, 4), conv(4, 2), conv(6, 2), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, self.one(x)], 1)
        return self.head(torch.cat([x, self.two(x)], 1))


class Shared(nn.Module):
    """One convolution called twice, with functional dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm, self.head = (
            conv(3, 4),
            conv(4, 4),
            nn.BatchNorm2d(4),
            Head(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.conv(x)))
        x = F.dropout(x, 0.4, self.training)
        x = F.relu_(self.norm(self.conv(x)))
        return self.head(x)


class Tokens(nn.Module):
    """Patches, class token, position embedding, attention with two heads, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 4, 4)
        self.token = nn.Parameter(torch.full((1, 1, 4), 0.5))
        self.position = nn.Parameter(torch.full((1, 5, 4), 0.1))
        self.norm, self.qkv, self.proj = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.gamma = nn.Parameter(torch.full((4,), 0.3))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        count, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(count, length, 3, 2, width // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        rate = 0.2 if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        x = x + self.proj(y.transpose(1, 2).reshape(count, length, width)) * self.gamma
        return self.fc(x[:, 0])


class TwoTowers(nn.Module):
    """Two parallel towers from the image: no block holds one whole and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.a2, self.head = conv(3, 4), conv(3, 4), conv(4, 4), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head(self.a2(F.relu(a)) + b + a)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    blocks: frozenset[str]  # keys of all blocks that enumerate_blocks lists


def _case(build: Callable[[], nn.Module], size: int, *blocks: str) -> Case:
    return Case(build, (3, size, size), frozenset(blocks))


ZOO = {
    "leak": _case(Leak, 6, "a..a", "a..add", "a..mean"),
    "nested_skips": _case(
        NestedSkips,
        6,
        *("stem..stem", "stem..relu", "stem..add_1", "stem..mean"),
        *("a..a", "a..add", "a..c", "a..add_1", "a..mean"),
        "c..c",
    ),
    "squeeze_excite": _case(
        SqueezeExcite,
        6,
        *("stem..stem", "stem..act", "stem..mul", "stem..mean_1"),
        *("mean..down", "mean..relu", "mean..up", "mean..sigmoid", "mean..mul", "mean..mean_1"),
        *("down..down", "down..relu", "down..up", "down..sigmoid"),
        *("up..up", "up..sigmoid"),
    ),
    "inception": _case(
        Inception,
        9,
        *("stem..stem", "stem..relu", "stem..cat", "stem..mean"),
        *("max_pool2d..cat", "max_pool2d..mean", "one..one", "two..two", "two..two_act"),
    ),
    "dense": _case(
        Dense,
        6,
        *("stem..stem", "stem..relu", "stem..cat", "stem..cat_1", "stem..mean"),
        *("one..one", "one..cat", "one..cat_1", "one..mean"),
        *("two..two", "two..cat_1", "two..mean"),
    ),
    "shared": _case(
        Shared,
        6,
        *(
            f"stem..{end}"
            for end in (
                *("stem", "relu", "conv", "norm", "relu_1", "mode_dropout"),
                *("conv_1", "norm_1", "relu_", "mean"),
            )
        ),
        *(
            f"conv..{end}"
            for end in (
                *("conv", "norm", "relu_1", "mode_dropout"),
                *("conv_1", "norm_1", "relu_", "mean"),
            )
        ),
        *(
            f"{start}..{end}"
            for start in ("relu_1", "mode_dropout", "conv_1")
            for end in ("conv_1", "norm_1", "relu_", "mean")
        ),
    ),
    "tokens": _case(
        Tokens,
        8,
        *("patch..patch", "patch..cat", "patch..add", "patch..add_1", "add..add_1"),
        *("norm..qkv", "norm..proj", "norm..mul", "norm..add_1", "qkv..qkv", "qkv..proj"),
        "qkv..mul",
    ),
    "two_towers": _case(
        TwoTowers,
        6,
        *("a..a", "b..b", "a..add_1", "a..mean", "a2..a2"),
    ),
}


class RandomNet(nn.Module):
    """A random graph of convolutions, activations and sums; ``plan`` lists each node's inputs."""

    def __init__(self, plan: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.plan = plan
        self.steps = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in plan)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, inputs in zip(self.steps, self.plan, strict=True):
            if len(inputs) == 1:
                values.append(step(values[inputs[0]]))
            else:
                values.append(values[inputs[0]] + values[inputs[1]])
        used = {i for inputs in self.plan for i in inputs}
        loose = [v for i, v in enumerate(values) if i not in used and i > 0]
        total = loose[0]
        for value in loose[1:]:
            total = total + value
        return total
