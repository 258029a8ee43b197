"""Devices behind a program of this machine, such as ``ssh`` or ``adb``.

What they have in common: a fresh folder there, files that are put into it and compared by their
SHA-256, calls that are bounded in time and in what they answer, and the folder's end. How a call
gets there is a `Transport`; another one is all that a further program needs.
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from tailorbird.device import Description
from tailorbird.errors import MeasurementError

MOST_BYTES = 64_000_000
"""What a call may answer with, unless it says otherwise."""

SHORT_S = 60.0
"""Seconds for a call that has little to do, beside what a connection takes."""

SLOWEST_BYTES_S = 100_000
"""Files are given up on when they are carried more slowly than this."""

_BLOCK_BYTES = 1 << 20
_ERROR_BYTES = 20_000
_TICK_S = 0.1
_NAME = "tailorbird-device-"
_FOLDER = re.compile(rf"/[A-Za-z0-9/._+-]{{1,200}}/{_NAME}[A-Za-z0-9]{{6,20}}")
_FULL = re.compile(r"no space left|disk quota exceeded|file too large", re.IGNORECASE)

_OPEN = (
    "umask 077; base=${1:-${TMPDIR:-/tmp}}; "
    f'find "$base" -maxdepth 1 -name "{_NAME}*" -user "$(id -u)" -mtime +0 '
    "-exec rm -rf {} \\; 2>/dev/null; "
    f'd=$(mktemp -d "$base/{_NAME}XXXXXXXXXX") || exit 1; '
    'df -Pk "$d" | tail -n 1; grep MemAvailable: /proc/meminfo 2>/dev/null; echo "folder $d"'
)
"""Makes the folder, and says what is free. Folders of a day ago, left by lost connections, go."""

_DIGESTS = (
    'cd "$1" && if command -v sha256sum >/dev/null; then sha256sum *; else shasum -a 256 *; fi'
)


@dataclass(frozen=True)
class Answer:
    """What a program did.

    Args:
        code: that it ended with: above 128 where a signal ended it on the device, below 0 where one
            ended what carries it on this machine.
        out: its standard output.
        err: the end of its standard error.
    """

    code: int
    out: bytes
    err: str


class Transport(Protocol):
    """Carries calls and files to one device."""

    @property
    def title(self) -> str:
        """What messages call the device."""

    def call(
        self,
        argv: Sequence[str],
        *,
        limit_s: float,
        send: Iterable[bytes] = (),
        hold: bool = False,
        most_bytes: int = MOST_BYTES,
    ) -> Answer:
        """Run a program there.

        Args:
            argv: the program and its arguments, which no shell reads.
            limit_s: seconds that it may take.
            send: its standard input.
            hold: whether that stays open until the program ends.
            most_bytes: that it may answer with.

        Raises:
            MeasurementError: when the device is not reached, or a limit is exceeded.
        """

    def put(self, files: Mapping[str, Path], folder: str, *, limit_s: float) -> Answer:
        """Copy files, by the names that they get, into a folder there.

        Raises:
            MeasurementError: as `call` does.
        """


@dataclass(frozen=True)
class Room:
    """A folder of this session's own on a device.

    Args:
        transport: to the device.
        path: of the folder there.
        disk_mb: free behind it, in MB; ``None`` where the device doesn't say.
        memory_mb: free in the device's memory.
    """

    transport: Transport
    path: str
    disk_mb: float | None
    memory_mb: float | None

    def put(self, files: Mapping[str, Path]) -> None:
        """Copy files, and compare what arrived with what was sent.

        Args:
            files: the names that they get there, and the files.

        Raises:
            MeasurementError: for a disk that is full, a connection that is lost, or a file that
                is not the same there.
        """
        title, size = self.transport.title, sum(file.stat().st_size for file in files.values())
        if self.disk_mb is not None and size / 1e6 > self.disk_mb:
            raise MeasurementError(
                f"{title}: {size / 1e6:.1f} MB are to be copied and {self.disk_mb:.1f} MB are free "
                f"in {self.path}; free some there"
            )
        put = self.transport.put(files, self.path, limit_s=SHORT_S + size / SLOWEST_BYTES_S)
        if put.code:
            raise MeasurementError(f"{title}: files can't be copied: {reason(put)}")
        found = self._digests()
        changed = [name for name, file in files.items() if found.get(name) != _digest(file)]
        if changed:
            raise MeasurementError(
                f"{title}: {', '.join(sorted(changed)[:5])} arrived there with another SHA-256 "
                "than was sent, so nothing was run; see what changes files on the way, or whether "
                "its disk is sound"
            )

    def _digests(self) -> dict[str, str]:
        told = self.transport.call(["sh", "-c", _DIGESTS, "sh", self.path], limit_s=10 * SHORT_S)
        if told.code:
            raise MeasurementError(
                f"{self.transport.title}: files can't be compared: {reason(told)}; expected "
                "sha256sum or shasum there"
            )
        pairs = re.findall(r"^([0-9a-f]{64}) [ *](\S+)$", text(told.out), re.MULTILINE)
        return {name: digest for digest, name in pairs}

    def fits(self, size: int, what: str, way_out: str) -> None:
        """Refuse files of more bytes than the device has free memory.

        Raises:
            MeasurementError: naming both.
        """
        if self.memory_mb is not None and size / 1e6 > self.memory_mb:
            raise MeasurementError(
                f"{self.transport.title}: {what} ({size / 1e6:.1f} MB) is over the memory that is "
                f"free there ({self.memory_mb:.1f} MB); {way_out}"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def room(transport: Transport, *, base: str = "") -> Iterator[Room]:
    """A fresh folder on a device, which is removed at the end, also after an error.

    Args:
        transport: to the device.
        base: where the folder is made; where the device keeps temporary files by default.

    Raises:
        MeasurementError: when it can't be made.
    """
    told = transport.call(["sh", "-c", _OPEN, "sh", base], limit_s=2 * SHORT_S)
    lines = text(told.out).splitlines()
    path = next((line[7:] for line in lines if line.startswith("folder ")), "")
    if told.code or not _FOLDER.fullmatch(path) or ".." in path:
        why = reason(told) if told.code else f"it says {path[:90]!r}"
        raise MeasurementError(f"{transport.title}: no folder can be made there: {why}")
    disk = re.search(r"\s(\d+)\s+(\d+)\s+(\d+)\s+\d+%", "\n".join(lines))
    memory = re.search(r"^MemAvailable:\s+(\d+) kB", "\n".join(lines), re.MULTILINE)
    try:
        yield Room(
            transport,
            path,
            disk_mb=int(disk[3]) * 1024 / 1e6 if disk else None,
            memory_mb=int(memory[1]) * 1024 / 1e6 if memory else None,
        )
    finally:
        with suppress(MeasurementError):  # what went wrong before is what counts
            transport.call(["rm", "-rf", path], limit_s=SHORT_S)


def reason(answer: Answer) -> str:
    """Why a program failed, in a few words.

    Example:
        >>> reason(Answer(2, b"", "tar: a: Cannot write: No space left on device"))
        'its disk is full (tar: a: Cannot write: No space left on device); free some space there'
        >>> reason(Answer(132, b"", ""))
        'it was ended by SIGILL, so it is built for another processor; install one for this device'
    """
    line = last_line(answer.err)
    if answer.code == 128 + signal.SIGXFSZ or _FULL.search(answer.err):
        return f"its disk is full ({line}); free some space there"
    if 128 < answer.code <= 128 + 64:
        return _ended_by(answer.code - 128)
    if answer.code == 126 or "exec format error" in answer.err.lower():
        return f"it can't be run there ({line}); give one that is built for this device"
    return line or f"it ended with code {answer.code} and said nothing"


def _ended_by(number: int) -> str:
    told = {
        signal.SIGILL: ", so it is built for another processor; install one for this device",
        signal.SIGKILL: ", which is how a device ends what takes too much memory; free some there, "
        "or give smaller networks",
        signal.SIGALRM: ", since it took too long; see what else runs there",
    }
    with suppress(ValueError):
        name = signal.Signals(number)
        return f"it was ended by {name.name}{told.get(name, '; see whether its runtime is sound')}"
    return f"it was ended by signal {number}; see whether its runtime is sound"


def text(out: bytes) -> str:
    """What a device says, as text."""
    return out.decode("utf-8", "replace")


def last_line(said: str) -> str:
    """The last line that says something, without what is not printable.

    Example:
        >>> last_line("one\\n\\x1b[31mtwo\\n\\n")
        '[31mtwo'
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return clean(lines[-1]) if lines else ""


def clean(said: str) -> str:
    """A device's words for a message: printable, and not many."""
    return "".join(letter for letter in said if letter.isprintable())[:300].strip()


def cleaned(told: Description) -> Description:
    """What a device says of itself, fit to be shown."""
    return replace(
        told,
        machine=clean(told.machine) or "unknown",
        system=clean(told.system) or "unknown",
        runtime=clean(told.runtime) or "unknown",
        version=clean(told.version) or "unknown",
        governor=clean(told.governor or "") or None,
    )


# programs of this machine -----------------------------------------------------------------------


def program(
    argv: Sequence[str],
    *,
    title: str,
    install: str,
    limit_s: float,
    send: Iterable[bytes] = (),
    hold: bool = False,
    most_bytes: int = MOST_BYTES,
) -> Answer:
    """Run a program of this machine, bounded in time and in what it says.

    Args:
        argv: the program and its arguments; no shell reads them.
        title: what messages say it is for.
        install: how the program is got, for where it is missing.
        limit_s: seconds until it is ended.
        send: its standard input.
        hold: whether that stays open until the program ends.
        most_bytes: of its standard output.

    Raises:
        MeasurementError: when it is missing, or exceeds a limit.

    Example:
        >>> program(["cat"], title="a test", install="", limit_s=9, send=[b"hello"]).out
        b'hello'
        >>> program(["no-such-program"], title="a test", install="get it", limit_s=9)
        Traceback (most recent call last):
        ...
        tailorbird.errors.MeasurementError: a test: no program 'no-such-program' is found on this \
machine; get it
    """
    found = shutil.which(argv[0])
    if found is None:
        raise MeasurementError(
            f"{title}: no program '{argv[0]}' is found on this machine; {install}"
        )
    pipe = subprocess.PIPE
    process = subprocess.Popen([found, *argv[1:]], bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe)
    with process, _Flow(process, send, hold=hold, most_bytes=most_bytes) as flow:
        try:
            in_time = flow.until(time.monotonic() + limit_s)
        finally:
            if process.poll() is None:
                process.kill()
    if flow.exceeded:
        raise MeasurementError(f"{title}: it answered with more than {most_bytes:,} bytes")
    if not in_time:
        raise MeasurementError(
            f"{title} did not end within {limit_s:g} s; see whether the device hangs or the "
            "connection is slow"
        )
    return Answer(process.returncode, bytes(flow.out), flow.err.decode("utf-8", "replace"))


class _Flow:
    """What goes into a process and comes out of it.

    A program that it leaves behind, as ssh does where connections are shared, may keep the pipes
    open; so what counts is the end of the process, and not that of the pipes.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        send: Iterable[bytes],
        *,
        hold: bool,
        most_bytes: int,
    ) -> None:
        assert process.stdin and process.stdout and process.stderr  # they are pipes
        self.out, self.err, self.exceeded = bytearray(), bytearray(), False
        self._process, self._in, self._hold, self._most = process, process.stdin, hold, most_bytes
        self._send, self._left = iter(send), memoryview(b"")
        self._selector = selectors.DefaultSelector()
        os.set_blocking(self._in.fileno(), False)
        self._selector.register(self._in, selectors.EVENT_WRITE, self._write)
        self._selector.register(process.stdout, selectors.EVENT_READ, self._read)
        self._selector.register(process.stderr, selectors.EVENT_READ, self._listen)

    def __enter__(self) -> _Flow:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def until(self, end: float) -> bool:
        """Move what there is until the process ends; ``False`` where it does not by then."""
        while (left := end - time.monotonic()) > 0 and not self.exceeded:
            ended = self._process.poll() is not None
            ready = [key for key, _ in self._selector.select(0 if ended else min(left, _TICK_S))]
            if ended:
                ready = [key for key in ready if key.fileobj is not self._in]
                if not ready:
                    return True
            for key in ready:
                key.data(key.fileobj)
        return False

    def _write(self, stream: IO[bytes]) -> None:
        try:
            while not self._left:
                self._left = memoryview(next(self._send))
            self._left = self._left[stream.write(self._left) or 0 :]
        except (StopIteration, OSError):  # all is sent, or the program has ended and its code tells
            self._selector.unregister(stream)
            if not self._hold:
                stream.close()

    def _read(self, stream: IO[bytes]) -> None:
        self.out += self._part(stream)
        self.exceeded = len(self.out) > self._most

    def _listen(self, stream: IO[bytes]) -> None:
        self.err = (self.err + self._part(stream))[-_ERROR_BYTES:]

    def _part(self, stream: IO[bytes]) -> bytes:
        part = stream.read(_BLOCK_BYTES)
        if not part:
            self._selector.unregister(stream)
        return part
