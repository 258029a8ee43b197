"""Latency tables in files as predictors for a space, whatever resolutions they cover."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tailorbird.errors import ConfigError, SpaceError
from tailorbird.estimate.latency_table import LatencyTable, compile_table, read_table
from tailorbird.estimate.learned_latency import LatencyModel, LayerFeatures
from tailorbird.estimate.predicted import Predictor
from tailorbird.family import Floats
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace

LEARNED = ".safetensors"
"""Ending of a latency table that is a learned model."""

UNCOVERED_MS = 1e9
"""Stands for the latency at a resolution that a table doesn't cover: no limit lets it in."""


def latency_for(path: Path, architectures: ArchitectureSpace) -> Predictor:
    """The learned latency model in a file, see `opened`."""
    return opened(
        lambda space: LatencyModel.load(path, features=LayerFeatures(space)).latency_ms,
        architectures,
    )


def opened(
    read: Callable[[ArchitectureSpace], Predictor], architectures: ArchitectureSpace
) -> Predictor:
    """What ``read`` gives for a space that may have fewer resolutions than it learned from.

    Raises:
        StoreError: the file is missing or no safetensors file.
        ConfigError: it was made for another space.
    """
    try:
        return read(architectures)
    except ConfigError:
        whole = architectures.with_resolutions(None)
        own, all_ = architectures.space.choices[0].values, whole.space.choices[0].values
        if own == all_ or not set(own) <= set(all_):
            raise
        try:
            predictor = read(whole)
        except ConfigError:
            predictor = None
        if predictor is None:
            raise
    index = np.array([all_.index(value) for value in own], dtype=np.int64)

    def predict(genomes: Genomes) -> Floats:
        """Predictions (n,) for genomes (n, genes) of the smaller space."""
        return predictor(np.column_stack([index[genomes[:, 0]], genomes[:, 1:]]))

    return predict


def read_costs(path: Path, space: ArchitectureSpace) -> Callable[[Genomes], Floats]:
    """A latency table in any known form as a predictor for the space.

    Where the table covers some of the space's resolutions only, the others cost `UNCOVERED_MS`. A
    table without a row for this number of classes is read with the classifier that it has.

    Raises:
        ConfigError, StoreError: when it can't be read, or covers none of the resolutions.
        SpaceError: when it lacks layers of the space.
    """
    if path.suffix == LEARNED:
        return latency_for(path, space)
    table = read_table(path)
    own = [int(str(value)) for value in space.space.choices[0].values]
    shared = [size for size in own if size in table.resolutions]
    if not shared:
        raise ConfigError(
            f"{path}: expected a table for one of the resolutions {', '.join(map(str, own))}, it "
            f"covers {', '.join(map(str, table.resolutions))}"
        )
    if shared == own:
        return _summed(table, space, shared)
    sums = _summed(table, space.with_resolutions(shared), shared)
    place = np.array([shared.index(size) if size in shared else -1 for size in own])

    def predict(genomes: Genomes) -> Floats:
        """Latencies (n,) for genomes (n, genes)."""
        where = place[genomes[:, 0]]
        fitting = np.column_stack([np.maximum(where, 0), genomes[:, 1:]])
        return np.where(where < 0, UNCOVERED_MS, sums(fitting))

    return predict


def contents(path: Path) -> str:
    """Sixteen hex digits over a table's file, or the files of its folder; the name where none is.

    A table that was replaced under its name makes its students anew.
    """
    digest = hashlib.sha256(str(path).encode())
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _summed(
    table: LatencyTable, space: ArchitectureSpace, sizes: Sequence[int]
) -> Callable[[Genomes], Floats]:
    """Latencies by the table's rows; with the classifier of the space's own classes, if need be.

    Published tables have no other one; it takes a hundredth of a network's time, if that.
    """
    try:
        return compile_table(table, space).sum
    except SpaceError:
        return compile_table(table, space.with_resolutions(sizes)).sum
