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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol

from tailorbird.device import Latency
from tailorbird.errors import MeasurementError, TailorbirdError

FORKS = hasattr(os, "fork") and sys.platform != "darwin"
"""Whether a process can be doubled safely; Apple's libraries don't survive it."""

POSSIBLE = bool(sys.executable) and not getattr(sys, "frozen", False)
"""Whether there is an interpreter to start: not within a program that was made of it."""


class Local(Protocol):
    """A device of this machine: a dataclass that JSON can hold, which times in this process too."""

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call."""

    def timed(self, models: Sequence[Path], *, group_bytes: int) -> list[Latency]:
        """Latencies of files, measured in the process that asks."""


def timed(
    device: Local, library: str, models: Sequence[Path], *, group_bytes: int
) -> list[Latency]:
    """What ``device.timed`` gives in a process that has done nothing else.

    Args:
        device: of a class that can be imported.
        library: what it needs, imported before the first call.
        models: its artifacts.
        group_bytes: of files that are held in memory together.

    Raises:
        MeasurementError: what it raises there; also where the process ends by itself, as it does
            when a runtime crashes.

    Example:
        >>> from tailorbird.measure.devices.onnxruntime import OnnxRuntime
        >>> timed(OnnxRuntime(), "onnxruntime", [Path("absent.onnx")], group_bytes=1000)
        Traceback (most recent call last):
        ...
        tailorbird.errors.MeasurementError: absent.onnx: there is no such file
    """
    process = _process(os.getpid(), type(device).__module__, library)
    return process.timed(device, models, group_bytes=group_bytes)


# the side that asks -----------------------------------------------------------------------------


@cache
def _process(asking: int, module: str, library: str) -> Process:
    """The one for a kind of device; a process that was forked itself starts its own."""
    return Process(module, library)


class Process:
    """A process that times files, started when it is first asked.

    Args:
        module: where the device's class is.
        library: that it needs.
        forks: whether it doubles itself for each call, or ends after one.
    """

    def __init__(self, module: str, library: str, *, forks: bool = FORKS) -> None:
        start = f"from {__name__} import main; main(forks={forks})"
        self._argv = [sys.executable, "-c", start, module, library]
        self._forks = forks
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._asking = os.getpid()
        atexit.register(self.end)

    def timed(self, device: Local, models: Sequence[Path], *, group_bytes: int) -> list[Latency]:
        """As the function of this name; after the device's ``time_limit_s`` it is killed."""
        request = {
            "device": type(device).__qualname__,
            "settings": asdict(device),  # type: ignore[call-overload]  # a dataclass, as it says
            "folder": str(Path.cwd()),
            "files": [str(path) for path in models],
            "group_bytes": group_bytes,
        }
        answer = self._asked(json.dumps(request), device.time_limit_s)
        if "error" in answer:
            raise MeasurementError(answer["error"])
        return [Latency(**one) for one in answer["latencies"]]

    def end(self) -> None:
        """End it; the next call starts it again. It is left alone by copies of who started it."""
        process, self._running = self._running, None
        if process is not None and self._asking == os.getpid():
            _kill(process)
            process.communicate()

    def _asked(self, request: str, limit_s: float) -> dict[str, Any]:
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            alarm = threading.Timer(min(limit_s, threading.TIMEOUT_MAX), _kill, [process])
            alarm.daemon = True
            alarm.start()
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:  # it is gone
                line = ""
            except BaseException:  # ctrl-C: what it would still say is nobody's answer
                self.end()
                raise
            finally:
                alarm.cancel()
            if not line or not self._forks:
                self.end()
        if not line:
            raise MeasurementError(_ended(process.returncode))
        found: dict[str, Any] = json.loads(line)
        return found

    def _started(self) -> subprocess.Popen[str]:
        if self._running is None or self._running.poll() is not None:
            self.end()
            paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
            self._running = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # ctrl-C is for whoever asks
            )
        return self._running


def _kill(process: subprocess.Popen[str]) -> None:
    """End it and what it forked."""
    if process.returncode is None and hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
    else:
        process.kill()


def _ended(code: int) -> str:
    """What to say of a process that gave no answer."""
    try:
        cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    except ValueError:
        cause = f"by signal {-code}"
    return f"the process that times files ended {cause}; measure them one by one to see which"


# the side that times ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Service:
    """Answers to requests for the devices of one module."""

    module: str

    def answer(self, line: str) -> str:
        """One line for one line."""
        request = json.loads(line)
        try:
            os.chdir(request["folder"])
            device: Local = getattr(import_module(self.module), request["device"])(
                **request["settings"]
            )
            files = [Path(one) for one in request["files"]]
            found = device.timed(files, group_bytes=request["group_bytes"])
        except TailorbirdError as error:
            return json.dumps({"error": str(error)})
        except Exception as error:  # it is told where it was asked for
            return json.dumps({"error": f"{type(error).__name__}: {error}"})
        return json.dumps({"latencies": [asdict(one) for one in found]})

    def forked(self, line: str, asking: IO[str]) -> str | None:
        """As `answer`, in a copy of this process; ``None`` once nobody asks any more."""
        told, tell = os.pipe()
        copy = os.fork()
        if copy == 0:
            with os.fdopen(tell, "w", encoding="utf-8") as stream:
                stream.write(self.answer(line))
            os._exit(0)  # without the runtimes' own ends
        os.close(tell)
        ready, _, _ = select.select([told, asking.fileno()], [], [])
        if told not in ready:
            os.kill(copy, signal.SIGKILL)
            return None
        with os.fdopen(told, encoding="utf-8") as stream:
            found = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        return found if code == 0 else json.dumps({"error": _ended(code)})


def main(*, forks: bool) -> None:
    """Answer requests until nobody asks any more; without forks, a single one."""
    module, library = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    service = _Service(module)
    import_module(module)
    if library == "openvino":
        from tailorbird.measure.openvino import openvino

        openvino()
    else:
        import_module(library)
    while line := sys.stdin.readline():
        found = service.forked(line, sys.stdin) if forks else service.answer(line)
        if found is None:
            break
        out.write(found + "\n")
        out.flush()
