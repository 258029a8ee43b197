"""OpenVINO on this machine: imported when it is needed, and files made ready to run there.

OpenVINO and NNCF are an extra. As they come, both tell their maker over the network that they are
used, unless a file in the user's home says no; where the package that sends it is missing, they do
without. So it is missing for them here, while they are imported; nothing in anybody's home changes.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.measure.interleave import first_line
from tailorbird.measure.sizes import MOST_ELEMENTS
from tailorbird.quiet import silent

if TYPE_CHECKING:
    from openvino import CompiledModel, Model

CPU = "CPU"
"""OpenVINO's word for the processor, beside ``GPU`` and ``NPU``."""

_OPEN_BATCH = 64
_SENDER = "openvino_telemetry"
_LOCK = threading.RLock()


# the libraries ----------------------------------------------------------------------------------


@cache
def openvino() -> ModuleType:
    """The library.

    Raises:
        ConfigError: where it is not installed.
    """
    return imported("openvino")


@cache
def nncf() -> ModuleType:
    """What quantises for OpenVINO.

    Raises:
        ConfigError: where it is not installed.
    """
    openvino()
    return imported("nncf")


def imported(name: str, load: Callable[[str], ModuleType] = import_module) -> ModuleType:
    """One of the two libraries, which then sends nothing to anybody.

    Args:
        name: of the library.
        load: imports it.

    Raises:
        ConfigError: where that fails, with the way out.

    Example:
        >>> def nothing(name):
        ...     raise ModuleNotFoundError(f"No module named '{name}'")
        >>> imported("openvino", nothing)
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: openvino can't be imported: No module named 'openvino'; \
pip install 'tailorbird[openvino]'
    """
    with _LOCK, _sends_nothing(), silent():
        kind = logging.getLoggerClass()
        try:
            return load(name)
        except Exception as error:  # a library that is damaged raises anything
            raise ConfigError(
                f"{name} can't be imported: {first_line(error)}; pip install 'tailorbird[openvino]'"
            ) from error
        finally:
            logging.setLoggerClass(kind)


@contextmanager
def _sends_nothing() -> Iterator[None]:
    """Without what sends; where others have it already, it is told not to."""
    known = sys.modules.get(_SENDER)
    if known is not None:
        with suppress(Exception):  # nobody has begun with it
            known.Telemetry().consent = False
    sys.modules[_SENDER] = None  # type: ignore[assignment]  # Python's own way: can't be imported
    try:
        yield
    finally:
        del sys.modules[_SENDER]
        if known is not None:
            sys.modules[_SENDER] = known


# files ------------------------------------------------------------------------------------------


def weights_of(path: Path) -> Path:
    """The file beside ``NAME.xml`` that holds its weights."""
    return path.with_suffix(".bin")


def read(path: Path) -> Model:
    """The network in a file.

    Args:
        path: ``NAME.xml``, with ``NAME.bin`` beside it.

    Raises:
        MeasurementError: when it is missing or damaged, or one of its values is absurdly large.
    """
    if not path.is_file():
        raise MeasurementError(f"{path}: there is no such file")
    try:
        model: Model = openvino().Core().read_model(path)
    except (RuntimeError, ValueError, TypeError) as error:
        raise MeasurementError(
            f"{path}: OpenVINO can't read it: {_cause(error)}; export it again"
        ) from error
    for operation in model.get_ops():
        for output in operation.outputs():
            shape = output.get_partial_shape()
            count = prod(shape.to_shape()) if shape.is_static else 0
            if count > MOST_ELEMENTS:
                raise MeasurementError(
                    f"{path}: its value '{operation.get_friendly_name()}' has {count:,} elements, "
                    f"more than {MOST_ELEMENTS:,}; export it at a smaller size"
                )
    return model


def input_shape(path: Path, model: Model) -> list[int | str]:
    """Sizes of a network's one input; ``"?"`` for those that are open.

    Raises:
        MeasurementError: where it has not one input in float32 of a known rank.
    """
    if len(model.inputs) != 1:
        raise MeasurementError(f"{path}: expected one input, found {len(model.inputs)}")
    kind = model.input().get_element_type().get_type_name()
    if kind != "f32":
        raise MeasurementError(f"{path}: expected a float32 input, found {kind}")
    shape = model.input().get_partial_shape()
    if shape.rank.is_dynamic:
        raise MeasurementError(f"{path}: expected an input of known rank, found {shape}")
    return [size.get_length() if size.is_static else "?" for size in shape]


def capabilities(unit: str) -> frozenset[str]:
    """What a unit computes in, in OpenVINO's words, such as ``"FP32"``."""
    return frozenset(openvino().Core().get_property(unit, "OPTIMIZATION_CAPABILITIES"))


def hint(model: Model, able: frozenset[str]) -> str:
    """What a unit is told to compute in where nothing is quantised.

    Left to itself, a CPU with AMX or AVX-512 takes bfloat16 for a file in float32.

    Args:
        model: weights in float16 ask for float16.
        able: the unit's `capabilities`.

    Returns:
        ``"f32"`` or ``"f16"``.
    """
    half = any(
        operation.get_type_name() == "Constant"
        and operation.get_output_element_type(0).get_type_name() == "f16"
        for operation in model.get_ops()
    )
    return "f16" if "FP16" in able and (half or "FP32" not in able) else "f32"


def settings(unit: str, threads: int, precision: str) -> Mapping[str, object]:
    """How OpenVINO is told to run a file: one call at a time, as fast as it can.

    Example:
        >>> settings("NPU", 1, "f16")
        {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f16'}
    """
    found: dict[str, object] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    if unit == CPU or unit.startswith("GPU"):
        found["NUM_STREAMS"] = 1
    if unit == CPU:
        found |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    return found


def compiled(path: Path, model: Model, *, unit: str, threads: int) -> CompiledModel:
    """A network made ready to run.

    Raises:
        MeasurementError: when the unit can't run it.
    """
    how = settings(unit, threads, hint(model, capabilities(unit)))
    try:
        ready: CompiledModel = openvino().Core().compile_model(model, unit, dict(how))
    except RuntimeError as error:
        raise MeasurementError(f"{path}: {unit} can't run it: {_cause(error)}") from error
    return ready


def run_openvino(
    path: Path, images: npt.NDArray[np.float32], *, unit: str = CPU, threads: int = 1
) -> npt.NDArray[np.float32]:
    """Outputs of a file for all images, in batches of the size that it was exported with.

    Where that is fixed, the last batch is filled up with its last image.

    Args:
        path: ``NAME.xml``.
        images: (n, C, H, W).
        unit: of OpenVINO.
        threads: on the CPU.

    Raises:
        ExportError: when it can't be run.
    """
    try:
        model = read(path)
        wanted = input_shape(path, model)[1:]
        if wanted != list(images.shape[1:]):
            raise MeasurementError(f"it takes images of shape {tuple(wanted)}")
        return _outputs(compiled(path, model, unit=unit, threads=threads), images)
    except (MeasurementError, RuntimeError, ValueError, IndexError) as error:
        raise ExportError(
            f"{path.name}: OpenVINO can't run it on images of shape {images.shape[1:]}: "
            f"{_cause(error)}; export it again for this shape"
        ) from error


def answers(model: Model, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Outputs of a network in memory for all images (n, C, H, W), on the CPU."""
    how = {"INFERENCE_PRECISION_HINT": "f32"}
    return _outputs(openvino().Core().compile_model(model, CPU, how), images)


def _outputs(ready: CompiledModel, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    request, batch = ready.create_infer_request(), ready.input().get_partial_shape()[0]
    size = batch.get_length() if batch.is_static else 0
    outputs = []
    for start in range(0, len(images), size or _OPEN_BATCH):
        given = np.ascontiguousarray(images[start : start + (size or _OPEN_BATCH)])
        given = np.concatenate([given, *[given[-1:]] * (size - len(given))])
        outputs.append(np.array(request.infer(given)[0], dtype=np.float32))
    return np.concatenate(outputs)[: len(images)]


def _cause(error: BaseException) -> str:
    """What OpenVINO says beside where in its sources it says it."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (told or [first_line(error)])[0][:300]
