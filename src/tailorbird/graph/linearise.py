"""A block as one convolution: what it would be if its activations were straight lines.

The block is walked with a convolution in place of each tensor: the one that makes it from the
block's input. Convolutions, norms with fixed statistics, sums and shortcuts have a rule each.
Where an activation stands it is taken as ``scale * x + shift`` per channel, or as if it were not
there; a block without any is one convolution exactly, up to borders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block
from tailorbird.graph.convolutions import TOLERANCE, Convolution, read_convolution, shortcut
from tailorbird.graph.trace import LayerGraph

Line = tuple[Tensor, Tensor]
"""Scale (C,) and shift (C,) of a straight line per channel."""


@dataclass(frozen=True)
class LinearForm:
    """A block as one convolution.

    Args:
        convolution: from the block's input to its output.
        joined: how many convolutions it is made of.
        straightened: the nodes whose activation was taken as a straight line.
    """

    convolution: Convolution
    joined: int
    straightened: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether it computes what the block computes, up to borders."""
        return not self.straightened


def linear_forms(
    graph: LayerGraph,
    blocks: Iterable[Block],
    *,
    lines: Mapping[str, Line] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Block, LinearForm]]:
    """Each block as one convolution, of as few groups as it needs.

    Args:
        graph: the network that the blocks were found in.
        blocks: all from the same first node, from the smallest to the largest.
        lines: node -> what its activation is taken for; where absent, it is left out.
        device: ``"meta"`` for shapes without any arithmetic.

    Raises:
        GraphError: at the first block in which something is not linear, saying what in a few words.

    Example:
        >>> from tailorbird.graph.blocks import blocks_from
        >>> from tailorbird.graph.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
        >>> graph = trace(net, (3, 5, 5))
        >>> *_, (_, form) = linear_forms(graph, blocks_from(graph, "_0")[:3])
        >>> form.convolution.weight.shape, form.joined, form.straightened
        (torch.Size([4, 3, 3, 3]), 2, ('_1',))
    """
    walk: _Walk | None = None
    for block in blocks:
        walk = walk or _Walk(graph, block, lines or {}, device)
        for name in block.nodes:
            if name not in walk.made:
                walk.take(graph.nodes[name])
        form = LinearForm(walk.made[block.output], walk.joined, tuple(walk.straightened))
        yield block, form


def affine_of(norm: nn.Module, channels: int) -> tuple[Line, bool]:
    """The scale and shift that a norm amounts to, and whether it does nothing else.

    Layers that hold a norm and the activation behind it are told by what they answer.

    Args:
        norm: in eval mode.
        channels: of its images.

    Raises:
        GraphError: when its answer for a position depends on others.
    """
    tensor = next((t for t in (*norm.parameters(), *norm.buffers()) if t.is_floating_point()), None)
    generator = torch.Generator().manual_seed(0)
    probe = 4 * torch.randn(2, channels, 3, 3, generator=generator)
    probe = probe if tensor is None else probe.to(tensor)
    fixed = isinstance(norm, _BatchNorm) and norm.running_mean is not None
    try:
        with torch.no_grad():
            answer = norm(probe)
            if isinstance(norm, _BatchNorm) and fixed:
                line = _statistics(norm)
            else:
                zero = norm(torch.zeros_like(probe))[0, :, 0, 0].double()
                line = norm(torch.ones_like(probe))[0, :, 0, 0].double() - zero, zero
    except (RuntimeError, ValueError) as error:  # made for other layouts or sizes
        raise GraphError(f"a {type(norm).__name__}") from error
    straight = line[0][:, None, None] * probe.double() + line[1][:, None, None]
    same = torch.allclose(answer.double(), straight, atol=TOLERANCE * float(straight.abs().max()))
    if not same and not fixed:
        raise GraphError(f"a {type(norm).__name__}")
    return line, same


def _statistics(norm: _BatchNorm) -> Line:
    """Scale and shift of a batch norm in eval mode."""
    variance = cast(Tensor, norm.running_var).double()
    scale, mean = (variance + norm.eps).rsqrt(), cast(Tensor, norm.running_mean).double()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
        return scale, norm.bias.detach().double() - mean * scale
    return scale, -mean * scale


class _Walk:
    """Convolutions in place of tensors, by node."""

    def __init__(
        self,
        graph: LayerGraph,
        block: Block,
        lines: Mapping[str, Line],
        device: torch.device | str,
    ) -> None:
        if len(block.in_shape) != 3:
            raise GraphError("no images at its ends")
        self._graph, self._input, self._lines, self._device = graph, block.input, lines, device
        self.made = {block.input: shortcut(block.in_shape[0], device)}
        self.joined = 0
        self.straightened: list[str] = []

    def take(self, node: fx.Node) -> None:
        """Make one node's convolution."""
        kind = self._graph.layer(node.name).kind
        sources = [a.name for a in node.args if isinstance(a, fx.Node)]
        rule = getattr(self, f"_{kind}", None)
        if rule is None or not sources or any(name not in self.made for name in sources):
            raise GraphError(f"a layer of kind {kind}")
        self.made[node.name] = rule(node, sources)

    def _conv(self, node: fx.Node, sources: list[str]) -> Convolution:
        shape = self._graph.layer(sources[0]).shape
        if node.op != "call_module" or len(sources) > 1:
            raise GraphError("a convolution whose weights are computed")
        layer = self._graph.module.get_submodule(str(node.target))
        self.joined += 1
        size = shape[1], shape[2]
        return self.made[sources[0]].then(read_convolution(layer, size, self._device))

    def _norm(self, node: fx.Node, sources: list[str]) -> Convolution:
        if node.op != "call_module":
            raise GraphError("a norm whose weights are computed")
        norm = self._graph.module.get_submodule(str(node.target))
        (scale, shift), straight = affine_of(norm, self._graph.layer(node.name).shape[0])
        made = self.made[sources[0]].scaled(scale.to(self._device), shift.to(self._device))
        return made if straight else self._straightened(node, made, sources[0])

    def _activation(self, node: fx.Node, sources: list[str]) -> Convolution:
        target = (
            node.target
            if node.op != "call_module"
            else type(self._graph.module.get_submodule(str(node.target)))
        )
        named = str(getattr(target, "__name__", target)).lower()
        same_shape = self._graph.layer(node.name).shape == self._graph.layer(sources[0]).shape
        if "softm" in named or not same_shape or len(sources) > 1:
            raise GraphError(f"a {named}")
        return self._straightened(node, self.made[sources[0]], sources[0])

    def _straightened(self, node: fx.Node, made: Convolution, source: str) -> Convolution:
        if source == self._input:
            raise GraphError("an activation before the first convolution")
        self.straightened.append(node.name)
        if node.name not in self._lines:
            return made
        scale, shift = self._lines[node.name]
        return made.scaled(scale.to(self._device), shift.to(self._device))

    def _dropout(self, node: fx.Node, sources: list[str]) -> Convolution:
        return self.made[sources[0]]

    def _add(self, node: fx.Node, sources: list[str]) -> Convolution:
        named = getattr(node.target, "__name__", str(node.target))
        left, *others = (self.made[name] for name in sources)
        if named not in ("add", "iadd", "radd") or len(node.args) != 2 or node.kwargs:
            raise GraphError(f"a {named}")
        if not others:
            (number,) = (a for a in node.args if not isinstance(a, fx.Node))
            if not isinstance(number, int | float):
                raise GraphError(f"a sum with a {type(number).__name__}")
            shift = torch.full_like(left.bias, number)
            return left.scaled(torch.ones_like(shift), shift)
        if len({self._graph.layer(name).shape for name in sources}) > 1:
            raise GraphError("a sum of other shapes")
        return left.plus(others[0])
