"""What a supernet's networks take on the devices of a fleet: tables, whole networks, corrections.

In ``fit/latency/`` of the run folder, one file per device and kind: the layers and the whole
networks measured so far. A device that is measured costs its distinct layers once, and the few
whole networks that each search asks for; further targets on it hardly add to that.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from tailorbird.errors import ConfigError, SpaceError, StoreError
from tailorbird.estimate.latency_table import LatencyTable, compile_table, read_table
from tailorbird.estimate.measured_table import (
    LEAST_NETWORKS,
    Latencies,
    MeasuredTable,
    TableCheck,
    compile_measured,
    counted_layers,
    measure_layers,
)
from tailorbird.export.onnx import export_many
from tailorbird.family import Floats
from tailorbird.pipeline.search import LEARNED, latency_for
from tailorbird.progress import Progress
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.extract import extract
from tailorbird.supernet.layers import distinct_layers, single_layers
from tailorbird.supernet.network import Supernet
from tailorbird.targets import Place

CHUNK = 8
"""Whole networks timed together, interleaved with the full network; what a kill can lose."""

UNCOVERED_MS = 1e9
"""Stands for the latency at a resolution that a table doesn't cover: no limit lets it in."""


class SupernetPricing:
    """Latencies of one supernet's networks on one device.

    Args:
        name: the device's, for messages.
        entry: its table, its runtime, or both.
        supernet: whose networks; left as it is.
        folder: the run's ``fit`` folder.
        checks: genomes (n, genes) that are measured whole, to check and correct the table.
        progress: told about layers and networks being timed.

    Raises:
        MeasurementError: when the device can't run or time them.
        ConfigError, SpaceError: when its table doesn't fit; see `check_devices`.
    """

    def __init__(
        self,
        name: str,
        entry: Place,
        supernet: Supernet,
        *,
        folder: Path,
        checks: Genomes,
        progress: Progress,
    ) -> None:
        self.name, self.entry, self.supernet, self.progress = name, entry, supernet, progress
        self.check: TableCheck | None = None
        self._seen: set[tuple[int, ...]] = set()
        digest = hashlib.sha256(entry.key.encode()).hexdigest()[:12]
        self._folder = folder / "latency"
        self._networks = Latencies(self._folder / f"{digest}-networks.json", entry.key)
        self._table = self._begin(self._folder / f"{digest}-layers.json")
        self.full_ms = self._full_ms()
        if entry.device is not None:
            self.measure(checks)
            self.correct()

    @property
    def measured(self) -> bool:
        """Whether networks can be timed here; otherwise they are predicted."""
        return self.entry.device is not None

    def latency_ms(self, genomes: Genomes) -> Floats:
        """Predicted latencies (n,) of genomes (n, genes)."""
        return self._table.latency_ms(genomes)

    def measure(self, genomes: Genomes) -> Floats:
        """Latencies (n,) of whole networks: measured, or taken from the store.

        On a device that has only a table: predicted. Each session times the full network as well
        and its figures are scaled to it, so that a machine that slows down blurs nothing.
        """
        device = self.entry.device
        if device is None:
            return self.latency_ms(genomes)
        known = self._networks.known
        todo = [g for g in np.unique(genomes, axis=0) if _key(g) not in known]
        with self.progress.task("measure networks", len(todo)) as task:
            for start in range(0, len(todo), CHUNK):
                part = todo[start : start + CHUNK]
                reference, *others = self._time([self.supernet.largest(), *part])
                scale = self.full_ms / reference
                self._networks.add(
                    {_key(g): ms * scale for g, ms in zip(part, others, strict=True)}
                )
                task.advance(len(part))
        self._seen |= set(map(tuple, genomes.tolist()))
        return np.array([known[_key(genome)] for genome in genomes])

    def correct(self) -> None:
        """Correct the table by all networks measured for this fit; the first ones check it."""
        if not self._seen:
            return
        whole = np.array(sorted(self._seen), dtype=np.int64)
        whole = whole[self._table.sums(whole) < UNCOVERED_MS]  # others say nothing of the table
        if len(whole) < LEAST_NETWORKS:
            return
        corrected = self._table.corrected(whole, self.measure(whole))
        self._table = corrected.table
        if self.check is None:
            self.check = corrected.check
            self.progress.say(f"{self.name}: latency table {corrected.check}")

    def _begin(self, path: Path) -> MeasuredTable:
        """The device's own table, or one measured layer by layer."""
        space, device = self.supernet.architectures, self.entry.device
        if self.entry.table is not None:
            return MeasuredTable(read_costs(self.entry.table, space), counted_layers(space))
        if device is None:
            raise ConfigError(f"{self.name}: expected a runtime or a latency_table, got neither")
        ms = measure_layers(
            space,
            lambda shapes: single_layers(self.supernet, shapes),
            device,
            store=Latencies(path, device.key),
            progress=self.progress,
        )
        return compile_measured(space, ms)

    def _full_ms(self) -> float:
        if self.entry.device is None:
            largest = self.supernet.largest()
            sizes = np.stack([largest] * (int(largest[0]) + 1))
            sizes[:, 0] = np.arange(len(sizes))
            found = self.latency_ms(sizes)
            return float(found[found < UNCOVERED_MS].max())
        key = _key(self.supernet.largest())
        if key not in self._networks.known:
            self._networks.add({key: self._time([self.supernet.largest()])[0]})
        return self._networks.known[key]

    def _time(self, genomes: Sequence[npt.NDArray[np.int64]]) -> list[float]:
        assert self.entry.device is not None
        networks: list[tuple[nn.Module, tuple[int, ...]]] = []
        for genome in genomes:
            size = self.supernet.resolution(genome)
            networks.append((extract(self.supernet, genome).eval(), (3, size, size)))
        with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
            files = [f"n{number}" for number in range(len(networks))]
            paths = export_many(networks, Path(folder), files)
            return [latency.median_ms for latency in self.entry.device.measure(paths)]


def check_devices(devices: Mapping[str, Place], space: ArchitectureSpace, *, most: int) -> None:
    """See to it that tables fit the space and layers can be timed, before time is spent.

    Raises:
        ConfigError: all faults at once.
    """
    problems = []
    layers = len(distinct_layers(space))
    for name, entry in devices.items():
        if entry.table is not None:
            try:
                read_costs(entry.table, space)
            except ConfigError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
            except (SpaceError, StoreError) as error:
                problems.append(f"{name}: {error}")
        elif layers > most:
            problems.append(
                f"{name}: {space.name} has {layers} distinct layers to time, expected at most "
                f"{most}; raise layers_at_most, name a latency_table, or train the supernet with "
                "fewer resolutions"
            )
    if problems:
        raise ConfigError(problems)


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


def _key(genome: npt.NDArray[np.int64]) -> str:
    return ",".join(map(str, genome.tolist()))
