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
        limits: {latency: 0.5x, size_mb: 4}
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tailorbird.config.reader import Path_, read_file, show
from tailorbird.config.sections import (
    NAMING,
    REQUIRED,
    Faults,
    Field,
    as_written,
    fields_of,
    near,
    near_or_own,
    read_fields,
    short,
)
from tailorbird.device import Device
from tailorbird.errors import ConfigError, TailorbirdError
from tailorbird.export.options import ExportOptions
from tailorbird.factories import is_factory, make_importable, own
from tailorbird.measure.devices.adb import Adb
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.measure.devices.ssh import Ssh
from tailorbird.targets import (
    ALIASES,
    LATENCY,
    METRICS,
    NAME,
    Limit,
    Place,
    Target,
    read_limits,
)

DEVICES: Mapping[str, Callable[..., Device]] = {
    "onnxruntime": OnnxRuntime,
    "ssh": Ssh,
    "adb": Adb,
}
"""Kind of device -> its class. A new device is a line here."""

RUNTIMES_OF_THEIR_OWN = {kind for kind, of in DEVICES.items() if "runtime" in fields_of(of)}
"""Kinds for which ``runtime`` is a setting; for others it is another word for ``kind``."""

HINT = "it begins with 'devices:' or 'targets:', see the how-to"

DEFAULT = "onnxruntime"
"""Where neither a kind nor a table is named: one thread on this machine."""

Needs = Literal["device", "table", None]
"""What a command asks of places: to measure, to predict without building any device, or either."""

KEYS = {
    "devices": Field(object, None, "a list, with a name and settings each"),
    "targets": Field(object, None, "a list, with a name, a device and limits each"),
}
"""What a document about targets holds; a job holds it among other things."""

_DEVICE = {
    "kind": Field(str | None, None),
    "runtime": Field(str | None, None),
    "latency_table": Field(Path | None, None),
}
_TARGET = {
    "name": Field(str, hint="it names the student's folder"),
    "device": Field(object, None),
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


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What `tailorbird supernet fit` is asked for.

    Args:
        targets: in the file's order.
        export: what the students' files look like.
    """

    targets: tuple[Target, ...]
    export: ExportOptions


def load_fleet(path: Path) -> Fleet:
    """Read a file of devices and targets that may have an ``export`` section, too.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    document = read_file(path, hint=HINT)
    faults = Faults(document.lines)
    options = Field(ExportOptions | None, ExportOptions())
    values = read_fields(faults, (), document.data, {**KEYS, "export": options}, {})
    found = read_targets(faults, values, base=path.parent, reference="full network")
    if faults.found or found is None:
        raise ConfigError(faults.found)
    export = values["export"]
    assert export is None or isinstance(export, ExportOptions)  # as its field is
    return Fleet(targets=found.targets, export=export or ExportOptions())


def device_fields(kind: str | None) -> dict[str, Field]:
    """The keys of a device of this kind; of a place that has a table alone for ``None``."""
    if kind is None:
        return dict(_DEVICE)
    if kind in DEVICES:
        return _DEVICE | fields_of(DEVICES[kind], without=["seed"])
    return _DEVICE | {"arguments": Field(dict[str, object] | None, None)}


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
    faults: Faults, given: Mapping[str, object], *, base: Path, reference: str, needs: Needs = None
) -> Targets | None:
    """Check the keys ``devices`` and ``targets`` of a document.

    Args:
        faults: takes what is wrong.
        given: the document, or its values; other keys are left alone.
        base: the file's folder: where paths start and modules are found.
        reference: what shares are of, for messages.
        needs: what the command asks of places.

    Returns:
        The targets; ``None`` where there were faults.
    """
    before = len(faults.found)
    reader = _Reader(faults, base, reference, needs)
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
    """A target that is being read: where it stands, what it asks for, how its device is written."""

    path: Path_
    name: str
    place: Place | None
    limits: tuple[Limit, ...]
    device: object


class _Reader:
    """Reads the two keys of one document; what it notes in ``faults`` ends the reading."""

    def __init__(self, faults: Faults, base: Path, reference: str, needs: Needs) -> None:
        self.faults, self.base, self.reference, self.needs = faults, base, reference, needs
        self.places: dict[str, Place] = {}
        self.written: list[dict[str, object]] = []
        self.idle: dict[str, Path_] = {}
        self.wishes: list[_Wish] = []
        self._inline: dict[str, Place] = {}

    def devices(self, raw: object) -> None:
        """The list of devices, with the targets that their limits make."""
        if not isinstance(raw, list) or not raw:
            self.faults.add(("devices",), f"expected a list of devices, got {short(raw)}")
            raw = []
        for number, one in enumerate(raw):
            path: Path_ = ("devices", number)
            values, device, table = self._device(path, one, _LISTED)
            name = values["name"] if isinstance(values["name"], str) else ""
            if values["name"] is not None and (not name or "@" in name):
                self.faults.add((*path, "name"), f"{name!r} has to be text without '@'")
            elif name in self.places:
                self.faults.add((*path, "name"), f"{name!r} is given twice")
            self.places[name] = place = Place(name=name or show(path), device=device, table=table)
            self.written.append({k: v for k, v in values.items() if k != "limits"})
            if isinstance(one, dict) and "limits" in one:
                self._sets((*path, "limits"), values["limits"], place)
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
            place, device = self._place((*path, "device"), values["device"], name)
            limits: tuple[Limit, ...] = ()
            if isinstance(one, dict) and "limits" in one:
                limits = self._limits((*path, "limits"), values["limits"], place)
            self.wishes.append(_Wish(path, name, place, limits, device))

    def all_are_used(self) -> None:
        """A device that no target is for has been forgotten."""
        used = [one.device for one in self.wishes]
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
            listed.append({"name": wish.name, "device": wish.device, "limits": bounds})
        targets = tuple(Target(one.name, one.place, one.limits) for one in self.wishes)
        return Targets(targets, {"devices": self.written or None, "targets": listed})

    def _place(self, path: Path_, raw: object, name: str) -> tuple[Place | None, object]:
        """A target's place, and how it is written: the name of a device, or a section."""
        if isinstance(raw, str) and raw in self.places:
            return self.places[raw], raw
        if isinstance(raw, str) and self.places and raw not in DEVICES and not is_factory(raw):
            known = near_or_own(raw, [*self.places, *DEVICES])
            self.faults.add(path, f"unknown device {short(raw)}{known}")
            return None, raw
        before = len(self.faults.found)
        values, device, table = self._device(path, {"kind": raw} if isinstance(raw, str) else raw)
        if len(self.faults.found) > before:
            return None, values
        place = Place(name="" if device else name, device=device, table=table)
        return self._inline.setdefault(json.dumps(values), place), values

    def _device(
        self, path: Path_, raw: object, extra: Mapping[str, Field] | None = None
    ) -> tuple[dict[str, object], Device | None, Path | None]:
        """Settings of a device as they would be written again, the device, and its table."""
        given, more = raw if isinstance(raw, dict) else {}, extra or {}
        key = "runtime" if given.get("kind") is None else "kind"
        kind = given.get(key)
        own_runtime = kind in RUNTIMES_OF_THEIR_OWN
        if key == "kind" and given.get("runtime") is not None and not own_runtime:
            self.faults.add((*path, "runtime"), "says the same as kind; give one of them")
        if kind is None and given.get("latency_table") is None:
            kind = DEFAULT
        named = kind if isinstance(kind, str) and (kind in DEVICES or is_factory(kind)) else None
        fields = {**more, **device_fields(named)}
        if kind is not None and named is None:
            hint = near_or_own(str(kind), DEVICES)
            self.faults.add((*path, key), f"unknown {key} {short(kind)}{hint}")
            fields = {name: Field(object, None) for name in given} | fields  # its keys are unknown
        before = len(self.faults.found)
        values = self.faults.values(path, raw, fields)
        values |= {
            name: self.base / Path(str(values[name])).expanduser()
            for name, one in fields.items()
            if Path in get_args(one.kind) and values[name]
        }
        table = values["latency_table"]
        values |= {"kind": kind}
        if key == "runtime" or not own_runtime:
            del values["runtime"]
        device = None
        if named is not None and self.needs != "table":
            device = self._built(path, named, values)
        elif kind is None and self.needs == "device" and len(self.faults.found) == before:
            self.faults.add(
                path,
                "a job measures its students, and a latency_table alone measures nothing; add the "
                "kind of a device, such as 'kind: onnxruntime'",
            )
        written = {name: as_written(value) for name, value in values.items()}
        return written, device, table if isinstance(table, Path) else None

    def _built(self, path: Path_, kind: str, values: Mapping[str, Any]) -> Device | None:
        try:
            if kind in DEVICES:
                settings = fields_of(DEVICES[kind], without=["seed"])
                if any(values.get(k) is None for k, f in settings.items() if f.default is REQUIRED):
                    return None  # it is missing, which has been told
                return DEVICES[kind](**{key: values[key] for key in settings if key in values})
            make_importable(self.base)
            device: Device = own(kind, Device, values["arguments"])
            return Place(device=device).device  # its key is told of here
        except TailorbirdError as error:
            self.faults.adopt(path, error)
        return None

    def _sets(self, path: Path_, raw: object, place: Place) -> None:
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
            limits = self._limits(where, bounds, place, at_metrics=several)
            self.wishes.append(_Wish(where, place.name, place, limits, place.name))

    def _limits(
        self, path: Path_, raw: object, place: Place | None, *, at_metrics: bool = True
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
        if self.needs == "table" and place is not None and place.table is None:
            what = f"a latency limit needs device {place.name!r} to have latency_table"
            told += [(key, what) for key in known if ALIASES.get(key, key) == LATENCY]
        for key, what in told:
            self.faults.add((*path, key) if at_metrics else path, what)
        return limits
