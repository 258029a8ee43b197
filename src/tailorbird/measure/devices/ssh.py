"""Devices that are reached by the user's own OpenSSH."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tailorbird.device import ONNX, OPENVINO, Description, Format, Latency, Precision
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.measure.devices import remote_script
from tailorbird.measure.devices.onnxruntime import PRECISIONS
from tailorbird.measure.devices.remote import (
    MOST_BYTES,
    SHORT_S,
    Answer,
    Room,
    clean,
    cleaned,
    last_line,
    reason,
    room,
)
from tailorbird.measure.devices.ssh_transport import SshTransport
from tailorbird.measure.guarded import LEAST_MS, MOST_MS
from tailorbird.measure.interleave import groups
from tailorbird.measure.rounds import steady, summary
from tailorbird.measure.sizes import check_sizes
from tailorbird.records import as_record

SCRIPT = "remote_script.py"

_HOST = re.compile(
    r"(?=[^-])(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,63}@)?[A-Za-z0-9\[][A-Za-z0-9._:%\]-]{0,253}"
)
_PYTHON = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]{0,199}")
_PROVIDER = re.compile(r"[A-Za-z][A-Za-z0-9_.:,-]{0,99}")
_OWN_CPU = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}
_OPENVINO: Mapping[str, tuple[Precision, ...]] = {
    "CPU": ("float32", "int8"),
    "GPU": ("float32", "float16", "int8"),
}
_LOAD_S = 1800.0
_TOLD = 5
_BLOCK_BYTES = 1 << 20
_MOST_OUTPUT_BYTES = 2_000_000_000


@dataclass(frozen=True)
class _Timed:
    samples: list[list[list[float]]]


@dataclass(frozen=True)
class _Shape:
    shape: list[int]


@dataclass(frozen=True, kw_only=True)
class Ssh:
    """Times and runs files on a host that ``ssh`` reaches, in ONNX Runtime or OpenVINO there.

    Implements :class:`tailorbird.device.Runtime`.

    Nothing is installed on the host and nothing listens there. Files and one readable script
    (``measure/devices/remote_script.py``) are copied into a fresh folder, compared by SHA-256, and
    run by the host's own Python with the user's own rights; the folder is removed at the end, by
    the script itself where the connection is lost. Host keys must be known, passwords are not
    asked for, the agent is not forwarded; keys, ports and jump hosts are those of
    ``~/.ssh/config``. What comes back is JSON and numbers, and is checked.

    Files take turns as they do in :class:`.onnxruntime.OnnxRuntime`, in one process there.

    Args:
        host: a name of ``~/.ssh/config``, or ``user@host``.
        runtime: ``"onnxruntime"`` or ``"openvino"``, which the host has to have.
        threads: that one file is run with.
        provider: ONNX Runtime's execution provider, or OpenVINO's device; the processor by default.
        python: the host's interpreter, 3.8 or later: a name, or a path from its root or from the
            user's home.
        config: a file instead of ``~/.ssh/config``.
        connect_s: seconds for a connection.
        most_mb: MB of files that are copied and held in memory together; more are measured group
            by group.
        images: of a split at most, on which files are judged there: they are sent to the host.
        warmup: untimed runs per file at the start.
        runs: timed samples per file.
        seed: of the random normal input, and of the order.
        seconds: bound on the timing; once spent, rounds end early, but not below 15 samples.

    Raises:
        ConfigError: listing all wrong arguments. The host is not asked.

    Example:
        >>> Ssh(host="pi@raspberry", threads=4).key
        'ssh pi@raspberry, onnxruntime, CPUExecutionProvider, 4 threads'
    """

    host: str
    runtime: str = "onnxruntime"
    threads: int = 1
    provider: str | None = None
    python: str = "python3"
    config: Path | None = None
    connect_s: int = 20
    most_mb: int = 500
    images: int = 1000
    warmup: int = 10
    runs: int = 100
    seed: int = 0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        problems = [
            f"Ssh: {name} must be {least} to {most}, got {value}"
            for name, value, least, most in (
                ("threads", self.threads, 1, 1024),
                ("connect_s", self.connect_s, 1, 600),
                ("most_mb", self.most_mb, 1, 8000),
                ("images", self.images, 1, 10**6),
                ("warmup", self.warmup, 0, 10**6),
                ("runs", self.runs, 1, 10**6),
                ("seconds", self.seconds, 1e-9, 86_400),
            )
            if not least <= value <= most
        ]
        problems += [
            f"Ssh: {name} {value!r} is none, expected {expected}"
            for name, pattern, value, expected in (
                ("host", _HOST, self.host, "a name or user@name, as ssh takes it"),
                ("python", _PYTHON, self.python, "a name, or a path without blanks"),
                ("provider", _PROVIDER, self._provider, "a name"),
            )
            if not pattern.fullmatch(str(value))
        ]
        if self.runtime not in _OWN_CPU:
            known = ", ".join(_OWN_CPU)
            problems.append(f"Ssh: unknown runtime {self.runtime!r}; give one of {known}")
        if self.config is not None and not Path(self.config).is_file():
            problems.append(f"Ssh: config {str(self.config)!r}: there is no such file")
        if problems:
            raise ConfigError(problems)

    @property
    def _provider(self) -> str:
        return self.provider or _OWN_CPU.get(self.runtime, "CPU")

    @property
    def key(self) -> str:
        """Host, runtime and settings; what the host is, `describe` tells."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        own = "" if self.python == "python3" else f", {self.python}"
        config = f", {self.config}" if self.config else ""
        return f"ssh {self.host}, {self.runtime}, {self._provider}, {threads}{own}{config}"

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the provider has kernels for."""
        known = PRECISIONS if self.runtime == "onnxruntime" else _OPENVINO
        return known.get(self._provider, ("float32",))

    @property
    def format(self) -> Format:
        """ONNX files, or OpenVINO's own."""
        return ONNX if self.runtime == "onnxruntime" else OPENVINO

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call: what copying and loading may take, and two sessions of timing."""
        return 2 * self.seconds + 8 * _LOAD_S

    def measure(self, models: Sequence[Path]) -> list[Latency]:
        """Time each file; the latencies come in the order of ``models``.

        Raises:
            MeasurementError: when the host is not reached, lacks what is needed, or can't run a
                file; the first few such files are named.
        """
        self._check(models)
        sizes = [sum(file.stat().st_size for file in _parts(model)) for model in models]
        parts = groups(sizes, limit=self.most_mb * 10**6)
        seconds = self.seconds / max(1, len(parts))
        found: list[Latency] = []
        for part in parts:
            files = [models[number] for number in part]
            with self._room(files) as there:
                found += steady(partial(self._session, there, files, seconds))
        return found

    def run(self, artifact: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What a file answers there to images (n, C, H, W): outputs (n, ...).

        Raises:
            ExportError: when the file can't be run on these images.
            MeasurementError: when the host does not answer.
        """
        self._check([artifact])
        if not len(images):
            raise ExportError(f"{artifact.name}: expected one image or more, got none")
        send = (np.ascontiguousarray(image, dtype="<f4").tobytes() for image in images)
        with self._room([artifact]) as there:
            request = {"do": "run", "images": list(images.shape)}
            told, rest = self._asked(there, [artifact], request, send, _MOST_OUTPUT_BYTES)
        shape = as_record(_Shape, told)
        if shape is None or not all(0 < size < 1 << 31 for size in shape.shape):
            self._odd(told)
        if len(rest) != 4 * len(images) * prod(shape.shape):
            raise MeasurementError(
                f"ssh {self.host}: {artifact.name} gave {len(rest)} bytes for {len(images)} "
                f"outputs of shape {shape.shape}; the runtime there stopped midway"
            )
        outputs = np.frombuffer(rest, "<f4").reshape(len(images), *shape.shape)
        return outputs.astype(np.float32)

    def describe(self) -> Description:
        """What the host is, and the conditions it is in.

        Raises:
            MeasurementError: when it is not reached, or lacks what is needed.
        """
        with self._room([]) as there:
            told, _ = self._asked(there, [], {"do": "describe"})
        found = as_record(Description, told)
        if found is None:
            self._odd(told)
        return cleaned(found)

    def _check(self, models: Sequence[Path]) -> None:
        """Refuse here what needs no host to be known as wrong."""
        missing = [
            f"{one}: there is no such file"
            for m in models
            for one in _parts(m)
            if not one.is_file()
        ]
        if missing:
            raise MeasurementError(_several(missing))
        if self.format == ONNX:
            for model in models:
                check_sizes(model)

    @contextmanager
    def _room(self, models: Sequence[Path]) -> Iterator[Room]:
        """A folder there that holds the script and the files."""
        files = {SCRIPT: Path(remote_script.__file__)}
        for number, model in enumerate(models):
            files |= {f"{number}{part.suffix}": part for part in _parts(model)}
        with room(SshTransport(self.host, self.config, self.connect_s)) as there:
            if models:
                size = sum(path.stat().st_size for path in files.values())
                several = f"{models[0].name} and {len(models) - 1} more files together"
                what, way_out = models[0].name, "give smaller networks"
                if len(models) > 1:
                    what, way_out = several, f"give most_mb below {self.most_mb}"
                there.fits(size, what, way_out)
            there.put(files)
            yield there

    def _session(self, there: Room, models: Sequence[Path], seconds: float) -> list[Latency]:
        request = {"do": "measure", "warmup": self.warmup, "runs": self.runs, "seconds": seconds}
        told, _ = self._asked(there, models, request)
        found = as_record(_Timed, told)
        if found is None or len(found.samples) != len(models):
            self._odd(told)
        for rounds in found.samples:
            every = [sample for one in rounds for sample in one]
            if not every or not all(rounds) or not LEAST_MS <= min(every) <= max(every) <= MOST_MS:
                self._odd(told)
        return [summary(rounds, warmup=self.warmup) for rounds in found.samples]

    def _asked(
        self,
        there: Room,
        models: Sequence[Path],
        request: Mapping[str, object],
        send: Iterable[bytes] = (),
        most_bytes: int = MOST_BYTES,
    ) -> tuple[object, bytes]:
        """What the script answers: the JSON, and the bytes behind it."""
        limit_s = 2 * SHORT_S if request["do"] == "describe" else self.seconds + _LOAD_S
        word = secrets.token_hex(8)
        settings = {
            "word": word,
            "limit_s": limit_s,
            "files": [f"{number}{model.suffix}" for number, model in enumerate(models)],
            "runtime": self.runtime,
            "provider": self._provider,
            "threads": self.threads,
            "seed": self.seed,
        }
        line = json.dumps({**settings, **request}).encode() + b"\n"

        def parts() -> Iterator[bytes]:
            yield line
            yield from send

        answer = there.transport.call(
            [self.python, "-B", f"{there.path}/{SCRIPT}"],
            limit_s=limit_s + 60,
            send=parts(),
            hold=True,
            most_bytes=most_bytes,
        )
        mark = f"\n{word} ".encode()
        found = answer.out.split(mark)[1:]
        if not found:
            raise MeasurementError(f"ssh {self.host}: {self._why(answer)}")
        for at, one in enumerate(found):
            told, _, rest = one.partition(b"\n")
            try:
                raw = json.loads(told)
            except ValueError:
                self._odd(told[:90])
            if isinstance(raw, dict) and "error" in raw:
                self._refused(raw, models, run=request["do"] == "run")
            if at == 0:
                first = raw, rest
        return first

    def _why(self, answer: Answer) -> str:
        """Why the script gave no answer."""
        said = answer.err
        if answer.code == 127:
            return (
                f"there is no '{self.python}' ({last_line(said)}); install Python 3.8 or later "
                "there, or give its path as python"
            )
        if answer.code == 1 and re.search("SyntaxError|No module named", said):
            return (
                f"'{self.python}' there can't run the script ({last_line(said)}); expected Python "
                "3.8 or later, give its path as python"
            )
        if answer.code == 0:
            return "what its Python says is no answer of the script; see what stands in between"
        return f"the script there gave no answer: {reason(answer)}"

    def _refused(self, told: Mapping[str, Any], models: Sequence[Path], *, run: bool) -> NoReturn:
        """Raise what the script could not do."""
        title, kind, package = f"ssh {self.host}", told.get("error"), self.runtime
        if kind == "no runtime":
            raise MeasurementError(
                f"{title}: {package} can't be imported by '{self.python}' there "
                f"({_said(told, 'text')}); install it there: {self.python} -m pip install "
                f"'{package}>={_least(package)}'"
            )
        if kind == "old runtime":
            raise MeasurementError(
                f"{title}: {package} there is {_said(told, 'version')}, expected {_least(package)} "
                f"or later; install it there: {self.python} -m pip install --upgrade {package}"
            )
        if kind == "no provider":
            raise MeasurementError(
                f"{title}: provider {self._provider} is not available there; choose one of "
                f"{_said(told, 'have')}, or install the build of {package} that has it"
            )
        if kind == "memory":
            number = told.get("file")
            known = isinstance(number, int) and 0 <= number < len(models)
            name = models[int(number or 0)].name if known else "a network"
            raise MeasurementError(
                f"{title}: {name} is over the memory that is free there; give smaller networks, or "
                f"most_mb below {self.most_mb}"
            )
        faults = told.get("faults") if kind == "files" else None
        if not isinstance(faults, list) or not faults:
            self._odd(told)
        lines = []
        for one in faults:
            right = isinstance(one, list) and len(one) == 2 and isinstance(one[0], int)
            if not right or not 0 <= one[0] < len(models):
                self._odd(told)
            lines.append(
                f"{models[one[0]]}: {self._provider} of {title} can't run it: {clean(str(one[1]))}"
            )
        error = ExportError if run else MeasurementError
        raise error(f"{_several(lines)}; export it again")

    def _odd(self, told: object) -> NoReturn:
        raise MeasurementError(
            f"ssh {self.host}: {clean(repr(told))[:90]} is no answer of the script; see what "
            "changes it on the way"
        )


def _parts(model: Path) -> list[Path]:
    """An artifact's files; an OpenVINO network has its weights beside it."""
    return [model, model.with_suffix(".bin")] if model.suffix == ".xml" else [model]


def _several(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _TOLD} more" if len(lines) > _TOLD else ""
    return "; ".join(lines[:_TOLD]) + more


def _said(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name, "")
    return clean(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _least(runtime: str) -> str:
    return ".".join(map(str, remote_script.OLDEST[runtime]))
