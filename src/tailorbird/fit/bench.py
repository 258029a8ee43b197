"""Timing networks at one place: exported, interleaved with the reference, scaled to it, kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from tailorbird.export.exporters import Exporter
from tailorbird.files import scratch
from tailorbird.fit.candidates import Candidates, Make, Network
from tailorbird.measure.guarded import measured
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Progress
from tailorbird.targets import Device, Latency, Place

TOGETHER = 8
"""Whole networks timed in one session, in which the reference takes part; what a kill can lose."""


class Bench:
    """Times networks on one device; implements `tailorbird.fit.candidates.Timing`.

    The machine's speed may differ between two sessions; the reference, timed in each, tells by how
    much, and all figures are as if it took what it took in the first one.

    Args:
        device: what runs the files.
        reference: builds the network that takes part in every session.
        name: what the reference is stored as.
        store: figures known so far.
        exporter: makes the files.
        progress: told about networks being timed.
    """

    def __init__(
        self,
        device: Device,
        reference: Make,
        *,
        name: str,
        store: Latencies,
        exporter: Exporter,
        progress: Progress,
    ) -> None:
        self.device, self.store = device, store
        self._reference, self._name, self._exporter = reference, name, exporter
        self._progress = progress

    @property
    def reference_ms(self) -> float:
        """The reference's median latency, measured once for a store."""
        if self._name not in self.store.known:
            self.store.add({self._name: self._time([self._reference()])[0]})
        return self.store.known[self._name].median_ms

    @property
    def known(self) -> Mapping[str, Latency]:
        """What has been measured there before."""
        return self.store.known

    def measure(
        self,
        networks: Mapping[str, Make],
        *,
        title: str = "measure networks",
        together: int = TOGETHER,
    ) -> dict[str, Latency]:
        """Latencies by name, measured or from the store.

        Cost: an export and the device's runs for each network that is not known yet, and for the
        reference once a session.

        Args:
            networks: name -> builds it.
            title: of the task that is shown.
            together: networks timed in one session.
        """
        base = self.reference_ms
        known = self.store.known
        todo = [name for name in networks if name not in known]
        with self._progress.task(title, len(todo)) as task:
            for start in range(0, len(todo), together):
                part = todo[start : start + together]
                first, *others = self._time([self._reference(), *(networks[n]() for n in part)])
                scale = base / first.median_ms
                self.store.add(
                    {
                        name: replace(
                            one, median_ms=one.median_ms * scale, spread_ms=one.spread_ms * scale
                        )
                        for name, one in zip(part, others, strict=True)
                    }
                )
                task.advance(len(part))
        return {name: known[name] for name in networks}

    def _time(self, networks: Sequence[Network]) -> list[Latency]:
        return time_networks(networks, self.device, self._exporter)


def bench_at(
    candidates: Candidates, place: Place, exporter: Exporter, progress: Progress
) -> Bench | None:
    """What times a flow's networks at a place; ``None`` where it has only a table."""
    if place.device is None:
        return None
    return Bench(
        place.device,
        partial(candidates.network, candidates.reference),
        name=candidates.label(candidates.reference),
        store=candidates.latencies(place),
        exporter=exporter,
        progress=progress,
    )


def time_networks(networks: Sequence[Network], device: Device, exporter: Exporter) -> list[Latency]:
    """Latencies of networks, in one session: exported into a folder that is gone afterwards.

    Raises:
        ExportError: when one can't be exported.
        MeasurementError: when one can't be run.
    """
    with scratch() as folder:
        pairs = [(one.module, one.input_shape) for one in networks]
        names = [f"n{number:04d}" for number in range(len(networks))]
        return measured(device, exporter.quick(pairs, folder, names))
