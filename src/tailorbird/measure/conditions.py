"""What this machine is, and the conditions under which something is timed on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from tailorbird.device import Description

_ROOT = Path("/")
_LOWEST_C, _HIGHEST_C = -50.0, 150.0
"""What lies outside is no temperature, but a sensor that is off."""


def this_machine(runtime: str, version: str, *, root: Path = _ROOT) -> Description:
    """This machine as a device on it describes itself; ``None`` for what can't be read.

    Cost: a few small files, under a millisecond or two.

    Args:
        runtime: what runs files, such as ``"ONNX Runtime"``.
        version: of the runtime.
        root: where ``proc`` and ``sys`` are.

    Example:
        >>> here = this_machine("ONNX Runtime", "1.31.0")
        >>> here.runtime, here.cores >= 1
        ('ONNX Runtime', True)
    """
    return Description(
        machine=processor(root=root),
        system=f"{platform.system()} {platform.release()}".strip() or "unknown",
        runtime=runtime,
        version=version,
        cores=usable_cores(),
        memory_mb=free_memory_mb(root=root),
        governor=governor(root=root),
        temperature_c=temperature_c(root=root),
    )


def processor(*, root: Path = _ROOT) -> str:
    """The processor's name, as the system gives it."""
    for line in _lines(root / "proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory_mb(*, root: Path = _ROOT) -> float | None:
    """Memory that programs may take without swapping, in MB (10^6 bytes)."""
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            number = value.split()
            return int(number[0]) * 1024 / 1e6 if number and number[0].isdecimal() else None
    return None


def governor(*, root: Path = _ROOT) -> str | None:
    """What sets the cores' clocks, such as ``"performance"``; all of them where they differ."""
    files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    found = {line.strip() for file in files for line in _lines(file)[:1]}
    return ", ".join(sorted(found - {""})) or None


def temperature_c(*, root: Path = _ROOT) -> float | None:
    """The hottest sensor, in degrees Celsius."""
    return max(_temperatures(root), default=None)


def _temperatures(root: Path) -> Iterator[float]:
    for pattern in ("sys/class/thermal/thermal_zone*/temp", "sys/class/hwmon/hwmon*/temp*_input"):
        for file in root.glob(pattern):
            for line in _lines(file)[:1]:
                try:
                    degrees = int(line) / 1000
                except ValueError:
                    continue
                if _LOWEST_C < degrees < _HIGHEST_C:
                    yield degrees


def _lines(path: Path) -> list[str]:
    """Lines of a small file; none where it can't be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
