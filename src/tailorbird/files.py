"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from tailorbird.errors import StoreError

_SCRATCH, _YOUNG_S = "tailorbird-", 60.0


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file so that it is either whole or absent: temporary file, fsync, rename.

    Args:
        path: missing folders are made; an existing file is replaced.
        content: the whole file.
        sync: wait until it is on the disk; not worth it for what can be made again.

    Raises:
        StoreError: when the disk is full or the folder can't be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # Nothing is left after a success; where the folder is a file, the error under way counts.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> StoreError:
    """What to raise when ``path`` can't be written."""
    return StoreError(
        f"can't write {path}: {error.strerror or error}; free space or choose another folder, "
        "then run again: what is already there is kept"
    )


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
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"can't read {path}: {error}; remove it to have it made anew") from error


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, removed at the end; what killed processes left of theirs goes first.

    Each folder is locked by its process, and a lock that can be had belongs to a dead one.

    Raises:
        StoreError: where no temporary folder can be made.
    """
    try:
        place = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    except OSError as error:
        raise StoreError(
            f"no temporary folder can be made: {error.strerror or error}; set TMPDIR to one that "
            "you may write to"
        ) from error
    with FileLock(place / ".lock"):
        for other in place.parent.glob(f"{_SCRATCH}*"):
            if other != place:
                _sweep(other)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _sweep(folder: Path) -> None:
    with suppress(OSError):  # a lock's Timeout is one
        if time.time() - folder.stat().st_mtime < _YOUNG_S:
            return  # perhaps not locked yet
        with FileLock(folder / ".lock", timeout=0):
            shutil.rmtree(folder, ignore_errors=True)


def digest_of(path: Path) -> str | None:
    """Sixteen hex digits over a file's bytes; ``None`` where it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return None


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets folders be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
