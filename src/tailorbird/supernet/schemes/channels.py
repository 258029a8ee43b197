"""Preparing a supernet's weights for shrinking: sorted channels, residual branches that start at 0.

A narrow block is made of the leading channels of a wide one, so it matters which channels come
first. Channels between the layers of a block can be permuted, together with all that writes and
reads them, without a change of what the block computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.supernet.architecture import Slot, make_divisible
from tailorbird.supernet.elastic import Elastic, ElasticConv, ElasticNorm, ElasticSqueezeExcite
from tailorbird.supernet.network import Bottleneck, Residual, Supernet
from tailorbird.supernet.samplers import Region


@dataclass(frozen=True, eq=False)
class Inner:
    """Channels inside a block that can be permuted.

    Args:
        slot: the block.
        squeezed: these are the channels inside its squeeze-and-excitation.
        reader: weight (outputs, channels, ...) that reads them; its L1 norm says what matters.
        held: each tensor that has an entry per channel, and along which dimension.
    """

    slot: Slot
    squeezed: bool
    reader: Tensor
    held: tuple[tuple[Tensor, int], ...]

    def widths(self, region: Region | None) -> list[int]:
        """Widths, ascending, that the block takes in a region; in the whole space when None."""
        least = 0 if region is None else region.floor[list(self.slot.genes)]
        mids = {
            shape.mid_channels
            for index, shape in self.slot.variants.items()
            if shape is not None and bool((np.array(index) >= least).all())
        }
        return sorted({make_divisible(mid // 4) for mid in mids} if self.squeezed else mids)


def inner_channels(supernet: Supernet) -> list[Inner]:
    """All permutable channels of blocks with an elastic middle, in the order in which they run."""
    found: list[Inner] = []
    for slot, module in supernet.slots():
        mids = {shape.mid_channels for shape in slot.variants.values() if shape is not None}
        if len(mids) > 1:
            found += _of_block(slot, [p for p in module.modules() if isinstance(p, Elastic)])
    return found


def _of_block(slot: Slot, pieces: Sequence[Elastic]) -> list[Inner]:
    """A dense convolution that reads middle channels closes a set of them, and may open another."""
    found: list[Inner] = []
    held: list[tuple[Tensor, int]] = []
    for piece in pieces:
        if isinstance(piece, ElasticConv):
            weight, depthwise = piece.conv.weight, piece.conv.groups > 1
            if piece.inside == "mid_channels" and not depthwise:
                found.append(Inner(slot, False, weight, (*held, (weight, 1))))
                held = []
            if piece.outside == "mid_channels":
                held.append((weight, 0))
        elif isinstance(piece, ElasticNorm) and piece.width == "mid_channels":
            held += [(value, 0) for value in piece.bn.state_dict(keep_vars=True).values()
                     if value.ndim]  # fmt: skip
        elif isinstance(piece, ElasticSqueezeExcite):
            reduce, expand = piece.fc.get_submodule("reduce"), piece.fc.get_submodule("expand")
            into, out = reduce.get_parameter("weight"), expand.get_parameter("weight")
            held += [(into, 1), (out, 0), (expand.get_parameter("bias"), 0)]
            squeezed = ((into, 0), (reduce.get_parameter("bias"), 0), (out, 1))
            found.append(Inner(slot, True, out, squeezed))
    return found


@torch.no_grad()
def channel_orders(supernet: Supernet, region: Region) -> list[Tensor]:
    """For each of `inner_channels`, its channels from important to unimportant.

    Importance is the L1 norm of the weights that read a channel, in the last layer that does (Li et
    al., Pruning Filters for Efficient ConvNets, 2017; Cai et al., Once-for-All, 2020, sec. 3.3).
    Widths that ``region`` has keep their channels, which are sorted among themselves.
    """
    orders = []
    for inner in inner_channels(supernet):
        importance = inner.reader.abs().sum(dim=[d for d in range(inner.reader.ndim) if d != 1])
        start, parts = 0, []
        for width in inner.widths(region):
            part = importance[start:width].sort(descending=True, stable=True).indices
            parts.append(part + start)
            start = width
        parts.append(torch.arange(start, len(importance), device=importance.device))
        orders.append(torch.cat(parts))
    return orders


@torch.no_grad()
def reorder_channels(supernet: Supernet, orders: Sequence[Tensor]) -> None:
    """Permute the channels inside blocks, **in place**; full blocks compute what they did.

    Args:
        supernet: the network, its average, or one that holds momenta in place of weights.
        orders: of `channel_orders`.
    """
    for inner, order in zip(inner_channels(supernet), orders, strict=True):
        for tensor, dimension in inner.held:
            tensor.copy_(tensor.index_select(dimension, order.to(tensor.device)))


@torch.no_grad()
def zero_residual_gains(supernet: Supernet) -> None:
    """Set the gain of each residual branch's last norm to 0, **in place**."""
    for _, module in supernet.slots():
        branch: nn.Module | None = None
        if isinstance(module, Residual):
            branch = module.conv
        elif isinstance(module, Bottleneck):
            branch = module.conv3
        norms = [] if branch is None else [p for p in branch.modules() if _is_norm(p)]
        if norms:
            norms[-1].get_parameter("weight").zero_()


def _is_norm(part: nn.Module) -> bool:
    return isinstance(part, nn.BatchNorm2d)
