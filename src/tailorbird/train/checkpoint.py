"""The state of a training run on disk: one pair of files per epoch, the last two kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from tailorbird.errors import StoreError
from tailorbird.files import write_bytes, write_json

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

Found: TypeAlias = tuple[dict[str, Tensor], dict[str, Json]]
"""Tensors and record of a stored state."""

_NAME = re.compile(r"epoch-(\d{6})\.json")


class Checkpoint:
    """A folder of ``epoch-NNNNNN.safetensors`` (tensors) and ``.json`` (the rest) pairs.

    The JSON is written last and holds the digest of its tensors, so that a pair which was being
    written when the power went is recognised, and the pair before it is used.

    Args:
        folder: made when the first state is saved.
        identity: what the run is made of, such as ``{"seed": 0, "recipe.epochs": 30.0}``; states
            of another identity are refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Json]) -> None:
        self.folder = folder
        self.identity = dict(identity)

    def save(self, epoch: int, tensors: Mapping[str, Tensor], record: Mapping[str, Json]) -> None:
        """Write one state; older ones than the previous are removed afterwards.

        Raises:
            StoreError: when the disk is full or the folder can't be written.
        """
        payload = save({name: _plain(value) for name, value in tensors.items()})
        write_bytes(self._path(epoch, "safetensors"), payload)
        content = {
            "identity": self.identity,
            "sha256": hashlib.sha256(payload).hexdigest(),
            "record": dict(record),
        }
        write_json(self._path(epoch, "json"), content)
        for old in self._epochs():
            if old < epoch - 1:
                self._drop(old)

    def load(self, *, any_identity: bool = False) -> Found | None:
        """The newest whole state, or None where there is none.

        Args:
            any_identity: also a state of another run; whether it fits is the caller's to see.

        Raises:
            StoreError: when the folder holds the state of another run; says what differs.
        """
        for epoch in sorted(self._epochs(), reverse=True):
            content = _read(self._path(epoch, "json"))
            if content is None:
                continue
            identity, record = content.get("identity"), content.get("record")
            if not isinstance(identity, dict) or not isinstance(record, dict):
                continue
            if not any_identity:
                self._compare(identity)
            try:
                payload = self._path(epoch, "safetensors").read_bytes()
            except OSError:
                continue
            if hashlib.sha256(payload).hexdigest() == content.get("sha256"):
                return load(payload), record
        return None

    def remove(self) -> None:
        """Remove all states: the run is done, and what came of it lies elsewhere."""
        for epoch in self._epochs():
            self._drop(epoch)
        with suppress(OSError):  # absent, or somebody keeps a file there
            self.folder.rmdir()

    def _compare(self, there: Mapping[str, Json]) -> None:
        # Compared as JSON, where a tuple is a list and 30 is not 30.0 by type only.
        here = json.loads(json.dumps(self.identity))
        changed = [
            f"{name}: {there.get(name)!r} there, {here.get(name)!r} now"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        ]
        if changed:
            lines = "".join(f"\n  - {line}" for line in changed)
            raise StoreError(
                f"{self.folder} holds a training run of another kind; give another folder, remove "
                f"this one, or go back to what it was started with:{lines}"
            )

    def _drop(self, epoch: int) -> None:
        self._path(epoch, "json").unlink(missing_ok=True)
        self._path(epoch, "safetensors").unlink(missing_ok=True)

    def _epochs(self) -> list[int]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return [int(match[1]) for path in found if (match := _NAME.fullmatch(path.name))]

    def _path(self, epoch: int, suffix: str) -> Path:
        return self.folder / f"epoch-{epoch:06d}.{suffix}"


def digest(module: nn.Module) -> str:
    """Sixteen hex digits over names, shapes and values of a module's parameters and buffers.

    Example:
        >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> digest(first) == digest(first), digest(first) == digest(second)
        (True, False)
    """
    result = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            plain = _plain(value)
            result.update(f"{name} {plain.dtype} {tuple(plain.shape)};".encode())
            result.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()[:16]


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it.

    Example:
        >>> sorted(under("model/", {"model/weight": torch.ones(1), "best/weight": torch.ones(1)}))
        ['weight']
    """
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with ``prefix`` before their names: what `under` takes off again."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _read(path: Path) -> dict[str, Json] | None:
    """The JSON object in a file, or None when it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
