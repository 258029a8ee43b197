"""Timing networks at one place: exported, interleaved with the reference, scaled to it, kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from tailorbird.device import Device, Latency, Precision, key_of
from tailorbird.errors import ExportError, MeasurementError
from tailorbird.export.exporters import Exporter
from tailorbird.files import scratch
from tailorbird.fit.candidates import Candidates, Make, Network
from tailorbird.measure.guarded import answering, format_of, measured, precisions_of
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Progress
from tailorbird.targets import Place

TOGETHER = 8
"""Whole networks timed in one session, in which the reference takes part; what a kill can lose."""

PRECISION: Precision = "float32"
"""What files compute in."""


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


def try_out(device: Device, exporter: Exporter) -> None:
    """Ask a device everything that a fit will ask it, with one small network.

    Cost: one export and one session of the device, and a run of one image where it runs files.

    Args:
        device: any; a fault of it costs its own targets only.
        exporter: makes the file.

    Raises:
        MeasurementError: saying what it does that nothing can be fitted to.
        ExportError: where it can't run the file.
    """
    named = f"device {key_of(device)}"
    what, runs = format_of(device), precisions_of(device)
    if what != exporter.format:
        raise MeasurementError(
            f"{named}: it runs {what.name} files, and {exporter.format.name} files are made"
        )
    if PRECISION not in runs:
        raise MeasurementError(
            f"{named}: it runs {', '.join(runs)}, and files in {PRECISION} are made"
        )
    run = answering(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten()).eval()
        images = torch.randn(1, 3, 9, 9)
    with scratch() as folder:
        [path] = exporter.quick([(network, (3, 9, 9))], folder, ["small"])
        measured(device, [path])
        if run is None:
            return
        try:
            parity = exporter.verify(network, path, images, run)
        except ExportError as error:
            raise ExportError(f"{named}: run on a small network: {error}") from error
    if not parity.passed:
        raise MeasurementError(
            f"{named}: run answers otherwise than PyTorch on a small network: {parity.fault}"
        )
