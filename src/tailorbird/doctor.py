"""What this machine offers to Tailorbird, what is wrong with it, and how to mend that."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pydantic",
    "pyarrow",
    "matplotlib",
)
NEED_GB = 2.0
BUSY = 0.5
"""Load per core, from work other than ours, above which timings are told to be unreliable."""

Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``wrong`` stops work; a ``note`` costs speed or accuracy of timings."""

    topic: str
    level: Level
    text: str


def examine(folder: Path) -> list[Finding]:
    """Look at the machine; ``folder`` is where runs are to be written.

    A check that itself fails is a finding too; none of them raises.
    """
    found: list[Finding] = []
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _cores,
        _flags,
        _gpu,
        _onnxruntime,
        _clock,
        _load,
        lambda: _writing(folder),
    )
    for check in checks:
        try:
            found += check()
        except Exception as error:  # whatever a broken installation raises is what is to be told
            found.append(Finding("check", "wrong", f"{type(error).__name__}: {error}"))
    return found


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    fine = (3, 11) <= sys.version_info[:2] < (3, 14)
    hint = "" if fine else "; Tailorbird needs 3.11 to 3.13"
    yield Finding("python", "ok" if fine else "wrong", f"{version} on {platform.system()}{hint}")


def _packages() -> Iterator[Finding]:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", "ok", ", ".join(versions))
    if missing:
        yield Finding("packages", "wrong", f"missing: {', '.join(missing)}; pip install tailorbird")


def _cores() -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    told = f"{usable} usable" + (f" of {cores}" if usable != cores else "")
    yield Finding("cores", "ok", told)
    if usable == 1:
        yield Finding(
            "cores", "note", "with one core, training and other programs disturb every timing"
        )


def cpu_flags(info: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets that Linux reports; empty elsewhere."""
    if not info.is_file():
        return frozenset()
    for line in info.read_text(errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _flags() -> Iterator[Finding]:
    flags = cpu_flags()
    if not flags:
        yield Finding("processor", "note", "instruction sets are not reported by this system")
        return
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")
    present = [name for name in wanted if name in flags]
    yield Finding("processor", "ok", ", ".join(present) or "no vector extensions known to us")
    if not {"avx512_bf16", "amx_bf16", "bf16"} & flags:
        yield Finding(
            "processor", "note", "no bfloat16 units: precision auto means float32 on the CPU"
        )


def _gpu() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        text = "none that torch can use; training runs on the CPU"
        built = torch.version.cuda
        yield Finding("gpu", "ok", text + ("" if built else " (this torch is built without CUDA)"))
        return
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 1e9
        yield Finding("gpu", "ok", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GB")


def _onnxruntime() -> Iterator[Finding]:
    import onnxruntime
    import torch

    providers = onnxruntime.get_available_providers()
    yield Finding("onnxruntime", "ok", ", ".join(providers))
    if "CPUExecutionProvider" not in providers:
        yield Finding("onnxruntime", "wrong", "no CPU provider; pip install onnxruntime")
    if torch.cuda.is_available() and "CUDAExecutionProvider" not in providers:
        yield Finding(
            "onnxruntime",
            "note",
            "torch has a GPU but ONNX Runtime can't measure on it; for GPU targets replace "
            "onnxruntime by onnxruntime-gpu",
        )


def _clock() -> Iterator[Finding]:
    steps = []
    for _ in range(200):
        start = now = time.perf_counter_ns()
        while now == start:
            now = time.perf_counter_ns()
        steps.append(now - start)
    step = sorted(steps)[len(steps) // 2]
    level: Level = "ok" if step <= 2_000 else "note"
    hint = "" if level == "ok" else "; latencies below 1 ms will be coarse"
    yield Finding("clock", level, f"steps of {step} ns{hint}")


def _load() -> Iterator[Finding]:
    if not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = load > BUSY * cores
    hint = "; other programs are running, so timings will scatter: stop them" if busy else ""
    yield Finding("load", "note" if busy else "ok", f"{load:.1f} over {cores} cores{hint}")


def _writing(folder: Path) -> Iterator[Finding]:
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"tailorbird")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding(
            "disk",
            "wrong",
            f"{place} can't be written: {error.strerror or error}; change to a folder of yours, "
            "or name one as 'run' in the job",
        )
        return
    free = shutil.disk_usage(place).free / 1e9
    level: Level = "ok" if free >= NEED_GB else "note"
    hint = "" if level == "ok" else f"; runs may need {NEED_GB:.0f} GB"
    yield Finding("disk", level, f"{place} can be written, {free:.1f} GB free{hint}")
