"""Architectures as the once-for-all code writes them: ``{"ks": [...], "e": [...], "d": [...]}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import numpy.typing as npt

from tailorbird.errors import SpaceError
from tailorbird.family import Floats
from tailorbird.space import Condition, Genomes, Space

Faults = list[tuple[int, str]]
ALIASES = {"r": "image_size"}
_SHOWN = 20


@dataclass(frozen=True)
class Entry:
    """One position of one list of the official form.

    Attributes:
        gene: number of the gene that it shows; ``None`` for a constant.
        values: what is written for each index of the gene (a constant: one value).
        chooses: reading sets the gene. Otherwise what is read has to agree with the gene.
        condition: where the position is active; ``None`` for always.
        at_least: larger values agree too: a stage that has no more blocks runs all of them.
    """

    gene: int | None
    values: tuple[float, ...]
    chooses: bool
    condition: Condition | None = None
    at_least: bool = False


@dataclass(frozen=True)
class OfficialForm:
    """Entries of each key; scalars are the keys that hold a number and no list."""

    keys: Mapping[str, tuple[Entry, ...]]
    scalars: frozenset[str] = frozenset({"r"})

    def read(self, space: Space, architectures: Sequence[Mapping[str, object]]) -> Genomes:
        """Canonical genomes (n, genes) of the architectures.

        Raises:
            SpaceError: naming row, key and value of every fault.
        """
        faults: Faults = [
            (row, f"expected an object with {', '.join(self.keys)}, got {given!r:.80}")
            for row, given in enumerate(architectures)
            if not isinstance(given, Mapping)
        ]
        _raise(faults)
        columns = {
            key: self._matrix(key, entries, architectures, faults)
            for key, entries in self.keys.items()
        }
        genomes = np.zeros((len(architectures), len(space.choices)), dtype=np.int64)
        wrong = []
        for key, entries in self.keys.items():
            for position, entry in enumerate(entries):
                given = columns[key][:, position]
                if entry.chooses and entry.gene is not None:
                    hits = np.abs(given[:, None] - np.array(entry.values)) < 1e-9
                    genomes[:, entry.gene] = hits.argmax(axis=1)
                    wrong.append((key, position, entry, ~hits.any(axis=1)))
        genomes = space.canonical(genomes)
        for key, entries in self.keys.items():
            for position, entry in enumerate(entries):
                if not entry.chooses:
                    given = columns[key][:, position]
                    expected = _shown(entry, genomes)
                    differs = np.abs(given - expected) >= 1e-9
                    if entry.at_least:
                        differs &= given < expected
                    wrong.append((key, position, entry, differs))
        for key, position, entry, bad in wrong:
            given = columns[key][:, position]
            for row in np.flatnonzero(bad & _active(entry, genomes) & ~np.isnan(given)):
                place = key if key in self.scalars else f"{key}[{position}]"
                faults.append((int(row), f"{place}={given[row]:g}, {_wanted(entry, genomes[row])}"))
        _raise(faults)
        return genomes

    def write(self, space: Space, genomes: Genomes) -> list[dict[str, object]]:
        """The official form of each genome, inactive positions at their smallest value.

        Raises:
            SpaceError: when a genome lies outside the space.
        """
        space.validate(genomes)
        columns: list[list[object]] = []
        for key, entries in self.keys.items():
            whole = all(isinstance(v, int) for entry in entries for v in entry.values)
            matrix = np.empty((len(genomes), len(entries)), np.int64 if whole else np.float64)
            for position, entry in enumerate(entries):
                active = _active(entry, genomes)
                matrix[:, position] = np.where(active, _shown(entry, genomes), min(entry.values))
            columns.append((matrix[:, 0] if key in self.scalars else matrix).tolist())
        return [dict(zip(self.keys, row, strict=True)) for row in zip(*columns, strict=True)]

    def _matrix(
        self,
        key: str,
        entries: tuple[Entry, ...],
        architectures: Sequence[Mapping[str, object]],
        faults: Faults,
    ) -> Floats:
        """(n, entries) values of a key; NaN where there is nothing to check."""
        optional = not any(entry.chooses for entry in entries)
        rows = []
        for row, architecture in enumerate(architectures):
            value = architecture.get(key)
            if value is None and key in ALIASES:
                value = architecture.get(ALIASES[key])
            values = [value] * len(entries) if isinstance(value, Real) else value
            if value is None and optional:
                values = [np.nan] * len(entries)
            elif not isinstance(values, Sequence) or len(values) != len(entries):
                what = "a number" if key in self.scalars else f"a list of {len(entries)} numbers"
                given = "nothing" if value is None else repr(value)
                faults.append((row, f"{key!r}: expected {what}, got {given:.80}"))
                values = [np.nan] * len(entries)
            elif not all(type(v) in _NUMBERS and abs(v) < _MOST for v in values):
                faults.append((row, f"{key!r}: expected numbers, got {values!r:.80}"))
                values = [np.nan] * len(entries)
            rows.append(values)
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(entries))


_MOST = 1e9  # NaN isn't below it either
_NUMBERS = {int, float, np.int64, np.int32, np.float64, np.float32}


def _shown(entry: Entry, genomes: Genomes) -> Floats:
    """Value (n,) that the genomes give the position."""
    index = 0 if entry.gene is None else genomes[:, entry.gene]
    return np.broadcast_to(np.array(entry.values, dtype=np.float64)[index], len(genomes))


def _active(entry: Entry, genomes: Genomes) -> npt.NDArray[np.bool_]:
    if entry.condition is None:
        return np.ones(len(genomes), dtype=np.bool_)
    return genomes[:, entry.condition.gene] >= entry.condition.least


def _wanted(entry: Entry, genome: npt.NDArray[np.int64]) -> str:
    if entry.chooses:
        return f"expected one of {entry.values}"
    value = entry.values[0 if entry.gene is None else int(genome[entry.gene])]
    return f"expected {value} {'or more' if entry.at_least else 'in this space'}"


def some(faults: Sequence[str]) -> str:
    """The first faults, and how many more there are."""
    more = len(faults) - _SHOWN
    return "; ".join(faults[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _raise(faults: Faults) -> None:
    if faults:
        raise SpaceError(some([f"row {row}: {text}" for row, text in sorted(faults)]))
