"""Image sets in parquet files, in the layout that the Hugging Face hub uses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tailorbird.data.assemble import HOLDOUT, Labels, Part, Reading, assemble, settle_test
from tailorbird.data.decode import Interpolation, fail
from tailorbird.data.encoded import Cells
from tailorbird.data.images import ImageData, Normalisation

if TYPE_CHECKING:
    import pyarrow

Paths = str | Path | Sequence[str | Path]

_IMAGE_NAMES = ("image", "img", "picture", "photo")
_LABEL_NAMES = ("label", "labels", "fine_label", "target", "class", "y")
_ROWS = 16
"""Rows that are unpacked together: what may be held beyond a bound."""

_ROLE = re.compile(r"^(train|validation|valid|val|dev|test|holdout)(?:[-_.].*)?$")


def parquet(
    files: Paths,
    *,
    test: Paths | None = None,
    holdout: Paths | None = None,
    image_column: str | None = None,
    label_column: str | None = "auto",
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    interpolation: Interpolation | None = None,
    crop_share: float | None = None,
    normalisation: Normalisation | None = None,
    validation: float = 0.1,
    seed: int = 0,
    crop_padding: int = 0,
    flip: bool = False,
    crop_scale: float | None = None,
    memory_mb: int = 2048,
    workers: int = 0,
    skip_corrupt: bool = False,
) -> ImageData:
    """Read images from parquet files: a column of {bytes, path} or bytes, and maybe labels.

    Args:
        files: a file, a glob, a folder, or a list of these. Where they are named ``train-*``,
            ``validation-*``, ``test-*`` and ``holdout-*`` and ``test`` is None, the names give the
            splits; with one of validation and test, that one is the test split.
        test: the test split's files.
        holdout: files of images that no network was trained on, with labels or without; choices are
            made on them.
        image_column: None takes the column that is marked as, or looks like, an image.
        label_column: ``"auto"`` takes the column marked as a class label, or named like one; None
            uses the images without labels.
        image_size: see `folder`, as are all the following.

    Raises:
        DataError: listing every fault found.
    """
    reading = Reading(
        image_size=image_size,
        channels=channels,
        interpolation=interpolation,
        crop_share=crop_share,
        normalisation=normalisation,
        validation=validation,
        seed=seed,
        crop_padding=crop_padding,
        flip=flip,
        crop_scale=crop_scale,
        memory_mb=memory_mb,
        workers=workers,
        skip_corrupt=skip_corrupt,
    )
    problems = reading.problems()
    roles = _roles(_find(files, problems))
    if test is not None:
        roles = {"train": _find(files, []), "test": _find(test, problems)}
    if holdout is not None:
        roles[HOLDOUT] = _find(holdout, problems)
    if problems:
        fail(problems)
    tables = {role: _Table.read(role, paths, memory_mb, problems) for role, paths in roles.items()}
    if problems:
        fail(problems)
    image = _image_column(tables["train"], image_column, problems)
    label = _label_column(tables["train"], label_column, problems)
    if problems:
        fail(problems)
    names = None if label is None else _class_names(tables["train"], label)
    parts = [
        Part(
            role,
            table.cells(image, problems),
            None
            if label is None or (role == HOLDOUT and label not in table.table.column_names)
            else table.labels(label, names, problems),
        )
        for role, table in tables.items()
    ]
    if problems:
        fail(problems)
    return assemble(roles["train"][0].parent.name, parts, names, reading)


def _find(given: Paths, problems: list[str]) -> list[Path]:
    """Every file that ``given`` names, in order; what is missing goes to ``problems``."""
    found: list[Path] = []
    for one in [given] if isinstance(given, str | Path) else given:
        path = Path(one)
        if path.is_dir():
            files = sorted(path.rglob("*.parquet"))
        elif any(mark in path.name for mark in "*?["):
            files = sorted(path.parent.glob(path.name))
        else:
            files = [path] if path.is_file() else []
        if not files:
            problems.append(f"{path}: no parquet file here; give a file, a folder or a glob")
        found += files
    if not found and not problems:
        problems.append("no parquet files given")
    return found


def _roles(files: list[Path]) -> dict[str, list[Path]]:
    roles: dict[str, list[Path]] = {}
    for file in files:
        match = _ROLE.match(file.stem)
        role = match.group(1) if match else "other"
        roles.setdefault("validation" if role in ("valid", "val", "dev") else role, []).append(file)
    if "train" not in roles or "other" in roles:
        return {"train": files}
    order = ("train", "validation", "test", HOLDOUT)
    return settle_test({str(role): roles[role] for role in order if role in roles})


@dataclass(frozen=True, eq=False)
class _Table:
    """One split's files, read; ``features`` is what the schema's metadata says of columns."""

    role: str
    files: tuple[Path, ...]
    starts: tuple[int, ...]
    table: pyarrow.Table
    features: dict[str, dict[str, object]]

    @staticmethod
    def read(role: str, files: list[Path], memory_mb: int, problems: list[str]) -> _Table:
        """Read ``files``; faults go to ``problems`` and leave an empty table."""
        import pyarrow as pa

        starts: list[int] = []
        tables: list[pyarrow.Table] = []
        left, most = memory_mb * 1e6, 0.0
        for file in files:
            try:
                starts.append(sum(len(table) for table in tables))
                most += _stated(file)
                if most <= memory_mb * 1e6:
                    tables.append(_unpacked(file, left))
                    left -= tables[-1].nbytes
            except _TooLarge:
                most = math.inf
            except (OSError, pa.ArrowException) as error:
                problems.append(f"{file}: not a readable parquet file: {error}")
        if most > memory_mb * 1e6:
            told = f"{most / 1e6:.0f} MB" if math.isfinite(most) else "equal cells make a lot"
            problems.append(
                f"{role}: {told} of parquet data, more than memory_mb: {memory_mb}; "
                "raise memory_mb, give fewer files, or unpack the images into a folder"
            )
        if any(not table.schema.equals(tables[0].schema) for table in tables):
            problems.append(f"{role}: the files' columns differ between files")
        if problems or not tables:
            return _Table(role, tuple(files), (0,), pa.table({}), {})
        whole = pa.concat_tables(tables)
        return _Table(role, tuple(files), tuple(starts), whole, _features(whole.schema))

    def column(self, name: str, problems: list[str]) -> pyarrow.ChunkedArray:
        """The column ``name``, or an empty one and a problem."""
        import pyarrow as pa

        if name in self.table.column_names:
            return self.table.column(name)
        problems.append(f"{self.role}: no column '{name}'; there are {self.table.column_names}")
        return pa.chunked_array([], pa.binary())

    def cells(self, name: str, problems: list[str]) -> Cells:
        """The images in column ``name``."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self.column(name, problems)
        paths = None
        if pa.types.is_struct(column.type):
            fields = [field.name for field in column.type]
            if "path" in fields:
                paths = pc.struct_field(column, "path")
            column = pc.struct_field(column, "bytes")
        return Cells(column, paths, self.files, self.starts)

    def labels(self, name: str, classes: tuple[str, ...] | None, problems: list[str]) -> Labels:
        """The labels in column ``name`` as numbers; nulls become -1."""
        import pyarrow as pa

        column = self.column(name, problems)
        if pa.types.is_integer(column.type):
            return np.array(column.fill_null(-1).to_numpy(), np.int64)
        known = {value: number for number, value in enumerate(classes or ())}
        values = column.to_pylist()
        strange = sorted({str(v) for v in values if v is not None and v not in known})
        if strange and not problems:
            problems.append(f"{self.role}: labels that train lacks: {', '.join(strange[:5])}")
        return np.array([known.get(value, -1) for value in values], np.int64)


class _TooLarge(Exception):  # noqa: N818  # it says that something is, not what went wrong
    """A file unpacks to more than it may."""


def _stated(file: Path) -> int:
    """Bytes that a file says that it unpacks to; cells that are equal may count once."""
    import pyarrow.parquet as pq

    meta = pq.read_metadata(file)
    return sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))


def _unpacked(file: Path, most: float) -> pyarrow.Table:
    """A file's table, unpacked a few rows at a time.

    Raises:
        _TooLarge: as soon as it takes more than ``most`` bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole: list[pyarrow.Table] = []
    held = 0
    with pq.ParquetFile(file) as source:
        for group in range(source.num_row_groups):
            rows = []
            for batch in source.iter_batches(_ROWS, row_groups=[group]):
                held += batch.nbytes
                if held > most:
                    raise _TooLarge
                rows.append(batch)
            part = pa.Table.from_batches(rows, schema=source.schema_arrow)
            whole.append(part.combine_chunks())
        return pa.concat_tables(whole) if whole else source.schema_arrow.empty_table()


def _features(schema: pyarrow.Schema) -> dict[str, dict[str, object]]:
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}  # Written by something else: columns are then found by type and name.
    return {k: v for k, v in features.items() if isinstance(v, dict)}


def _image_column(table: _Table, asked: str | None, problems: list[str]) -> str:
    import pyarrow as pa

    def suits(kind: pyarrow.DataType) -> bool:
        if pa.types.is_struct(kind):
            kind = next((field.type for field in kind if field.name == "bytes"), pa.int8())
            if pa.types.is_null(kind):
                return True  # Every cell names a file instead.
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    schema = table.table.schema
    able = [field.name for field in schema if suits(field.type)]
    if asked is not None:
        if asked not in able:
            problems.append(
                f"image_column '{asked}' does not hold images; columns that may: {able or 'none'}"
            )
        return asked
    marked = [name for name in able if table.features.get(name, {}).get("_type") == "Image"]
    named = [name for name in able if name.lower() in _IMAGE_NAMES]
    choice = marked or named or able
    if len(choice) != 1:
        what = f"several columns may hold the images: {choice}" if choice else "no image column"
        problems.append(f"{what} (columns: {schema.names}); set image_column")
    return choice[0] if choice else ""


def _label_column(table: _Table, asked: str | None, problems: list[str]) -> str | None:
    import pyarrow as pa

    if asked is None:
        return None
    able = [
        field.name
        for field in table.table.schema
        if pa.types.is_integer(field.type)
        or pa.types.is_string(field.type)
        or pa.types.is_dictionary(field.type)
    ]
    if asked != "auto":
        if asked not in able:
            problems.append(
                f"label_column '{asked}' does not hold whole numbers or names; columns that may: "
                f"{able or 'none'}"
            )
        return asked
    marked = [name for name in able if table.features.get(name, {}).get("_type") == "ClassLabel"]
    named = [name for name in able if name.lower() in _LABEL_NAMES]
    choice = marked or named
    if len(choice) > 1:
        problems.append(f"several columns may hold the labels: {choice}; set label_column")
    return choice[0] if choice else None


def _class_names(table: _Table, label: str) -> tuple[str, ...] | None:
    import pyarrow as pa

    names = table.features.get(label, {}).get("names")
    if isinstance(names, list):
        return tuple(str(name) for name in names)
    column = table.table.column(label)
    if pa.types.is_integer(column.type):
        return None
    return tuple(sorted({str(value) for value in column.to_pylist() if value is not None}))
