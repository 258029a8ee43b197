"""Fleet files: devices, each with its latency table and any number of limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailorbird.config.reader import Path_, read_file
from tailorbird.config.sections import Faults, Field, near, short
from tailorbird.errors import ConfigError

LATENCY = "latency_ms"
COUNTED = ("macs", "params")

_DEVICE = {
    "name": Field(str, hint="such as 'name: phone'"),
    "latency_table": Field(str | None, None),
    "limits": Field(object, hint="such as 'limits: [15, 20, 25]'"),
}


@dataclass(frozen=True)
class FleetTarget:
    """One wish of a fleet: a device's name and bounds, metric -> upper bound."""

    device: str
    limits: Mapping[str, float]


@dataclass(frozen=True)
class Fleet:
    """Devices with their latency tables (``None`` where only counts are limited), and targets.

    Example:
        >>> fleet = Fleet({"phone": Path("t")}, (FleetTarget("phone", {"latency_ms": 15.0}),))
        >>> fleet.metric("phone", "latency_ms")
        'latency_ms'
    """

    tables: Mapping[str, Path | None]
    targets: tuple[FleetTarget, ...]

    def metric(self, device: str, metric: str) -> str:
        """The metric's name in a search: a latency names its device where there are several."""
        several = len(self.tables) > 1
        return f"{metric}@{device}" if metric == LATENCY and several else metric

    def bounds(self) -> list[dict[str, float]]:
        """Limits of every target under the names that a search knows, in the file's order."""
        return [
            {self.metric(target.device, name): bound for name, bound in target.limits.items()}
            for target in self.targets
        ]


def read_devices(path: Path) -> tuple[Faults, list[object]]:
    """The entries of a fleet file's list ``devices``, and what is wrong with it so far.

    Raises:
        ConfigError: when the file can't be read at all.
    """
    document = read_file(path, hint="it begins with 'devices:', see the how-to")
    faults = Faults(document.lines)
    root = faults.values((), document.data, {"devices": Field(object, hint="a list")})
    listed = root["devices"]
    given = document.data if isinstance(document.data, dict) else {}
    if "devices" in given and (not isinstance(listed, list) or not listed):
        faults.add(("devices",), f"expected a list of devices, got {short(listed)}")
    return faults, listed if isinstance(listed, list) else []


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file.

    ::

        devices:
          - name: phone
            latency_table: tables/phone      # a file or a folder; relative to this file
            limits: [15, 20, 25]             # milliseconds
          - name: board
            latency_table: tables/board.yaml
            limits:
              - {latency_ms: 40, macs: 300e6}
              - {params: 5e6}

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    faults, listed = read_devices(path)
    tables: dict[str, Path | None] = {}
    targets: list[FleetTarget] = []
    for number, raw in enumerate(listed):
        place: Path_ = ("devices", number)
        values = faults.values(place, raw, _DEVICE)
        name = values["name"]
        if not isinstance(name, str):
            continue
        if not name or "@" in name or name in tables:
            fault = "is given twice" if name in tables else "has to be text without '@'"
            faults.add((*place, "name"), f"{name!r} {fault}")
        table = values["latency_table"]
        tables[name] = path.parent / Path(str(table)).expanduser() if table else None
        if isinstance(raw, dict) and "limits" in raw:
            targets += _limits(faults, (*place, "limits"), values["limits"], name, table)
    if faults.found:
        raise ConfigError(faults.found)
    return Fleet(tables, tuple(targets))


def read_limits(text: str, *, metric: str = LATENCY) -> tuple[dict[str, float], ...]:
    """Limits as the command line takes them: numbers with commas, all on one metric.

    Raises:
        ConfigError: naming every entry that is not a positive number.

    Example:
        >>> read_limits("15, 20")
        ({'latency_ms': 15.0}, {'latency_ms': 20.0})
    """
    problems, limits = [], []
    for entry in text.split(","):
        try:
            limits.append({metric: _positive(float(entry))})
        except ValueError:
            problems.append(
                f"--limits: expected positive numbers with commas between, such as 15,20.5; got "
                f"{entry.strip()!r}"
            )
    if problems:
        raise ConfigError(problems)
    return tuple(limits)


def _limits(
    faults: Faults, place: Path_, raw: object, device: str, table: object
) -> list[FleetTarget]:
    if not isinstance(raw, list) or not raw:
        faults.add(place, f"expected a list of limits such as [15, 20], got {short(raw)}")
        return []
    found = []
    for number, entry in enumerate(raw):
        limits = entry if isinstance(entry, dict) else {LATENCY: entry}
        if not limits:
            faults.add((*place, number), f"no limit; give one of {LATENCY}, {', '.join(COUNTED)}")
        for metric, bound in limits.items():
            where = (*place, number, metric) if isinstance(entry, dict) else (*place, number)
            if metric not in (LATENCY, *COUNTED):
                faults.add(where, f"unknown metric{near(str(metric), (LATENCY, *COUNTED))}")
            elif not _is_positive(bound):
                faults.add(where, f"expected a positive number, got {short(bound)}")
            elif metric == LATENCY and not table:
                faults.add(where, f"a latency limit needs device {device!r} to have latency_table")
        if all(_is_positive(bound) for bound in limits.values()):
            found.append(FleetTarget(device, {str(k): float(v) for k, v in limits.items()}))
    return found


def _is_positive(bound: object) -> bool:
    number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
    return number and math.isfinite(float(str(bound))) and float(str(bound)) > 0


def _positive(bound: float) -> float:
    if not (math.isfinite(bound) and bound > 0):
        raise ValueError(bound)
    return bound


def plain_fleet(table: Path | None, limits: Sequence[Mapping[str, float]]) -> Fleet:
    """The fleet of one unnamed device, as options of the command line give it."""
    return Fleet({"device": table}, tuple(FleetTarget("device", limit) for limit in limits))
