"""The stages in order, resumable; shared by the command line and Python users.

Names are imported on first use: a search on predictions alone needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailorbird.fit.answers import Student as Student
    from tailorbird.pipeline.execute import execute as execute
    from tailorbird.pipeline.house import ModelHouse as ModelHouse
    from tailorbird.pipeline.job import Job as Job
    from tailorbird.pipeline.job import Until as Until
    from tailorbird.pipeline.supernet import Supernet as Supernet

_HOMES = {
    "Job": "tailorbird.pipeline.job",
    "ModelHouse": "tailorbird.pipeline.house",
    "Student": "tailorbird.fit.answers",
    "Supernet": "tailorbird.pipeline.supernet",
    "Until": "tailorbird.pipeline.job",
    "execute": "tailorbird.pipeline.execute",
}

__all__ = list(_HOMES)


class _Package(ModuleType):
    """Importing the module ``execute`` would hide the function of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "execute" and isinstance(value, ModuleType):
            value = value.execute
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tailorbird.pipeline' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, *globals()])
