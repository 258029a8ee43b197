"""The language of targets: a limit, a place that figures come from, a target."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError

LATENCY = "latency_ms"
METRICS = (LATENCY, "macs", "params", "size_mb", "peak_memory_mb")
"""Metrics that can be limited. Units live in the names; MB is 10^6 bytes."""

ALIASES = {"latency": LATENCY, "size": "size_mb", "peak_memory": "peak_memory_mb"}
"""Names without a unit, for shares; ``latency: 0.5x`` needs none."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What names a folder."""

Run = Callable[[Path, "npt.NDArray[np.float32]"], "npt.NDArray[np.float32]"]
"""A file and images (n, C, H, W) to its outputs (n, ...)."""

_SHARE = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*x\s*$")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A measured latency: median and interquartile range over ``runs`` timed runs."""

    median_ms: float
    spread_ms: float
    runs: int
    warmup: int


Precision = Literal["float32", "float16", "int8"]
"""What an artifact computes in."""


@dataclass(frozen=True)
class Format:
    """What exported files are: a name, and what the file in a student's folder is called."""

    name: str
    file: str


ONNX = Format("onnx", "model.onnx")


class Device(Protocol):
    """What times exported networks. One instance is one deployment setting.

    It may have the members of `Runtime` as well; without them it takes ONNX files in float32, and
    what a file answers is asked of ONNX Runtime on this machine.
    """

    @property
    def key(self) -> str:
        """Identity of device, runtime and settings: equal keys give comparable latencies."""

    def measure(self, models: Sequence[Path]) -> list[Latency]:
        """Time each ONNX file at batch 1, interleaved so that drift hits all alike.

        Raises:
            MeasurementError: when a file can't be run on this device.
        """


class Runtime(Device, Protocol):
    """A device that also says what it takes, and tells what a file answers there."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions of artifacts that it runs."""

    @property
    def format(self) -> Format:
        """The artifacts that it runs."""

    def run(self, artifact: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What a file answers to images (n, C, H, W): outputs (n, ...).

        Raises:
            ExportError: when the file can't be run on these images.
            MeasurementError: when the device does not answer.
        """


def format_of(device: Device) -> Format:
    """The artifacts that a device runs; ONNX files where it doesn't say."""
    given: Format = getattr(device, "format", ONNX)
    return given


def precisions_of(device: Device) -> tuple[Precision, ...]:
    """The precisions that a device runs; float32 where it doesn't say."""
    given: tuple[Precision, ...] = getattr(device, "precisions", ("float32",))
    return given


def run_of(device: Device | None) -> Run | None:
    """What tells what files answer on a device; ``None`` where it can't."""
    given: Run | None = getattr(device, "run", None)
    return given


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

    Without either, only what is counted of a network can be limited.
    """

    name: str
    device: Device | None = None
    table: Path | None = None

    @property
    def key(self) -> str:
        """Identity for reports and stores: the device's, or the table's path."""
        return self.device.key if self.device is not None else f"table {self.table}"


def _fault_of_key(device: Device) -> str:
    """What is wrong with a device's key; empty where nothing is."""
    kind = type(device).__name__
    if not callable(getattr(device, "measure", None)):
        return f"expected a device with `key` and `measure`, got {kind}"
    try:
        first, second = device.key, device.key
    except Exception as error:  # a device's own code may raise anything
        return f"the key of its device ({kind}) raises {type(error).__name__}: {error}"
    if not isinstance(first, str) or not first:
        return f"the key of its device ({kind}) is {first!r}, expected text that names the device"
    if first != second:
        return f"the key of its device ({kind}) changes: {first!r}, then {second!r}"
    return ""


@dataclass(frozen=True, init=False)
class Target:
    """A place and the limits that one network has to keep there.

    Args:
        name: names the student's folder; letters, digits, ``.``, ``_`` and ``-``.
        place: a device, or a `Place`, which may have a latency table.
        limits: metric -> number in the metric's unit, or a share of the reference like ``"0.5x"``;
            or limits that have been read.
        device: the same as ``place``, for a device.

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

    def __init__(
        self,
        name: str,
        place: Device | Place | None = None,
        limits: Mapping[str, float | str] | Sequence[Limit] = (),
        *,
        device: Device | None = None,
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
        told = given.device if isinstance(given, Place) else given
        if told is not None and (fault := _fault_of_key(told)):
            problems.append(f"target {name!r}: {fault}")
        elif given is not None and not isinstance(given, Place):
            given = Place(name=given.key, device=given)
        if isinstance(limits, Mapping):
            read, faults = read_limits(limits)
            problems += [f"target {name!r}: limit {key}: {fault}" for key, fault in faults.items()]
        else:
            read = tuple(limits)
            problems += _twice(name, read)
        if problems:
            raise ConfigError(problems)
        object.__setattr__(self, "name", name)
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
        if (first.key, first.table) != (place.key, place.table):
            twice.add(place.name)
    if twice:
        raise ConfigError(
            [f"places: '{name}' is the name of two; give each its own" for name in sorted(twice)]
        )
    return found


def too_many_threads(device: object, cores: int | None = None) -> str | None:
    """What to say of a device with more threads than this machine has cores; else ``None``.

    Args:
        device: with ``threads`` or without.
        cores: of this machine; counted where ``None``.

    Example:
        >>> class Busy:
        ...     key, threads = "busy", 8
        >>> too_many_threads(Busy(), cores=2)
        'device busy: 8 threads on 2 cores wait for each other; give fewer'
    """
    threads, have = getattr(device, "threads", None), cores or os.cpu_count() or 1
    if not isinstance(threads, int) or threads <= have:
        return None
    key = getattr(device, "key", type(device).__name__)
    return f"device {key}: {threads} threads on {have} cores wait for each other; give fewer"
