"""One dense convolution in place of a block.

Where a block holds several convolutions with nothing non-linear between, one computes the same: the
two of a linear bottleneck, or the parallel branches that RepVGG is trained with (Ding et al. 2021).

Where it does, as in an inverted residual (1x1, activation, depthwise, activation, 1x1), the block
without its inner activations is one convolution, shortcut included (Fu et al. 2022,
"DepthShrinker"). It runs as one dense layer, which hardware is good at, with more weights to learn
from the teacher what the activations did. It begins from the merged weights, each activation taken
as the straight line per channel that is nearest to it on the calibration images,

    a = cov(x, f(x)) / var(x),    b = mean(f(x)) - a mean(x)

(Booton 1954), and is distilled like any other alternative. So is one that computes the same but at
the image's borders, see `tailorbird.graph.convolutions`. What computes the same everywhere is taken
as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block, enumerate_blocks
from tailorbird.graph.kinds import BOUNDARIES
from tailorbird.graph.linearise import Line, LinearForm, affine_of, linear_forms
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.activations import Activations
from tailorbird.house.sample import Collector
from tailorbird.progress import each

WIDEST = 9
"""Of a merged kernel, in positions; wider ones have more weights than a block can be worth."""

MOST = 2.5
"""Times the block's multiply-accumulates. A dense convolution makes more of them in a second than
depthwise ones do, but not that many more."""

BATCH = 16
"""Images that run through a block at once."""


@dataclass(frozen=True)
class Merge:
    """A block that one convolution can stand in for.

    Args:
        block: of the teacher.
        share: the convolution's multiply-accumulates over the block's.
        convolutions: the nodes that become one.
        straightened: the nodes whose activations are left out; none where it computes the same.
    """

    block: Block
    share: float
    convolutions: frozenset[str]
    straightened: tuple[str, ...]

    @property
    def variant(self) -> str:
        """As alternatives tell it."""
        return "merged without activations" if self.straightened else "merged"


def mergeable(
    teacher: LayerGraph, *, stem: bool = True, rejections: Counter[str] | None = None
) -> list[Merge]:
    """The blocks that are worth to become one convolution, by shapes alone.

    Of the blocks that begin at a layer these are two at most, one that stays the same and one that
    loses activations. Of the latter, the convolution's share of the block's multiply-accumulates
    falls while a block grows to the end of a bottleneck or a shortcut, and rises beyond: there it
    is taken.

    Args:
        teacher: the traced network.
        stem: let blocks begin at the image.
        rejections: counts, by their reason, the starts whose blocks can't be merged.
    """
    counted: Counter[str] = Counter() if rejections is None else rejections
    every = enumerate_blocks(teacher, stem=stem, starts=BOUNDARIES | {"conv"})
    every = [block for block in every if len(block.in_shape) == 3 and prod(block.in_shape[1:]) > 1]
    found: dict[frozenset[str], Merge] = {}
    order = teacher.index
    for _, blocks in groupby(every, key=lambda block: block.nodes[0]):
        for merge in _from_one_start(teacher, list(blocks), counted):
            rival = found.get(merge.convolutions)
            if rival is None or order[merge.block.output] >= order[rival.block.output]:
                found[merge.convolutions] = merge  # without the norm in front, that is
    return list(found.values())


def add_merged(
    collector: Collector, teacher: LayerGraph, *, seen: Activations, stem: bool = True
) -> None:
    """Offer one convolution for each block that can be merged; ``seen`` straightens activations."""
    merges = mergeable(teacher, stem=stem, rejections=collector.rejections)
    for merge in each(collector.progress, "sample merged convolutions", merges):
        block = merge.block
        if collector.known(block, "teacher", block.key, merge.variant):
            continue
        form = merged(teacher, merge, seen)
        kept = collector.offer(
            block,
            form.convolution.module(),
            origin="teacher",
            source=block.key,
            variant=merge.variant,
            as_is=form.exact and form.convolution.borders,
        )
        if kept:
            collector.blocks.setdefault(block.key, block)


def merged(teacher: LayerGraph, merge: Merge, seen: Activations) -> LinearForm:
    """The block as one convolution, activations fitted on the images of ``seen``."""
    lines: dict[str, Line] = {}
    if merge.straightened:
        images = seen.at(teacher, [merge.block.input])[merge.block.input]
        lines = straight_lines(teacher, merge, images)
    ((_, form),) = linear_forms(teacher, [merge.block], lines=lines)
    return form


def _from_one_start(
    teacher: LayerGraph, blocks: Sequence[Block], counted: Counter[str]
) -> list[Merge]:
    """The cheapest that stays the same; the first that is cheaper than what is a little longer."""
    best: dict[bool, Merge] = {}
    reason = f"over {MOST:g} times the multiply-accumulates"
    try:
        for block, form in linear_forms(teacher, blocks, device="meta"):
            convolution = form.convolution
            if max(convolution.rows.kernel, convolution.columns.kernel) > WIDEST:
                reason = f"a kernel wider than {WIDEST}"
                break
            if form.joined < 2 or block.output in form.straightened:
                continue
            share = convolution.cost * prod(block.out_shape[1:]) / block.macs
            convolutions = frozenset(n for n in block.nodes if teacher.layer(n).kind == "conv")
            rival = best.get(form.exact)
            if rival is None or share <= rival.share:
                best[form.exact] = Merge(block, share, convolutions, form.straightened)
            elif rival.share <= MOST and not form.exact:
                break
    except GraphError as error:
        reason = str(error)
    affordable = [merge for merge in best.values() if merge.share <= MOST]
    if best and not affordable:
        counted[f"merging: {reason}"] += 1
    return affordable


@torch.no_grad()
def straight_lines(teacher: LayerGraph, merge: Merge, images: Tensor) -> dict[str, Line]:
    """The straight line per channel that is nearest to each activation.

    Args:
        teacher: the network that the block was found in.
        merge: what is to become one convolution.
        images: the block's inputs (n, C, H, W).

    Returns:
        Node -> slope and intercept (channels,).
    """
    sums: dict[str, Tensor] = {}
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        values = {merge.block.input: part}
        for name in merge.block.nodes:
            node = teacher.nodes[name]
            values[name] = _run(teacher, node, values)
            if name in merge.straightened:
                given = _before(teacher, node, values).transpose(0, 1).flatten(1).double()
                made = values[name].transpose(0, 1).flatten(1).double()
                moments = torch.stack([given, made, given * given, given * made]).mean(2)
                sums[name] = sums.get(name, torch.zeros(())) + moments * len(part) / len(images)
    return {name: _line(*moments) for name, moments in sums.items()}


def _line(x: Tensor, y: Tensor, xx: Tensor, xy: Tensor) -> Line:
    """Least squares from the means of x, y, x^2 and x y."""
    variance, covariance = xx - x * x, xy - x * y
    varies = variance > 1e-9 * xx
    slope = torch.where(varies, covariance / variance.clamp_min(1e-300), 0.0)
    return slope, y - slope * x


def _run(teacher: LayerGraph, node: fx.Node, values: dict[str, Tensor]) -> Tensor:
    """What one node of a block makes of the tensors before it."""
    args = fx.node.map_arg(node.args, lambda source: values[source.name])
    kwargs = fx.node.map_arg(node.kwargs, lambda source: values[source.name])
    call: Any = node.target
    if node.op == "call_module":
        call = teacher.module.get_submodule(str(node.target))
    elif node.op == "call_method":
        call = getattr(torch.Tensor, str(node.target))
    result: Tensor = call(*args, **kwargs)
    return result


def _before(teacher: LayerGraph, node: fx.Node, values: dict[str, Tensor]) -> Tensor:
    """What the activation of a node is given: with a norm in the same layer, what that makes."""
    given = values[node.all_input_nodes[0].name]
    if teacher.layer(node.name).kind != "norm":
        return given
    norm: nn.Module = teacher.module.get_submodule(str(node.target))
    (scale, shift), _ = affine_of(norm, given.shape[1])
    return given * scale[:, None, None] + shift[:, None, None]
