"""Discrete search spaces: a genome is a row of integers, one gene per choice.

All operators work on whole arrays of genomes; their cost grows with rows times genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from tailorbird.errors import SpaceError

Genomes = npt.NDArray[np.int64]
Genome = npt.NDArray[np.int64]
"""One of them (genes,)."""


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
class Condition:
    """A gene is active only while gene number ``gene`` is at least ``least`` (both indices).

    The gene asked about comes earlier in the space. A block of a stage is active while the stage's
    depth gene reaches it.
    """

    gene: int
    least: int


@dataclass(frozen=True)
class Space:
    """A product of choices, optionally with genes that exclude or depend on each other.

    Genomes are ``int64`` arrays of shape (n, genes). Gene value 0 is the neutral one where
    ``conflicts`` are given: of two genes in conflict, at most one may differ from 0. Inactive genes
    are 0, so that every member has one genome (it is canonical).

    Args:
        choices: one per gene.
        conflicts: symmetric boolean (genes, genes), or ``None`` where all combinations are valid.
        conditions: gene -> what makes it active; genes that aren't named always are.

    Example:
        >>> space = Space((Choice("a", (0, 1, 2)), Choice("b", (0, 1))))
        >>> space.sample(4, np.random.default_rng(0)).shape
        (4, 2)
        >>> space.decode(np.array([[2, 1]]))
        [{'a': 2, 'b': 1}]
        >>> depth, block = Choice("depth", (1, 2)), Choice("block_2", ("a", "b", "c"))
        >>> Space((depth, block), conditions={1: Condition(gene=0, least=1)}).size
        4
    """

    choices: tuple[Choice, ...]
    conflicts: npt.NDArray[np.bool_] | None = field(default=None, compare=False)
    conditions: Mapping[int, Condition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [choice.name for choice in self.choices]
        if len(set(names)) != len(names):
            raise SpaceError(f"choices: names must differ, got {names}")
        genes = len(names)
        if self.conflicts is not None and self.conflicts.shape != (genes, genes):
            raise SpaceError(
                f"conflicts: expected shape {(genes, genes)}, got {self.conflicts.shape}"
            )
        for gene, condition in self.conditions.items():
            if not 0 <= condition.gene < gene < genes or condition.least < 1:
                raise SpaceError(
                    f"conditions: gene {gene} of {genes} has to depend on an earlier gene's "
                    f"index of 1 or more, got {condition}"
                )
            if self.conflicts is not None and self.conflicts[[condition.gene, gene]].any():
                raise SpaceError(
                    f"conditions: neither gene {gene} nor gene {condition.gene}, which it depends "
                    "on, may have conflicts"
                )

    @cached_property
    def sizes(self) -> Genomes:
        """(genes,) number of values per gene."""
        return np.array([len(choice.values) for choice in self.choices], dtype=np.int64)

    @cached_property
    def size(self) -> int:
        """Number of canonical genomes, conflicts not counted off."""
        totals = [1] * len(self.choices)
        for gene in reversed(range(len(self.choices))):
            below = [other for other, c in self.conditions.items() if c.gene == gene]
            for value in range(len(self.choices[gene].values)):
                ways = 1
                for other in below:
                    ways *= totals[other] if value >= self.conditions[other].least else 1
                totals[gene] = ways if value == 0 else totals[gene] + ways
        size = 1
        for gene, total in enumerate(totals):
            size *= 1 if gene in self.conditions else total
        return size

    def active(self, genomes: Genomes) -> npt.NDArray[np.bool_]:
        """Which genes (n, genes) take part in their genomes."""
        mask = np.ones(genomes.shape, dtype=np.bool_)
        for least, parents, genes in self._levels:
            mask[:, genes] = (genomes[:, parents] >= least) & mask[:, parents]
        return mask

    def canonical(self, genomes: Genomes) -> Genomes:
        """A copy whose inactive genes are 0."""
        return np.where(self.active(genomes), genomes, 0) if self.conditions else genomes.copy()

    def sample(self, count: int, rng: np.random.Generator) -> Genomes:
        """``count`` random genomes (count, genes); conflicts are resolved in random order."""
        genomes = rng.integers(0, self.sizes, size=(count, len(self.choices)))
        return self._resolve(self.canonical(genomes), rng)

    def mutate(self, genomes: Genomes, rng: np.random.Generator, *, rate: float) -> Genomes:
        """Redraw each gene with probability ``rate``; genes that become active are redrawn too."""
        redraw = rng.random(genomes.shape) < rate
        fresh = rng.integers(0, self.sizes, size=genomes.shape)
        mutants = np.where(redraw, fresh, genomes)
        if self.conditions:
            active = self.active(mutants)
            mutants = np.where(active & ~self.active(genomes), fresh, mutants)
            active = self.active(mutants)  # a redrawn gene may have children of its own
            mutants = np.where(active, mutants, 0)
        return self._resolve(mutants, rng)

    def crossover(self, left: Genomes, right: Genomes, rng: np.random.Generator) -> Genomes:
        """Uniform crossover of two arrays of genomes of one shape.

        A gene that is active in one parent only comes from that parent.
        """
        from_left = rng.random(left.shape) < 0.5
        if not self.conditions:
            return self._resolve(np.where(from_left, left, right), rng)
        in_left, in_right = self.active(left), self.active(right)
        from_left = np.where(in_left == in_right, from_left, in_left)
        return self._resolve(self.canonical(np.where(from_left, left, right)), rng)

    def neighbours(self, genomes: Genomes) -> tuple[Genomes, npt.NDArray[np.int64]]:
        """All genomes that differ from one of ``genomes`` by a change of one gene.

        Where a change makes genes active, these take the index 0 together, then 1 and so on: one
        neighbour each. Where it makes a gene differ from 0, genes in conflict with it become 0.

        Returns:
            Neighbours (m, genes), and of each the row (m,) in ``genomes`` that it belongs to. A
            neighbour equal to its own row is left out.
        """
        gene, value, fill = (np.array(column) for column in zip(*self._moves, strict=True))
        rows = np.repeat(np.arange(len(genomes)), len(gene))
        moved = np.repeat(genomes, len(gene), axis=0)
        gene, value, fill = (np.tile(column, len(genomes)) for column in (gene, value, fill))
        before = self.active(moved)
        moved[np.arange(len(moved)), gene] = value
        if self.conditions:
            woken = self.active(moved) & ~before
            # Without a woken gene all fills are one move: keep the first.
            keep = (fill == 0) | (woken & (self.sizes > fill[:, None])).any(axis=1)
            filled = np.minimum(fill[:, None], self.sizes - 1)
            moved = self.canonical(np.where(woken, filled, moved))[keep]
            rows, gene, value = rows[keep], gene[keep], value[keep]
        if self.conflicts is not None:
            moved = np.where(self.conflicts[gene] & (value != 0)[:, None], 0, moved)
        differs = (moved != genomes[rows]).any(axis=1)
        return moved[differs], rows[differs]

    def enumerate(self) -> Genomes:
        """Every canonical genome (size, genes), in lexicographic order; for small spaces.

        Raises:
            SpaceError: when there are more than 10 million, or genes are in conflict.
        """
        if self.conflicts is not None or self.size > 10_000_000:
            raise SpaceError(
                f"enumerate: expected at most 10,000,000 members without conflicts, got a space of "
                f"{self.size:,}; sample it instead"
            )
        genomes = np.zeros((1, len(self.choices)), dtype=np.int64)
        for gene, size in enumerate(self.sizes):
            active = np.ones(len(genomes), dtype=np.bool_)
            if gene in self.conditions:
                active = self.active(genomes)[:, gene]
            repeats = np.where(active, size, 1)
            ends = np.cumsum(repeats)
            genomes = np.repeat(genomes, repeats, axis=0)
            genomes[:, gene] = np.arange(len(genomes)) - np.repeat(ends - repeats, repeats)
        return genomes

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
        return self.canonical(genomes)

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
        """Check shape, range, inactive genes and conflicts.

        Raises:
            SpaceError: naming the first faulty row and gene, and the count of faulty rows.
        """
        if genomes.ndim != 2 or genomes.shape[1] != len(self.choices):
            raise SpaceError(
                f"genomes: expected shape (n, {len(self.choices)}), got {genomes.shape}"
            )
        if not np.issubdtype(genomes.dtype, np.integer):
            raise SpaceError(f"genomes: expected integers, got {genomes.dtype}")
        outside = (genomes < 0) | (genomes >= self.sizes)
        if outside.any():
            row, gene = np.argwhere(outside)[0]
            raise SpaceError(
                f"{outside.any(axis=1).sum()} genomes lie outside the space; first: row {row}, "
                f"{self.choices[gene].name}={genomes[row, gene]}, expected 0 to "
                f"{self.sizes[gene] - 1}"
            )
        idle = (self.canonical(genomes) != genomes).any(axis=1)
        if idle.any():
            raise SpaceError(
                f"{idle.sum()} genomes have inactive genes that differ from 0; first: row "
                f"{int(np.argmax(idle))}; canonical() clears them"
            )
        if self.conflicts is not None:
            active = (genomes != 0).astype(np.int64)
            clashes = np.einsum("ni,ij,nj->n", active, np.triu(self.conflicts, 1), active)
            if clashes.any():
                raise SpaceError(
                    f"{(clashes > 0).sum()} genomes choose alternatives that overlap; first: row "
                    f"{int(np.argmax(clashes > 0))}"
                )

    @cached_property
    def _levels(self) -> list[tuple[Genomes, Genomes, Genomes]]:
        """(least, parents, genes) of all conditions, grouped so that parents come first."""
        depth: dict[int, int] = {}
        for gene in sorted(self.conditions):
            depth[gene] = depth.get(self.conditions[gene].gene, -1) + 1
        levels = []
        for level in range(max(depth.values(), default=-1) + 1):
            genes = [gene for gene, at in depth.items() if at == level]
            conditions = [self.conditions[gene] for gene in genes]
            levels.append(
                (
                    np.array([c.least for c in conditions]),
                    np.array([c.gene for c in conditions]),
                    np.array(genes),
                )
            )
        return levels

    @cached_property
    def _moves(self) -> list[tuple[int, int, int]]:
        """(gene, value, fill of the genes that it makes active) of every change of one gene."""
        parents = {condition.gene for condition in self.conditions.values()}
        fills = {
            gene: max(int(self.sizes[g]) for g, c in self.conditions.items() if c.gene == gene)
            for gene in parents
        }
        return [
            move
            for gene, size in enumerate(self.sizes)
            for move in product((gene,), range(int(size)), range(fills.get(gene, 1)))
        ]

    def _resolve(self, genomes: Genomes, rng: np.random.Generator) -> Genomes:
        """Set genes to 0 until no conflict is left, visiting them in one random order."""
        if self.conflicts is None:
            return genomes
        resolved = np.zeros_like(genomes)
        for gene in rng.permutation(len(self.choices)):
            blocked = (resolved[:, self.conflicts[gene]] != 0).any(axis=1)
            resolved[:, gene] = np.where(blocked, 0, genomes[:, gene])
        return resolved
