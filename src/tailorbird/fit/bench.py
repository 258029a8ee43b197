"""Timing networks at one place: exported, interleaved with the reference, scaled to it, kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tailorbird.device import Device, Latency, Precision, key_of
from tailorbird.errors import ExportError, MeasurementError
from tailorbird.export.exporters import Exporter, exporter_for
from tailorbird.files import scratch
from tailorbird.fit.candidates import Candidates, Make, Network
from tailorbird.measure.guarded import answering, format_of, measured, precisions_of
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Progress
from tailorbird.targets import PLAIN, Place

TOGETHER = 8
"""Whole networks timed in one session, in which the reference takes part; what a kill can lose."""


class Bench:
    """Times networks on one device; implements `tailorbird.fit.candidates.Timing`.

    The machine's speed may differ between two sessions; the reference in float32, timed in each,
    tells by how much, and all figures are as if it took what it took in the first one.

    Args:
        device: what runs the files.
        reference: builds the network that takes part in every session.
        name: what the reference is stored as.
        store: figures known so far.
        exporter: makes the files.
        progress: told about networks being timed.
        batch: images per call.
        plain: the bench of the same device in float32, where this one's files are of another
            precision.
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
        batch: int = 1,
        plain: Bench | None = None,
    ) -> None:
        self.device, self.store, self.exporter = device, store, exporter
        self._reference, self._name = reference, name
        self._progress, self._batch, self._plain = progress, batch, plain

    @property
    def base_ms(self) -> float:
        """The reference's median latency in float32: what shares of limits are of."""
        return self.reference_ms if self._plain is None else self._plain.reference_ms

    @property
    def reference_ms(self) -> float:
        """The reference's median latency in this bench's precision, measured once for a store."""
        if self._plain is not None:
            return self.measure({self._name: self._reference})[self._name].median_ms
        if self._name not in self.store.known:
            self.store.add({self._name: self._time([])[0]})
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
        base = self.base_ms
        known = self.store.known
        todo = [name for name in networks if name not in known]
        with self._progress.task(title, len(todo)) as task:
            for start in range(0, len(todo), together):
                part = todo[start : start + together]
                first, *others = self._time([networks[name]() for name in part])
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
        """Latencies of the reference in float32 and of networks, in one session."""
        plain = self.exporter if self._plain is None else self._plain.exporter
        made = [(plain, self._reference()), *((self.exporter, network) for network in networks)]
        return _timed(made, self.device, self._batch)


def bench_at(
    candidates: Candidates, place: Place, exporter: Exporter, progress: Progress
) -> Bench | None:
    """What times a flow's networks at a place; ``None`` where it has only a table.

    Args:
        candidates: the flow.
        place: a device in some precision.
        exporter: makes files of its own format and precision; others come from `exporter_for`.
        progress: told about networks being timed.

    Raises:
        ExportError: where nothing makes such files.
        MeasurementError: where the device does not say what files it takes.
    """
    if place.device is None:
        return None
    plain = None
    if place.precision != PLAIN:
        plain = bench_at(candidates, place.at(PLAIN), exporter, progress)
    return Bench(
        place.device,
        partial(candidates.network, candidates.reference),
        name=candidates.label(candidates.reference),
        store=candidates.latencies(place),
        exporter=exporter_for(format_of(place.device), place.precision, own=exporter),
        progress=progress,
        batch=place.batch,
        plain=plain,
    )


def time_networks(
    networks: Sequence[Network], device: Device, exporter: Exporter, *, batch: int = 1
) -> list[Latency]:
    """Latencies of networks in float32, in one session: files are gone afterwards.

    Args:
        networks: any.
        device: what runs them.
        exporter: makes files of its own format; others come from `exporter_for`.
        batch: images per call.

    Raises:
        ExportError: when one can't be exported.
        MeasurementError: when one can't be run.
    """
    made = exporter_for(format_of(device), PLAIN, own=exporter)
    return _timed([(made, network) for network in networks], device, batch)


def _timed(
    networks: Sequence[tuple[Exporter, Network]], device: Device, batch: int
) -> list[Latency]:
    """One session of networks, each with what makes its file; names tell them apart."""
    with scratch() as folder:
        paths: dict[int, Path] = {}
        for exporter in dict.fromkeys(exporter for exporter, _ in networks):
            own = {i: one for i, (by, one) in enumerate(networks) if by is exporter}
            pairs = [(one.module, one.input_shape) for one in own.values()]
            names = [f"n{number:04d}" for number in own]
            made = exporter.quick(pairs, folder, names, batch=batch)
            paths |= dict(zip(own, made, strict=True))
        return measured(device, [paths[number] for number in range(len(networks))])


def try_out(device: Device, exporter: Exporter, precision: Precision = PLAIN) -> None:
    """Ask a device everything that a fit will ask it, with one small network.

    Cost: one export and one session of the device, and a run of one image where it runs files.

    Args:
        device: any; a fault of it costs its own targets only.
        exporter: makes files of its own format and precision; others come from `exporter_for`.
        precision: of the file.

    Raises:
        MeasurementError: saying what it does that nothing can be fitted to.
        ExportError: where it can't run the file, or nothing makes such files.
    """
    named = f"device {key_of(device)}"
    what, runs = format_of(device), precisions_of(device)
    if precision not in runs:
        raise MeasurementError(f"{named}: it runs {', '.join(runs)}, and {precision} is needed")
    try:
        made = exporter_for(what, precision, own=exporter)
    except ExportError as error:
        raise MeasurementError(f"{named}: it runs {what.name} files, and {error}") from error
    run = answering(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten()).eval()
        images = torch.randn(1, 3, 9, 9)
    with scratch() as folder:
        [path] = made.quick([(network, (3, 9, 9))], folder, ["small"])
        measured(device, [path])
        if run is None:
            return
        try:
            parity = made.verify(network, path, images, run)
        except ExportError as error:
            raise ExportError(f"{named}: run on a small network: {error}") from error
    if not parity.passed:
        raise MeasurementError(
            f"{named}: run answers otherwise than PyTorch on a small network: {parity.fault}"
        )
