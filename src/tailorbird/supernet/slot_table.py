"""Figures of architectures that add up over their layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tailorbird.errors import SpaceError
from tailorbird.family import Floats
from tailorbird.space import Genomes
from tailorbird.threads import one_thread

if TYPE_CHECKING:
    from tailorbird.supernet.layout import ArchitectureSpace
    from tailorbird.supernet.shapes import LayerShape, Slot

_CHUNK = 4096

SlotValue: TypeAlias = "Callable[[Slot, tuple[int, ...], LayerShape], float]"


class SlotTable:
    """A figure that adds up over the layers, compiled to one array.

    Slots that depend on the same genes are merged; a genome's entries are gathered at flat indices
    ``genomes @ strides + offsets``, so time grows with rows times slots.

    Args:
        space: whose genomes are to be summed.
        value_of: the figure of a layer; absent layers count 0.

    Raises:
        SpaceError: where a figure isn't finite, naming the slots.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("compofa-mbv3-w1.0")
        >>> blocks = SlotTable(space, lambda shape: shape.kind == "mbconv")
        >>> blocks.sum(np.zeros((1, 6), dtype=np.int64))  # 5 stages of 2, and the first block
        array([11.])
    """

    def __init__(self, space: ArchitectureSpace, value_of: Callable[[LayerShape], float]) -> None:
        self._fill(space, lambda _slot, _index, shape: value_of(shape))

    @classmethod
    def per_slot(cls, space: ArchitectureSpace, value_of: SlotValue) -> SlotTable:
        """The same with figures that depend on the place, and on the values that led to the shape.

        Args:
            space: whose genomes are to be summed.
            value_of: the figure of (slot, index values of ``slot.genes``, layer).
        """
        table = cls.__new__(cls)
        table._fill(space, value_of)
        return table

    @one_thread()
    def sum(self, genomes: Genomes) -> Floats:
        """Sums (n,) of the canonical genomes (n, genes).

        Raises:
            SpaceError: when the genomes have another number of genes.
        """
        if genomes.ndim != 2 or genomes.shape[1] != len(self._strides):
            raise SpaceError(
                f"genomes: expected shape (n, {len(self._strides)}), got {genomes.shape}; "
                "this table was compiled for another space"
            )
        sums = np.empty(len(genomes))
        for start in range(0, len(genomes), _CHUNK):  # the gathered rows stay in the cache
            part = genomes[start : start + _CHUNK].astype(self._strides.dtype)
            flat = (part @ self._strides + self._offsets).astype(np.intp)
            self._values.take(flat).sum(axis=1, out=sums[start : start + _CHUNK])
        return sums

    def _fill(self, space: ArchitectureSpace, value_of: SlotValue) -> None:
        sizes = space.space.sizes
        tables: dict[tuple[int, ...], Floats] = {}
        problems = []
        for slot in space.slots:
            table = tables.setdefault(slot.genes, np.zeros(sizes[list(slot.genes)]))
            filled = np.zeros_like(table)
            for index, shape in slot.variants.items():
                filled[index] = 0.0 if shape is None else value_of(slot, index, shape)
            wrong = ~np.isfinite(filled)
            if wrong.any():
                problems.append(f"{slot.name} ({wrong.sum()} of {wrong.size} shapes)")
            table += filled
        if problems:
            raise SpaceError(
                "expected finite figures of all layers; not finite: " + ", ".join(problems)
            )
        ends = np.cumsum([table.size for table in tables.values()])
        # Indices are whole numbers that a float holds exactly, and its products are much faster.
        exact = np.float32 if ends[-1] < 1 << 24 else np.float64
        strides = np.zeros((len(sizes), len(tables)), dtype=exact)
        for column, (genes, table) in enumerate(tables.items()):
            strides[list(genes), column] = np.array(table.strides) // table.itemsize
        self._strides = strides
        self._offsets = np.array([0, *ends[:-1]], dtype=exact)
        self._values = np.concatenate([table.ravel() for table in tables.values()])
