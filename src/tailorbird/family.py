"""The seam between what can be built and how it is searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from tailorbird.errors import SpaceError
from tailorbird.space import Genomes, Space

Floats = npt.NDArray[np.float64]


class Estimated(Protocol):
    """A discrete space of networks that can be priced and judged: all that a search needs."""

    @property
    def space(self) -> Space:
        """The genomes that name the family's members."""

    def cost(self, genomes: Genomes) -> Mapping[str, Floats]:
        """Predicted cost of ``genomes`` (n x genes): metric -> array of n."""

    def quality(self, genomes: Genomes) -> Floats:
        """Predicted quality of ``genomes`` (n x genes), higher is better: array of n."""


@dataclass(frozen=True, kw_only=True)
class AdditiveProblem:
    """Choose alternatives that do not overlap; losses and savings add up (Bespoke, eq. 4-5).

    Args:
        loss: (n,) accuracy lost by each alternative alone, as a fraction; may be negative.
        saving: (n, m) what each alternative saves of each metric against the teacher's block;
            negative where it costs more.
        base: (m,) the teacher's own figures.
        covers: (n, layers) boolean, the teacher's layers that each alternative replaces; two
            alternatives overlap where both cover one layer.
        metrics: the m metrics' names.

    Raises:
        SpaceError: listing shapes that do not agree and values that are not finite.
    """

    loss: Floats
    saving: Floats
    base: Floats
    covers: npt.NDArray[np.bool_]
    metrics: tuple[str, ...]

    def __post_init__(self) -> None:
        n, m = len(self.loss), len(self.metrics)
        problems = []
        if self.loss.ndim != 1:
            problems.append(f"loss: expected one dimension, got shape {self.loss.shape}")
        if self.saving.shape != (n, m):
            problems.append(f"saving: expected shape {(n, m)}, got {self.saving.shape}")
        if self.base.shape != (m,):
            problems.append(f"base: expected shape {(m,)}, got {self.base.shape}")
        if self.covers.ndim != 2 or len(self.covers) != n:
            problems.append(f"covers: expected shape ({n}, layers), got {self.covers.shape}")
        for name in ("loss", "saving", "base"):
            if not np.isfinite(getattr(self, name)).all():
                problems.append(f"{name}: holds values that are not finite")
        if problems:
            raise SpaceError("ill-formed problem: " + "; ".join(problems))

    def cost(self, chosen: npt.ArrayLike) -> Floats:
        """Predicted figures (m,) of the network with the alternatives ``chosen`` (indices)."""
        index = np.asarray(chosen, dtype=np.int64)
        return np.asarray(self.base - self.saving[index].sum(axis=0))

    def total_loss(self, chosen: npt.ArrayLike) -> float:
        """Summed accuracy loss of the alternatives ``chosen`` (eq. 4)."""
        return float(self.loss[np.asarray(chosen, dtype=np.int64)].sum())


class AdditiveFamily(Estimated, Protocol):
    """A family whose costs and losses add up, so that the best member can be proven."""

    @property
    def problem(self) -> AdditiveProblem:
        """The choice of a member as a choice of alternatives."""

    def genome(self, chosen: Sequence[int]) -> npt.NDArray[np.int64]:
        """The member (genes,) that holds the alternatives ``chosen`` (indices of the problem)."""


def is_additive(family: Estimated) -> TypeGuard[AdditiveFamily]:
    """Whether a family's costs add up, see `AdditiveFamily`."""
    return isinstance(getattr(family, "problem", None), AdditiveProblem)
