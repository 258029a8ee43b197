"""What libraries say, kept apart from what Tailorbird says.

PyTorch, timm, ONNX Runtime and others warn of what no user of Tailorbird can change: by Python's
warnings, by logging, by printing, and from C code straight to the error stream. While a command
runs, its error stream is therefore a file, and Tailorbird's own words go to where the stream was.
The file is a temporary one until a run's folder is open, and `LOG` in that folder from then on.

A process has one error stream, so this is for whoever owns the process, as the command line does.
Calls from Python leave it alone: there warnings and logging are as the program has set them. What a
single call of a library prints, warns and logs about its own insides is held back by `silent`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer  # of collections.abc from Python 3.12 on

LOG, OLDER = "log.txt", "log.1.txt"
"""What libraries said while a run was worked on, and what they said before that grew long."""

MOST_BYTES = 5_000_000
"""A log larger than this becomes `OLDER` when the next command opens the folder."""

_TAIL_BYTES = 4000
_STREAM = 2


class Aside:
    """The error stream of this process while libraries' words are kept aside; see `aside`.

    Args:
        words: where Tailorbird's own words go.
        fd: the same as a file descriptor.
        spool: takes libraries' words while there is no log.
    """

    def __init__(self, words: TextIO, fd: int, spool: IO[bytes]) -> None:
        self.words, self.fd = words, fd
        self.log: Path | None = None
        self._spool, self._begun = spool, 0

    def keep(self, folder: Path) -> None:
        """Write to the folder's log from now on, and what was said until now."""
        path = folder / LOG
        if self.log == path:
            return
        with suppress(OSError):  # a folder that can't be written is told by what needs it
            if path.exists() and path.stat().st_size > MOST_BYTES:
                path.replace(folder / OLDER)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                began = time.strftime("%Y-%m-%d %H:%M:%S")
                head = f"--- {began}, process {os.getpid()}: what libraries say\n"
                os.write(file, head.encode())
                self._begun = os.fstat(file).st_size
                os.write(file, self._said())
                os.dup2(file, _STREAM)
            finally:
                os.close(file)
            self.log = path

    @property
    def tail(self) -> str:
        """The last of what was said and is in no log."""
        return "" if self.log else self._said()[-_TAIL_BYTES:].decode(errors="replace")

    @property
    def spoke(self) -> bool:
        """Whether the log has grown by what was said."""
        try:
            return self.log is not None and self.log.stat().st_size > self._begun
        except OSError:
            return False

    def _said(self) -> bytes:
        file = self._spool.fileno()
        return os.pread(file, os.fstat(file).st_size, 0)


_ACTIVE: list[Aside] = []
"""The one that is in use, if one is."""


@contextmanager
def aside() -> Iterator[Aside | None]:
    """Keep what is written to this process's error stream aside, also from C code and workers.

    It is the whole process's stream, all threads', so that this is for programs and not for parts
    of one. A file descriptor that was closed, or a second use inside the first, changes nothing.

    Example:
        >>> with aside():
        ...     print("a library's warning", file=sys.stderr)
        >>> with aside() as kept:
        ...     print("another", file=sys.stderr)
        ...     kept.tail if kept else "another\\n"
        'another\\n'
    """
    if _ACTIVE or sys.stderr is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            sys.stderr.flush()
            spool = stack.enter_context(tempfile.TemporaryFile())
            fd = os.dup(_STREAM)
        except OSError:  # no error stream, or no place for temporary files
            yield None
            return
        stack.callback(os.close, fd)
        before, words = sys.stderr, sys.stderr
        if _descriptor(before) == _STREAM:
            words = stack.enter_context(os.fdopen(os.dup(fd), "w", 1, before.encoding, "replace"))
        os.dup2(spool.fileno(), _STREAM)
        raw = _Unfailing(_STREAM, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            raw,  # unbuffered, as python -u has it
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )
        _ACTIVE.append(kept := Aside(words, fd, spool))
        try:
            yield kept
        finally:
            _ACTIVE.clear()
            sys.stderr = before
            os.dup2(fd, _STREAM)


def keep(folder: Path) -> None:
    """Where libraries' words are kept aside, keep them in this run folder from now on."""
    for active in _ACTIVE:
        active.keep(folder)


def terminal() -> TextIO:
    """The stream for Tailorbird's own words: the error stream as it is, or was."""
    return _ACTIVE[0].words if _ACTIVE else sys.stderr


def terminal_fd() -> int:
    """The same as a file descriptor."""
    return _ACTIVE[0].fd if _ACTIVE else _STREAM


class _Unfailing(io.FileIO):
    """The error stream's descriptor; a full disk stops nobody's work."""

    def write(self, data: Buffer) -> int:
        with suppress(OSError):
            super().write(data)
        return len(memoryview(data))


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # in memory, as in tests and notebooks
        return None


@contextmanager
def silent() -> Iterator[None]:
    """Hold back what libraries print, warn and log from Python meanwhile.

    Example:
        >>> with silent():
        ...     print("5 of 7 passes done")
    """
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
