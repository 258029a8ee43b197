"""Files of accuracy predictors and of the pairs that they learn from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError, StoreError
from tailorbird.estimate.accuracy_predictor import OfaPredictor, read_tensors
from tailorbird.estimate.features import Features, architecture_features
from tailorbird.estimate.train_predictor import BOUNDS, KIND, LEAST_PAIRS, TrainedPredictor
from tailorbird.family import Floats
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace

_COLUMN_TENSORS = ("centre", "scale")


def load(path: Path, features: Features) -> TrainedPredictor:
    """Read a predictor that `TrainedPredictor.save` wrote.

    Args:
        path: the safetensors file.
        features: the same columns as in training.

    Raises:
        StoreError: the file is missing or no safetensors file.
        ConfigError: another kind of file, other columns, missing tensors, wrong shapes, values that
            aren't finite; all faults at once.
    """
    tensors = read_tensors(path)
    columns = _columns(path)
    if columns is None:
        raise ConfigError(
            f"{path}: expected a predictor trained by Tailorbird, got another safetensors file; a "
            "published once-for-all predictor is read by OfaPredictor.from_file"
        )
    faults = _column_faults(columns, features, path) or _file_faults(tensors, columns, path)
    if faults:
        raise ConfigError(faults)
    floats = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    predictor = TrainedPredictor(
        features=features,
        inputs={name: floats[f"{name}.inputs"] for name in columns},
        centre={name: floats[f"{name}.centre"] for name in columns},
        scale={name: floats[f"{name}.scale"] for name in columns},
        targets=floats["targets"],
        parameters=floats["parameters"],
    )
    if not predictor.usable:
        raise ConfigError(f"{path}: the training pairs' covariance can't be factored; train again")
    return predictor


def open_predictor(path: Path, space: ArchitectureSpace) -> OfaPredictor | TrainedPredictor:
    """A published or a trained predictor; which it is, the file says.

    A trained one has to have the columns of `architecture_features`.

    Raises:
        StoreError: the file is missing or no safetensors file.
        ConfigError: see `load` and `OfaPredictor`.
    """
    read_tensors(path)
    if _columns(path) is None:
        return OfaPredictor.from_file(path, space)
    return load(path, architecture_features(space))


def read_pairs(
    path: Path, space: ArchitectureSpace, *, key: str = "top1"
) -> tuple[Genomes, Floats]:
    """Genomes (n, genes) and accuracies (n,) of a JSON-lines file, one architecture a line.

    Args:
        path: lines in the official form, with the accuracy under ``key``.
        space: that the architectures belong to.
        key: names the accuracy.

    Raises:
        StoreError: the file can't be read.
        ConfigError: lines that aren't JSON objects or lack a number under ``key`` (the first 20).
        SpaceError: architectures outside the space.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise StoreError(f"can't read {path}: {error}") from error
    records: list[Mapping[str, object]] = []
    accuracies: list[float] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            faults.append(f"{path}, line {number}: not JSON: {error}")
            continue
        value = record.get(key) if isinstance(record, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            what = f"{key}={value!r:.40}" if isinstance(record, dict) else f"{record!r:.40}"
            faults.append(
                f"{path}, line {number}: expected an object with a number {key!r}, got {what}"
            )
            continue
        records.append(record)
        accuracies.append(float(value))
    if faults:
        more = [f"and {len(faults) - 20} more lines"] if len(faults) > 20 else []
        raise ConfigError(faults[:20] + more)
    return space.genomes(records), np.array(accuracies)


def _columns(path: Path) -> dict[str, list[str]] | None:
    """Group -> names of the columns in a file of ours, ``None`` in any other."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        metadata = file.metadata() or {}
    if metadata.get("kind") != KIND:
        return None
    try:
        columns = json.loads(metadata["columns"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: the columns' names are damaged; train again") from error
    lists = isinstance(columns, dict) and all(isinstance(c, list) and c for c in columns.values())
    if not lists or not columns:
        raise ConfigError(f"{path}: the columns' names are damaged; train again")
    return {name: [str(column) for column in names] for name, names in columns.items()}


def _column_faults(columns: dict[str, list[str]], features: Features, path: Path) -> list[str]:
    """Where the columns that were trained on aren't those of the features."""
    faults = []
    expected = {name: list(names) for name, names in features.columns.items()}
    for name in sorted(expected.keys() | columns.keys()):
        given, wanted = columns.get(name, []), expected.get(name, [])
        if given != wanted:
            pairs = zip([*given, "none"], [*wanted, "none"], strict=False)
            trained, used = next(pair for pair in pairs if pair[0] != pair[1])
            faults.append(
                f"{path}: group {name!r}: trained on {len(given)} columns, the features given have "
                f"{len(wanted)}; first difference: {trained!r} and {used!r}; give the space that "
                "it was trained on, or train again"
            )
    return faults


def _file_faults(
    tensors: Mapping[str, npt.NDArray[np.generic]], columns: dict[str, list[str]], path: Path
) -> list[str]:
    """Missing tensors, shapes that disagree, values that can't be."""
    pairs = tensors["targets"].size if "targets" in tensors else 0
    shapes: dict[str, tuple[int, ...]] = {
        "targets": (pairs,),
        "parameters": (3 * len(columns) + 1,),
    }
    for name, names in columns.items():
        shapes[f"{name}.inputs"] = (pairs, len(names))
        shapes |= {f"{name}.{part}": (len(names),) for part in _COLUMN_TENSORS}
    missing = sorted(shapes.keys() - tensors.keys())
    faults = [f"{path}: missing tensors: {', '.join(missing)}; train again"] if missing else []
    for name in sorted(shapes.keys() & tensors.keys()):
        values = tensors[name].astype(np.float64)
        wrong = int((~np.isfinite(values)).sum())
        if values.shape != shapes[name]:
            faults.append(f"{path}: {name}: expected shape {shapes[name]}, got {values.shape}")
        elif wrong:
            faults.append(f"{path}: {name}: {wrong} of {values.size} values aren't finite")
        elif name.endswith(".scale") and (values <= 0).any():
            faults.append(f"{path}: {name}: expected positive numbers")
        elif name == "parameters" and (np.abs(values) > max(np.abs(BOUNDS))).any():
            faults.append(f"{path}: parameters: expected logarithms from {BOUNDS[0]:g} to 6")
        elif name == "targets" and (pairs < LEAST_PAIRS or np.ptp(values) <= 0):
            faults.append(f"{path}: targets: expected {LEAST_PAIRS} or more that differ")
    return faults
