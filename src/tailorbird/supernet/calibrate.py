"""Norm statistics of many subnets from one pass over the images, and their answers in one more.

Subnets that start with the same layers share the work on them: the subnets form a tree, in which a
node is a layer at a shape after a given path from the root, and each node runs once per batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.errors import DataError, StoreError
from tailorbird.family import Floats
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import LayerShape
from tailorbird.supernet.elastic import ElasticNorm
from tailorbird.supernet.fused import fused
from tailorbird.supernet.network import Supernet, resize
from tailorbird.task import CLASSIFICATION, Scorer, Task

LARGE = 2**22
"""Numbers in a tensor, 16 MB of float32, above which images are evaluated in parts."""

Statistics = Mapping[str, Tensor]
"""Buffers of the norms of one subnet, named as in what ``extract`` makes of it."""


@torch.no_grad()
def recalibrate(
    supernet: Supernet, genomes: Genomes, batches: Iterable[Tensor]
) -> list[Statistics]:
    """Norm statistics of each genome, averaged over ``batches``, in one pass over them.

    The supernet stays as it is. Each batch counts the same; dropout is off. The same as
    extracting each subnet and recalibrating it alone. Where the supernet has no batch norm there
    are no statistics, and no image is looked at.

    Args:
        supernet: whose subnets.
        genomes: (n, genes).
        batches: images, each (m, 3, h, w) with m >= 2, on the supernet's device; they are resized
            to each subnet's resolution.

    Returns:
        One per genome; tensors of subnets that start alike are shared, so don't write to them.

    Raises:
        DataError: when there is no batch, or one of a single image.
        SpaceError: when a genome lies outside the space.

    Example:
        >>> import numpy as np
        >>> from tailorbird.supernet.architecture import load_space
        >>> from tailorbird.supernet.network import build_supernet
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[32])
        >>> net = build_supernet(space, generator=torch.Generator().manual_seed(0))
        >>> genomes = np.stack([net.smallest(), net.largest()])
        >>> small, large = recalibrate(net, genomes, [torch.rand(4, 3, 32, 32)])
        >>> small["first_conv.bn.running_mean"].shape
        torch.Size([16])
    """
    tree = _Tree(supernet, genomes, None, large=None)
    if not any(tree.norms):
        return tree.statistics()
    seen = 0
    with _borrowed(supernet, training=True):
        for images in batches:
            if len(images) < 2:
                raise DataError(
                    "norm statistics: expected batches of 2 images or more, got one of "
                    f"{len(images)}; drop the last one"
                )
            for _ in tree.run(images):
                seen += 1
    if not seen and len(genomes):
        raise DataError("norm statistics: no batch to estimate them from; give at least one")
    return tree.statistics()


@torch.no_grad()
def logits(
    supernet: Supernet,
    genomes: Genomes,
    statistics: Sequence[Statistics],
    batches: Iterable[Tensor],
    *,
    large: int = LARGE,
) -> Iterator[Tensor]:
    """Logits (n, m, classes) of all genomes' networks for each batch of images, in eval mode.

    The supernet stays as it is, also between the batches.

    Args:
        supernet: whose subnets.
        genomes: (n, genes), n >= 1.
        statistics: one per genome, from :func:`recalibrate`.
        batches: images, each (m, 3, h, w), resized to each subnet's resolution.
        large: numbers in a tensor above which a CPU works on the images in parts.

    Raises:
        SpaceError: when a genome lies outside the space.
        StoreError: when the statistics are not those of the genomes.
    """
    if len(statistics) != len(genomes):
        raise StoreError(
            f"statistics: expected one per genome, {len(genomes)}; got {len(statistics)}"
        )
    tree = _Tree(supernet, genomes, statistics, large=large)
    for images in batches:
        answers: dict[int, Tensor] = {}
        with _borrowed(supernet, training=False):
            for rows, outputs in tree.run(images):
                answers |= dict.fromkeys(rows, outputs)
        yield torch.stack([answers[row] for row in range(len(genomes))])


def accuracies(
    supernet: Supernet,
    genomes: Genomes,
    statistics: Sequence[Statistics],
    batches: Iterable[tuple[Tensor, Tensor]],
    task: Task = CLASSIFICATION,
) -> Floats:
    """Scores (n,) of each genome's network in one pass over images: shares of right answers.

    Args:
        supernet: whose subnets.
        genomes: (n, genes), n >= 1.
        statistics: one per genome, from :func:`recalibrate`.
        batches: images (m, 3, h, w) and their labels (m,).
        task: what outputs mean.

    Raises:
        DataError: when there is no image.
        SpaceError, StoreError: as :func:`logits`.
    """
    waiting: list[Tensor] = []

    def images() -> Iterator[Tensor]:
        for batch, labels in batches:
            waiting.append(labels)
            yield batch

    scorers: list[Scorer] = []
    for outputs in logits(supernet, genomes, statistics, images()):
        labels = waiting.pop()
        scorers = scorers or [task.scorer(outputs.device) for _ in genomes]
        for scorer, own in zip(scorers, outputs, strict=True):
            scorer.add(own, labels)
    if not scorers:
        raise DataError("accuracy: no image to classify; give at least one")
    return np.array([scorer.result().value for scorer in scorers])


@dataclass(eq=False)
class _Node:
    """A slot at a shape, after a path of others: the genomes' rows that go through it."""

    slot: int
    shape: LayerShape
    rows: list[int]
    buffers: list[dict[str, Tensor]]
    below: list[_Node] = field(default_factory=list)


class _Tree:
    """Subnets as paths from a root per resolution; a layer after the same path is one node."""

    def __init__(
        self,
        supernet: Supernet,
        genomes: Genomes,
        statistics: Sequence[Statistics] | None,
        *,
        large: int | None,
    ) -> None:
        supernet.architectures.space.validate(genomes)
        self.supernet = supernet
        self.count = len(genomes)
        self.modules = [fused(module) for _, module in supernet.slots()]
        self.norms = [_norms(slot.name, module) for slot, module in supernet.slots()]
        self.given = statistics
        self.large = large
        self.paths = [
            [
                (number, shape)
                for number in range(len(self.modules))
                if (shape := supernet.shape(number, genome)) is not None
            ]
            for genome in genomes
        ]
        rows_at: dict[int, list[int]] = {}
        for row, genome in enumerate(genomes):
            rows_at.setdefault(supernet.resolution(genome), []).append(row)
        self.roots = {size: self._grow(rows, 0) for size, rows in rows_at.items()}

    def run(self, images: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Run every node once; yields rows of genomes that are one network, and its output."""
        for size, nodes in self.roots.items():
            sized = resize(images, size)
            for node in nodes:
                yield from self._walk(node, sized)

    def statistics(self) -> list[Statistics]:
        """Buffers of the norms on each genome's path, as narrow as its layers."""
        found: list[dict[str, Tensor]] = [{} for _ in range(self.count)]
        for nodes in self.roots.values():
            waiting = list(nodes)
            while waiting:
                node = waiting.pop()
                waiting += node.below
                for norm, buffers in zip(self.norms[node.slot], node.buffers, strict=True):
                    width = norm.width(node.shape)
                    for name, value in buffers.items():
                        narrow = value[:width].clone() if value.ndim else value.clone()
                        for row in node.rows:
                            found[row][f"{norm.name}.{name}"] = narrow
        return [{name: own[name] for name in sorted(own)} for own in found]

    def _grow(self, rows: list[int], depth: int) -> list[_Node]:
        groups: dict[object, list[int]] = {}
        for row in rows:
            if depth < len(self.paths[row]):
                slot, shape = self.paths[row][depth]
                groups.setdefault((slot, shape, self._identity(row, slot)), []).append(row)
        nodes = []
        for members in groups.values():
            slot, shape = self.paths[members[0]][depth]
            node = _Node(slot, shape, members, self._buffers(members[0], slot, shape))
            node.below = self._grow(members, depth + 1)
            nodes.append(node)
        return nodes

    def _walk(self, node: _Node, images: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        self.supernet.activate_slot(node.slot, node.shape)
        for norm, buffers in zip(self.norms[node.slot], node.buffers, strict=True):
            norm.layer._buffers.update(buffers)
        made = [self.modules[node.slot](part) for part in self._parts(node, images)]
        outputs = made[0] if len(made) == 1 else torch.cat(made)
        if not node.below:
            yield node.rows, outputs
        for below in node.below:
            yield from self._walk(below, outputs)

    def _parts(self, node: _Node, images: Tensor) -> Sequence[Tensor]:
        """All at once, or on a CPU in parts, where a layer's widest tensor would be a large one.

        A large tensor's memory goes back to the system at once, and fetching it anew takes as long
        as the layer. While norms look at the whole batch there are no parts (``large`` is None).
        """
        if self.large is None or images.device.type != "cpu":
            return [images]
        shape = node.shape
        widest = max(shape.in_channels, shape.mid_channels, shape.out_channels)
        numbers = images.numel() // shape.in_channels * widest
        return images.chunk(math.ceil(numbers / self.large))

    def _identity(self, row: int, slot: int) -> tuple[int, ...]:
        """Tells statistics apart: only networks that share them can share the layer's work."""
        if self.given is None:
            return ()
        own = self.given[row]
        return tuple(id(own.get(f"{norm.name}.running_mean")) for norm in self.norms[slot])

    def _buffers(self, row: int, slot: int, shape: LayerShape) -> list[dict[str, Tensor]]:
        """What the norms of a node read or write: fresh statistics, or the row's own."""
        made = []
        for norm in self.norms[slot]:
            fresh = {
                name: torch.ones_like(value) if name == "running_var" else torch.zeros_like(value)
                for name, value in norm.layer.named_buffers()
            }
            if self.given is not None:
                for name, value in fresh.items():
                    own = self.given[row].get(f"{norm.name}.{name}")
                    expected = (norm.width(shape),) if value.ndim else ()
                    if own is None or tuple(own.shape) != expected:
                        raise StoreError(
                            f"statistics of row {row}: expected {norm.name}.{name} of shape "
                            f"{expected}, got {None if own is None else tuple(own.shape)}; they "
                            "are of another genome"
                        )
                    value[tuple(slice(0, size) for size in expected)] = own
            made.append(fresh)
        return made


@dataclass(frozen=True, eq=False)
class _Norm:
    """A norm of a slot: the layer that holds the buffers, and its name in an extracted network."""

    name: str
    layer: nn.BatchNorm2d
    piece: ElasticNorm | None

    def width(self, shape: LayerShape) -> int:
        """Active channels at ``shape``."""
        if self.piece is None:
            return self.layer.num_features
        width: int = getattr(shape, self.piece.width)
        return width


def _norms(slot: str, module: nn.Module) -> list[_Norm]:
    named = dict(module.named_modules())
    pieces = {id(part.bn): (name, part) for name, part in named.items()
              if isinstance(part, ElasticNorm)}  # fmt: skip
    found = []
    for name, part in named.items():
        if isinstance(part, nn.BatchNorm2d):
            path, piece = pieces.get(id(part), (name, None))
            found.append(_Norm(f"{slot}.{path}", part, piece))
    return found


@contextmanager
def _borrowed(supernet: Supernet, *, training: bool) -> Iterator[None]:
    """Eval mode but for the norms, whose buffers may be exchanged; all is put back afterwards."""
    layers = [part for part in supernet.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [(dict(layer._buffers), layer.momentum) for layer in layers]
    modes = {part: part.training for part in supernet.modules()}
    supernet.eval()
    for layer in layers:
        layer.training = training
        layer.momentum = None
    try:
        yield
    finally:
        for layer, (buffers, momentum) in zip(layers, before, strict=True):
            layer._buffers.update(buffers)
            layer.momentum = momentum
        for part, mode in modes.items():
            part.training = mode
        supernet.activate(supernet.active)
