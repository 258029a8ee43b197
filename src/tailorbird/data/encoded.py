"""Images as files hold them: in files of their own, or in a table's cells."""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    import pyarrow


class Encoded(Protocol):
    """Images as files hold them."""

    @property
    def held(self) -> int:
        """Bytes of memory that hold them."""

    @property
    def unlabelled(self) -> str:
        """The setting by which such images are used without labels."""

    def __len__(self) -> int:
        """The number of images."""

    def name(self, index: int) -> str:
        """How a message calls image ``index``."""

    def open(self, index: int) -> BinaryIO:
        """The encoded bytes of image ``index``.

        Raises:
            ValueError: where there is nothing to open.
            OSError: for a file that can't be read.
        """


@dataclass(frozen=True)
class Files:
    """Images in files of their own."""

    paths: tuple[Path, ...]
    held = 0
    unlabelled = "labels: false"

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])

    def open(self, index: int) -> BinaryIO:
        """The file, opened."""
        return self.paths[index].open("rb")


@dataclass(frozen=True, eq=False)
class Cells:
    """Images in a table's cells: bytes, or a path beside the table where the bytes are null.

    Args:
        content: binary, one per image.
        paths: strings, one per image, or None.
        files: the tables' files.
        starts: each file's first row in ``content``.
    """

    content: pyarrow.ChunkedArray
    paths: pyarrow.ChunkedArray | None
    files: tuple[Path, ...]
    starts: tuple[int, ...]
    unlabelled = "label_column: null"

    @property
    def held(self) -> int:
        """Bytes of the tables' cells."""
        return int(self.content.nbytes)

    def __len__(self) -> int:
        return len(self.content)

    def name(self, index: int) -> str:
        """File, row, and the cell's path where there is one."""
        which = bisect_right(self.starts, index) - 1
        path = None if self.paths is None else self.paths[index].as_py()
        row = f"{self.files[which]} row {index - self.starts[which]}"
        return f"{row} ({path})" if path else row

    def open(self, index: int) -> BinaryIO:
        """The cell's bytes, or the file that it names."""
        content = self.content[index].as_py()
        if isinstance(content, bytes):
            return io.BytesIO(content)
        path = None if self.paths is None else self.paths[index].as_py()
        if path is None:
            raise ValueError("neither bytes nor a path")
        which = bisect_right(self.starts, index) - 1
        base = self.files[which].resolve().parent
        file = (base / str(path)).resolve()
        if not file.is_relative_to(base):
            raise ValueError(f"its path leads out of {base}: {path}; a table names files beside it")
        if not file.is_file():
            raise ValueError(f"no such file: {file}")
        return file.open("rb")
