"""The elastic pieces of vision transformers: patches with positions, layer norm, attention.

Behind the patches, maps are tokens (n, h * w, channels), row by row. As with convolutions, a
narrower layer is made of the leading channels of a wider one; attention takes its leading heads,
whose width is always the same (Chen et al., AutoFormer, ICCV 2021, sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailorbird.supernet.elastic import (
    Elastic,
    ElasticLinear,
    Tie,
    draw,
    filled,
    leading,
    plain_linear,
)
from tailorbird.supernet.shapes import LayerShape


class Patches(nn.Module):
    """Cuts images into patches and makes a token of each, with a learned vector for its place.

    Args:
        conv: whose kernel is its stride, without padding.
        positions: (1, channels, h, w), interpolated where images have another number of patches.
    """

    def __init__(self, conv: nn.Conv2d, positions: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.positions = nn.Parameter(positions)

    def no_weight_decay(self) -> set[str]:
        """The positions: they say where a patch is, not how much it counts."""
        return {"positions"}

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, h * w / patch^2, channels)."""
        patches: Tensor = self.conv(images)
        placed = patches + positions_at(self.positions, patches.shape[-2], patches.shape[-1])
        return placed.flatten(2).transpose(1, 2)


class ElasticPatches(Elastic):
    """`Patches` whose active channels are the leading ones.

    Args:
        patches: the widest; the channels follow ``out_channels``.
    """

    def __init__(self, patches: Patches) -> None:
        super().__init__()
        self.conv = patches.conv
        self.positions = patches.positions
        self._active = patches.conv.out_channels

    def activate(self, shape: LayerShape) -> None:
        """Run at ``shape`` from now on."""
        self._active = shape.out_channels

    def no_weight_decay(self) -> set[str]:
        """The positions, as of `Patches`."""
        return {"positions"}

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, h * w / patch^2, active channels)."""
        weight, bias, positions = self._weights(self._active)
        patches = F.conv2d(images, weight, bias, self.conv.stride)
        placed = patches + positions_at(positions, patches.shape[-2], patches.shape[-1])
        return placed.flatten(2).transpose(1, 2)

    def extract(self, shape: LayerShape) -> nn.Module:
        """Plain patches of ``shape``, with positions for images of its size."""
        weight, bias, positions = self._weights(shape.out_channels)
        patch, width = shape.stride, shape.out_channels
        conv = partial(nn.Conv2d, self.conv.in_channels, width, patch, patch)
        with torch.no_grad():
            placed = positions_at(positions, shape.out_size, shape.out_size).clone()
        return Patches(filled(conv, {"weight": weight, "bias": bias}), placed).train(self.training)

    def ties(self) -> Sequence[Tie]:
        """What makes the embedding's channels, and places."""
        made = ((self.conv.weight, 0), (self.conv.get_parameter("bias"), 0), (self.positions, 1))
        return [Tie("out_channels", tensor, dimension) for tensor, dimension in made]

    def initialise(self, generator: torch.Generator, std: float | None) -> None:
        """Positions are drawn, with a standard deviation of 0.02 if none is given."""
        draw(self.positions, std or 0.02, generator)

    def _weights(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        bias = leading(self.conv.get_parameter("bias"), width)
        return leading(self.conv.weight, width), bias, leading(self.positions, 1, width)


class ElasticLayerNorm(Elastic):
    """Layer norm over the leading channels; it keeps no statistics.

    Args:
        norm: the widest, with scale and shift; the channels follow ``in_channels``.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm
        self._active = norm.normalized_shape[0]

    def activate(self, shape: LayerShape) -> None:
        """Run at ``shape`` from now on."""
        self._active = shape.in_channels

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t, active channels) to the same shape."""
        width, norm = self._active, self.norm
        weight, bias = leading(norm.weight, width), leading(norm.bias, width)
        return F.layer_norm(tokens, (width,), weight, bias, norm.eps)

    def extract(self, shape: LayerShape) -> nn.Module:
        """A plain layer norm of ``shape``."""
        width, full = shape.in_channels, self.norm
        layer = partial(nn.LayerNorm, width, eps=full.eps)
        values = {"weight": full.weight[:width], "bias": full.bias[:width]}
        return filled(layer, values).train(self.training)

    def ties(self) -> Sequence[Tie]:
        """Scale and shift."""
        return [Tie("in_channels", tensor, 0) for tensor in (self.norm.weight, self.norm.bias)]


class Attention(nn.Module):
    """Each token becomes a mixture of all tokens, weighted by likeness, once per head.

    Args:
        qkv: to queries, keys and values, each of all heads.
        projection: from all heads' values to channels.
        heads: as many as there are.
    """

    def __init__(self, qkv: nn.Linear, projection: nn.Linear, heads: int) -> None:
        super().__init__()
        self.qkv = qkv
        self.projection = projection
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t, channels) to the same shape."""
        mixed: Tensor = self.projection(_mixed(self.qkv(tokens), self.heads))
        return mixed


class ElasticAttention(Elastic):
    """`Attention` of the leading channels and heads.

    Args:
        qkv: the widest; rows are queries, keys, values, each head after head. The active inputs
            follow ``in_channels``.
        projection: the widest; the active outputs follow ``out_channels``.
        head_channels: width of a head.
    """

    def __init__(self, qkv: nn.Linear, projection: nn.Linear, head_channels: int) -> None:
        super().__init__()
        self.qkv = qkv
        self.projection = ElasticLinear(projection, inside="attention", outside="out_channels")
        self.head_channels = head_channels
        self._active = (qkv.in_features, projection.in_features)

    def activate(self, shape: LayerShape) -> None:
        """Run at ``shape`` from now on; the projection is activated as a piece of its own."""
        self._active = (shape.in_channels, shape.attention)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t, active channels) to the same shape."""
        inside, attended = self._active
        rows = F.linear(tokens, *self._weights(inside, attended))
        mixed: Tensor = self.projection(_mixed(rows, attended // self.head_channels))
        return mixed

    def extract(self, shape: LayerShape) -> nn.Module:
        """Plain attention of ``shape``."""
        qkv = plain_linear(*self._weights(shape.in_channels, shape.attention))
        projection = self.projection.extract(shape)
        return Attention(qkv, projection, shape.heads).train(self.training)

    def ties(self) -> Sequence[Tie]:
        """What comes in; then heads, which lie in thirds of one tensor and stay whole."""
        read = Tie("in_channels", self.qkv.weight, 1, reads=True)
        made = [Tie("attention", third, 1, group=self.head_channels) for third in self.thirds()]
        return [read, *made]

    def _weights(self, inside: int, attended: int) -> tuple[Tensor, Tensor]:
        """Weight (3 * attended, inside) and bias of the layer before attention."""
        weight, bias = self.thirds()
        weight = leading(weight, 3, attended, inside).flatten(0, 1)
        return weight, leading(bias, 3, attended).flatten()

    def thirds(self) -> tuple[Tensor, Tensor]:
        """Views (3, heads * width, ...) of the weight and the bias before attention."""
        return self.qkv.weight.view(3, -1, self.qkv.in_features), self.qkv.bias.view(3, -1)


class TokenMean(nn.Module):
    """The mean of all tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t, channels) to (n, channels)."""
        return tokens.mean(dim=1)


def positions_at(positions: Tensor, height: int, width: int) -> Tensor:
    """Vectors (1, c, h, w) of places at another number of them; the same where it is theirs.

    Bilinear, as two matrix products: their gradients are the same at every run on every device.

    Example:
        >>> positions_at(torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]]), 1, 4)
        tensor([[[[0., 1., 3., 4.]]]])
    """
    if positions.shape[-2:] == (height, width):
        return positions
    return _stretched(_stretched(positions, height).transpose(2, 3), width).transpose(2, 3)


def _stretched(positions: Tensor, rows: int) -> Tensor:
    """(1, c, h, w) with another number of rows."""
    own = positions.shape[-2]
    if own == rows:
        return positions
    identity = torch.eye(own, device=positions.device, dtype=positions.dtype)[None]
    shares = F.interpolate(identity, size=rows, mode="linear", align_corners=False)[0]
    return shares.transpose(0, 1) @ positions


def _mixed(rows: Tensor, heads: int) -> Tensor:
    """Queries, keys and values (n, t, 3 * heads * width) to (n, t, heads * width)."""
    images, tokens, _ = rows.shape
    query, key, value = rows.view(images, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
