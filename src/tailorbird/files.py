"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tailorbird.errors import StoreError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or absent: temporary file, fsync, rename.

    Raises:
        StoreError: when the disk is full or the folder can't be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StoreError(
            f"can't write {path}: {error.strerror or error}; free space or choose another run "
            "folder, then run again: what is already there is kept"
        ) from error


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically; see `write_bytes`."""
    write_bytes(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode())


def read_json(path: Path) -> object:
    """Read JSON.

    Raises:
        StoreError: when the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"can't read {path}: {error}; remove it to have it made anew") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets folders be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
