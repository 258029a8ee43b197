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
RATE = "images_per_second"
ACCURACY, LOSS = "accuracy", "accuracy_loss"
METRICS = (LATENCY, "macs", "params", "size_mb", "peak_memory_mb", RATE, ACCURACY, LOSS)
"""Metrics that can be limited. Units live in the names; MB is 10^6 bytes, a loss is in points."""

LEAST_METRICS = (RATE, ACCURACY)
"""Those of which there has to be at least so much; of the others at most."""

TIMES = (LATENCY, RATE)
"""Those that a latency tells."""

ALIASES = {
    "latency": LATENCY,
    "size": "size_mb",
    "peak_memory": "peak_memory_mb",
    "throughput": RATE,
}
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
    """One bound, ``metric <= value``, or ``>=``; a ``share`` is relative to the reference's figure.

    The reference is what a flow starts from: the teacher, or a supernet's full network.

    Example:
        >>> Limit.parse("latency", "0.5x")
        Limit(metric='latency_ms', value=0.5, share=True)
        >>> Limit.parse("latency", "0.5x").absolute({"latency_ms": 8.0})
        4.0
        >>> print(Limit.parse("images_per_second", 500))
        images_per_second >= 500
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

    @property
    def least(self) -> bool:
        """Whether there has to be at least so much."""
        return self.metric in LEAST_METRICS

    def absolute(self, reference: Mapping[str, float]) -> float:
        """The bound in the metric's unit, given the reference's own figures."""
        return self.value * reference[self.metric] if self.share else self.value

    def bound(self, batch: int = 1) -> Limit | None:
        """The same as a bound from above on what is measured or counted of a file.

        Images per second are a latency, of calls with so many images. ``None`` for an accuracy.

        Example:
            >>> Limit.parse("images_per_second", 500).bound(batch=8)
            Limit(metric='latency_ms', value=16.0, share=False)
            >>> Limit.parse("throughput", "2x").bound(batch=8)
            Limit(metric='latency_ms', value=0.5, share=True)
        """
        if self.metric in (ACCURACY, LOSS):
            return None
        if self.metric != RATE:
            return self
        return Limit(LATENCY, (1.0 if self.share else 1000.0 * batch) / self.value, self.share)

    def accuracy(self, reference: float) -> float | None:
        """The least accuracy that it allows; ``None`` where it says nothing of accuracy.

        Args:
            reference: the reference's accuracy on the same images, 0 to 1.
        """
        if self.metric == LOSS:
            return reference - self.value / 100
        return self.absolute({ACCURACY: reference}) if self.metric == ACCURACY else None

    def __str__(self) -> str:
        sign = ">=" if self.least else "<="
        return f"{self.metric} {sign} {self.value:g}{'x teacher' if self.share else ''}"


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
        >>> read_limits({"accuracy": 97})[1]
        {'accuracy': "expected a share of right answers up to 1, such as 0.97, or a share of the \
teacher's such as '0.99x', got 97"}
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
        if not _possible(name, number, share=share):
            faults[key] = f"expected {_expected(name, reference)}, got {value!r}"
        elif key in ALIASES and not share:
            faults[key] = f"an absolute limit needs its unit, write '{name}: {value}'"
        elif name in names:
            faults[key] = f"'{names[name]}' already limits the same figure"
        else:
            limits.append(Limit(name, number, share))
        names.setdefault(name, key)
    return tuple(limits), faults


def _possible(metric: str, number: float, *, share: bool) -> bool:
    if metric == LOSS:
        return not share and 0 <= number < 100
    most = 1.0 if metric == ACCURACY and not share else math.inf
    return math.isfinite(number) and 0 < number <= most


def _expected(metric: str, reference: str) -> str:
    if metric == LOSS:
        return f"points of accuracy, 0 or more, that may be lost against the {reference}"
    if metric == ACCURACY:
        right = "a share of right answers up to 1, such as 0.97"
        return f"{right}, or a share of the {reference}'s such as '0.99x'"
    return f"a positive number or a share of the {reference} such as '0.5x'"


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
        batch: images per call: files are exported with this batch size, and latencies, those of
            the table too, are of such calls.
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
        if fault := batch_fault(self.batch):
            raise ConfigError(f"batch: {fault}")
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

    def batched(self, batch: int) -> Place:
        """The same place for calls of so many images: a place of its own.

        Raises:
            ConfigError: for a number out of range, or where there is a latency table: that is of
                calls of this place's ``batch``.

        Example:
            >>> Place(name="server").batched(8).name, Place(name="server").batched(1).name
            ('server batch 8', 'server')
        """
        if batch == self.batch:
            return self
        if self.table is not None:
            raise ConfigError(
                f"batch: the latency table of '{self.name}' is of calls of {self.batch} "
                f"image{'s' if self.batch > 1 else ''}; give a device of its own for {batch}"
            )
        name = "" if self.name == self.key else f"{self.name} batch {batch}"
        return replace(self, name=name, batch=batch)


def batch_fault(given: object) -> str:
    """What keeps a value from being images per call; empty where nothing does.

    Example:
        >>> batch_fault(8), batch_fault(0)
        ('', 'expected 1 to 4096 images, got 0')
    """
    whole = isinstance(given, int) and not isinstance(given, bool)
    if whole and 1 <= given <= MOST_BATCH:  # type: ignore[operator]  # a number
        return ""
    return f"expected 1 to {MOST_BATCH} images, got {given!r}"


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
    def bounds(self) -> tuple[Limit, ...]:
        """The limits as bounds from above on what is measured or counted of a file.

        One on images per second is one on the latency, of which there may be two then. Those on
        accuracy are left out, see `accuracy`.
        """
        found = [limit.bound(self.place.batch) for limit in self.limits]
        return tuple(limit for limit in found if limit is not None)

    @property
    def shares(self) -> dict[str, str]:
        """Those bounds that were not asked for in the unit of their metric, as they were asked.

        Metric -> such as ``"0.5x"``, ``"images_per_second >= 500"``, ``"accuracy_loss <= 1"``.
        """
        found: dict[str, list[Limit]] = {}
        for limit in self.limits:
            bound = limit.bound(self.place.batch)
            found.setdefault(ACCURACY if bound is None else bound.metric, []).append(limit)
        texts = {metric: _as_asked(metric, asked) for metric, asked in found.items()}
        return {metric: text for metric, text in texts.items() if text}

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
        """All `bounds` in their units, the tighter of two, given the reference's figures here.

        Example:
            >>> limits = {"images_per_second": 500, "latency": "0.5x", "accuracy_loss": 1}
            >>> target = Target("a", Place(name="phone", table=Path("p.yaml"), batch=8), limits)
            >>> target.absolute({"latency_ms": 40.0})
            {'latency_ms': 16.0}
        """
        found: dict[str, float] = {}
        for limit in self.bounds:
            value = limit.absolute(reference)
            found[limit.metric] = min(value, found.get(limit.metric, value))
        return found

    def latency(self, reference: Mapping[str, float]) -> Limit | None:
        """What bounds the latency, the tighter one of two; ``None`` where nothing does.

        Args:
            reference: its figures at this place.
        """
        known = [limit for limit in self.bounds if limit.metric == LATENCY]
        return min(known, key=lambda limit: limit.absolute(reference), default=None)

    def accuracy(self, reference: float) -> float | None:
        """The least accuracy that is asked for, 0 to 1; ``None`` where none is.

        Args:
            reference: the reference's accuracy on the images that are judged by.

        Example:
            >>> place = Place(name="phone", table=Path("phone.yaml"))
            >>> Target("a", place, {"accuracy_loss": 1.0}).accuracy(0.93)
            0.92
        """
        asked = [limit.accuracy(reference) for limit in self.limits]
        return max((one for one in asked if one is not None), default=None)


def unsearchable(metric: str) -> str:
    """Why a search on predictions alone can't keep a limit; empty where it can.

    Example:
        >>> unsearchable("images_per_second")
        ''
    """
    if metric not in (ACCURACY, LOSS):
        return ""
    return (
        "a search is for the most accurate networks within limits of cost, and their accuracy is "
        "only predicted; `supernet fit` takes a limit on it"
    )


def _as_asked(metric: str, asked: Sequence[Limit]) -> str:
    """What a bound was asked for as; empty where that is the bound itself."""
    if len(asked) == 1 and asked[0].metric == metric:
        return f"{asked[0].value:g}x" if asked[0].share else ""
    return ", ".join(str(limit).removesuffix(" teacher") for limit in asked)


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
