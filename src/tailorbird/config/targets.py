"""Devices and targets in YAML: one way to write them, for every command that takes targets.

::

    devices:
      - name: server                     # onnxruntime on one thread; kind and settings may follow
        threads: 2
        limits: [4, 0.5x, {latency: 0.6x, macs: 100e6}]       # a target each, its name is made
      - name: phone
        latency_table: tables/phone      # predicted, not measured; relative to this file
    targets:
      - {name: pocket, device: phone, limits: {latency_ms: 15}}
      - name: edge
        device: {kind: onnxruntime, threads: 4}
        precision: [float32, int8]       # of its file; auto, the default: all that the device runs
        limits: {latency: 0.5x, size_mb: 4}
      - {name: many, device: server, batch: 8, limits: {images_per_second: 500, accuracy: 0.97}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tailorbird.config.devices import PRECISION, DeviceReader, Kinds, Needs, Spot
from tailorbird.config.reader import Path_, read_file, show
from tailorbird.config.sections import (
    NAMING,
    Faults,
    Field,
    as_written,
    near,
    near_or_own,
    read_fields,
    settings,
    short,
)
from tailorbird.errors import ConfigError
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.factories import is_factory
from tailorbird.measure.devices.adb import Adb
from tailorbird.measure.devices.browser.device import Browser
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.measure.devices.openvino import OpenVino
from tailorbird.measure.devices.ssh import Ssh
from tailorbird.targets import (
    ALIASES,
    LATENCY,
    METRICS,
    NAME,
    TIMES,
    Limit,
    Place,
    Target,
    read_limits,
    unsearchable,
)

DEVICES: Kinds = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ssh": Ssh,
    "adb": Adb,
    "browser": Browser,
}
"""Kind of device -> its class. A new device is a line here."""

HINT = "it begins with 'devices:' or 'targets:', see the how-to"

KEYS = {
    "devices": Field(object, None, "a list, with a name and settings each"),
    "targets": Field(object, None, "a list, with a name, a device and limits each"),
}
"""What a document about targets holds; a job holds it among other things."""

_TARGET = {
    "name": Field(str, hint="it names the student's folder"),
    "device": Field(object, None),
    "batch": Field(int | None, None),
    "precision": PRECISION,
    "limits": Field(object, hint="such as 'latency: 0.5x'"),
}
_LISTED = {
    "name": Field(str, hint="such as 'name: server'"),
    "limits": Field(object, None),
}


@dataclass(frozen=True)
class Targets:
    """Checked targets in the file's order, and the two keys as they would be written again."""

    targets: tuple[Target, ...]
    written: Mapping[str, object]


def load_targets(path: Path, *, needs: Needs = None) -> tuple[Target, ...]:
    """Read a file of devices and targets, with shares of the full network's figures.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    document = read_file(path, hint=HINT)
    faults = Faults(document.lines)
    values = faults.values((), document.data, KEYS)
    found = read_targets(faults, values, base=path.parent, reference="full network", needs=needs)
    if faults.found or found is None:
        raise ConfigError(faults.found)
    return found.targets


def load_devices(path: Path) -> tuple[Target, ...]:
    """Read the devices and targets alone of a job or a fleet; other sections are not looked at.

    Raises:
        ConfigError: listing every fault of these with its place and line.
    """
    document = read_file(path, hint=HINT)
    faults = Faults(document.lines)
    found = read_targets(faults, document.data, base=path.parent, reference="reference")
    if found is None:
        raise ConfigError(faults.found)
    return found.targets


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What `tailorbird supernet fit` is asked for.

    Args:
        targets: in the file's order.
        export: what the students' files look like.
        quantise: how files in int8 are made.
    """

    targets: tuple[Target, ...]
    export: ExportOptions
    quantise: QuantiseOptions


def load_fleet(path: Path) -> Fleet:
    """Read a file of devices and targets that may have sections ``export`` and ``quantise``, too.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    document = read_file(path, hint=HINT)
    faults = Faults(document.lines)
    options = {
        "export": Field(ExportOptions, ExportOptions()),
        "quantise": Field(QuantiseOptions, QuantiseOptions()),
    }
    readers = {"quantise": quantise}
    values = read_fields(faults, (), document.data, KEYS | options, readers)
    found = read_targets(faults, values, base=path.parent, reference="full network")
    if faults.found or found is None:
        raise ConfigError(faults.found)
    export, int8 = values["export"], values["quantise"]
    assert isinstance(export, ExportOptions)  # as its field is
    assert isinstance(int8, QuantiseOptions)
    return Fleet(targets=found.targets, export=export, quantise=int8)


def quantise(faults: Faults, path: Path_, raw: object) -> QuantiseOptions | None:
    """Read the section ``quantise``; without one, files in int8 are made by its defaults."""
    if raw is False:
        what = "a target that is not to be quantised says 'precision: float32'"
        faults.add(path, f"expected keys and values, got false; {what}")
        return None
    return settings(faults, path, raw, QuantiseOptions)


def made_names(places: Sequence[str], limits: Sequence[Sequence[Limit]]) -> list[str]:
    """Names for targets that have none, which stay when others are added at the end.

    Example:
        >>> made_names(["my server"] * 2, [[Limit("latency_ms", 4.0), Limit("macs", 3e8)]] * 2)
        ['my-server-4ms-300Mmacs', 'my-server-4ms-300Mmacs-2']
    """
    taken: dict[str, int] = {}
    names = []
    for place, bounds in zip(places, limits, strict=True):
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", place).lstrip("._-")[:60] or "device"
        name = "-".join([slug, *map(_label, bounds)])[:95]
        again = taken[name.lower()] = taken.get(name.lower(), 0) + 1
        names.append(f"{name}-{again}" if again > 1 else name)
    return names


def _label(limit: Limit) -> str:
    """A limit in letters that a folder's name may have."""
    metric = "" if limit.metric == LATENCY else limit.metric
    if limit.share:
        return f"{limit.value:g}x{metric}"
    millions = limit.metric in ("macs", "params")
    number = f"{limit.value / 1e6 if millions else limit.value:g}".replace("+", "")
    return f"{number}{'M' if millions else ''}{metric or 'ms'}"


def read_targets(
    faults: Faults,
    given: Mapping[str, object],
    *,
    base: Path,
    reference: str,
    needs: Needs = None,
    kinds: Kinds = DEVICES,
) -> Targets | None:
    """Check the keys ``devices`` and ``targets`` of a document.

    Args:
        faults: takes what is wrong.
        given: the document, or its values; other keys are left alone.
        base: the file's folder: where paths start and modules are found.
        reference: what shares are of, for messages.
        needs: what the command asks of places.
        kinds: of devices.

    Returns:
        The targets; ``None`` where there were faults.
    """
    before = len(faults.found)
    reader = _Reader(DeviceReader(faults, base, needs, kinds), reference)
    if given.get("devices") is None and given.get("targets") is None:
        faults.add(
            ("targets",),
            "missing, expected a list with a name, a device and limits each; or devices, each "
            "with a list of limits",
        )
    if given.get("devices") is not None:
        reader.devices(given["devices"])
    if given.get("targets") is not None:
        reader.targets(given["targets"])
    reader.all_are_used()
    return reader.found() if len(faults.found) == before else None


@dataclass(frozen=True)
class _Wish:
    """A target that is being read: where it stands, what it asks for, how it is written."""

    path: Path_
    name: str
    spot: Spot | None
    limits: tuple[Limit, ...]
    written: Mapping[str, object]


class _Reader:
    """Reads the two keys of one document; what it notes in ``faults`` ends the reading."""

    def __init__(self, reader: DeviceReader, reference: str) -> None:
        self.reader, self.reference = reader, reference
        self.faults, self.needs, self.kinds = reader.faults, reader.needs, reader.kinds
        self.spots: dict[str, Spot] = {}
        self.written: list[dict[str, object]] = []
        self.idle: dict[str, Path_] = {}
        self.wishes: list[_Wish] = []
        self._inline: dict[str, Spot] = {}
        self._batched: dict[tuple[str, int], Place] = {}

    def devices(self, raw: object) -> None:
        """The list of devices, with the targets that their limits make."""
        if not isinstance(raw, list) or not raw:
            self.faults.add(("devices",), f"expected a list of devices, got {short(raw)}")
            raw = []
        for number, one in enumerate(raw):
            path: Path_ = ("devices", number)
            values, spot = self.reader.read(path, one, _LISTED)
            name = values["name"] if isinstance(values["name"], str) else ""
            if values["name"] is not None and (not name or "@" in name):
                self.faults.add((*path, "name"), f"{name!r} has to be text without '@'")
            elif name in self.spots:
                self.faults.add((*path, "name"), f"{name!r} is given twice")
            place = replace(spot.place, name=name or show(path))
            self.spots[name] = spot = replace(spot, place=place)
            self.written.append({k: v for k, v in values.items() if k != "limits"})
            if isinstance(one, dict) and "limits" in one:
                self._sets((*path, "limits"), values["limits"], spot)
            else:
                self.idle[name] = path
        names = made_names([w.name for w in self.wishes], [w.limits for w in self.wishes])
        self.wishes = [replace(w, name=name) for w, name in zip(self.wishes, names, strict=True)]

    def targets(self, raw: object) -> None:
        """The list of targets."""
        if not isinstance(raw, list) or not raw:
            expected = "expected a list with a name, a device and limits each"
            self.faults.add(("targets",), f"{expected}, got {short(raw)}")
            raw = []
        names = {one.name.lower(): show(one.path) for one in self.wishes}
        for number, one in enumerate(raw):
            path: Path_ = ("targets", number)
            values = self.faults.values(path, one, _TARGET)
            name = str(values["name"] or "")
            taken = names.setdefault(name.lower(), show(path))
            if name and not NAME.fullmatch(name):
                self.faults.add((*path, "name"), f"the name becomes a folder; use {NAMING}")
            if name and taken != show(path):
                self.faults.add((*path, "name"), f"'{name}' is already the name of {taken}")
            spot, device = self._spot((*path, "device"), values["device"], name)
            spot = self._own(path, values, spot)
            limits: tuple[Limit, ...] = ()
            if isinstance(one, dict) and "limits" in one:
                limits = self._limits((*path, "limits"), values["limits"], spot)
            own = {key: as_written(values[key]) for key in ("batch", "precision")}
            written = {"device": device, **own}
            self.wishes.append(_Wish(path, name, spot, limits, written))

    def all_are_used(self) -> None:
        """A device that no target is for has been forgotten."""
        used = [one.written["device"] for one in self.wishes]
        for name, path in self.idle.items():
            if name and name not in used:
                what = "expected a list of limits such as [15, 0.5x], or a target of its own"
                self.faults.add((*path, "limits"), f"missing, {what}")

    def found(self) -> Targets:
        """What has been read without a fault."""
        listed = []
        for wish in self.wishes:
            bounds = {
                one.metric: f"{one.value:.12g}x" if one.share else one.value for one in wish.limits
            }
            listed.append({"name": wish.name, **wish.written, "limits": bounds})
        targets = []
        for one in self.wishes:
            assert one.spot is not None  # or there was a fault
            precisions = one.spot.precisions
            targets.append(Target(one.name, one.spot.place, one.limits, precisions=precisions))
        return Targets(tuple(targets), {"devices": self.written or None, "targets": listed})

    def _spot(self, path: Path_, raw: object, name: str) -> tuple[Spot | None, object]:
        """A target's place, and how it is written: the name of a device, or a section."""
        if isinstance(raw, str) and raw in self.spots:
            return self.spots[raw], raw
        if isinstance(raw, str) and self.spots and raw not in self.kinds and not is_factory(raw):
            known = near_or_own(raw, [*self.spots, *self.kinds])
            self.faults.add(path, f"unknown device {short(raw)}{known}")
            return None, raw
        before = len(self.faults.found)
        values, spot = self.reader.read(path, {"kind": raw} if isinstance(raw, str) else raw)
        if len(self.faults.found) > before:
            return None, values
        if spot.place.device is None:
            spot = replace(spot, place=replace(spot.place, name=name))
        return self._inline.setdefault(json.dumps(values), spot), values

    def _own(self, path: Path_, values: Mapping[str, Any], spot: Spot | None) -> Spot | None:
        """A target's place by what the target itself says of batch and precision."""
        device = None if spot is None else spot.place.device
        batch = self.reader.batch(path, values["batch"])
        precisions = self.reader.precisions(path, values["precision"], device)
        if spot is None:
            return None
        if values["precision"] is not None:
            spot = replace(spot, precisions=precisions)
        if batch is None:
            return spot
        try:
            place = self._batched.setdefault((spot.place.name, batch), spot.place.batched(batch))
        except ConfigError as error:
            self.faults.add((*path, "batch"), str(error).removeprefix("batch: "))
            return spot
        return replace(spot, place=place)

    def _sets(self, path: Path_, raw: object, spot: Spot) -> None:
        """A device's list of limits: each entry is a latency, or several limits that all hold."""
        if not isinstance(raw, list) or not raw:
            what = f"expected a list of limits such as [15, 0.5x], got {short(raw)}"
            self.faults.add(path, what)
            return
        for number, entry in enumerate(raw):
            where: Path_ = (*path, number)
            if entry == {}:
                self.faults.add(where, f"no limit; give one of {', '.join(METRICS)}")
                continue
            several = isinstance(entry, dict)
            bounds = entry if several else {LATENCY: entry}
            limits = self._limits(where, bounds, spot, at_metrics=several)
            name = spot.place.name
            written = {"device": name, "batch": None, "precision": None}
            self.wishes.append(_Wish(where, name, spot, limits, written))

    def _limits(
        self, path: Path_, raw: object, spot: Spot | None, *, at_metrics: bool = True
    ) -> tuple[Limit, ...]:
        """Limits of one target; faults stand at their metrics, or at ``path`` itself."""
        if not isinstance(raw, dict) or not raw:
            example = "expected at least one limit, such as 'latency: 0.5x'"
            self.faults.add(path, f"{example}, got {short(raw)}")
            return ()
        names = (*METRICS, *ALIASES)
        known = {key: value for key, value in raw.items() if key in names}
        limits, wrong = read_limits(known, reference=self.reference)
        told = [(key, f"unknown metric{near(key, names)}") for key in raw if key not in names]
        told += wrong.items()
        if self.needs == "table":
            told += [(key, what) for key in known if (what := unsearchable(key))]
        if self.needs == "table" and spot is not None and spot.place.table is None:
            what = f"a latency limit needs device {spot.place.name!r} to have latency_table"
            told += [(key, what) for key in known if ALIASES.get(key, key) in TIMES]
        for key, what in told:
            self.faults.add((*path, key) if at_metrics else path, what)
        return limits
