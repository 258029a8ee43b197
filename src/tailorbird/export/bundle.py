"""A student as two files that rebuild it for further training, without pickle or foreign code."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import fx

from tailorbird.data.images import Normalisation
from tailorbird.errors import DataError, StoreError
from tailorbird.export.options import ExportOptions
from tailorbird.graph.serial import load_module, save_module

_NAME = "student"


@dataclass(frozen=True, kw_only=True, repr=False)
class Student:
    """A trained network and what is needed to use it or train it further.

    Args:
        module: image batch (n, C, H, W), normalised -> logits (n, classes); on the CPU, in the
            mode (train or eval) in which it was saved.
        classes: names in the order of the logits, or ``None`` if they are not known.
        normalisation: what the network expects of its images.
        input_shape: (C, H, W).
        metrics: what was measured of it, such as ``{"latency_ms": 0.8, "accuracy": 0.93}``.
    """

    module: fx.GraphModule
    classes: tuple[str, ...] | None
    normalisation: Normalisation
    input_shape: tuple[int, int, int]
    metrics: Mapping[str, float]

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"<Student: images of {self.input_shape}{classes}>"


def save_student(
    module: fx.GraphModule,
    folder: Path,
    *,
    classes: Sequence[str] | None,
    normalisation: Normalisation,
    input_shape: Sequence[int],
    metrics: Mapping[str, float],
    options: ExportOptions | None = None,
) -> tuple[str, ...]:
    """Write ``student.safetensors`` and ``student.json`` to a folder, safely against crashes.

    What is stored is the network alone, on normalised images and with logits, whatever ``options``
    put into the exported file beside it; ``student.json`` says what that was.

    Returns:
        Import paths of code of the user's own that `load_student` has to be trusted with.

    Raises:
        GraphError: when the network can't be stored without pickle.
        StoreError: when a file can't be written or a metric is not a finite number.

    Example:
        >>> import tempfile, torch
        >>> net = fx.symbolic_trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     code = save_student(net, Path(folder), classes=["a", "b"], input_shape=(3, 2, 2),
        ...                  normalisation=Normalisation.identity(3), metrics={"accuracy": 0.5})
        ...     student = load_student(Path(folder), trust=code)
        >>> student.classes, tuple(student.module(torch.zeros(1, 3, 2, 2)).shape), code
        (('a', 'b'), (1, 2), ())
    """
    odd = [name for name, value in metrics.items() if not math.isfinite(value)]
    if odd:
        raise StoreError(f"{folder}: metrics {odd} are not finite numbers; leave them out")
    extra: dict[str, object] = {
        "kind": _NAME,
        "classes": None if classes is None else [str(name) for name in classes],
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
        "input_shape": [int(size) for size in input_shape],
        "metrics": {name: float(value) for name, value in metrics.items()},
    }
    if options is not None and (options.normalise or options.softmax):
        extra["file"] = {"normalise": options.normalise, "softmax": options.softmax}
    _parse(extra, str(folder))
    return save_module(module, folder, _NAME, extra)


def load_student(folder: Path, *, trust: Collection[str] = ()) -> Student:
    """The student of a folder such as ``runs/r56/students/edge``.

    Args:
        folder: where ``student.json`` and ``student.safetensors`` lie.
        trust: import paths of code that may be imported and run, such as ``["nets:Gate"]``. A
            student whose network had modules that are kept whole needs their code; without trust
            the error names what is asked for, and nothing is imported.

    Raises:
        StoreError: naming the file that is missing, half-written, changed or not a student's, or
            the code that it needs.
    """
    module, extra = load_module(Path(folder), _NAME, trust=trust)
    fields = _parse(extra, str(Path(folder) / f"{_NAME}.json"))
    return Student(
        module=module,
        classes=fields.classes,
        normalisation=fields.normalisation,
        input_shape=fields.input_shape,
        metrics=fields.metrics,
    )


@dataclass(frozen=True)
class _Fields:
    classes: tuple[str, ...] | None
    normalisation: Normalisation
    input_shape: tuple[int, int, int]
    metrics: Mapping[str, float]


def _parse(extra: Mapping[str, object], where: str) -> _Fields:
    """Check what travels with the weights; all faults at once."""
    classes, shape, metrics = (extra.get(key) for key in ("classes", "input_shape", "metrics"))
    scale = extra.get("normalisation")
    problems = []
    if extra.get("kind") != _NAME:
        problems.append("it holds no student")
    if classes is not None and not _list_of(classes, str):
        problems.append("classes: expected a list of names or null")
    sizes = cast(list[int], shape) if _list_of(shape, int) else []
    if len(sizes) != 3 or min(sizes) < 1:
        problems.append(f"input_shape: expected channels, height and width, got {shape}")
    if not isinstance(metrics, dict) or not _list_of(list(metrics.values()), float):
        problems.append("metrics: expected numbers with names")
    normalisation = Normalisation.identity(1)
    try:
        if not isinstance(scale, dict) or not all(
            _list_of(scale.get(key), (int, float)) for key in ("mean", "std")
        ):
            raise DataError("normalisation: expected lists of numbers 'mean' and 'std'")
        normalisation = Normalisation(tuple(scale["mean"]), tuple(scale["std"]))
    except DataError as error:
        problems.append(str(error))
    if problems:
        raise StoreError(f"{where}: not a student's description: " + "; ".join(problems))
    return _Fields(
        None if classes is None else tuple(cast(list[str], classes)),
        normalisation,
        cast(tuple[int, int, int], tuple(sizes)),
        cast(dict[str, float], metrics),
    )


def _list_of(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, kind) and not isinstance(item, bool) for item in value
    )
