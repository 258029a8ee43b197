"""What a path is, so that a command given something else says which command takes it."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from itertools import islice
from pathlib import Path

from tailorbird.config.reader import JOB_HINT, SUPERNET_JOB_HINT, read_file
from tailorbird.errors import ConfigError


class Kind(StrEnum):
    """Things that commands are given; the value says what it is, in words."""

    HOUSE_RUN = "the run folder of a model house"
    SUPERNET_RUN = "the run folder of a supernet"
    STUDENT = "a student's folder"
    ONNX = "an ONNX file"
    WEIGHTS = "a file of weights"
    HOUSE_JOB = "the job of a model house"
    SUPERNET_JOB = "the job of a supernet"
    FLEET = "a file of devices and targets"
    DATA = "a file that says where images are"
    IMAGES = "a folder of images"


_WAYS: Mapping[Kind, str] = {
    Kind.HOUSE_RUN: "look at it by `tailorbird inspect {path}`",
    Kind.SUPERNET_RUN: "use `tailorbird supernet evaluate {path}` or `tailorbird supernet fit`",
    Kind.STUDENT: "time its file by `tailorbird measure {path}/model.onnx`",
    Kind.ONNX: "time it by `tailorbird measure {path}`",
    Kind.WEIGHTS: "name it as checkpoint in a job; `tailorbird init` prints one",
    Kind.HOUSE_JOB: "run it by `tailorbird run {path}`",
    Kind.SUPERNET_JOB: "train it by `tailorbird supernet train {path}`",
    Kind.FLEET: "give it to `tailorbird supernet fit RUN {path}`",
    Kind.DATA: "give it as --data to `tailorbird supernet evaluate` or `fit`",
    Kind.IMAGES: "name it as data.root in a job; `tailorbird init` prints one",
}

_HINTS = {Kind.HOUSE_JOB: JOB_HINT, Kind.SUPERNET_JOB: SUPERNET_JOB_HINT}
_WEIGHTS = {".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors"}
_YAML = {".yaml", ".yml"}
_LOOKED_AT = 200
"""Names in a folder, at most, among which there is an image if it is a folder of images."""


def expect(path: Path, *wanted: Kind) -> None:
    """Refuse what is known to be something else; what is not known is left to the command.

    Args:
        path: as it was given.
        wanted: what the command takes.

    Raises:
        ConfigError: saying what it is and which command takes it; also for a job file that is no
            YAML, where a job is wanted.
    """
    found = kind_of(path)
    if found is None and path.is_file():
        for job in _HINTS.keys() & set(wanted):
            found = _of_keys(read_file(path, hint=_HINTS[job]).data)
    if found is None or found in wanted:
        return
    asked, way = " or ".join(wanted), _WAYS[found].format(path=path)
    raise ConfigError(f"{path}: expected {asked}; this is {found}: {way}")


def kind_of(path: Path) -> Kind | None:
    """What a file or folder is; ``None`` where that can't be told.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     job = Path(folder) / "job.yaml"
        ...     _ = job.write_text("teacher: {model: timm:resnet18}")
        ...     print(kind_of(job), kind_of(Path(folder)))
        the job of a model house None
    """
    if path.is_dir():
        return _of_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return Kind.ONNX
    if path.is_file() and suffix in _WEIGHTS:
        return Kind.WEIGHTS
    with suppress(ConfigError):
        return _of_keys(read_file(path).data) if suffix in _YAML else None
    return None


def _of_folder(path: Path) -> Kind | None:
    if (path / "student.json").exists() or (path / "verify.json").exists():
        return Kind.STUDENT
    if (path / "supernet").is_dir():
        return Kind.SUPERNET_RUN
    if (path / "house").is_dir() or (path / "identity.json").exists():
        return Kind.SUPERNET_RUN if _names_supernet(path) else Kind.HOUSE_RUN
    names = islice(path.rglob("*"), _LOOKED_AT)
    kinds = (mimetypes.guess_type(one.name)[0] or "" for one in names)
    return Kind.IMAGES if any(kind.startswith("image/") for kind in kinds) else None


def _names_supernet(path: Path) -> bool:
    try:
        stored = json.loads((path / "identity.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and stored.get("kind") == "supernet"


def _of_keys(document: Mapping[str, object]) -> Kind | None:
    """What a YAML document is by its first keys."""
    keys = set(document)
    if "teacher" in keys or "donors" in keys:
        return Kind.HOUSE_JOB
    if keys & {"space", "scheme"}:
        return Kind.SUPERNET_JOB
    if keys and keys <= {"devices", "targets", "export", "quantise"}:
        return Kind.FLEET
    return Kind.DATA if keys == {"data"} else None
