"""How long work tells how far it is. The report package holds the terminal's implementation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that ``steps`` more are done; ``note`` is a short figure such as the loss."""


class Progress(Protocol):
    """Opens tasks; a task ends when its context does."""

    def task(self, name: str, total: int) -> AbstractContextManager[Task]:
        """Open a task of ``total`` steps."""

    def say(self, line: str) -> None:
        """Print one line of news."""


class _SilentTask:
    def advance(self, steps: int = 1, note: str = "") -> None:
        """Nothing to show."""


class Silent:
    """Shows nothing: the default for library use.

    Example:
        >>> with Silent().task("distil", 3) as task:
        ...     task.advance()
    """

    def task(self, name: str, total: int) -> AbstractContextManager[Task]:
        """Open a task that shows nothing."""
        return nullcontext(_SilentTask())

    def say(self, line: str) -> None:
        """Swallow the line."""


def each(progress: Progress | None, name: str, items: Collection[T]) -> Iterator[T]:
    """The items, one step of the task ``name`` each.

    Example:
        >>> sum(each(None, "count", [1, 2]))
        3
    """
    with (progress or Silent()).task(name, len(items)) as task:
        for item in items:
            yield item
            task.advance()
