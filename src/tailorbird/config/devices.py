"""One device in YAML: its keys, the settings of its kind, and the place that they make."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tailorbird.config.reader import Path_
from tailorbird.config.sections import (
    Faults,
    Field,
    as_written,
    fields_of,
    near_or_own,
    short,
)
from tailorbird.device import Device, Precision
from tailorbird.errors import TailorbirdError
from tailorbird.factories import is_factory, make_importable, own
from tailorbird.measure.guarded import precisions_of
from tailorbird.targets import Place, batch_fault, precision_faults

Kinds = Mapping[str, Callable[..., Device]]
"""Kind of device -> its class, whose arguments are the keys of its settings."""

Needs = Literal["device", "table", None]
"""What a command asks of places: to measure, to predict without building any device, or either."""

DEFAULT = "onnxruntime"
"""Where neither a kind nor a table is named: one thread on this machine."""

AUTO = "auto"
"""All precisions that a device runs."""

PRECISION = Field(str | tuple[str, ...] | None, None)
_DEVICE = {
    "kind": Field(str | None, None),
    "runtime": Field(str | None, None),
    "latency_table": Field(Path | None, None),
    "batch": Field(int | None, None),
    "precision": PRECISION,
}
_UNSET = ["seed"]
"""Arguments of devices that are no keys."""


@dataclass(frozen=True)
class Spot:
    """A place, and the precisions that are asked of it; all that it runs for ``None``."""

    place: Place
    precisions: tuple[Precision, ...] | None = None


def device_fields(kind: str | None, kinds: Kinds) -> dict[str, Field]:
    """The keys of a device of this kind; of a place that has a table alone for ``None``."""
    if kind is None:
        return dict(_DEVICE)
    if kind in kinds:
        return _DEVICE | own_fields(kinds[kind])
    return _DEVICE | {"arguments": Field(dict[str, object] | None, None)}


def own_fields(kind: Callable[..., Device]) -> dict[str, Field]:
    """The keys that only devices of a kind have: the arguments of its class."""
    return fields_of(kind, without=_UNSET)


class DeviceReader:
    """Reads devices of one document.

    Args:
        faults: takes what is wrong.
        base: the file's folder: where paths start and modules are found.
        needs: what the command asks of places.
        kinds: of devices.
    """

    def __init__(self, faults: Faults, base: Path, needs: Needs, kinds: Kinds) -> None:
        self.faults, self.base, self.needs, self.kinds = faults, base, needs, kinds

    def read(
        self, path: Path_, raw: object, extra: Mapping[str, Field] | None = None
    ) -> tuple[dict[str, object], Spot]:
        """Settings of a device as they would be written again, and its place without a name.

        Args:
            path: where it stands.
            raw: as it was written.
            extra: keys beside those of devices.
        """
        given = raw if isinstance(raw, dict) else {}
        kind, named = self._kind(path, given)
        fields = {**(extra or {}), **device_fields(named, self.kinds)}
        if kind is not None and named is None:
            fields = {name: Field(object, None) for name in given} | fields  # its keys are unknown
        before = len(self.faults.found)
        values = self.faults.values(path, raw, fields)
        values |= {"kind": kind} | self._paths(values, fields)
        runtime = self._settings(named).get("runtime")
        if runtime is None:
            del values["runtime"]
        elif given.get("kind") is None:  # it was another word for the kind
            values["runtime"] = runtime.default
        device, table = None, values["latency_table"]
        if named is not None and self.needs != "table":
            device = self._built(path, named, values)
        elif kind is None and self.needs == "device" and len(self.faults.found) == before:
            self.faults.add(
                path,
                "a job measures its students, and a latency_table alone measures nothing; add the "
                "kind of a device, such as 'kind: onnxruntime'",
            )
        place = Place(
            device=device,
            table=table if isinstance(table, Path) else None,
            batch=self.batch(path, values["batch"]) or 1,
        )
        spot = Spot(place, self.precisions(path, values["precision"], device))
        return {name: as_written(value) for name, value in values.items()}, spot

    def batch(self, path: Path_, raw: Any) -> int | None:  # noqa: ANN401  # a checked value
        """Images per call; ``None`` where nothing is said, or nothing right."""
        if raw is None:
            return None
        if fault := batch_fault(raw):
            self.faults.add((*path, "batch"), fault)
            return None
        batch: int = raw
        return batch

    def precisions(
        self, path: Path_, raw: object, device: Device | None
    ) -> tuple[Precision, ...] | None:
        """What files may compute in; ``None`` for all that the device runs."""
        if raw is None or raw == AUTO:
            return None
        given: Any = raw if isinstance(raw, tuple) else (raw,)
        told = [fault.removeprefix("precision: ") for fault in precision_faults(given)]
        if device is not None and not told:
            try:
                runs = precisions_of(device)
            except TailorbirdError as error:
                told, runs = [str(error)], given
            wrong = [one for one in given if one not in runs]
            if wrong:
                what = f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} asked of it"
                told.append(f"the device runs {', '.join(runs)}, and {what}")
        for what in told:
            self.faults.add((*path, "precision"), what)
        return None if told else given

    def _kind(self, path: Path_, given: Mapping[str, object]) -> tuple[object, str | None]:
        """What is written as a device's kind, and the same where there is such a kind."""
        key = "runtime" if given.get("kind") is None else "kind"
        kind = given.get(key)
        if kind is None and given.get("latency_table") is None:
            kind = DEFAULT
        known = isinstance(kind, str) and (kind in self.kinds or is_factory(kind))
        named = kind if isinstance(kind, str) and known else None
        both = key == "kind" and given.get("runtime") is not None
        if both and "runtime" not in self._settings(named):
            self.faults.add((*path, "runtime"), "says the same as kind; give one of them")
        if kind is not None and named is None:
            hint = near_or_own(str(kind), self.kinds)
            self.faults.add((*path, key), f"unknown {key} {short(kind)}{hint}")
        return kind, named

    def _settings(self, kind: str | None) -> dict[str, Field]:
        return own_fields(self.kinds[kind]) if kind is not None and kind in self.kinds else {}

    def _paths(
        self, values: Mapping[str, object], fields: Mapping[str, Field]
    ) -> dict[str, object]:
        """Those values that are paths, from the file's folder on."""
        return {
            key: self.base / Path(str(value)).expanduser()
            for key, value in values.items()
            if value is not None and Path in (fields[key].kind, *typing.get_args(fields[key].kind))
        }

    def _built(self, path: Path_, kind: str, values: Mapping[str, Any]) -> Device | None:
        try:
            if kind in self.kinds:
                named = self._settings(kind)
                if any(values[key] is None and f.default is not None for key, f in named.items()):
                    return None  # what is missing has been told
                return self.kinds[kind](**{key: values[key] for key in named})
            make_importable(self.base)
            device: Device = own(kind, Device, values["arguments"])
            return Place(device=device).device  # its key is told of here
        except TailorbirdError as error:
            self.faults.adopt(path, error)
        return None
