"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tailorbird.config.named import named
from tailorbird.task import Classification, Task

TASKS: Mapping[str, Callable[[], Task]] = {"classification": Classification}
"""Name -> task. A new one is a line here."""


def task(name: str, *, folder: Path = Path()) -> Task:
    """The task called ``name``, see `named`.

    Example:
        >>> task("classification").measure
        'top-1'
    """
    made: Task = named(name, TASKS, Task, folder=folder, place="task")
    return made
