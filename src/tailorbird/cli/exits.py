"""What commands share: plain words about what is wrong, exit codes, ctrl-C in order."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from tailorbird.errors import TailorbirdError
from tailorbird.quiet import Aside, aside, terminal_fd

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")

BAD_INPUT, NOT_MET, INTERRUPTED = 2, 3, 130

VERBOSE: ContextVar[bool] = ContextVar("verbose", default=False)
"""Whether what libraries say is asked for; the command line sets it before each command."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only news.")]


def console() -> Console:
    """Where tables are printed."""
    from rich.console import Console

    return Console()


def plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn Tailorbird's own errors and ctrl-C into one message and an exit code.

    Anything else is a fault of Tailorbird's and keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        log = _Pointer()
        try:
            with _two_presses(), _hushed(log):
                return command(*args, **kwargs)
        except TailorbirdError as error:
            typer.echo(f"error: {_visible(str(error))}", err=True)
            log.tell()
            raise typer.Exit(BAD_INPUT) from None
        except (MemoryError, RuntimeError) as error:
            if not _is_full(error):
                log.tell(everything=True)
                raise
            typer.echo(
                "error: out of memory; lower batch_size (of house, retrain or recipe), "
                "house.memory_mb or data.memory_mb, or free memory; what was finished is kept, run "
                "the same command again to continue",
                err=True,
            )
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            typer.echo(
                "stopped; what was finished is kept, run the same command again to continue",
                err=True,
            )
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except typer.Exit:
            raise
        except Exception:
            log.tell(everything=True)
            raise

    return run


class _Pointer:
    """Where libraries' words of a command went, told where it ended badly."""

    def __init__(self) -> None:
        self.log: Path | None = None
        self.tail = ""

    def note(self, kept: Aside) -> None:
        """Look while it is there."""
        self.log, self.tail = kept.log if kept.spoke else None, kept.tail

    def tell(self, *, everything: bool = False) -> None:
        """Name the log; print what is in none, where ``everything`` may matter."""
        if self.log is not None:
            typer.echo(f"what libraries said meanwhile is in {self.log}", err=True)
        elif everything and self.tail:
            typer.echo(self.tail, err=True, nl=False)


@contextmanager
def _hushed(log: _Pointer) -> Iterator[None]:
    """Keep libraries' words aside, unless they were asked for (``--verbose``)."""
    if VERBOSE.get():
        yield
        return
    with aside() as kept:
        try:
            yield
        finally:
            if kept is not None:
                log.note(kept)


def _visible(text: str) -> str:
    """The text with control characters as question marks, but for its line ends."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _is_full(error: Exception) -> bool:
    """Whether memory ran out, the processor's or a GPU's."""
    text = str(error)
    told = "out of memory" in text.lower() or "can't allocate memory" in text
    return isinstance(error, MemoryError) or told


@contextmanager
def _two_presses() -> Iterator[None]:
    """The first ctrl-C is a KeyboardInterrupt, the second ends the process at once.

    What is on disk is whole at any moment, so nothing is lost by that. Once pressed, it stays so
    until the process is gone: an interpreter that is closing would end by signal otherwise.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # whoever called, or nohup, has settled what ctrl-C does
        return
    owner, pressed = os.getpid(), False

    def second(*_: object) -> None:
        if os.isatty(terminal_fd()):
            os.write(terminal_fd(), b"\x1b[?25h")  # progress bars hide the cursor
        os._exit(INTERRUPTED)

    def first(*_: object) -> None:
        nonlocal pressed
        pressed = True
        if os.getpid() == owner:  # workers are forked with this handler, and need no words
            signal.signal(signal.SIGINT, second)
            with suppress(OSError):
                os.write(terminal_fd(), b"\nstopping; press ctrl-C again to stop at once\n")
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        if not pressed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
