"""Whether devices answer, what they are and what they run there: asked before it matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tailorbird.device import Description, Device, Format, Latency, Precision, Run, key_of
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.export.exporters import Exporter, exporter_for
from tailorbird.files import scratch
from tailorbird.measure.guarded import (
    answering,
    description_of,
    format_of,
    measured,
    precisions_of,
    too_many_threads,
)
from tailorbird.measure.rounds import DRIFT
from tailorbird.progress import Progress, Silent
from tailorbird.targets import Target

SHAPE = (3, 64, 64)
"""Of the images that the small network takes."""

_PATIENCE_S = 60.0
"""A session that failed after longer is not tried again with fewer files."""

Exporters = Callable[[Format, Precision], Exporter]
"""What makes files of a format in a precision."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A precision that a device is said to run, tried with a small network.

    Args:
        precision: of the file.
        latency: of a call with one image; ``None`` where it didn't run.
        fault: why it didn't.
    """

    precision: Precision
    latency: Latency | None = None
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a device answered.

    Args:
        name: of the place, or of its first target.
        kind: the device's class.
        key: what the device calls itself.
        description: what it says that it is; ``None`` where it can't tell.
        answered_ms: from asking for the description to the answer; ``None`` without one.
        tried: the precisions that it is said to run, files in turns in one session.
        fault: why it did not answer; empty where it did.
        notes: what is odd about it.
    """

    name: str
    kind: str
    key: str
    description: Description | None = None
    answered_ms: float | None = None
    tried: tuple[Tried, ...] = ()
    fault: str = ""
    notes: tuple[str, ...] = ()

    @property
    def answers(self) -> bool:
        """Whether it can be fitted to: it answered, and runs something."""
        return not self.fault and any(one.latency is not None for one in self.tried)


def check_devices(
    targets: Sequence[Target],
    *,
    exporters: Exporters = exporter_for,
    progress: Progress | None = None,
) -> list[Checked]:
    """Reach every device of some targets, one after the other; one that fails costs only itself.

    Cost: for each device, an export for every precision and a session of a second or so.

    Args:
        targets: equal devices are asked once; places without a device are left out.
        exporters: what makes the files.
        progress: told how it goes.

    Raises:
        ConfigError: where there is no device.

    Example:
        >>> from tailorbird.measure.devices.onnxruntime import OnnxRuntime
        >>> target = Target("here", device=OnnxRuntime(runs=15), limits={"latency_ms": 1})
        >>> [found] = check_devices([target])
        >>> found.name, found.answers
        ('here', True)
    """
    devices: dict[str, tuple[str, Device]] = {}
    for target in targets:
        place = target.place
        if place.device is not None:
            name = target.name if place.name == place.key else place.name
            devices.setdefault(key_of(place.device), (name, place.device))
    if not devices:
        raise ConfigError("targets: none has a device to reach; latency tables measure nothing")
    found = []
    with (progress or Silent()).task("check devices", len(devices)) as task:
        for name, device in devices.values():
            found.append(check_device_at(device, name=name, exporters=exporters))
            task.advance(1)
    return found


def check_device_at(
    device: Device,
    *,
    name: str = "",
    exporters: Exporters = exporter_for,
    now: Callable[[], float] = time.perf_counter,
) -> Checked:
    """Reach one device: what it is, and a small network in every precision that it runs.

    Nothing that the device does is an error here: it is what is found. Each call has the device's
    own time limit.

    Args:
        device: any.
        name: for the result; what the device calls itself by default.
        exporters: what makes the files.
        now: tells the time in seconds.
    """
    kind, key = type(device).__name__, name
    description, answered_ms, fault = None, None, ""
    tried: tuple[Tried, ...] = ()
    try:
        key = key_of(device)
        start = now()
        description = description_of(device)
        answered_ms = None if description is None else (now() - start) * 1000
        tried = _tried(device, exporters, now)
        if all(one.latency is None for one in tried):
            fault = "; ".join(dict.fromkeys(one.fault for one in tried))
    except (MeasurementError, ExportError) as error:
        fault = str(error)
    return Checked(
        name=name or key,
        kind=kind,
        key=key,
        description=description,
        answered_ms=answered_ms,
        tried=tried,
        fault=fault,
        notes=_notes(device, description, tried),
    )


def small_network() -> nn.Module:
    """A convolutional network of 15 million multiply-accumulates, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
        ]
        return nn.Sequential(*layers).eval()


def _tried(device: Device, exporters: Exporters, now: Callable[[], float]) -> tuple[Tried, ...]:
    what, claimed, run = format_of(device), precisions_of(device), answering(device)
    network, faults = small_network(), dict[Precision, str]()
    files: dict[Precision, Path] = {}
    makers: dict[Precision, Exporter] = {}
    with scratch() as folder:
        for precision in claimed:
            try:
                makers[precision] = exporters(what, precision)
                pairs, names = [(network, SHAPE)], [f"small-{precision}"]
                [files[precision]] = makers[precision].quick(pairs, folder, names)
            except ExportError as error:
                faults[precision] = str(error)
        found = _timed(device, files, faults, now)
        for precision in [*found] if run is not None else ():
            if fault := _odd(network, makers[precision], files[precision], run):
                faults[precision] = fault
                del found[precision]
    return tuple(
        Tried(precision=one, latency=found.get(one), fault=faults.get(one, "")) for one in claimed
    )


def _timed(
    device: Device,
    files: dict[Precision, Path],
    faults: dict[Precision, str],
    now: Callable[[], float],
) -> dict[Precision, Latency]:
    """Latencies of files in one session, or of those that run; why others don't: ``faults``."""
    if not files:
        return {}
    start = now()
    try:
        return dict(zip(files, measured(device, list(files.values())), strict=True))
    except (MeasurementError, ExportError) as error:
        if len(files) == 1 or now() - start > _PATIENCE_S:
            faults |= dict.fromkeys(files, str(error))
            return {}
    found: dict[Precision, Latency] = {}
    for precision, path in files.items():
        found |= _timed(device, {precision: path}, faults, now)
    return found


def _odd(network: nn.Module, exporter: Exporter, path: Path, run: Run | None) -> str:
    """What is wrong with what a file answers on the device; empty where nothing is."""
    images = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    try:
        compared = exporter.verify(network, path, images, run)
    except (MeasurementError, ExportError) as error:
        return f"run: {error}"
    return "" if compared.passed else f"it answers otherwise than PyTorch: {compared.fault}"


def _notes(
    device: Device, description: Description | None, tried: Sequence[Tried]
) -> tuple[str, ...]:
    known = {one.precision: one.latency for one in tried if one.latency is not None}
    notes = []
    plain, int8 = known.get("float32"), known.get("int8")
    if plain is not None and int8 is not None and int8.median_ms >= plain.median_ms:
        notes.append("int8 slower than float32 on this device")
    for precision, latency in known.items():
        if latency.drift is not None and abs(latency.drift) > DRIFT:
            notes.append(
                f"{precision}: the last third of the session took {latency.drift:+.0%} of the time "
                "of the first; wait until it is cool and idle"
            )
    if description is not None and description.cores is not None:
        notes += filter(None, [too_many_threads(device, description.cores)])
    return tuple(notes)
