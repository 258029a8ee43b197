"""Discrete search spaces: a genome is a row of integers, one gene per choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from tailorbird.errors import SpaceError

Genomes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """One gene: a name and the values that it picks from; the gene is a value's index.

    Example:
        >>> Choice("kernel", (3, 5, 7)).values[1]
        5
    """

    name: str
    values: tuple[object, ...]

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise SpaceError(f"choice {self.name!r}: expected distinct values, got {self.values}")


@dataclass(frozen=True)
class Space:
    """A product of choices, optionally with genes that exclude each other.

    Genomes are ``int64`` arrays of shape (n, genes). Gene value 0 is the neutral one where
    ``conflicts`` are given: of two genes in conflict, at most one may differ from 0.

    Args:
        choices: one per gene.
        conflicts: symmetric boolean (genes, genes), or ``None`` where all combinations are valid.

    Example:
        >>> space = Space((Choice("a", (0, 1, 2)), Choice("b", (0, 1))))
        >>> space.sample(4, np.random.default_rng(0)).shape
        (4, 2)
        >>> space.decode(np.array([[2, 1]]))
        [{'a': 2, 'b': 1}]
    """

    choices: tuple[Choice, ...]
    conflicts: npt.NDArray[np.bool_] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        names = [choice.name for choice in self.choices]
        if len(set(names)) != len(names):
            raise SpaceError(f"choices: names must differ, got {names}")
        genes = len(names)
        if self.conflicts is not None and self.conflicts.shape != (genes, genes):
            raise SpaceError(
                f"conflicts: expected shape {(genes, genes)}, got {self.conflicts.shape}"
            )

    @property
    def sizes(self) -> Genomes:
        """(genes,) number of values per gene."""
        return np.array([len(choice.values) for choice in self.choices], dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of genomes, conflicts not counted off."""
        return prod(len(choice.values) for choice in self.choices)

    def sample(self, count: int, rng: np.random.Generator) -> Genomes:
        """``count`` random genomes (count, genes); conflicts are resolved in random order."""
        genomes = rng.integers(0, self.sizes, size=(count, len(self.choices)))
        return self._resolve(genomes, rng)

    def mutate(self, genomes: Genomes, rng: np.random.Generator, *, rate: float) -> Genomes:
        """Redraw each gene with probability ``rate``; the input is left as it is."""
        redraw = rng.random(genomes.shape) < rate
        fresh = rng.integers(0, self.sizes, size=genomes.shape)
        return self._resolve(np.where(redraw, fresh, genomes), rng)

    def crossover(self, left: Genomes, right: Genomes, rng: np.random.Generator) -> Genomes:
        """Uniform crossover of two arrays of genomes of one shape."""
        return self._resolve(np.where(rng.random(left.shape) < 0.5, left, right), rng)

    def encode(self, members: Sequence[Mapping[str, object]]) -> Genomes:
        """Genomes (n, genes) of members given as name -> value.

        Raises:
            SpaceError: naming each missing or unknown name and each value outside its choice.
        """
        problems = []
        genomes = np.zeros((len(members), len(self.choices)), dtype=np.int64)
        names = {choice.name for choice in self.choices}
        for row, member in enumerate(members):
            problems += [f"row {row}: unknown {name!r}" for name in member if name not in names]
            for gene, choice in enumerate(self.choices):
                if choice.name not in member:
                    problems.append(f"row {row}: {choice.name!r} is missing")
                elif member[choice.name] not in choice.values:
                    problems.append(
                        f"row {row}: {choice.name}={member[choice.name]!r} is not one of "
                        f"{choice.values}"
                    )
                else:
                    genomes[row, gene] = choice.values.index(member[choice.name])
        if problems:
            raise SpaceError("; ".join(problems))
        return genomes

    def decode(self, genomes: Genomes) -> list[dict[str, object]]:
        """Members as name -> value.

        Raises:
            SpaceError: when a genome lies outside the space.
        """
        self.validate(genomes)
        return [
            {
                choice.name: choice.values[gene]
                for choice, gene in zip(self.choices, row, strict=True)
            }
            for row in genomes
        ]

    def validate(self, genomes: Genomes) -> None:
        """Check shape, range and conflicts.

        Raises:
            SpaceError: naming the first faulty row and gene, and the count of faulty rows.
        """
        if genomes.ndim != 2 or genomes.shape[1] != len(self.choices):
            raise SpaceError(
                f"genomes: expected shape (n, {len(self.choices)}), got {genomes.shape}"
            )
        outside = (genomes < 0) | (genomes >= self.sizes)
        if outside.any():
            row, gene = np.argwhere(outside)[0]
            raise SpaceError(
                f"{outside.any(axis=1).sum()} genomes lie outside the space; first: row {row}, "
                f"{self.choices[gene].name}={genomes[row, gene]}, expected 0 to "
                f"{self.sizes[gene] - 1}"
            )
        if self.conflicts is not None:
            active = (genomes != 0).astype(np.int64)
            clashes = np.einsum("ni,ij,nj->n", active, np.triu(self.conflicts, 1), active)
            if clashes.any():
                raise SpaceError(
                    f"{(clashes > 0).sum()} genomes choose alternatives that overlap; first: row "
                    f"{int(np.argmax(clashes > 0))}"
                )

    def _resolve(self, genomes: Genomes, rng: np.random.Generator) -> Genomes:
        """Set genes to 0 until no conflict is left, visiting them in one random order."""
        if self.conflicts is None:
            return genomes
        resolved = np.zeros_like(genomes)
        for gene in rng.permutation(len(self.choices)):
            blocked = (resolved[:, self.conflicts[gene]] != 0).any(axis=1)
            resolved[:, gene] = np.where(blocked, 0, genomes[:, gene])
        return resolved
