"""Fleet files for making students: a device may be a runtime on this machine, a limit a share.

The file has the form that `tailorbird.config.fleet` reads, and what it holds there it may hold
here: a device that has only a latency table can't be measured, its students are predicted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailorbird.config.fleet import COUNTED, LATENCY, read_devices
from tailorbird.config.parts import DEVICES
from tailorbird.config.reader import Path_
from tailorbird.config.sections import Faults, Field, fields_of, near, short
from tailorbird.errors import ConfigError
from tailorbird.targets import Device, Limit

DEFAULT_RUNTIME = "onnxruntime"
"""Where neither a runtime nor a table is named: one thread on this machine."""

_DEVICE = {
    "name": Field(str, hint="such as 'name: server'"),
    "runtime": Field(str | None, None),
    "latency_table": Field(str | None, None),
    "limits": Field(object, hint="such as 'limits: [15, 0.5x]'"),
}


@dataclass(frozen=True, kw_only=True)
class FleetDevice:
    """One device of a fleet whose students are made.

    Args:
        table: its latency table, instead of one that is measured.
        device: what measures on this machine; ``None`` where there is only the table, so that
            students for it are predicted, not measured.
    """

    table: Path | None = None
    device: Device | None = None

    @property
    def key(self) -> str:
        """Identity for reports: the runtime's, or the table's path."""
        return self.device.key if self.device is not None else f"table {self.table}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One student to make.

    Args:
        name: of its folder, made of the device's and the limits.
        device: name of the device.
        limits: what it has to keep there; shares are of the full network.
    """

    name: str
    device: str
    limits: tuple[Limit, ...]


@dataclass(frozen=True, kw_only=True)
class MeasuredFleet:
    """Devices by name, and the students to make for them, in the file's order."""

    devices: Mapping[str, FleetDevice]
    wanted: tuple[Wanted, ...]


def load_measured_fleet(path: Path) -> MeasuredFleet:
    """Read a fleet file for making students.

    ::

        devices:
          - name: server
            runtime: onnxruntime             # the default; threads, runs, provider may follow
            threads: 2
            limits: [4, 0.5x, {latency_ms: 0.6x, macs: 100e6}]
          - name: phone
            latency_table: tables/phone      # predicted, not measured
            limits: [15]

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    faults, listed = read_devices(path)
    devices: dict[str, FleetDevice] = {}
    pairs: list[tuple[str, tuple[Limit, ...]]] = []
    for number, raw in enumerate(listed):
        place: Path_ = ("devices", number)
        name, device, limits = _measured_device(faults, place, raw, path.parent)
        if name and name in devices:
            faults.add((*place, "name"), f"{name!r} is given twice")
        devices[name] = device
        pairs += [(name, bounds) for bounds in limits]
    if faults.found:
        raise ConfigError(faults.found)
    return MeasuredFleet(devices=devices, wanted=name_wishes(pairs))


def _measured_device(
    faults: Faults, place: Path_, raw: object, base: Path
) -> tuple[str, FleetDevice, list[tuple[Limit, ...]]]:
    """Name, device and sets of limits of one entry."""
    given = raw if isinstance(raw, dict) else {}
    table, runtime = given.get("latency_table"), given.get("runtime")
    kind = runtime if runtime is not None or table is not None else DEFAULT_RUNTIME
    if kind is not None and (not isinstance(kind, str) or kind not in DEVICES):
        faults.add((*place, "runtime"), f"unknown runtime {short(kind)}{near(str(kind), DEVICES)}")
        kind = None
    settings = {} if kind is None else fields_of(DEVICES[kind], without=["seed"])
    values = faults.values(place, raw, {**_DEVICE, **settings})
    name = values["name"] if isinstance(values["name"], str) else ""
    if "name" in given and (not name or "@" in name):
        faults.add((*place, "name"), f"{name!r} has to be text without '@'")
    device = None
    if kind is not None:
        try:
            device = DEVICES[kind](**{key: values[key] for key in settings})
        except ConfigError as error:
            faults.adopt(place, error)
    entry = FleetDevice(
        table=base / Path(str(table)).expanduser() if table else None, device=device
    )
    if "limits" not in given:
        return name, entry, []
    return name, entry, _sets(faults, (*place, "limits"), values["limits"])


def _sets(faults: Faults, place: Path_, raw: object) -> list[tuple[Limit, ...]]:
    if not isinstance(raw, list) or not raw:
        faults.add(place, f"expected a list of limits such as [15, 0.5x], got {short(raw)}")
        return []
    found = []
    for number, entry in enumerate(raw):
        where: Path_ = (*place, number)
        bounds = entry if isinstance(entry, dict) else {LATENCY: entry}
        known = (LATENCY, *COUNTED)
        if not bounds:
            faults.add(where, f"no limit; give one of {', '.join(known)}")
        limits = []
        for metric, bound in bounds.items():
            spot = (*where, metric) if isinstance(entry, dict) else where
            if metric not in known:
                faults.add(spot, f"unknown metric{near(str(metric), known)}")
            elif isinstance(bound, str) and not bound.strip().endswith("x"):
                faults.add(spot, f"expected a number, or a share such as 0.5x, got {short(bound)}")
            else:
                try:
                    limits.append(Limit.parse(metric, bound))
                except ConfigError as error:
                    faults.add(
                        spot, str(error).partition(": ")[2].replace("teacher", "full network")
                    )
        found.append(tuple(limits))
    return found


def name_wishes(pairs: Sequence[tuple[str, tuple[Limit, ...]]]) -> tuple[Wanted, ...]:
    """Students of (device, limits), named so that names stay when others are added at the end.

    Example:
        >>> pairs = [("my server", (Limit("latency_ms", 4.0), Limit("macs", 3e8)))]
        >>> name_wishes([*pairs, *pairs])[1].name
        'my-server-4ms-300Mmacs-2'
    """
    taken: dict[str, int] = {}
    wanted = []
    for device, limits in pairs:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", device).lstrip("._-")[:60] or "device"
        name = "-".join([slug, *map(_label, limits)])[:95]
        taken[name.lower()] = taken.get(name.lower(), 0) + 1
        again = taken[name.lower()]
        full = f"{name}-{again}" if again > 1 else name
        wanted.append(Wanted(name=full, device=device, limits=limits))
    return tuple(wanted)


def _label(limit: Limit) -> str:
    """A limit in letters that a folder's name may have."""
    unit = "ms" if limit.metric == LATENCY else f"M{limit.metric}"
    if limit.share:
        return f"{limit.value:g}x{'' if limit.metric == LATENCY else limit.metric}"
    number = limit.value if limit.metric == LATENCY else limit.value / 1e6
    return f"{number:g}{unit}".replace("+", "")
