"""Tailorbird: one trained network in, one measured network per deployment target out.

Names are imported on first use, so that ``import tailorbird`` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailorbird.data.images import ImageData as ImageData
    from tailorbird.data.images import Normalisation as Normalisation
    from tailorbird.errors import TailorbirdError as TailorbirdError
    from tailorbird.house.options import HouseOptions as HouseOptions
    from tailorbird.measure.onnxruntime import OnnxRuntime as OnnxRuntime
    from tailorbird.models import load_model as load_model
    from tailorbird.pipeline import Job as Job
    from tailorbird.pipeline import ModelHouse as ModelHouse
    from tailorbird.pipeline import Student as Student
    from tailorbird.pipeline import execute as execute
    from tailorbird.targets import Target as Target
    from tailorbird.train.recipe import Recipe as Recipe

__version__ = "0.1.0"

_HOMES = {
    "HouseOptions": "tailorbird.house.options",
    "ImageData": "tailorbird.data.images",
    "Job": "tailorbird.pipeline",
    "ModelHouse": "tailorbird.pipeline",
    "Normalisation": "tailorbird.data.images",
    "OnnxRuntime": "tailorbird.measure.onnxruntime",
    "Recipe": "tailorbird.train.recipe",
    "Student": "tailorbird.pipeline",
    "TailorbirdError": "tailorbird.errors",
    "Target": "tailorbird.targets",
    "execute": "tailorbird.pipeline",
    "load_model": "tailorbird.models",
}

__all__ = [
    "HouseOptions",
    "ImageData",
    "Job",
    "ModelHouse",
    "Normalisation",
    "OnnxRuntime",
    "Recipe",
    "Student",
    "TailorbirdError",
    "Target",
    "execute",
    "load_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tailorbird' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
