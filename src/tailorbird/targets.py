"""The language of targets: a limit, a place that figures come from, a target."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from tailorbird.asking import asked
from tailorbird.device import KEY_LIMIT_S, Device, Precision, key_of
from tailorbird.errors import ConfigError, MeasurementError

LATENCY = "latency_ms"
METRICS = (LATENCY, "macs", "params", "size_mb", "peak_memory_mb")
"""Metrics that can be limited. Units live in the names; MB is 10^6 bytes."""

ALIASES = {"latency": LATENCY, "size": "size_mb", "peak_memory": "peak_memory_mb"}
"""Names without a unit, for shares; ``latency: 0.5x`` needs none."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What names a folder."""

PLAIN: Precision = "float32"
"""What the reference computes in, and all that has no other precision."""

MOST_BATCH = 4096
"""Images in one call."""

_SHARE = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*x\s*$")


@dataclass(frozen=True)
class Limit:
    """One bound, ``metric <= value``; a ``share`` is relative to the reference's figure.

    The reference is what a flow starts from: the teacher, or a supernet's full network.

    Example:
        >>> Limit.parse("latency", "0.5x")
        Limit(metric='latency_ms', value=0.5, share=True)
        >>> Limit.parse("latency", "0.5x").absolute({"latency_ms": 8.0})
        4.0
    """

    metric: str
    value: float
    share: bool = False

    @staticmethod
    def parse(metric: str, value: object, *, reference: str = "teacher") -> Limit:
        """Read a limit as written by the user: a number, or a share such as ``"0.5x"``.

        Args:
            metric: one of `METRICS` or `ALIASES`.
            value: as it was written.
            reference: what shares are of, for messages.

        Raises:
            ConfigError: for an unknown metric or a value that is not a positive number.
        """
        limits, faults = read_limits({metric: value}, reference=reference)
        if metric in faults:
            prefix = f"limit {metric}: " if ALIASES.get(metric, metric) in METRICS else "limit: "
            raise ConfigError(prefix + faults[metric])
        return limits[0]

    def absolute(self, reference: Mapping[str, float]) -> float:
        """The bound in the metric's unit, given the reference's own figures."""
        return self.value * reference[self.metric] if self.share else self.value

    def __str__(self) -> str:
        return f"{self.metric} <= {self.value:g}{'x teacher' if self.share else ''}"


def read_limits(
    written: Mapping[str, object], *, reference: str = "teacher"
) -> tuple[tuple[Limit, ...], dict[str, str]]:
    """The one reader of limits: what was written for one target, and what is wrong with it.

    Args:
        written: metric -> number in the metric's unit, or a share like ``"0.5x"``.
        reference: what shares are of, for messages.

    Returns:
        The limits, and metric as written -> its fault.

    Example:
        >>> read_limits({"latency": "0.5x", "macs": -1})[0]
        (Limit(metric='latency_ms', value=0.5, share=True),)
        >>> read_limits({"latency": "0.5x", "macs": -1})[1]
        {'macs': "expected a positive number or a share of the teacher such as '0.5x', got -1"}
    """
    limits: list[Limit] = []
    faults: dict[str, str] = {}
    names: dict[str, str] = {}
    for key, value in written.items():
        name = ALIASES.get(key, key)
        if name not in METRICS:
            faults[key] = f"unknown metric '{key}'; give one of {', '.join(METRICS)}"
            continue
        share = isinstance(value, str) and _SHARE.match(value) is not None
        number = _number(str(value).strip().removesuffix("x") if share else value)
        if not (math.isfinite(number) and number > 0):
            faults[key] = (
                f"expected a positive number or a share of the {reference} such as '0.5x', "
                f"got {value!r}"
            )
        elif key in ALIASES and not share:
            faults[key] = f"an absolute limit needs its unit, write '{name}: {value}'"
        elif name in names:
            faults[key] = f"'{names[name]}' already limits the same figure"
        else:
            limits.append(Limit(name, number, share))
        names.setdefault(name, key)
    return tuple(limits), faults


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where figures come from: a device that measures, a latency table that predicts, or both.

    Args:
        name: for messages, and in a search's metrics; a device's key where none is given.
        device: what measures; ``None`` where there is only a table, so that what is made for this
            place is predicted, not measured.
        table: a latency table, instead of one that is measured on the device.
        batch: images per call: files are exported with this batch size, and latencies are of such
            calls.
        precision: that files compute in; see `at`.

    Without either, only what is counted of a network can be limited.

    Attributes:
        key: identity for reports and stores: the device's as it was read first, or the path
            of the table.

    Raises:
        ConfigError: for a device that lacks ``measure``, or whose key is no text that stays.
    """

    name: str = ""
    device: Device | None = None
    table: Path | None = None
    batch: int = 1
    precision: Precision = PLAIN
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.batch, bool) or not 1 <= self.batch <= MOST_BATCH:
            raise ConfigError(f"batch: expected 1 to {MOST_BATCH} images, got {self.batch!r}")
        key = f"table {self.table}"
        if self.device is not None:
            key, fault = _key_that_stays(self.device)
            if fault:
                raise ConfigError(f"place {self.name!r}: {fault}" if self.name else fault)
        if self.batch > 1:
            key += f", batch {self.batch}"
        if self.precision != PLAIN:
            key += f", {self.precision}"
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "name", self.name or key)

    def at(self, precision: Precision) -> Place:
        """The same place for files in a precision: figures of each are a place's own.

        Example:
            >>> Place(name="phone").at("int8").name, Place(name="phone").at("float32").name
            ('phone int8', 'phone')
        """
        if precision == self.precision:
            return self
        return replace(self, name=f"{self.name} {precision}", precision=precision)


def _key_that_stays(device: Device) -> tuple[str, str]:
    """A device's key, and what keeps the object from being a device; empty where nothing does."""
    kind = type(device).__name__
    title = f"the measure of its device ({kind})"
    try:
        able = asked(lambda: callable(getattr(device, "measure", None)), title, limit_s=KEY_LIMIT_S)
        if not able:
            return "", f"expected a device with `key` and `measure`, got {kind}"
        first, second = key_of(device), key_of(device)
    except MeasurementError as error:
        return "", str(error)
    if first != second:
        return "", f"the key of its device ({kind}) changes: {first!r}, then {second!r}"
    return first, ""


@dataclass(frozen=True, init=False)
class Target:
    """A place and the limits that one network has to keep there.

    Args:
        name: names the student's folder; letters, digits, ``.``, ``_`` and ``-``.
        place: a device, or a `Place`, which may have a latency table.
        limits: metric -> number in the metric's unit, or a share of the reference like ``"0.5x"``;
            or limits that have been read.
        device: the same as ``place``, for a device.
        precisions: that its file may compute in; all that the device runs where ``None``.

    Raises:
        ConfigError: listing every fault of the name and the limits at once.

    Example:
        >>> target = Target("phone", Place(name="phone", table=Path("phone.yaml")), {"macs": 3e8})
        >>> target.limits
        (Limit(metric='macs', value=300000000.0, share=False),)
        >>> target.absolute({"macs": 6e8})
        {'macs': 300000000.0}
    """

    name: str
    place: Place
    limits: tuple[Limit, ...]
    precisions: tuple[Precision, ...] | None

    def __init__(
        self,
        name: str,
        place: Device | Place | None = None,
        limits: Mapping[str, float | str] | Sequence[Limit] = (),
        *,
        device: Device | None = None,
        precisions: Sequence[Precision] | None = None,
    ) -> None:
        problems: list[str] = []
        if not NAME.fullmatch(name):
            problems.append(
                f"target {name!r}: the name becomes a folder; use letters, digits, '.', '_', "
                "'-', at most 100, starting with a letter or digit"
            )
        if (place is None) == (device is None):
            problems.append(f"target {name!r}: expected a place or a device, one of them")
        if not limits:
            problems.append(f"target {name!r}: no limits; give at least one, such as latency: 0.5x")
        given = place if place is not None else device
        if given is not None and not isinstance(given, Place):
            try:
                given = Place(device=given)
            except ConfigError as error:
                problems.append(f"target {name!r}: {error}")
        if isinstance(limits, Mapping):
            read, faults = read_limits(limits)
            problems += [f"target {name!r}: limit {key}: {fault}" for key, fault in faults.items()]
        else:
            read = tuple(limits)
            problems += _twice(name, read)
        if precisions is not None:
            problems += [f"target {name!r}: {fault}" for fault in precision_faults(precisions)]
        if problems:
            raise ConfigError(problems)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "precisions", None if precisions is None else tuple(precisions))
        object.__setattr__(self, "place", given)
        object.__setattr__(self, "limits", read)

    @property
    def shares(self) -> dict[str, str]:
        """Those limits that are shares, as they were asked, such as ``"0.5x"``."""
        return {limit.metric: f"{limit.value:g}x" for limit in self.limits if limit.share}

    @property
    def device(self) -> Device:
        """What measures.

        Raises:
            ConfigError: for a place that has only a latency table, or nothing.
        """
        if self.place.device is None:
            raise ConfigError(
                f"target '{self.name}': expected a device that measures, and '{self.place.name}' "
                "has none"
            )
        return self.place.device

    def absolute(self, reference: Mapping[str, float]) -> dict[str, float]:
        """All bounds in their units, given the reference's figures at this place."""
        return {limit.metric: limit.absolute(reference) for limit in self.limits}


def precision_faults(given: Sequence[object]) -> list[str]:
    """What is wrong with a list of precisions.

    Example:
        >>> precision_faults(["int8", "int4"])
        ["precision: unknown 'int4'; give one or more of float32, float16, int8"]
    """
    known = get_args(Precision)
    if not given:
        return [f"precision: the list is empty; give one or more of {', '.join(known)}"]
    wrong = [one for one in given if one not in known]
    faults = [
        f"precision: unknown {one!r}; give one or more of {', '.join(known)}" for one in wrong
    ]
    return faults or (["precision: one is given twice"] if len(set(given)) < len(given) else [])


def _twice(name: str, limits: Sequence[Limit]) -> list[str]:
    metrics = [limit.metric for limit in limits]
    return [
        f"target {name!r}: {metric} is limited twice"
        for metric in sorted({one for one in metrics if metrics.count(one) > 1})
    ]


def places_of(targets: Sequence[Target]) -> dict[str, Place]:
    """The places of targets by name, in their order.

    Raises:
        ConfigError: where two different places have one name.

    Example:
        >>> phone = Place(name="phone", table=Path("phone.yaml"))
        >>> list(places_of([Target(name, phone, {"latency_ms": 9}) for name in ("a", "b")]))
        ['phone']
    """
    found: dict[str, Place] = {}
    twice = set()
    for place in (target.place for target in targets):
        first = found.setdefault(place.name, place)
        if (first.key, first.table, first.batch) != (place.key, place.table, place.batch):
            twice.add(place.name)
    if twice:
        raise ConfigError(
            [f"places: '{name}' is the name of two; give each its own" for name in sorted(twice)]
        )
    return found
