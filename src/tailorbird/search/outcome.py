"""What a search found, as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tailorbird.errors import ConfigError
from tailorbird.files import write_bytes, write_json
from tailorbird.search.strategy import SearchResult, Winner
from tailorbird.space import Genomes

Decode = Callable[[Genomes], Sequence[Mapping[str, object]]]
"""Genomes (n, genes) to members, such as ``Space.decode``."""

_LATENCY = "latency_ms"


def document(
    result: SearchResult, decode: Decode, *, devices: Sequence[str] | None = None
) -> dict[str, object]:
    """A search's result as plain JSON values.

    ::

        {"strategy": "independent", "seed": 0, "seconds": 1.2, "evaluations": 50100, "targets": [
          {"limit": 15.0, "latency_ms": 14.9, "predicted_accuracy": 0.78, "architecture": {...}}]}

    Each target also has its other predicted costs. ``limit`` is given where one metric is limited;
    ``limits`` (metric -> bound) is added where that is not ``latency_ms``, or there are several.
    ``device`` is added where there are several. ``stopped`` is added where ctrl-C ended the search.

    Args:
        result: what a strategy returned.
        decode: genomes to architectures.
        devices: the device of each winner; read off the metrics (``latency_ms@phone``) if ``None``.

    Raises:
        ConfigError: when ``devices`` does not have one name for each winner.
    """
    winners = result.winners
    if devices is not None and len(devices) != len(winners):
        raise ConfigError(f"devices: expected {len(winners)} names, got {len(devices)}")
    architectures = decode(np.stack([winner.genome for winner in winners])) if winners else []
    names = list(map(_device, winners)) if devices is None else list(devices)
    several = len(set(names)) > 1 or any("@" in metric for w in winners for metric in w.cost)
    return {
        "strategy": result.strategy,
        "seed": result.seed,
        "seconds": result.seconds,
        "evaluations": result.evaluations,
        **({"stopped": True} if result.stopped else {}),
        "targets": [
            _target(winner, name if several else None, architecture)
            for winner, name, architecture in zip(winners, names, architectures, strict=True)
        ],
    }


def save_json(
    path: Path, result: SearchResult, decode: Decode, *, devices: Sequence[str] | None = None
) -> None:
    """Write `document` as a JSON file, whole or not at all.

    Raises:
        StoreError: when the file can't be written.
    """
    write_json(path, document(result, decode, devices=devices))


def save_csv(
    path: Path, result: SearchResult, decode: Decode, *, devices: Sequence[str] | None = None
) -> None:
    """Write the targets of `document` as a CSV file, whole or not at all.

    One column per figure; ``limits`` become columns such as ``limit_macs``, the architecture is
    JSON.

    Raises:
        StoreError: when the file can't be written.
    """
    targets = document(result, decode, devices=devices)["targets"]
    rows = [_flat(target) for target in targets] if isinstance(targets, list) else []
    columns = list(dict.fromkeys(column for row in rows for column in row))
    columns.sort(key=lambda column: column == "architecture")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def _device(winner: Winner) -> str:
    """The devices that a winner's limits name, with commas between; empty where none."""
    return ",".join(dict.fromkeys(m.partition("@")[2] for m in winner.limits if "@" in m))


def _target(
    winner: Winner, device: str | None, architecture: Mapping[str, object]
) -> dict[str, object]:
    limits = {metric: float(bound) for metric, bound in winner.limits.items()}
    target: dict[str, object] = {}
    if device is not None:
        target["device"] = device
    if len(limits) == 1:
        target["limit"] = next(iter(limits.values()))
    bare = {metric.removesuffix(f"@{device}"): bound for metric, bound in limits.items()}
    if set(bare) != {_LATENCY}:
        target["limits"] = bare
    # What a target costs elsewhere is left out: with many devices it would drown the rest.
    target |= {
        metric.removesuffix(f"@{device}"): float(cost)
        for metric, cost in winner.cost.items()
        if "@" not in metric or metric in limits or metric.endswith(f"@{device}")
    }
    target["predicted_accuracy"] = winner.quality
    target["architecture"] = _plain(architecture)
    return target


def _flat(target: Mapping[str, object]) -> dict[str, object]:
    row: dict[str, object] = {}
    for key, value in target.items():
        if key == "limits" and isinstance(value, Mapping):
            row |= {f"limit_{metric}": bound for metric, bound in value.items()}
        elif key == "architecture":
            row[key] = json.dumps(value, sort_keys=True)
        else:
            row[key] = value
    return row


def _plain(value: object) -> object:
    """``value`` with arrays, tuples and numpy's numbers as JSON knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    return [_plain(one) for one in value] if isinstance(value, Iterable) else str(value)
