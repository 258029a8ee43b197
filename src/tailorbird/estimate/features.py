"""Genomes as numbers that regression can use: one-hot genes, and figures of the architecture.

A predictor learns from groups of columns: ``genes`` says exactly which member it is, ``figures``
says how large it is and where. From few pairs the figures carry most; from many, the genes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from tailorbird.errors import SpaceError
from tailorbird.family import Floats
from tailorbird.space import Genomes, Space
from tailorbird.supernet.architecture import ArchitectureSpace, LayerShape, Slot, SlotTable
from tailorbird.supernet.counts import macs, params

Figure = Callable[[Genomes], Floats]
"""Genomes (n, genes) -> one number each (n,)."""


class Features(Protocol):
    """Groups of columns computed from genomes; any object of this form can feed a predictor."""

    @property
    def columns(self) -> Mapping[str, tuple[str, ...]]:
        """Group -> names of its columns. Saved with a predictor and compared when it is loaded."""

    def __call__(self, genomes: Genomes) -> Mapping[str, Floats]:
        """Group -> (n, columns of the group) of genomes (n, genes)."""


def one_hot(space: Space, genomes: Genomes) -> Floats:
    """Indicator columns (n, sum of sizes), gene by gene; an inactive gene's are all 0.

    Raises:
        SpaceError: when a genome lies outside the space.

    Example:
        >>> from tailorbird.space import Choice, Condition
        >>> depth, kernel = Choice("depth", (1, 2)), Choice("kernel", (3, 5, 7))
        >>> space = Space((depth, kernel), conditions={1: Condition(gene=0, least=1)})
        >>> one_hot(space, np.array([[0, 0], [1, 2]]))
        array([[1., 0., 0., 0., 0.],
               [0., 1., 0., 0., 1.]])
    """
    space.validate(genomes)
    gene = np.repeat(np.arange(len(space.sizes)), space.sizes)
    value = np.concatenate([np.arange(size) for size in space.sizes])
    return np.asarray((genomes[:, gene] == value) & space.active(genomes)[:, gene], np.float64)


@dataclass(frozen=True)
class SpaceFeatures:
    """One-hot genes of any space, and figures of its members.

    Args:
        space: the genomes.
        figures: name -> what computes it, such as the logarithm of a cost; may be empty.

    Example:
        >>> from tailorbird.space import Choice
        >>> depth = Space((Choice("depth", (2, 3, 4)),))
        >>> features = SpaceFeatures(depth, {"layers": lambda genomes: 2.0 + genomes[:, 0]})
        >>> features.columns["genes"]
        ('depth=2', 'depth=3', 'depth=4')
        >>> features(np.array([[1]]))
        {'genes': array([[0., 1., 0.]]), 'figures': array([[3.]])}
    """

    space: Space
    figures: Mapping[str, Figure] = field(default_factory=dict)

    @cached_property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Names of the columns of both groups; no group of figures where there are none."""
        genes = tuple(
            f"{choice.name}={value}" for choice in self.space.choices for value in choice.values
        )
        return {"genes": genes} | ({"figures": tuple(self.figures)} if self.figures else {})

    def __call__(self, genomes: Genomes) -> dict[str, Floats]:
        """Both groups of the canonical genomes (n, genes).

        Raises:
            SpaceError: a genome outside the space, or a figure that isn't finite, named.
        """
        groups = {"genes": one_hot(self.space, genomes)}
        if self.figures:
            groups["figures"] = np.stack([f(genomes) for f in self.figures.values()], axis=1)
            wrong = ~np.isfinite(groups["figures"])
            if wrong.any():
                names = [name for column, name in enumerate(self.figures) if wrong[:, column].any()]
                raise SpaceError(
                    f"figures {', '.join(names)}: expected finite numbers, "
                    f"{wrong.any(axis=1).sum()} of {len(genomes)} genomes have others"
                )
        return groups


def architecture_features(space: ArchitectureSpace) -> SpaceFeatures:
    """One-hot genes, logarithms of MACs, parameters and resolution, and sums over each stage.

    A stage begins at a block that changes the number of channels or the map's size. Of each stage:
    its number of blocks, and the sums of kernel, expand ratio and their product, and of heads in a
    space that has any; of all blocks together the same.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> features = architecture_features(load_space("ofa-mbv3-w1.0"))
        >>> len(features.columns["genes"]), features.columns["figures"][:5]
        (160, ('log macs', 'log params', 'log resolution', 'blocks', 'kernel'))
    """
    figures: dict[str, Figure] = {
        "log macs": _logarithm(macs(space)),
        "log params": _logarithm(params(space)),
        "log resolution": _logarithm(resolutions(space)),
    }
    stages = _stages(space)

    def of_stage(value: Callable[[LayerShape], float], stage: int | None) -> Figure:
        """Sums a figure of the blocks of a stage (``None``: of all)."""

        def figure(slot: Slot, _index: tuple[int, ...], shape: LayerShape) -> float:
            found = stages.get(slot.name)
            return value(shape) if found is not None and stage in (None, found) else 0.0

        return SlotTable.per_slot(space, figure).sum

    attends = any(shape.heads for slot in space.slots for shape in slot.shapes())
    of_block = {**_BLOCK_FIGURES, **(_ATTENTION_FIGURES if attends else {})}
    for stage in (None, *sorted(set(stages.values()))):
        for name, value in of_block.items():
            label = name if stage is None else f"{name} of stage {stage}"
            figures[label] = of_stage(value, stage)
    return SpaceFeatures(space.space, figures)


_BLOCK_FIGURES: Mapping[str, Callable[[LayerShape], float]] = {
    "blocks": lambda _: 1.0,
    "kernel": lambda shape: float(shape.kernel),
    "expand": lambda shape: float(shape.expand),
    "kernel x expand": lambda shape: shape.kernel * shape.expand,
}
_ATTENTION_FIGURES: Mapping[str, Callable[[LayerShape], float]] = {
    "heads": lambda shape: float(shape.heads),
}


def resolutions(space: ArchitectureSpace) -> SlotTable:
    """Table whose sum is the image size of genomes, in pixels."""
    first = space.slots[0].name
    return SlotTable.per_slot(space, lambda slot, _, shape: shape.in_size * (slot.name == first))


def _logarithm(table: SlotTable) -> Figure:
    return lambda genomes: np.log(table.sum(genomes))


def _stages(space: ArchitectureSpace) -> dict[str, int]:
    """Number of the stage of each slot that holds blocks, from 0 on."""
    stages: dict[str, int] = {}
    stage = -1
    for slot in space.slots:
        shape = next(iter(slot.shapes()), None)
        if shape is None or space.kind_of(shape).role != "block":
            continue
        if stage < 0 or shape.in_channels != shape.out_channels or shape.stride != 1:
            stage += 1
        stages[slot.name] = stage
    return stages
