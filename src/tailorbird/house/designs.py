"""Alternatives of standard designs, as in LANA (Molchanov et al. 2021).

A block's place can be taken by a layer that nobody trained yet: a separable convolution, an
inverted residual, a transformer's layer with half of the heads. Which ones there are is a table,
`DESIGNS`; what a block's tensors, norm and activation are like is read off the teacher, so each
design fits any block whose shapes it can bridge. Weights are drawn at random, and learnt in
distillation.

LANA distils each of its designs in each of its teacher's places, and picks one for each place by an
integer programme that adds up losses and latencies. Here blocks of any length are replaced, and the
programme is the exact search, which serves all kinds of alternatives: `tailorbird.search.exact`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block
from tailorbird.graph.channels import analyse
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.sample import Collector

IMAGES, TOKENS = "images", "tokens"


@dataclass(frozen=True, kw_only=True)
class Design:
    """One row of the table.

    Args:
        kind: key of `KINDS`; or ``"transformer"``, for tokens.
        kernel: height and width of its wide convolutions.
        expand: inner channels over the block's input channels where the inner convolution is
            depthwise, else over its output channels.
        squeeze: with squeeze-and-excitation in front of the last convolution.
        heads: of attention, as a share of the teacher's; 0 for no attention.
        mlp: hidden width over the channels; 0 for no MLP.
    """

    kind: str
    kernel: int = 0
    expand: float = 1.0
    squeeze: bool = False
    heads: float = 0.0
    mlp: float = 0.0

    @property
    def layout(self) -> str:
        """What it is for, images (C, H, W) or tokens (..., C)."""
        return TOKENS if self.kind == "transformer" else IMAGES

    @property
    def name(self) -> str:
        """As alternatives and reports call it.

        Example:
            >>> Design(kind="inverted", kernel=5, expand=6, squeeze=True).name
            'inverted k5 e6 se'
        """
        if self.layout == TOKENS:
            heads = f"heads {self.heads:g}" if self.heads else "no attention"
            return f"{self.kind} {heads}, " + (f"mlp {self.mlp:g}" if self.mlp else "no mlp")
        return f"{self.kind} k{self.kernel} e{self.expand:g}" + (" se" if self.squeeze else "")


WIDE, DEPTHWISE, POINT = "wide", "depthwise", "point"

KINDS: dict[str, tuple[str, ...]] = {
    "narrow": (WIDE, POINT),
    "bottleneck": (WIDE, WIDE),
    "separable": (DEPTHWISE, POINT),
    "inverted": (POINT, DEPTHWISE, POINT),
}
"""Kind -> its convolutions; all have the inner width but the last, which has the output's."""

DESIGNS: tuple[Design, ...] = (
    *(
        Design(kind=kind, kernel=kernel, expand=expand, squeeze=squeeze)
        for squeeze in (False, True)
        for kind, kernel, expand in (
            ("narrow", 3, 0.5),
            ("narrow", 3, 0.25),
            ("narrow", 5, 0.25),
            ("bottleneck", 3, 0.5),
            ("bottleneck", 3, 0.25),
            ("separable", 3, 1),
            ("separable", 5, 1),
            ("inverted", 3, 3),
            ("inverted", 5, 3),
            ("inverted", 3, 6),
            ("inverted", 5, 6),
        )
    ),
    *(
        Design(kind="transformer", heads=heads, mlp=mlp)
        for heads, mlp in ((0.5, 4), (0.5, 2), (0.25, 2), (1, 2), (1, 1), (0, 4), (0, 2), (1, 0))
    ),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a design has to suit.

    Args:
        layout: ``"images"`` or ``"tokens"``.
        in_shape: (C, H, W), or (..., C) of tokens.
        out_shape: the same of what comes out.
        norm: makes a norm for so many channels, or ``None`` where the teacher has none.
        activation: makes an activation.
        ends_in_activation: the block's last layer is an activation.
        head: channels of one head of the teacher's attention.
    """

    layout: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d
    activation: Callable[[], nn.Module] = nn.ReLU
    ends_in_activation: bool = False
    head: int = 32


def add_designed(
    collector: Collector,
    teacher: LayerGraph,
    *,
    wanted: int,
    multiple: int,
    rng: np.random.Generator,
) -> None:
    """Offer ``wanted`` designs, drawn with the blocks that they are for.

    Args:
        multiple: inner widths are multiples of this.
    """
    blocks = list(collector.blocks.values())
    places: dict[str, Place | GraphError] = {}
    for _ in collector.draws("sample designs", wanted):
        block = blocks[rng.integers(len(blocks))]
        if block.key not in places:
            places[block.key] = _place_or_error(teacher, block)
        place = places[block.key]
        try:
            if isinstance(place, GraphError):
                raise place
            rows = [design for design in DESIGNS if design.layout == place.layout]
            design = rows[rng.integers(len(rows))]
            if collector.known(block, "designed", design.name):
                continue
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            module = build_design(design, place, multiple=multiple, generator=generator)
        except GraphError as error:
            collector.rejections[f"designs: {str(error).split(':')[0][:80]}"] += 1
            continue
        collector.offer(block, module, origin="designed", source=design.name, variant="whole")


def build_design(
    design: Design, place: Place, *, multiple: int = 8, generator: torch.Generator
) -> fx.GraphModule:
    """A network of one design, with the placeholder ``x``: (n, *in_shape) -> (n, *out_shape).

    Where both shapes are equal, its input is added to what it makes, and its last layer begins at
    zero, so that it begins as if the block were left out (Goyal et al. 2017).

    Args:
        design: of the place's layout.
        place: what it has to suit.
        multiple: inner widths are multiples of this.
        generator: draws the weights; global random numbers are left as they are.

    Raises:
        GraphError: when it can't bridge the shapes.

    Example:
        >>> place = Place(layout="images", in_shape=(16, 9, 9), out_shape=(24, 5, 5))
        >>> net = build_design(DESIGNS[0], place, generator=torch.Generator().manual_seed(0))
        >>> net(torch.zeros(2, 16, 9, 9)).shape
        torch.Size([2, 24, 5, 5])
    """
    with torch.random.fork_rng(devices=[]):  # layers draw weights when made; these are replaced
        if design.layout == TOKENS:
            module: nn.Module = _Transformer(design, place)
        else:
            branch = _convolutions(design, place, multiple)
            module = _Branch(branch, place.in_shape == place.out_shape)
            if place.ends_in_activation:
                module = nn.Sequential(module, place.activation())
    _draw_weights(module, generator)
    return fx.symbolic_trace(module.eval())


def place_of(teacher: LayerGraph, block: Block) -> Place:
    """What the teacher is like at a block.

    Raises:
        GraphError: when the block's ends are neither both images nor both tokens.
    """
    channels = analyse(extract(teacher, block), block.in_shape)
    axes, ranks = (channels.in_axis, channels.out_axis), (len(block.in_shape), len(block.out_shape))
    if axes == (0, 0) and ranks == (3, 3):
        layout = IMAGES
    elif all(axis == rank - 1 > 0 for axis, rank in zip(axes, ranks, strict=True)):
        layout = TOKENS
    else:
        raise GraphError("a block that begins and ends in other layouts")
    everywhere = [layer.name for layer in teacher.layers]
    names = [*_names(teacher, block.nodes), *_names(teacher, everywhere)]
    default = nn.GELU if layout == TOKENS else nn.ReLU
    heads = [
        teacher.layer(name).shape[-1]
        for name in (*block.nodes, *everywhere)
        if teacher.layer(name).kind == "attention" and len(teacher.layer(name).shape) == 3
    ]
    return Place(
        layout=layout,
        in_shape=block.in_shape,
        out_shape=block.out_shape,
        norm=next((NORMS[name] for name in names if name in NORMS), None),
        activation=next((ACTIVATIONS[name] for name in names if name in ACTIVATIONS), default),
        ends_in_activation=any(n in ACTIVATIONS for n in _names(teacher, [block.output])),
        head=heads[0] if heads else min(32, block.out_shape[-1]),
    )


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batchnorm": nn.BatchNorm2d,
    "groupnorm": partial(nn.GroupNorm, 1),
    "layernorm": partial(nn.GroupNorm, 1),
}
"""Name of a norm, without what follows -> for images, what makes one."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.ReLU6,
    "leakyrelu": nn.LeakyReLU,
    "prelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}
"""Name of an activation -> what makes one; sigmoid and softmax are gates."""


def _place_or_error(teacher: LayerGraph, block: Block) -> Place | GraphError:
    try:
        return place_of(teacher, block)
    except GraphError as error:
        return error


def _names(teacher: LayerGraph, nodes: Iterable[str]) -> list[str]:
    """Names of what nodes do and of the modules inside, the most frequent first, bare."""
    found: Counter[str] = Counter()
    for name in nodes:
        node = teacher.nodes[name]
        if node.op == "call_module":
            inside = teacher.module.get_submodule(str(node.target)).modules()
            found.update(_bare(type(module).__name__) for module in inside)
        elif node.op in ("call_function", "call_method"):
            found[_bare(getattr(node.target, "__name__", str(node.target)))] += 1
    return [name for name, _ in found.most_common()]


def _bare(name: str) -> str:
    """
    Example:
        >>> _bare("BatchNormAct2d"), _bare("hard_swish"), _bare("ReLU6")
        ('batchnorm', 'hardswish', 'relu6')
    """
    bare = name.lower().replace("_", "")
    return next((norm for norm in NORMS if bare.startswith(norm)), bare)


def _convolutions(design: Design, place: Place, multiple: int) -> nn.Sequential:
    """The convolutions of a design, each with its norm and, but for the last, its activation."""
    inputs, outputs = place.in_shape[0], place.out_shape[0]
    roles = KINDS[design.kind]
    base = inputs if DEPTHWISE in roles else outputs
    inner = max(multiple, round(design.expand * base / multiple) * multiple)
    moves = [
        _stride(before, after, design.kernel)
        for before, after in zip(place.in_shape[1:], place.out_shape[1:], strict=True)
    ]
    bridging = next(i for i, role in enumerate(roles) if role != POINT)
    layers: list[nn.Module] = []
    width = inputs
    for i, role in enumerate(roles):
        last = i == len(roles) - 1
        wanted = outputs if last else width if role == DEPTHWISE else inner
        if last and design.squeeze:
            layers.append(_squeeze(width, place.activation, multiple))
        kernel = 1 if role == POINT else design.kernel
        stride, padding = (
            zip(*moves, strict=True) if i == bridging else ((1, 1), (kernel // 2,) * 2)
        )
        layers.append(
            nn.Conv2d(
                width,
                wanted,
                kernel,
                stride=stride,
                padding=padding,
                groups=width if role == DEPTHWISE else 1,
                bias=place.norm is None,
            )
        )
        layers += [place.norm(wanted)] if place.norm is not None else []
        layers += [] if last else [place.activation()]
        width = wanted
    return nn.Sequential(*layers)


def _stride(before: int, after: int, kernel: int) -> tuple[int, int]:
    """Stride and padding that lead from one size to the other."""
    ratio = before / after
    for stride in dict.fromkeys((round(ratio), int(ratio), -int(-ratio // 1))):
        for padding in sorted(range(kernel), key=lambda p: abs(p - kernel // 2)):
            if stride > 0 and (before + 2 * padding - kernel) // stride + 1 == after:
                return stride, padding
    raise GraphError(f"no stride leads to the size: from {before} to {after}, kernel {kernel}")


def _squeeze(width: int, activation: Callable[[], nn.Module], multiple: int) -> nn.Module:
    """Squeeze-and-excitation (Hu et al. 2018) with a quarter of the width inside."""
    inner = max(multiple, width // 4)
    return _Gate(
        nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, inner, 1),
            activation(),
            nn.Conv2d(inner, width, 1),
            nn.Sigmoid(),
        )
    )


class _Gate(nn.Module):
    """Scales its input by what its layers make of it."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to the same shape."""
        gates: Tensor = self.layers(x)
        return x * gates


class _Branch(nn.Module):
    """What its layers make of the input, added to the input where that is asked for."""

    def __init__(self, layers: nn.Sequential, residual: bool) -> None:
        super().__init__()
        self.layers, self.residual = layers, residual

    def forward(self, x: Tensor) -> Tensor:
        """(n, *in_shape) to (n, *out_shape)."""
        change: Tensor = self.layers(x)
        return x + change if self.residual else change


class _Attention(nn.Module):
    """Self-attention of all tokens with some heads (Vaswani et al. 2017)."""

    def __init__(self, tokens: int, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.split, self.joined = (-1, tokens, 3, heads, head), (-1, tokens, heads * head)
        self.qkv = nn.Linear(width, 3 * heads * head)
        self.proj = nn.Linear(heads * head, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) to the same shape."""
        query, key, value = self.qkv(x).reshape(self.split).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        answer: Tensor = self.proj(mixed.transpose(1, 2).reshape(self.joined))
        return answer


class _Transformer(nn.Module):
    """A layer of a transformer with its norms in front, behind a dense layer to other widths."""

    def __init__(self, design: Design, place: Place) -> None:
        super().__init__()
        inputs, width = place.in_shape[-1], place.out_shape[-1]
        tokens, made = prod(place.in_shape[:-1]), prod(place.out_shape[:-1])
        if tokens != made:
            raise GraphError(
                f"no transformer changes the number of tokens: from {tokens} to {made}"
            )
        self.shape, self.flat = (-1, *place.out_shape), (-1, tokens, inputs)
        heads = max(1, round(design.heads * width / place.head))
        hidden = round(design.mlp * width)
        branches: list[nn.Module] = [nn.Linear(inputs, width)] if inputs != width else []
        if design.heads:
            attention = _Attention(tokens, width, heads, place.head)
            branches.append(_Branch(nn.Sequential(nn.LayerNorm(width), attention), True))
        if design.mlp:
            layers = (nn.Linear(width, hidden), place.activation(), nn.Linear(hidden, width))
            branches.append(_Branch(nn.Sequential(nn.LayerNorm(width), *layers), True))
        self.branches = nn.Sequential(*branches)

    def forward(self, x: Tensor) -> Tensor:
        """(n, *in_shape) to (n, *out_shape)."""
        answer: Tensor = self.branches(x.reshape(self.flat)).reshape(self.shape)
        return answer


@torch.no_grad()
def _draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """He et al. 2015 for what multiplies, zero for biases and for what ends a residual branch."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for branch in module.modules():
        if isinstance(branch, _Branch) and branch.residual:
            *_, last = (weight for name, weight in branch.named_parameters() if "weight" in name)
            nn.init.zeros_(last)
