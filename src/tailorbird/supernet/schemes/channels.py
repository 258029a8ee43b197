"""Preparing a supernet's weights for shrinking: sorted channels, residual branches that start at 0.

A narrow block is made of the leading channels of a wide one, so it matters which channels come
first. Channels between the layers of a block can be permuted, together with all that writes and
reads them, without a change of what the block computes. So can the heads of attention and, in a
transformer, the embedding's channels, which all blocks write and read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.supernet.architecture import LayerShape, Slot, make_divisible
from tailorbird.supernet.elastic import (
    Elastic,
    ElasticConv,
    ElasticLinear,
    ElasticNorm,
    ElasticSqueezeExcite,
)
from tailorbird.supernet.network import Bottleneck, Residual, Supernet
from tailorbird.supernet.samplers import Region
from tailorbird.supernet.tokens import ElasticAttention, ElasticLayerNorm, ElasticPatches


@dataclass(frozen=True, eq=False)
class Inner:
    """Channels that can be permuted.

    Args:
        slot: the block that they are in; where all blocks share them, the layer that makes them.
        width: how many of them a shape has.
        reader: weight (outputs, channels, ...) that reads them; its L1 norm says what matters.
        held: each tensor that has an entry per channel, and along which dimension.
        group: so many neighbours stay together.
    """

    slot: Slot
    width: Callable[[LayerShape], int]
    reader: Tensor
    held: tuple[tuple[Tensor, int], ...]
    group: int = 1

    def widths(self, region: Region | None) -> list[int]:
        """Widths, ascending, that the block takes in a region; in the whole space when None."""
        least = 0 if region is None else region.floor[list(self.slot.genes)]
        return sorted(
            {
                self.width(shape)
                for index, shape in self.slot.variants.items()
                if shape is not None and bool((np.array(index) >= least).all())
            }
        )


def inner_channels(supernet: Supernet) -> list[Inner]:
    """All permutable channels whose number is elastic, in the order in which they run."""
    found: list[Inner] = []
    shared: list[tuple[Slot, Elastic]] = []
    for slot, module in supernet.slots():
        pieces = [part for part in module.modules() if isinstance(part, Elastic)]
        found += _of_block(slot, pieces)
        shared += [(slot, piece) for piece in pieces]
    if any(isinstance(piece, ElasticAttention) for _, piece in shared):
        found.append(_embedding(shared))
    return [inner for inner in found if len(inner.widths(None)) > 1]


def _mid(shape: LayerShape) -> int:
    return shape.mid_channels


def _squeezed(shape: LayerShape) -> int:
    return make_divisible(shape.mid_channels // 4)


def _attention(shape: LayerShape) -> int:
    return shape.attention


def _out(shape: LayerShape) -> int:
    return shape.out_channels


def _of_block(slot: Slot, pieces: Sequence[Elastic]) -> list[Inner]:
    """A dense layer that reads middle channels closes a set of them, and may open another."""
    found: list[Inner] = []
    held: list[tuple[Tensor, int]] = []
    for piece in pieces:
        if isinstance(piece, ElasticConv):
            weight, depthwise = piece.conv.weight, piece.conv.groups > 1
            if piece.inside == "mid_channels" and not depthwise:
                found.append(Inner(slot, _mid, weight, (*held, (weight, 1))))
                held = []
            if piece.outside == "mid_channels":
                held.append((weight, 0))
        elif isinstance(piece, ElasticLinear):
            dense = piece.linear
            if piece.inside == "mid_channels":
                found.append(Inner(slot, _mid, dense.weight, (*held, (dense.weight, 1))))
                held = []
            if piece.outside == "mid_channels":
                held += [(dense.weight, 0), (dense.bias, 0)]
        elif isinstance(piece, ElasticAttention):
            found.append(_heads(slot, piece))
        elif isinstance(piece, ElasticNorm) and piece.width == "mid_channels":
            held += [(value, 0) for value in piece.bn.state_dict(keep_vars=True).values()
                     if value.ndim]  # fmt: skip
        elif isinstance(piece, ElasticSqueezeExcite):
            reduce, expand = piece.fc.get_submodule("reduce"), piece.fc.get_submodule("expand")
            into, out = reduce.get_parameter("weight"), expand.get_parameter("weight")
            held += [(into, 1), (out, 0), (expand.get_parameter("bias"), 0)]
            squeezed = ((into, 0), (reduce.get_parameter("bias"), 0), (out, 1))
            found.append(Inner(slot, _squeezed, out, squeezed))
    return found


def _heads(slot: Slot, piece: ElasticAttention) -> Inner:
    """Heads of attention; queries, keys and values lie in thirds of one tensor."""
    thirds = [(value, 1) for value in piece.thirds()]
    reader = piece.projection.linear.weight
    return Inner(slot, _attention, reader, (*thirds, (reader, 1)), group=piece.head_channels)


def _embedding(pieces: Sequence[tuple[Slot, Elastic]]) -> Inner:
    """What patches make, and all blocks and the classifier read, write or normalise."""
    held: list[tuple[Tensor, int]] = []
    readers: list[Tensor] = []
    makers = [slot for slot, piece in pieces if isinstance(piece, ElasticPatches)]
    for _, piece in pieces:
        if isinstance(piece, ElasticPatches):
            conv = piece.conv
            held += [(conv.weight, 0), (conv.get_parameter("bias"), 0), (piece.positions, 1)]
        elif isinstance(piece, ElasticLayerNorm):
            held += [(piece.norm.weight, 0), (piece.norm.bias, 0)]
        elif isinstance(piece, ElasticAttention):
            readers.append(piece.qkv.weight)
        elif isinstance(piece, ElasticLinear):
            if piece.inside == "in_channels":
                readers.append(piece.linear.weight)
            if piece.outside == "out_channels":
                held += [(piece.linear.weight, 0), (piece.linear.bias, 0)]
    held += [(weight, 1) for weight in readers]
    return Inner(makers[0], _out, torch.cat([w.detach() for w in readers]), tuple(held))


@torch.no_grad()
def channel_orders(supernet: Supernet, region: Region) -> list[Tensor]:
    """For each of `inner_channels`, its channels from important to unimportant.

    Importance is the L1 norm of the weights that read a channel, in the last layer that does (Li et
    al., Pruning Filters for Efficient ConvNets, 2017; Cai et al., Once-for-All, 2020, sec. 3.3);
    of a head, that of all its channels; of an embedding's channel, over all layers that read it.
    Widths that ``region`` has keep their channels, which are sorted among themselves.
    """
    orders = []
    for inner in inner_channels(supernet):
        importance = inner.reader.abs().sum(dim=[d for d in range(inner.reader.ndim) if d != 1])
        importance = importance.view(-1, inner.group).sum(dim=1)
        start, parts = 0, []
        for width in inner.widths(region):
            part = importance[start : width // inner.group]
            parts.append(part.sort(descending=True, stable=True).indices + start)
            start = width // inner.group
        parts.append(torch.arange(start, len(importance), device=importance.device))
        within = torch.arange(inner.group, device=importance.device)
        orders.append((torch.cat(parts)[:, None] * inner.group + within).flatten())
    return orders


@torch.no_grad()
def reorder_channels(supernet: Supernet, orders: Sequence[Tensor]) -> None:
    """Permute the channels inside blocks, **in place**; full networks compute what they did.

    Args:
        supernet: the network, its average, or one that holds momenta in place of weights.
        orders: of `channel_orders`.
    """
    for inner, order in zip(inner_channels(supernet), orders, strict=True):
        for tensor, dimension in inner.held:
            tensor.copy_(tensor.index_select(dimension, order.to(tensor.device)))


@torch.no_grad()
def zero_residual_gains(supernet: Supernet) -> None:
    """Make residual branches start at 0, **in place**: blocks are identities.

    A branch that ends in batch norm gets a gain of 0 there. One that doesn't, as in transformers
    with their norm at the start, gets an output layer of zeros.
    """
    for _, module in supernet.slots():
        parts = module.modules()
        branches = [
            part.conv if isinstance(part, Residual) else part.conv3
            for part in parts
            if isinstance(part, Residual | Bottleneck)
        ]
        for branch in branches:
            norms = [p for p in branch.modules() if isinstance(p, nn.BatchNorm2d)]
            last = [p for p in branch.modules() if isinstance(p, ElasticLinear)]
            if norms:
                norms[-1].get_parameter("weight").zero_()
            elif last:
                last[-1].linear.weight.zero_()
                last[-1].linear.bias.zero_()
