"""Vision transformers: patches, blocks of attention and dense layers, the mean of all tokens.

Maps are tokens from the first of these to the last, whose channels all of them share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailorbird.supernet.kinds.attributes import (
    ACTIVATION,
    EXPAND,
    HEAD_CHANNELS,
    HEADS,
    OUT_CHANNELS,
)
from tailorbird.supernet.kinds.kind import Kind, conv_macs, to_one
from tailorbird.supernet.shapes import LayerShape

if TYPE_CHECKING:
    from tailorbird.supernet.kinds.maker import Maker, Module


def _patches(make: Maker) -> Module:
    import torch
    from torch import nn

    from tailorbird.supernet.tokens import ElasticPatches, Patches

    width, patch = make.most("out_channels"), make.shape.stride
    side = max(shape.out_size for shape in make.shapes)
    conv = nn.Conv2d(make.shape.in_channels, width, patch, stride=patch)
    return ElasticPatches(Patches(conv, torch.empty(1, width, side, side)))


def _patch_params(shape: LayerShape) -> int:
    places = shape.out_size**2
    return (shape.in_channels * shape.kernel**2 + 1 + places) * shape.out_channels


def _whole_patch(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"kernel": given["stride"]}


def _block(make: Maker) -> Module:
    from torch import nn

    from tailorbird.supernet.tokens import ElasticAttention

    width, attended = make.most("in_channels"), make.most("attention")
    qkv, projection = nn.Linear(width, 3 * attended), nn.Linear(attended, width)
    attention = make.chain(
        norm=make.layer_norm(),
        attention=ElasticAttention(qkv, projection, make.shape.head_channels),
    )
    mlp = make.chain(
        norm=make.layer_norm(),
        expand=make.dense("in_channels", "mid_channels"),
        act=make.activation(),
        project=make.dense("mid_channels", "out_channels"),
    )
    return make.chain(attention=make.residual(attention), mlp=make.residual(mlp))


def _block_macs(shape: LayerShape) -> int:
    tokens, mid, attended = shape.in_size**2, shape.mid_channels, shape.attention
    dense = shape.in_channels * (3 * attended + mid) + (attended + mid) * shape.out_channels
    return tokens * dense + 2 * tokens**2 * attended


def _block_params(shape: LayerShape) -> int:
    inside, mid, out = shape.in_channels, shape.mid_channels, shape.out_channels
    attention = (inside + 1) * 3 * shape.attention + (shape.attention + 1) * out
    return attention + (inside + 1) * mid + (mid + 1) * out + 4 * inside


def _token_mean(make: Maker) -> Module:
    from tailorbird.supernet.tokens import TokenMean

    return make.chain(norm=make.layer_norm(), pool=TokenMean())


def _mean_params(shape: LayerShape) -> int:
    return 2 * shape.in_channels


PATCH_EMBED = Kind(
    name="patch_embed",
    attributes=(OUT_CHANNELS,),
    needed=("out_channels", "stride"),
    build=_patches,
    macs=conv_macs,
    params=_patch_params,
    derived=_whole_patch,
    tokens=True,
    patches=True,
)
"""Convolution whose kernel is its stride, positions added."""

TRANSFORMER_BLOCK = Kind(
    name="transformer_block",
    attributes=(HEADS, HEAD_CHANNELS, EXPAND, ACTIVATION),
    needed=("heads", "head_channels", "activation"),
    build=_block,
    macs=_block_macs,
    params=_block_params,
    defaults={"residual": True},
    role="block",
    tokens=True,
)
"""Attention, then two dense layers, each after a layer norm and with a residual."""

TOKEN_MEAN = Kind(
    name="token_mean",
    attributes=(),
    build=_token_mean,
    params=_mean_params,
    out_size=to_one,
    role="pool",
    tokens=True,
)
"""Layer norm, then the mean of all tokens."""
