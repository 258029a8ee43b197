"""Digests of image files' contents, so that no exchanged image goes unnoticed.

A file is read once. Its digest is kept with its size, its number on the disk and the times at which
it and what is known of it changed, of which nobody can set the last, and stands as long as all of
these are the same.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from tailorbird.data.encoded import Encoded, Files
from tailorbird.errors import StoreError
from tailorbird.files import write_json
from tailorbird.records import read_record

_Known = dict[str, tuple[list[int], str]]
"""Path -> what its file's `_state` was, digest."""


def digest(content: bytes) -> str:
    """Sixteen hex digits over some bytes.

    Example:
        >>> digest(b"") == digest(b"a")
        False
    """
    return hashlib.blake2b(content, digest_size=8).hexdigest()


class Contents:
    """Digests of encoded images; those in files of their own are kept for the next time.

    Args:
        encoded: the images.
        cache: folder of what is kept; the user's cache folder by default. Where it can't be
            written, files are read again the next time.
    """

    def __init__(self, encoded: Encoded, cache: Path | None = None) -> None:
        self.encoded = encoded
        self.paths = encoded.paths if isinstance(encoded, Files) else ()
        self._known: _Known = {}
        self._new: _Known = {}
        if self.paths:
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            place = cache or Path(home) / "tailorbird" / "images"
            self._file = place / f"{digest(str(self.paths[0].resolve().parent).encode())}.json"
            with suppress(StoreError):
                self._known = read_record(self._file, _Known)

    def digest(self, index: int) -> str:
        """The digest of image ``index``.

        Raises:
            OSError, ValueError: where it can't be read.
        """
        if not self.paths:
            return self._read(index)
        path = self.paths[index].resolve()
        now = _state(path)
        known, found = self._known.get(str(path), ([], ""))
        if known != now:
            found = self._read(index)
            self._new[str(path)] = (now, found)
        return found

    def save(self) -> None:
        """Keep what was read."""
        if self._new:
            with suppress(StoreError):
                write_json(self._file, self._known | self._new)

    def _read(self, index: int) -> str:
        with self.encoded.open(index) as file:
            return digest(file.read())


def _state(path: Path) -> list[int]:
    """What changes where a file's content does."""
    now = path.stat()
    return [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
