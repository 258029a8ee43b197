"""Targets: a device and the limits that a network has to keep there."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tailorbird.errors import ConfigError

METRICS = ("latency_ms", "macs", "params", "size_mb", "peak_memory_mb")
"""Metrics that can be limited. Units live in the names; MB is 10^6 bytes."""

_ALIASES = {"latency": "latency_ms", "size": "size_mb", "peak_memory": "peak_memory_mb"}
_SHARE = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*x\s*$")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A measured latency: median and interquartile range over ``runs`` timed runs."""

    median_ms: float
    spread_ms: float
    runs: int
    warmup: int


class Device(Protocol):
    """What runs and times exported networks. One instance is one deployment setting."""

    @property
    def key(self) -> str:
        """Identity of device, runtime and settings: equal keys give comparable latencies."""

    def measure(self, models: Sequence[Path]) -> list[Latency]:
        """Time each ONNX file at batch 1, interleaved so that drift hits all alike.

        Raises:
            MeasurementError: when a file can't be run on this device.
        """


@dataclass(frozen=True)
class Limit:
    """One bound, ``metric <= value``; a ``share`` is relative to the teacher's figure.

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
    def parse(metric: str, value: float | str) -> Limit:
        """Read a limit as written by the user: a number, or a share such as ``"0.5x"``.

        Raises:
            ConfigError: for an unknown metric or a value that is not a positive number.
        """
        name = _ALIASES.get(metric, metric)
        if name not in METRICS:
            known = ", ".join(METRICS)
            raise ConfigError(f"limit: unknown metric '{metric}'; give one of {known}")
        share = isinstance(value, str) and _SHARE.match(value) is not None
        try:
            number = float(str(value).strip().removesuffix("x") if share else value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not (math.isfinite(number) and number > 0):
            raise ConfigError(
                f"limit {metric}: expected a positive number or a share of the teacher "
                f"such as '0.5x', got {value!r}"
            )
        if metric in _ALIASES and not share:
            raise ConfigError(
                f"limit {metric}: an absolute limit needs its unit, write '{name}: {value}'"
            )
        return Limit(name, number, share)

    def absolute(self, teacher: Mapping[str, float]) -> float:
        """The bound in the metric's unit, given the teacher's own figures."""
        return self.value * teacher[self.metric] if self.share else self.value

    def __str__(self) -> str:
        return f"{self.metric} <= {self.value:g}{'x teacher' if self.share else ''}"


@dataclass(frozen=True)
class Target:
    """A device and the limits that one student has to keep on it.

    Args:
        name: names the student's folder; letters, digits, ``.``, ``_`` and ``-``.
        device: what measures the exported network.
        limits: metric -> number in the metric's unit, or a share of the teacher like ``"0.5x"``.

    Raises:
        ConfigError: listing every fault of the name and the limits at once.
    """

    name: str
    device: Device
    limits: Mapping[str, float | str]
    parsed: tuple[Limit, ...] = field(init=False)

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            problems.append(
                f"target {self.name!r}: the name becomes a folder; use letters, digits, '.', '_', "
                "'-', at most 100, starting with a letter or digit"
            )
        if not self.limits:
            problems.append(
                f"target {self.name!r}: no limits; give at least one, such as latency: 0.5x"
            )
        parsed = []
        for metric, value in self.limits.items():
            try:
                parsed.append(Limit.parse(metric, value))
            except ConfigError as error:
                problems.extend(f"target {self.name!r}: {line}" for line in error.problems)
        names = [limit.metric for limit in parsed]
        problems.extend(
            f"target {self.name!r}: {metric} is limited twice"
            for metric in sorted({name for name in names if names.count(name) > 1})
        )
        if problems:
            raise ConfigError(problems)
        object.__setattr__(self, "parsed", tuple(parsed))

    def absolute(self, teacher: Mapping[str, float]) -> dict[str, float]:
        """All bounds in their units, given the teacher's figures on this device."""
        return {limit.metric: limit.absolute(teacher) for limit in self.parsed}
