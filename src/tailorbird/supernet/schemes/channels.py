"""Preparing a supernet's weights for shrinking: sorted channels, residual branches that start at 0.

A narrow block is made of the leading channels of a wide one, so it matters which channels come
first. Channels between the layers of a block can be permuted, together with all that writes and
reads them, without a change of what the block computes. So can the heads of attention and, in a
transformer, the embedding's channels, which all blocks write and read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.supernet.elastic import Elastic, ElasticLinear, Tie, Width
from tailorbird.supernet.network import Supernet
from tailorbird.supernet.samplers import Region
from tailorbird.supernet.shapes import Slot
from tailorbird.supernet.shortcuts import Shortcut


@dataclass(frozen=True, eq=False)
class Inner:
    """Channels that can be permuted.

    Args:
        slot: the block that they are in; where all blocks share them, the layer that makes them.
        width: the attribute of a shape that says how many of them there are.
        reader: weight (outputs, channels, ...) that reads them; its L1 norm says what matters.
        held: each tensor that has an entry per channel, and along which dimension.
        group: so many neighbours stay together.
    """

    slot: Slot
    width: Width
    reader: Tensor
    held: tuple[tuple[Tensor, int], ...]
    group: int = 1

    def widths(self, region: Region | None) -> list[int]:
        """Widths, ascending, that the block takes in a region; in the whole space when None."""
        least = 0 if region is None else region.floor[list(self.slot.genes)]
        return sorted(
            {
                getattr(shape, self.width)
                for index, shape in self.slot.variants.items()
                if shape is not None and bool((np.array(index) >= least).all())
            }
        )


def inner_channels(supernet: Supernet) -> list[Inner]:
    """All permutable channels whose number is elastic, in the order in which they run."""
    architectures = supernet.architectures
    found: list[Inner] = []
    shared: list[tuple[Slot, Tie]] = []
    for slot, module in supernet.slots():
        ties = [
            tie for part in module.modules() if isinstance(part, Elastic) for tie in part.ties()
        ]
        found += _of_block(slot, ties)
        if shared or architectures.kind_of(slot.shapes()[0]).tokens:
            shared += [(slot, tie) for tie in ties if tie.width in ("in_channels", "out_channels")]
    if shared:
        found.append(_embedding(shared))
    return [inner for inner in found if len(inner.widths(None)) > 1]


def _of_block(slot: Slot, ties: Sequence[Tie]) -> list[Inner]:
    """Channels inside a block: the layer that reads them closes a set of them."""
    found: list[Inner] = []
    held: dict[Width, list[Tie]] = {"mid_channels": [], "squeezed": [], "attention": []}
    for tie in ties:
        if tie.width not in held:
            continue
        held[tie.width].append(tie)
        if tie.reads:
            closed, held[tie.width] = held[tie.width], []
            group = max(one.group for one in closed)
            tensors = tuple((one.tensor, one.dimension) for one in closed)
            found.append(Inner(slot, tie.width, tie.tensor, tensors, group))
    return found


def _embedding(ties: Sequence[tuple[Slot, Tie]]) -> Inner:
    """What the first layer of tokens makes, and all others read, write or normalise."""
    makers = [tie for _, tie in ties if not tie.reads]
    readers = [tie for _, tie in ties if tie.reads]
    held = tuple((tie.tensor, tie.dimension) for tie in (*makers, *readers))
    read = torch.cat([tie.tensor.detach() for tie in readers])
    return Inner(ties[0][0], "out_channels", read, held)


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
        branches = [part.branch for part in module.modules() if isinstance(part, Shortcut)]
        for branch in branches:
            norms = [p for p in branch.modules() if isinstance(p, nn.BatchNorm2d)]
            last = [p for p in branch.modules() if isinstance(p, ElasticLinear)]
            if norms:
                norms[-1].get_parameter("weight").zero_()
            elif last:
                last[-1].linear.weight.zero_()
                last[-1].linear.bias.zero_()
