"""Tailorbird: one trained network in, one measured network per deployment target out.

Names are imported on first use, so that ``import tailorbird`` and the command line start at once.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailorbird.data.images import ImageData as ImageData
    from tailorbird.data.images import Normalisation as Normalisation
    from tailorbird.errors import TailorbirdError as TailorbirdError
    from tailorbird.estimate.accuracy_predictor import OfaPredictor as OfaPredictor
    from tailorbird.estimate.latency_table import compile_table as compile_table
    from tailorbird.estimate.latency_table import read_table as read_table
    from tailorbird.estimate.predicted import PredictedFamily as PredictedFamily
    from tailorbird.estimate.predictor_files import open_predictor as open_predictor
    from tailorbird.house.options import HouseOptions as HouseOptions
    from tailorbird.measure.check import check_devices as check_devices
    from tailorbird.measure.devices.adb import Adb as Adb
    from tailorbird.measure.devices.browser.device import Browser as Browser
    from tailorbird.measure.devices.onnxruntime import OnnxRuntime as OnnxRuntime
    from tailorbird.measure.devices.openvino import OpenVino as OpenVino
    from tailorbird.measure.devices.ssh import Ssh as Ssh
    from tailorbird.models import load_model as load_model
    from tailorbird.pipeline import Job as Job
    from tailorbird.pipeline import ModelHouse as ModelHouse
    from tailorbird.pipeline import Student as Student
    from tailorbird.pipeline import Supernet as Supernet
    from tailorbird.pipeline import execute as execute
    from tailorbird.search.additive import Exact as Exact
    from tailorbird.search.many_targets import AllAtOnce as AllAtOnce
    from tailorbird.supernet.architecture import load_space as load_space
    from tailorbird.supernet.schemes.bignas import BigNAS as BigNAS
    from tailorbird.supernet.schemes.compofa import comp_ofa as comp_ofa
    from tailorbird.supernet.schemes.deps import DepS as DepS
    from tailorbird.supernet.schemes.progressive_shrinking import (
        ProgressiveShrinking as ProgressiveShrinking,
    )
    from tailorbird.supernet.train_state import SupernetRecipe as SupernetRecipe
    from tailorbird.targets import Limit as Limit
    from tailorbird.targets import Place as Place
    from tailorbird.targets import Target as Target
    from tailorbird.train.recipe import Recipe as Recipe

__version__ = "0.1.0"

# From 1.31 on, ONNX Runtime's wheels report to their maker that they are used, unless this is set
# before they are imported. Whoever wants that has set it otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Adb": "tailorbird.measure.devices.adb",
    "AllAtOnce": "tailorbird.search.many_targets",
    "BigNAS": "tailorbird.supernet.schemes.bignas",
    "Browser": "tailorbird.measure.devices.browser.device",
    "DepS": "tailorbird.supernet.schemes.deps",
    "Exact": "tailorbird.search.additive",
    "HouseOptions": "tailorbird.house.options",
    "ImageData": "tailorbird.data.images",
    "Job": "tailorbird.pipeline",
    "Limit": "tailorbird.targets",
    "ModelHouse": "tailorbird.pipeline",
    "Normalisation": "tailorbird.data.images",
    "OfaPredictor": "tailorbird.estimate.accuracy_predictor",
    "OnnxRuntime": "tailorbird.measure.devices.onnxruntime",
    "OpenVino": "tailorbird.measure.devices.openvino",
    "Place": "tailorbird.targets",
    "PredictedFamily": "tailorbird.estimate.predicted",
    "ProgressiveShrinking": "tailorbird.supernet.schemes.progressive_shrinking",
    "Recipe": "tailorbird.train.recipe",
    "Ssh": "tailorbird.measure.devices.ssh",
    "Student": "tailorbird.pipeline",
    "Supernet": "tailorbird.pipeline",
    "SupernetRecipe": "tailorbird.supernet.train_state",
    "TailorbirdError": "tailorbird.errors",
    "Target": "tailorbird.targets",
    "check_devices": "tailorbird.measure.check",
    "comp_ofa": "tailorbird.supernet.schemes.compofa",
    "compile_table": "tailorbird.estimate.latency_table",
    "execute": "tailorbird.pipeline",
    "load_model": "tailorbird.models",
    "load_space": "tailorbird.supernet.architecture",
    "open_predictor": "tailorbird.estimate.predictor_files",
    "read_table": "tailorbird.estimate.latency_table",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tailorbird' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
