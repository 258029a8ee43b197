"""Tensors inside networks for the calibration images, computed once while memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.surgery import capture
from tailorbird.graph.trace import LayerGraph

Reader = Callable[[LayerGraph, Sequence[str]], Callable[[Tensor], Mapping[str, Tensor]]]
"""Makes a network into a map from images to the tensors at the named nodes."""


class Activations:
    """What lies at the borders of networks' blocks for the same images.

    A pass over the images keeps what was asked for and, as far as memory allows, what lies at the
    other borders of that network's blocks, those that follow first. So where all fit a network runs
    once; where none do it runs for each request, as it would without this.

    Args:
        images: (n, C, H, W) on the CPU.
        limit: bytes kept of each network beyond what was last asked for.
        reader: what a pass is made by.
    """

    def __init__(self, images: Tensor, *, limit: int, reader: Reader = capture) -> None:
        self.images = images
        self.limit = limit
        self._reader = reader
        self._held: dict[LayerGraph, Mapping[str, Tensor]] = {}

    def at(self, graph: LayerGraph, names: Sequence[str]) -> Mapping[str, Tensor]:
        """The tensors (n, ...) at the nodes ``names`` of ``graph``, and maybe at more."""
        held = self._held.pop(graph, {})
        if not held.keys() >= set(names):
            del held  # freed before its successor is made
            with torch.no_grad():
                held = self._reader(graph, self._worth_keeping(graph, names))(self.images)
        self._held[graph] = held
        return held

    def forget(self, graph: LayerGraph) -> None:
        """Free what is kept of a network that is not asked about again."""
        self._held.pop(graph, None)

    def _worth_keeping(self, graph: LayerGraph, names: Sequence[str]) -> list[str]:
        order = graph.index
        borders = {name for b in enumerate_blocks(graph) for name in (b.input, b.output)}
        start = min(order[name] for name in names)
        after = sorted(borders - set(names), key=lambda name: (order[name] - start) % len(order))
        kept, left = list(dict.fromkeys(names)), self.limit
        for name in after:
            left -= 4 * len(self.images) * math.prod(graph.layer(name).shape)
            if left < 0:
                break
            kept.append(name)
        return kept
