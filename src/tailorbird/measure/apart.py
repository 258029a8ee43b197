"""Timing in a process that has done nothing else.

Where weights and buffers lie in memory decides some percent of a latency, and that depends on what
a process did before: within one that had trained networks and quantised files for an hour, the same
file took 7 % less when it was loaded last of 26 than when it was loaded first. Whoever deploys a
file loads it in a process that has done nothing yet, and so do the devices of this machine.

The imports are paid once: a process is started at the first call and forks for each (about 10 ms a
call); where a system can't fork, every call pays them (about half a second). It ends with the
process that asks.

Protocol: a line of JSON with the device and its files in, a line with latencies or an error out.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol

import numpy as np

from tailorbird.device import Latency
from tailorbird.errors import MeasurementError, TailorbirdError

FORKS = hasattr(os, "fork") and sys.platform != "darwin"
"""Whether a process can be doubled safely; Apple's libraries don't survive it."""

POSSIBLE = bool(sys.executable) and not getattr(sys, "frozen", False)
"""Whether there is an interpreter to start: not within a program that was made of it."""


class Local(Protocol):
    """A device of this machine: a dataclass that JSON can hold, which times in this process too."""

    @classmethod
    def load(cls) -> None:
        """Import what timing needs, which a process that times does before its first call."""

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call."""

    def timed(self, models: Sequence[Path], *, group_bytes: int) -> list[Latency]:
        """Latencies of files, measured in the process that asks."""


def timed(device: Local, models: Sequence[Path], *, group_bytes: int) -> list[Latency]:
    """What ``device.timed`` gives in a process that has done nothing else.

    Args:
        device: of a class that can be imported.
        models: its artifacts.
        group_bytes: of files that are held in memory together.

    Raises:
        MeasurementError: what it raises there; also where the process ends by itself, as it does
            when a runtime crashes.

    Example:
        >>> from tailorbird.measure.devices.onnxruntime import OnnxRuntime
        >>> timed(OnnxRuntime(), [Path("absent.onnx")], group_bytes=1000)
        Traceback (most recent call last):
        ...
        tailorbird.errors.MeasurementError: absent.onnx: there is no such file
    """
    with _STARTING:
        process = _known(os.getpid(), type(device))
    return process.timed(device, models, group_bytes=group_bytes)


# the side that asks -----------------------------------------------------------------------------

_STARTING = threading.Lock()


@cache
def _known(asking: int, kind: type[Local]) -> Process:
    """The one for a kind of device; a process that was forked itself starts its own."""
    return Process(kind)


class Process:
    """A process that times files, started when it is first asked.

    It keeps the cores, the priority and the environment that it was started with.

    Args:
        kind: the device's class.
        forks: whether it doubles itself for each call, or ends after one.
    """

    def __init__(self, kind: type[Local], *, forks: bool = FORKS) -> None:
        self._settings = [kind.__module__, kind.__qualname__, *(["forks"] if forks else [])]
        self._forks = forks
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._said = TemporaryFile()  # noqa: SIM115  # it lives as long as this
        self._asking, self._requests = os.getpid(), 0
        atexit.register(self.end)

    def timed(self, device: Local, models: Sequence[Path], *, group_bytes: int) -> list[Latency]:
        """As the function of this name; after the device's ``time_limit_s`` it is killed."""
        request = {
            "settings": asdict(device),  # type: ignore[call-overload]  # a dataclass, as it says
            "folder": _folder(),
            "files": [str(path) for path in models],
            "group_bytes": group_bytes,
        }
        with self._lock:
            try:
                answer = self._asked(request, device.time_limit_s)
            except BaseException:  # ctrl-C: what it would still say is nobody's answer
                self.end()
                raise
        if "error" in answer:
            raise MeasurementError(answer["error"])
        return [Latency(**one) for one in answer["latencies"]]

    def end(self) -> None:
        """End it; the next call starts it again. It is left alone by copies of who started it."""
        process, self._running = self._running, None
        if process is not None and self._asking == os.getpid():
            _kill(process)
            process.communicate()

    def _asked(self, request: dict[str, object], limit_s: float) -> dict[str, Any]:
        self._requests += 1
        text = json.dumps({**request, "number": self._requests}, default=_plain)
        process, late = self._started(), threading.Event()

        def alarm() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(min(limit_s, threading.TIMEOUT_MAX), alarm)
        timer.daemon = True
        try:
            timer.start()
            answer = self._answer(process, text)
        finally:
            timer.cancel()
        if answer is None or not self._forks:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            self.end()
        if late.is_set():
            raise MeasurementError(f"timing did not end within {limit_s:g} s; see whether it hangs")
        if answer is None or "ended" in answer:
            code = process.returncode if answer is None else answer["ended"]
            raise MeasurementError(_ended(code, self._last_word()))
        return answer

    def _answer(self, process: subprocess.Popen[str], text: str) -> dict[str, Any] | None:
        """What answers a request; ``None`` from a process that has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._said.seek(0)
        self._said.truncate()
        try:
            process.stdin.write(text + "\n")
            process.stdin.flush()
        except OSError:
            return None
        for line in process.stdout:
            with suppress(ValueError):  # whatever prints when an interpreter starts
                found = json.loads(line)
                if isinstance(found, dict) and found.get("number") == self._requests:
                    return found
        return None

    def _started(self) -> subprocess.Popen[str]:
        if self._running is None or self._running.poll() is not None:
            self.end()
            paths = [path or _folder() for path in sys.path if isinstance(path, str)]
            self._running = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, json.dumps(paths), *self._settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # ctrl-C is for whoever asks
            )
        return self._running

    def _last_word(self) -> str:
        """The last line that it said beside its answers."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


_START = f"""
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from {__name__} import main
main()
"""


def _folder() -> str | None:
    """Where the asking process is; ``None`` where that was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _plain(value: np.generic) -> object:
    """Numpy's numbers as Python's."""
    return value.item()


def _kill(process: subprocess.Popen[str]) -> None:
    """End it and what it forked."""
    if process.returncode is None and hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _ended(code: int, said: str) -> str:
    """What to say of a process that gave no answer."""
    try:
        cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    except ValueError:
        cause = f"by signal {-code}"
    told = f": {said}" if said else ""
    return f"the process that times files ended {cause}{told}; measure them one by one to see which"


# the side that times ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Service:
    """Answers to requests for the devices of one class."""

    kind: Callable[..., Local]

    def answer(self, line: str) -> str:
        """One line for one line."""
        request = json.loads(line)
        found: dict[str, object] = {"number": request["number"]}
        try:
            if request["folder"] is not None:
                os.chdir(request["folder"])
            device = self.kind(**request["settings"])
            files = [Path(one) for one in request["files"]]
            latencies = device.timed(files, group_bytes=request["group_bytes"])
            found["latencies"] = [asdict(one) for one in latencies]
        except TailorbirdError as error:
            found["error"] = str(error)
        except Exception as error:  # it is told where it was asked for
            found["error"] = f"{type(error).__name__}: {error}"
        return json.dumps(found)

    def forked(self, line: str, asking: IO[str]) -> str | None:
        """As `answer`, in a copy of this process; ``None`` once nobody asks any more."""
        told, tell = os.pipe()
        copy = os.fork()
        if copy == 0:
            status = 1
            try:
                with os.fdopen(tell, "w", encoding="utf-8") as stream:
                    stream.write(self.answer(line))
                status = 0
            finally:
                os._exit(status)  # without the runtimes' own ends
        os.close(tell)
        ready, _, _ = select.select([told, asking.fileno()], [], [])
        if told not in ready:
            os.kill(copy, signal.SIGKILL)
            return None
        with os.fdopen(told, encoding="utf-8") as stream:
            found = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        if code == 0:
            return found
        return json.dumps({"number": json.loads(line)["number"], "ended": code})


def main() -> None:
    """Answer requests until nobody asks any more; without forks, a single one."""
    module, name, *forks = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    if forks:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the copies' ends are not told
    kind = getattr(import_module(module), name)
    kind.load()
    service = _Service(kind)
    while line := sys.stdin.readline():
        found = service.forked(line, sys.stdin) if forks else service.answer(line)
        if found is None:
            break
        out.write(found + "\n")
        out.flush()
        if not forks:
            break
