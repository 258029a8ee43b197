"""What differs between a run folder's job and the job given, as people wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

_OTHERS = {
    "models": "its weights are others",
    "initial weights": "its initial weights are others",
    "other tensors": "tensors that it computes with and does not store are others",
    "training": "how it is trained differs",
}
"""Part of a run's identity that is of networks -> what to say where no setting tells it."""

_IMAGES = ("fingerprint", "sampled", "name")
"""Keys of ``data`` that stand for the images themselves."""


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Leaves where two plain structures differ, as ``path: old -> new``.

    Example:
        >>> differences({"seed": 0, "run": "a"}, {"seed": 1, "run": "a"})
        ['seed: 0 -> 1']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}):
            lines += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return lines
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def in_settings(
    changed: Sequence[str], old: Mapping[str, object], new: Mapping[str, object]
) -> list[str]:
    """Differences of what runs are made from, told as the settings of the job that cause them.

    Args:
        changed: lines of `differences`.
        old: the resolved job of the run; empty where it is not known.
        new: the one given.

    Returns:
        A line each; what no setting explains is told in words, without fingerprints.

    Example:
        >>> old, new = ({"data": {"image_size": size}} for size in (64, 72))
        >>> in_settings(["data.fingerprint: 'ab' -> 'cd'"], old, new)
        ['data.image_size: 64 -> 72']
        >>> in_settings(["data.fingerprint: 'ab' -> 'cd'"], new, new)
        ['data: the images or their labels are others']
    """
    found: dict[str, None] = {}
    for line in changed:
        key = line.partition(": ")[0]
        section = _section(key)
        settings = differences(_at(old, section), _at(new, section), section)
        if not (old and new and settings):
            settings = [_in_words(line, key)]
        found |= dict.fromkeys(settings)
    return list(found)


def job_of(path: Path) -> dict[str, object]:
    """The resolved job that a run's ``config.yaml`` holds; empty where it can't be read."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _section(key: str) -> str:
    """The section of a job that decides a part of an identity."""
    root, _, rest = key.partition(".")
    if root not in _OTHERS:
        return root
    name = rest.partition(".")[0] if root == "training" else rest
    return name if name == "teacher" else f"donors.{name}"


def _at(job: Mapping[str, object], section: str) -> object:
    value: object = job
    for part in section.split(".", 1):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _in_words(line: str, key: str) -> str:
    root, _, rest = key.partition(".")
    if root == "data" and rest in _IMAGES:
        return "data: the images or their labels are others"
    if root in _OTHERS and root != "training" and rest:
        return f"{_section(key)}: {_OTHERS[root]}"
    return line
