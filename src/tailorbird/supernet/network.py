"""One supernet for all spaces: built from the data of an :class:`ArchitectureSpace`.

Every slot of the space becomes a module under the slot's name, large enough for all of the slot's
shapes. Slots whose shape depends on more than the resolution are made of elastic pieces, the others
of plain layers; those of transformers are always elastic. Parameters have the names and shapes of
the once-for-all code, where that has such layers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.data.resizing import resized
from tailorbird.errors import DataError, SpaceError
from tailorbird.space import Genome
from tailorbird.supernet.elastic import Elastic, draw
from tailorbird.supernet.kinds.maker import Maker
from tailorbird.supernet.kinds.table import Kinds
from tailorbird.supernet.layout import ArchitectureSpace
from tailorbird.supernet.shapes import LayerShape, Slot


class Supernet(nn.Module):
    """All networks of a space in one set of shared weights; one of them is active.

    Use :func:`build_supernet`, which also initialises the weights.

    Args:
        architectures: the space.
        dropout: probability before the classifier, in train mode.

    Attributes:
        architectures: the space, its classifier with as many classes as this network.
        active: genome (genes,) of the network that ``forward`` runs; the largest at first.

    Raises:
        SpaceError: for a space whose slots no module can serve.
    """

    def __init__(self, architectures: ArchitectureSpace, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.architectures = architectures
        self._modules_of: list[nn.Module] = []
        for slot in architectures.slots:
            module = _build(slot, dropout, architectures.kinds)
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
                    part.eps = architectures.norm_epsilon
            self._modules_of.append(module)
            parent: nn.Module = self
            *folders, last = slot.name.split(".")
            for folder in folders:
                if folder not in dict(parent.named_children()):
                    parent.add_module(folder, nn.ModuleDict())
                parent = parent.get_submodule(folder)
            parent.add_module(last, module)
        self._pieces = [
            [part for part in module.modules() if isinstance(part, Elastic)]
            for module in self._modules_of
        ]
        self._path: list[nn.Module] = []
        self.active = self.largest()
        self.activate(self.active)

    def activate(self, genome: Genome) -> None:
        """Make the network of ``genome`` (genes,) the one that runs.

        Raises:
            SpaceError: when the genome lies outside the space.
        """
        self.architectures.space.validate(genome[None])
        self._path = [
            module
            for number, module in enumerate(self._modules_of)
            if self.activate_slot(number, self.shape(number, genome))
        ]
        self.active = genome.copy()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of the active network for images (n, 3, h, w).

        The resolution gene is the caller's to apply (:func:`resize`).
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(
                f"images: expected shape (n, 3, height, width), got {tuple(images.shape)}; grey "
                "images are loaded in colour with channels: 3"
            )
        for module in self._path:
            images = module(images)
        return images

    @property
    def dropout(self) -> float:
        """Probability before the classifier, in train mode."""
        return max((m.p for m in self.modules() if isinstance(m, nn.Dropout)), default=0.0)

    def largest(self) -> Genome:
        """Genome (genes,) with every gene at its last value."""
        last = self.architectures.space.sizes - 1
        genome: Genome = self.architectures.space.canonical(last[None])[0]
        return genome

    def smallest(self) -> Genome:
        """Genome (genes,) with every gene at its first value."""
        return np.zeros(len(self.architectures.space.choices), dtype=np.int64)

    def resolution(self, genome: Genome) -> int:
        """Image size in pixels that the genome asks for."""
        return cast("int", self.architectures.space.choices[0].values[int(genome[0])])

    def slots(self) -> list[tuple[Slot, nn.Module]]:
        """Each slot of the space and its module, in the order in which they run."""
        return list(zip(self.architectures.slots, self._modules_of, strict=True))

    def shape(self, slot: int, genome: Genome) -> LayerShape | None:
        """Shape that a valid genome gives slot number ``slot``; ``None`` where it is absent."""
        described = self.architectures.slots[slot]
        return described.variants[tuple(genome[list(described.genes)].tolist())]

    def activate_slot(self, slot: int, shape: LayerShape | None) -> bool:
        """Give one slot's pieces their shape; False where the slot is absent."""
        if shape is None:
            return False
        for piece in self._pieces[slot]:
            piece.activate(shape)
        return True


def build_supernet(
    space: ArchitectureSpace,
    *,
    classes: int | None = None,
    dropout: float = 0.0,
    generator: torch.Generator,
) -> Supernet:
    """A supernet with fresh weights, on the CPU, in train mode.

    Convolutions: normal, variance 2 / outgoing connections (He et al. 2015). Norms: scale 1, shift
    0. Kernel transforms: identity. Where the space says a standard deviation (transformers): normal
    with that one, cut off at 2, positions included. The global generators are neither read nor
    advanced.

    Args:
        space: any space.
        classes: outputs of the classifier; as in the space's data when ``None``.
        dropout: probability before the classifier, in train mode.
        generator: what the weights are drawn from.

    Raises:
        SpaceError: for a space that can't be built, or classes or dropout out of range.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[32])
        >>> net = build_supernet(space, classes=10, generator=torch.Generator().manual_seed(0))
        >>> net.activate(net.smallest())
        >>> net.eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if classes is not None and classes < 1:
        raise SpaceError(f"classes: expected 1 or more, got {classes}")
    if not 0.0 <= dropout < 1.0:
        raise SpaceError(f"dropout: expected a probability from 0 to below 1, got {dropout}")
    sized = space if classes is None else with_classes(space, classes)
    with torch.device("meta"):  # building there draws nothing
        net = Supernet(sized, dropout=dropout)
    net.to_empty(device="cpu")
    initialise(net, generator, std=space.initial_std)
    return net


def with_classes(space: ArchitectureSpace, classes: int) -> ArchitectureSpace:
    """The same space with another number of outputs of its classifier, counted as such."""
    slots = tuple(
        replace(
            slot,
            variants={
                index: replace(shape, out_channels=classes)
                if shape is not None and space.kind_of(shape).role == "classifier"
                else shape
                for index, shape in slot.variants.items()
            },
        )
        for slot in space.slots
    )
    return replace(space, slots=slots)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator, *, std: float | None = None) -> None:
    """Draw fresh weights for all layers of ``module``, **in place** (see build_supernet)."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, Elastic):
            part.initialise(generator, std)
        elif isinstance(part, nn.Conv2d | nn.Linear):
            if std is not None:
                draw(part.weight, std, generator)
            elif isinstance(part, nn.Conv2d):
                outgoing = part.weight[0, 0].numel() * part.out_channels // part.groups
                part.weight.normal_(0.0, math.sqrt(2.0 / outgoing), generator=generator)
            else:
                bound = 1.0 / math.sqrt(part.in_features)
                part.weight.uniform_(-bound, bound, generator=generator)
            if part.bias is not None:
                part.bias.zero_()
        elif next(part.parameters(recurse=False), None) is not None:
            raise SpaceError(f"weights: no rule for how those of {type(part).__name__} start")


def resize(images: Tensor, size: int) -> Tensor:
    """Images (n, c, h, w) at ``size`` x ``size`` pixels, bilinear; the same where they are.

    Example:
        >>> resize(torch.zeros(1, 3, 32, 32), 24).shape
        torch.Size([1, 3, 24, 24])
    """
    return resized(images, (size, size))


_FIXED = ("kind", "stride", "se", "activation", "residual", "norm", "head_channels")


def _build(slot: Slot, dropout: float, kinds: Kinds) -> nn.Module:
    """The module of a slot, at its largest."""
    shapes = slot.shapes()
    mixed = [name for name in _FIXED if len({getattr(shape, name) for shape in shapes}) > 1]
    if len({shape.expand == 1 for shape in shapes}) > 1:
        mixed.append("expand (1 beside others)")
    if mixed or not shapes:
        raise SpaceError(
            f"slot {slot.name}: expected one value in all of its shapes of "
            f"{', '.join(mixed) or 'anything'}; describe it as two layers"
        )
    kind = shapes[0].kind
    if kind not in kinds:
        raise SpaceError(
            f"slot {slot.name}: no module for kind {kind!r}; expected one of {', '.join(kinds)}"
        )
    return kinds[kind].build(Maker(slot, dropout))
