"""How much each channel of a body matters, and pruning what matters least.

Lower scores matter less. Scores of one call are comparable across the body's groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from tailorbird.errors import GraphError
from tailorbird.graph.channels import Channels, Group, analyse, apply_keep
from tailorbird.graph.cutters import MIXING, Cut, Place

Scores = Mapping[int, Tensor]
"""Group index -> (size,) score per position, float64 on the CPU; lower matters less."""


def layer_norms(body: fx.GraphModule, cut: Cut) -> tuple[Tensor, Tensor]:
    """L1 norms of a layer's weight: per output channel and per input channel."""
    weight = body.get_submodule(cut.path).weight
    assert isinstance(weight, Tensor)
    table = weight.detach().double().cpu().abs()
    table = table.flatten(2).sum(2) if table.ndim > 2 else table
    transposed = cut.kind.endswith("transposed")
    groups = len(cut.rows if transposed else cut.columns) // table.shape[1]
    first, second = table.sum(1), table.reshape(groups, -1, table.shape[1]).sum(1).flatten()
    return (second, first) if transposed else (first, second)


def magnitude_scores(
    body: fx.GraphModule, in_shape: Sequence[int], *, channels: Channels | None = None
) -> dict[int, Tensor]:
    """L1 norm of the weights that make and read each channel.

    Each layer's norms are divided by their mean, so that wide and narrow layers, and layers
    before and after a batch norm, compare; a channel's score is the mean over its layers.

    Args:
        body: one input, one output tensor; not changed.
        in_shape: shape of the input without batch.
        channels: the body's analysis, if at hand.

    Returns:
        Scores of every prunable group.

    Example:
        >>> from torch import nn
        >>> body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))
        >>> _ = nn.init.zeros_(body.get_submodule("0").weight[5:])
        >>> _ = nn.init.zeros_(body.get_submodule("1").weight[:, 5:])
        >>> magnitude_scores(body, (3, 8, 8))[1][5:].tolist()
        [0.0, 0.0, 0.0]
    """
    found = channels or analyse(body, in_shape)
    total = {g.index: torch.zeros(g.size, dtype=torch.float64) for g in found.groups}
    count = {g.index: torch.zeros(g.size, dtype=torch.float64) for g in found.groups}
    for cut in found.cuts:
        if cut.kind not in MIXING:
            continue
        made, read = layer_norms(body, cut)
        for norms, places in ((made, cut.rows), (read, cut.columns)):
            scaled = norms / norms.mean().clamp_min(1e-12)
            for value, (group, position) in zip(scaled, places, strict=True):
                total[group][position] += value
                count[group][position] += 1
    return {
        g.index: total[g.index] / count[g.index].clamp_min(1) for g in found.groups if g.prunable
    }


def prune_interior(
    body: fx.GraphModule,
    in_shape: Sequence[int],
    *,
    ratio: float,
    scores: Scores,
    multiple: int = 8,
    floor: int = 4,
    channels: Channels | None = None,
) -> fx.GraphModule:
    """A copy of ``body`` without its least important interior channels.

    Ranks are global over the interior groups that can be pruned exactly: the lowest
    ``ratio`` of all their channels are marked, then each group's kept width is rounded to the
    nearest ``multiple`` (at least ``floor``, never above the original), because odd widths were
    measured to run slower. Groups narrower than ``multiple`` stay. The result may equal the
    body where rounding undoes the marks.

    Args:
        body: one input, one output tensor; left as it is.
        in_shape: shape of the input without batch.
        ratio: share of the channels to remove, 0 to 1 (1 excluded).
        scores: from ``magnitude_scores``, or of ``tailorbird.graph.sensitivity``.
        multiple: kept widths are multiples of this.
        floor: fewest channels to keep in a group.
        channels: the body's analysis, if at hand.

    Raises:
        GraphError: for a ratio outside [0, 1) or scores that do not fit the body.

    Example:
        >>> from torch import nn
        >>> body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 1)))
        >>> scores = magnitude_scores(body, (3, 8, 8))
        >>> narrow = prune_interior(body, (3, 8, 8), ratio=0.4, scores=scores)
        >>> narrow.get_submodule("0").out_channels
        16
    """
    found = channels or analyse(body, in_shape)
    keep = choose_keep(
        found,
        [g for g in found.groups if g.interior],
        ratio=ratio,
        scores=scores,
        multiple=multiple,
        floor=floor,
    )
    return apply_keep(body, found, keep)


def ranked(
    channels: Channels, groups: Sequence[Group], scores: Scores, *, multiple: int
) -> list[Place]:
    """Places of those ``groups`` that can get narrower, those that matter least first.

    Raises:
        GraphError: for scores that do not fit the body.
    """
    wide = [g for g in groups if g.prunable and g.exact and g.size >= step_of(g, multiple)]
    bad = [g.index for g in wide if g.index not in scores or len(scores[g.index]) != g.size]
    if bad:
        raise GraphError(f"scores: missing or of the wrong length for groups {bad} of this body")
    listed = sorted((float(scores[g.index][p]), g.index, p) for g in wide for p in range(g.size))
    return [(group, position) for _, group, position in listed]


def step_of(group: Group, multiple: int) -> int:
    """How many positions make the fewest channels whose number is a multiple."""
    return multiple // math.gcd(multiple, group.span)


def choose_keep(
    channels: Channels,
    groups: Sequence[Group],
    *,
    ratio: float,
    scores: Scores,
    multiple: int,
    floor: int,
) -> dict[int, list[int]]:
    """Kept positions of those ``groups`` that get narrower, ranked and rounded together.

    Raises:
        GraphError: for a ratio outside [0, 1) or scores that do not fit the body.
    """
    if not 0 <= ratio < 1 or multiple < 1:
        raise GraphError(
            f"expected 0 <= ratio < 1 and multiple >= 1, got ratio {ratio}, multiple {multiple}"
        )
    order = ranked(channels, groups, scores, multiple=multiple)
    ranks = {group for group, _ in order}
    marked = Counter(group for group, _ in order[: round(ratio * len(order))])
    keep: dict[int, list[int]] = {}
    for group in (g for g in groups if g.index in ranks):
        stay = group.size - marked[group.index]
        step, least = step_of(group, multiple), math.ceil(floor / group.span)
        width = min(group.size, max(least, math.floor(stay / step + 0.5) * step, 1))
        if width < group.size:
            keep[group.index] = _best(channels, group, scores[group.index], width)
    return keep


def _best(channels: Channels, group: Group, scores: Tensor, width: int) -> list[int]:
    """The ``width`` best positions, among them the best of every layer that makes some."""
    order = sorted(range(group.size), key=lambda p: (-float(scores[p]), p))
    rank = {p: r for r, p in enumerate(order)}
    chosen: dict[int, None] = {}
    for layer, places in channels.kept:
        own = [p for g, p in places if g == group.index]
        if layer and own and not chosen.keys() & set(own):
            chosen[min(own, key=rank.__getitem__)] = None
    for position in order:
        if len(chosen) >= width:
            break
        chosen[position] = None
    return sorted(chosen)
