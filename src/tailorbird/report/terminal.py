"""Progress for people: bars with time left on a terminal, a line now and then elsewhere.

All of it goes to the error stream, so that standard output stays the result's alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tailorbird.progress import Progress as ProgressProtocol
from tailorbird.progress import Task
from tailorbird.quiet import terminal as words

WORTH_A_LINE_S = 2.0
"""Finished work that took at least this long gets a closing line."""


def duration(seconds: float) -> str:
    """A length of time as people say it.

    Example:
        >>> duration(4.2), duration(75), duration(3700)
        ('4 s', '1 min 15 s', '1 h 01 min')
    """
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def terminal(*, quiet: bool = False, console: Console | None = None) -> ProgressProtocol:
    """The progress that suits the error stream: bars on a terminal, plain lines otherwise.

    Args:
        quiet: news lines only, no progress.
        console: where to speak; the error stream when not given.
    """
    console = console or Console(file=words())
    if console.is_terminal and not quiet:
        return Bars(console)
    return Lines(console, every_s=float("inf") if quiet else 5.0)


class _BarTask:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar on."""
        if note:
            self._bars.update(self._task, advance=steps, note=note)
        else:
            self._bars.update(self._task, advance=steps)


class Bars:
    """Progress bars with time left; finished work leaves one line behind."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = RLock()
        self._bars: Progress | None = None
        self._open = 0

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """Open a bar of ``total`` steps."""
        began = time.monotonic()
        with self._lock:
            outermost = self._open == 0
            self._open += 1
            if self._bars is None:
                self._bars = self._new()
                self._bars.start()
            bars = self._bars
            task = bars.add_task(name, total=max(total, 1), note="")
        finished = False
        try:
            yield _BarTask(bars, task)
            finished = True
        finally:
            note = str(bars.tasks[bars.task_ids.index(task)].fields["note"])
            with self._lock:
                bars.remove_task(task)
                self._open -= 1
                if self._open == 0:
                    bars.stop()
                    self._bars = None
        took = time.monotonic() - began
        if finished and outermost and took >= WORTH_A_LINE_S:
            self.say(f"{name}: done in {duration(took)}{f', {note}' if note else ''}")

    def _new(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=4,
            redirect_stderr=sys.stderr is words(),
        )

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _LineTask:
    def __init__(self, name: str, total: int, lines: Lines) -> None:
        self._name, self._total, self._lines = name, max(total, 1), lines
        self._done = 0
        self.began = lines.clock()
        self.note = ""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count on, and print where it stands if the last line is old enough."""
        self._done += steps
        self.note = note or self.note
        if self._done < self._total:  # the end has a line of its own
            self._lines.due(self._state)

    def _state(self) -> str:
        took = self._lines.clock() - self.began
        share = min(self._done / self._total, 1.0)
        left = f", {duration(took / share - took)} left" if 0 < share < 1 else ""
        note = f", {self.note}" if self.note else ""
        return f"{self._name}: {self._done}/{self._total} ({share:.0%}){left}{note}"


class Lines:
    """A plain line when the last one is ``every_s`` seconds old; for logs and pipes."""

    def __init__(
        self,
        console: Console,
        *,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._every_s, self.clock = console, every_s, clock
        self._lock = RLock()
        self._last = clock()

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """Open work that tells now and then how far it is."""
        task = _LineTask(name, total, self)
        yield task
        took = self.clock() - task.began
        note = f", {task.note}" if task.note else ""
        line = f"{name}: done in {duration(took)}{note}"
        worth = took >= min(self._every_s, WORTH_A_LINE_S)
        self.due(lambda: line, patience=0.2 if worth else 1.0)

    def due(self, line: Callable[[], str], *, patience: float = 1.0) -> None:
        """Print ``line()`` if the last progress line is older than ``patience`` times the wait."""
        with self._lock:
            now = self.clock()
            if now - self._last < self._every_s * patience:
                return
            self._last = now
            self.say(line())

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
