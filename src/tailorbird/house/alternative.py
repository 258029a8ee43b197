"""What stands in for a block of the teacher, and the record that is kept of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from torch import fx

from tailorbird.graph.blocks import Block


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One module that can replace one block of the teacher.

    Args:
        name: unique in the house, such as ``"a0012"``; names its files.
        block: key of the teacher's block that it replaces.
        origin: ``"teacher"``, ``"identity"``, ``"designed"`` or a donor's name.
        source: key of the block that it was taken from, in its origin; the name of a design.
        variant: ``"whole"``, how it was pruned, such as ``"discrepancy 0.25"``, or ``"merged"``.
        macs: multiply-accumulates at batch 1.
        params: number of parameters.
        structure: structure key; equal keys have equal latency.
        as_is: its weights are those of a trained network in the places that they were trained
            for; it is taken as it is, not distilled.
    """

    name: str
    block: str
    origin: str
    source: str
    variant: str
    macs: int
    params: int
    structure: str
    as_is: bool = False

    @property
    def trainable(self) -> bool:
        """Whether distillation has anything to train."""
        return self.params > 0 and not self.as_is


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The house before training: sampled blocks, alternatives with their modules, rejections.

    Args:
        blocks: key -> block of the teacher.
        alternatives: in the order in which they were made.
        modules: alternative's name -> its module, one placeholder, same shapes as its block.
        rejections: reason -> how many candidates were turned away for it.
        pending: which alternatives are smaller than their block is still to be measured.
        devices: keys of the places on which that was measured; by MACs where there are none.
    """

    blocks: dict[str, Block]
    alternatives: tuple[Alternative, ...]
    modules: dict[str, fx.GraphModule]
    rejections: Counter[str] = field(default_factory=Counter)
    pending: bool = False
    devices: tuple[str, ...] = ()

    def record(self) -> dict[str, object]:
        """The sample as plain data, without weights."""
        return {
            "blocks": [asdict(block) for block in self.blocks.values()],
            "alternatives": [asdict(alternative) for alternative in self.alternatives],
            "rejections": dict(self.rejections),
            "pending": self.pending,
            "devices": list(self.devices),
        }
