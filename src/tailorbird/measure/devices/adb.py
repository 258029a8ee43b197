"""Android devices that are reached by the user's own ``adb``."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from tailorbird.device import ONNX, Description, Format, Latency, Precision
from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.measure.devices.adb_transport import connected
from tailorbird.measure.devices.remote import (
    SHORT_S,
    Answer,
    Room,
    Transport,
    clean,
    cleaned,
    last_line,
    reason,
    room,
    text,
)
from tailorbird.measure.guarded import LEAST_MS, MOST_MS
from tailorbird.measure.interleave import groups
from tailorbird.measure.rounds import steady, summary
from tailorbird.measure.sizes import check_sizes

ROUNDS, LEAST_ROUNDS = 6, 3
"""Turns of each file: as planned, and at least where time is over."""

_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_PATH = re.compile(r"/[A-Za-z0-9_./+-]{1,200}")
_PROVIDERS: Mapping[str, tuple[Precision, ...]] = {
    "cpu": ("float32", "int8"),
    "xnnpack": ("float32", "int8"),
    "nnapi": ("float32", "int8"),
}
_LOAD_S, _FILE_S = 600.0, 60.0
_RESULT = "result.csv"
_ROW = re.compile(r"^[^,\n]*,([0-9.eE+-]+),\d+,-?\d+,(\d+)\r?$", re.MULTILINE)

_READY = 'test -f "$1" || exit 3; test -x "$1" || exit 4; sha256sum "$1"'
_ROUND = (
    f'cd "$1" || exit; order=$2; shift 2; for n in $order; do rm -f {_RESULT}; echo "file $n"; '
    f'"$@" "$n.onnx" {_RESULT} >&2 </dev/null || exit; cat {_RESULT}; done'
)
"""Times the files whose numbers are given, one after the other, until one fails."""

_TELL = (
    "getprop ro.product.manufacturer; getprop ro.product.model; "
    "getprop ro.build.version.release; getprop ro.product.cpu.abi; nproc; "
    "cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor 2>/dev/null | sort -u | tr '\\n' ' '"
    "; echo; for f in /sys/class/thermal/thermal_zone*/temp; do "
    'echo "zone $(cat "$f" 2>/dev/null)"; done; dumpsys thermalservice 2>/dev/null; true'
)


@dataclass(frozen=True, kw_only=True)
class Adb:
    """Times ONNX files on an Android device, by ONNX Runtime's own ``onnxruntime_perf_test`` there.

    Implements :class:`tailorbird.device.Device`, with ``precisions``, ``format`` and ``describe``.

    Nothing is installed on the device. Files are pushed into a fresh folder, compared by SHA-256,
    timed by the program that you have put there, and removed. That program makes up its input and
    tells times only, so what a file answers is asked of ONNX Runtime on this machine.

    A file is timed in a process of its own at every turn: one run that is not timed and ``warmup``
    more are left out, the next ones count. Files take turns in an order shuffled every round, six
    rounds in all.

    Args:
        serial: as ``adb devices`` lists it; may be left out where there is only one.
        binary: path of ``onnxruntime_perf_test`` on the device; libraries may lie beside it.
        threads: intra-op threads.
        provider: ``"cpu"``, ``"xnnpack"`` or ``"nnapi"``, if the program is built with it.
        folder: where files are put for a while.
        most_mb: MB of files that are copied together; more are measured group by group.
        warmup: untimed runs per file and round.
        runs: timed samples per file, over all rounds.
        seed: of the order, and of the random input.
        seconds: bound on the timing; once spent, rounds end early, but not below three.

    Raises:
        ConfigError: listing all wrong arguments. The device is not asked.

    Example:
        >>> Adb(serial="R58M12", threads=4).key
        'adb R58M12, /data/local/tmp/onnxruntime_perf_test, cpu, 4 threads'
    """

    serial: str | None = None
    binary: str = "/data/local/tmp/onnxruntime_perf_test"
    threads: int = 1
    provider: str = "cpu"
    folder: str = "/data/local/tmp"
    most_mb: int = 500
    warmup: int = 5
    runs: int = 120
    seed: int = 0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        problems = [
            f"Adb: {name} must be {least} to {most}, got {value}"
            for name, value, least, most in (
                ("threads", self.threads, 1, 1024),
                ("most_mb", self.most_mb, 1, 8000),
                ("warmup", self.warmup, 0, 10**6),
                ("runs", self.runs, 1, 10**6),
                ("seconds", self.seconds, 1e-9, 86_400),
            )
            if not least <= value <= most
        ]
        problems += [
            f"Adb: {name} {value!r} is none, expected {expected}"
            for name, pattern, value, expected in (
                ("serial", _SERIAL, self.serial or "0", "one that 'adb devices' lists"),
                ("binary", _PATH, self.binary, "a path from the root, without blanks"),
                ("folder", _PATH, self.folder, "a path from the root, without blanks"),
            )
            if not pattern.fullmatch(str(value))
        ]
        if self.provider not in _PROVIDERS:
            known = ", ".join(_PROVIDERS)
            problems.append(f"Adb: unknown provider {self.provider!r}; give one of {known}")
        if problems:
            raise ConfigError(problems)

    @property
    def key(self) -> str:
        """Serial, program and settings; what the device is, `describe` tells."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"adb {self.serial or 'device'}, {self.binary}, {self.provider}, {threads}"

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the provider has kernels for."""
        return _PROVIDERS[self.provider]

    @property
    def format(self) -> Format:
        """ONNX files."""
        return ONNX

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call: what copying and loading may take, and two sessions of timing."""
        return 2 * self.seconds + 12 * _LOAD_S

    def measure(self, models: Sequence[Path]) -> list[Latency]:
        """Time each file; the latencies come in the order of ``models``.

        Raises:
            MeasurementError: when the device is not reached, lacks what is needed, or can't run a
                file, which is named.
        """
        missing = [f"{model}: there is no such file" for model in models if not model.is_file()]
        if missing:
            raise MeasurementError("; ".join(missing[:5]))
        for model in models:
            check_sizes(model)
        if not models:
            return []
        transport = connected(self.serial)
        self._ready(transport)
        sizes = [model.stat().st_size for model in models]
        parts = groups(sizes, limit=self.most_mb * 10**6)
        found: list[Latency] = []
        for part in parts:
            files = [models[number] for number in part]
            with room(transport, base=self.folder) as there:
                largest = max(files, key=lambda file: file.stat().st_size)
                there.fits(largest.stat().st_size, largest.name, "give smaller networks")
                there.put({f"{number}.onnx": file for number, file in enumerate(files)})
                found += steady(partial(self._session, there, files, self.seconds / len(parts)))
        return found

    def describe(self) -> Description:
        """What the device is, and the conditions it is in.

        Raises:
            MeasurementError: when it is not reached, or lacks the program.
        """
        transport = connected(self.serial)
        digest = self._ready(transport)
        with room(transport, base=self.folder) as there:
            told = transport.call(["sh", "-c", _TELL], limit_s=SHORT_S)
        lines = [*text(told.out).splitlines(), *[""] * 6]
        maker, model, release, abi, cores, governor = (clean(line) for line in lines[:6])
        rest = "\n".join(lines[6:])
        status = re.search(r"Thermal Status: (\d+)", rest)
        if status and int(status[1]) > 0:
            governor = f"{governor} (slowed down by heat, thermal status {int(status[1])})".strip()
        return cleaned(
            Description(
                machine=f"{maker} {model} {abi}",
                system=f"Android {release}",
                runtime=PurePosixPath(self.binary).name,
                version=f"SHA-256 {digest[:12]}",
                cores=int(cores) if cores.isdecimal() and len(cores) < 5 else None,
                memory_mb=there.memory_mb,
                governor=governor or None,
                temperature_c=_hottest(rest),
            )
        )

    def _ready(self, transport: Transport) -> str:
        """The SHA-256 of the program there."""
        told = transport.call(["sh", "-c", _READY, "sh", self.binary], limit_s=SHORT_S)
        wrong = {
            3: f"there is no {self.binary}; build onnxruntime_perf_test for Android and put it "
            f"there by: adb push onnxruntime_perf_test {PurePosixPath(self.binary).parent}/",
            4: f"{self.binary} can't be executed; allow it by: adb shell chmod 755 {self.binary}",
        }
        if told.code:
            raise MeasurementError(f"{transport.title}: {wrong.get(told.code) or reason(told)}")
        return clean(text(told.out).split(" ", maxsplit=1)[0])

    def _session(self, there: Room, models: Sequence[Path], seconds: float) -> list[Latency]:
        rng = np.random.default_rng(self.seed)
        rounds: list[list[list[float]]] = [[] for _ in models]
        samples = math.ceil(self.runs / ROUNDS)
        until = time.monotonic() + seconds
        for done in range(ROUNDS):
            if done >= LEAST_ROUNDS and time.monotonic() > until:
                break
            order = [int(number) for number in rng.permutation(len(models))]
            for number, times in self._round(there, order, models, samples).items():
                rounds[number].append(times)
        return [summary(each, warmup=self.warmup) for each in rounds]

    def _round(
        self, there: Room, order: Sequence[int], models: Sequence[Path], samples: int
    ) -> dict[int, list[float]]:
        """Times in ms of every file, each in a process of its own, by the file's number."""
        told = there.transport.call(
            [
                *("sh", "-c", _ROUND, "sh", there.path, " ".join(map(str, order))),
                *("env", "ORT_DISABLE_TELEMETRY=1"),
                *(f"LD_LIBRARY_PATH={PurePosixPath(self.binary).parent}", self.binary),
                *("-I", "-m", "times", "-r", str(self.warmup + samples)),
                *("-x", str(self.threads), "-y", "1", "-e", self.provider, "-o", "99"),
                *("-S", str(self.seed)),
            ],
            limit_s=self.seconds + _LOAD_S + _FILE_S * len(models),
        )
        _, *parts = re.split(r"^file (\d+)\r?$", text(told.out), flags=re.MULTILINE)
        found = dict(zip(map(int, parts[::2]), parts[1::2], strict=True))
        done = [number for number in order if number in found]
        if told.code:
            model = models[done[-1] if done else order[0]]
            raise MeasurementError(f"{model}: {there.transport.title} {self._why(told)}")
        return {
            number: self._times(found.get(number, ""), models[number], there, samples)
            for number in order
        }

    def _times(self, said: str, model: Path, there: Room, samples: int) -> list[float]:
        """Times in ms of the runs that count, from what the program wrote."""
        rows = _ROW.findall(said)
        times = [1e3 * _number(seconds) for seconds, _ in rows]
        in_order = [int(index) for _, index in rows] == [*range(self.warmup + samples)]
        if not in_order or not all(LEAST_MS <= one <= MOST_MS for one in times):
            raise MeasurementError(
                f"{model}: {there.transport.title}: what {self.binary} wrote are no "
                f"{self.warmup + samples} times ({clean(said[:90])!r}); see that it is "
                "ONNX Runtime's onnxruntime_perf_test"
            )
        return times[self.warmup :]

    def _why(self, told: Answer) -> str:
        """Why the program gave no times."""
        said = told.err
        if "CANNOT LINK EXECUTABLE" in said:
            line = next(line for line in said.splitlines() if "CANNOT LINK" in line)
            return (
                f"can't start {self.binary} ({clean(line)}); put its libraries, built for this "
                "device, beside it"
            )
        if told.code in (126, 127) or re.search("not executable|Exec format|syntax error", said):
            return (
                f"can't run {self.binary} ({last_line(said)}); give one that is built for its "
                "processor (adb shell getprop ro.product.cpu.abi)"
            )
        failed = [line for line in said.splitlines() if "failed" in line.lower()]
        if (failed and told.code < 128) or told.code == 255:
            line = clean((failed or [said.strip()])[0])
            return f"can't run it: {line}; export it again, or give a newer {self.binary}"
        return f"can't run it: {reason(told)}"


def _number(digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        return math.nan


def _hottest(said: str) -> float | None:
    """The highest temperature that the system or its service of temperatures tells."""
    zones = [int(one) / 1000 for one in re.findall(r"^zone (-?\d{1,9})\s*$", said, re.MULTILINE)]
    service = [float(one) for one in re.findall(r"mValue=(-?\d{1,4}(?:\.\d{1,9})?)", said)]
    for temperatures in (zones, service):
        likely = [one for one in temperatures if 0 < one < 150]
        if likely:
            return max(likely)
    return None
