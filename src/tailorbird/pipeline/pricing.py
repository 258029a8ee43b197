"""What candidates cost on one device: additive estimates, corrected by whole networks measured."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import fx

from tailorbird.estimate.additive import correct
from tailorbird.export.onnx import export_many
from tailorbird.family import AdditiveProblem
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.build import House
from tailorbird.house.family import HouseFamily
from tailorbird.house.score import Reference
from tailorbird.house.store import HouseStore
from tailorbird.progress import Progress
from tailorbird.targets import Device, Latency

Names = tuple[str, ...]
"""A candidate: the sorted names of its alternatives; empty for the teacher itself."""

NOISE = 0.01
"""Standard error of one measured latency, as a share of the teacher's."""

CHUNK = 8
"""Whole networks exported and timed together."""


def teacher_latency(teacher: LayerGraph, device: Device, store: HouseStore) -> float:
    """The teacher's median latency on ``device``, measured once for a run."""
    known = store.load_latencies(device.key)
    if "teacher" not in known:
        with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
            paths = export_many([(teacher.module, teacher.input_shape)], Path(folder), ["teacher"])
            known["teacher"] = device.measure(paths)[0]
        store.save_latencies(device.key, known)
    return known["teacher"].median_ms


class Pricing:
    """Prices candidates of one house on one device.

    Blocks and whole networks are timed interleaved with the teacher and stored relative to it, so
    that a machine that slows down or speeds up between two sessions does not blur the comparison.

    Args:
        house: a scored house.
        device: what times exported networks.
        progress: told about blocks and networks being timed.
    """

    def __init__(self, house: House, device: Device, *, progress: Progress) -> None:
        self.house = house
        self.device = device
        self.progress = progress
        latency = teacher_latency(house.teacher, device, house.store)
        self.family: HouseFamily = house.family(device, latency_ms=latency, progress=progress)
        self.isolated: AdditiveProblem = self.family.problem
        self.index = {a.name: i for i, a in enumerate(self.family.alternatives)}

    @property
    def base(self) -> Mapping[str, float]:
        """The teacher's own figures."""
        return self.family.base

    def measured(self) -> list[Names]:
        """All whole networks measured so far, sorted."""
        return sorted(self._seen())

    def _seen(self) -> dict[Names, float]:
        return {
            tuple(key.removeprefix("net:").split(",")): latency.median_ms
            for key, latency in self.house.store.load_latencies(self.device.key).items()
            if key.startswith("net:")
        }

    def problem(self, known: Collection[Names] | None = None) -> AdditiveProblem:
        """The additive problem with latency savings corrected by measured networks.

        Args:
            known: the measured networks to go by; all that have been measured by default.
        """
        seen = self._seen()
        if known is not None:
            seen = {names: seen[names] for names in known if names in seen}
        rows = [names for names in sorted(seen) if all(name in self.index for name in names)]
        chosen = np.zeros((len(rows), len(self.index)))
        for row, names in enumerate(rows):
            chosen[row, [self.index[name] for name in names]] = 1
        base = self.base["latency_ms"]
        column = self.isolated.metrics.index("latency_ms")
        saving = self.isolated.saving.copy()
        saving[:, column] = correct(
            saving[:, column],
            chosen,
            np.array([base - seen[names] for names in rows]),
            noise=NOISE * base,
        )
        return replace(self.isolated, saving=saving)

    def names(self, chosen: Sequence[int]) -> Names:
        """The candidate that indices into the problem name."""
        return tuple(sorted(self.family.alternatives[i].name for i in chosen))

    def measure(self, candidates: Sequence[Names]) -> dict[Names, dict[str, float]]:
        """All figures of whole candidates; latency measured, or taken from the store."""
        known = self.house.store.load_latencies(self.device.key)
        todo = [names for names in dict.fromkeys(candidates) if names and _key(names) not in known]
        with self.progress.task("measure networks", len(todo)) as task:
            for start in range(0, len(todo), CHUNK):
                part = todo[start : start + CHUNK]
                known |= self._time(part)
                self.house.store.save_latencies(self.device.key, known)
                task.advance(len(part))
        figures = {}
        shape = self.house.teacher.input_shape
        for names in candidates:
            figures[names] = self.house.figures(self._network(names), shape) | {
                "latency_ms": known[_key(names)].median_ms if names else self.base["latency_ms"]
            }
        return figures

    def _network(self, names: Names) -> fx.GraphModule:
        """The candidate as it would be shipped: masks cut."""
        return self.house.cut(self.family.induce(names))

    def _time(self, part: Sequence[Names]) -> dict[str, Latency]:
        teacher = self.house.teacher
        networks = [(self._network(names), teacher.input_shape) for names in part]
        measured = Reference(teacher, self.base["latency_ms"]).measure(networks, self.device)
        return dict(zip(map(_key, part), measured, strict=True))


def _key(names: Names) -> str:
    return "net:" + ",".join(names)
