"""Lookup tables: the measured latency of every layer of a space, added up to a network's.

A table is one YAML or JSON file, or a folder with one file per image resolution (``160.yaml``,
``164.yaml`` ...). Each row is ``key: {mean: milliseconds, ...}``; counts and spreads are ignored.
Which style the keys are written in is found out from the rows (:mod:`tailorbird.estimate.
table_keys`). In a folder the same layer was measured anew in every file, so a network is summed
from the file of its own resolution.

The tables known so far, and the spaces that they belong to:

- Note10 (folder, YAML): ``ofa-mbv3-w1.2`` and its CompOFA spaces, resolutions 160 to 224.
- Jetson CPU (folder, JSON): the same layers. The files name no unit. Networks sum up to 800 (the
  smallest) to 3,550 (the largest): as microseconds that would be 110 to 285 billion multiply-adds a
  second, beyond such a board's cores, so they are taken for milliseconds; nothing proves it. The
  first block's row equals the Note10's to the last digit in all 17 files, so it wasn't measured on
  the board (at most 0.2 % of a sum).
- i7-8700K (one file): ``ofa-mbv3-w1.0`` and also ``w1.2``, resolutions 96 to 256.
- Pixel 1 (one file): ``proxylessnas-w1.0`` at 224 pixels. (``ofa-proxyless-w1.3`` has wider layers
  and one more expand ratio.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tailorbird.errors import ConfigError, SpaceError
from tailorbird.estimate.table_keys import STYLES, KeyStyle, styles_of
from tailorbird.supernet.architecture import ArchitectureSpace, LayerShape, Slot, SlotTable

MAX_BYTES = 4_000_000
MAX_FILES = 1000
_MAX_DEPTH = 10
_MOST_FAULTS = 50
_MOST_MS = 1e9
_SUFFIXES = (".yaml", ".yml", ".json")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class LatencyTable:
    """Mean latencies of layers as read from files.

    Attributes:
        path: the file or folder.
        style: how keys are written.
        entries: key -> mean in ms; in a folder's table keys start with the resolution and ``/``.
        resolutions: image sizes in pixels that the table holds a first convolution for, ascending.
        per_resolution: whether it was read from a folder of one file per resolution.
    """

    path: Path
    style: KeyStyle
    entries: Mapping[str, float]
    resolutions: tuple[int, ...]
    per_resolution: bool


class _Pairs(list[tuple[object, object]]):
    """Keys and values of a mapping in order, repeated keys included."""


def read_table(path: Path) -> LatencyTable:
    """Read a lookup table from a file, or from a folder of files named by resolution.

    Raises:
        ConfigError: listing every fault: missing or empty files, broken YAML or JSON, aliases,
            tags, keys given twice, means that are missing, negative or no finite numbers, rows of
            no known style, and files whose name and rows disagree on the resolution.

    Example:
        >>> read_table(Path("no/such/table.yaml"))
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: no/such/table.yaml: no such file or folder; give a YAML or
        JSON table, or a folder of tables named by resolution
    """
    problems: list[str] = []
    path = Path(path)
    try:
        folder = path.is_dir()
        files = _files(path, problems) if folder else {0: path} if path.exists() else None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror or error}") from error
    if files is None:
        raise ConfigError(
            f"{path}: no such file or folder; give a YAML or JSON table, or a folder of tables "
            "named by resolution"
        )
    parts = {resolution: _read_file(file, problems) for resolution, file in files.items()}
    keys = {key for part in parts.values() for key in part}
    styles = styles_of(keys)
    if keys and len(styles) != 1:
        found = " and ".join(style.name for style in styles) or "neither"
        known = ", ".join(style.name for style in STYLES)
        problems.append(
            f"{path}: expected blocks' keys in one of the styles {known}; found {found}, for "
            f"example {min(keys)[:80]!r}"
        )
    elif keys:
        for resolution, part in parts.items():
            _check_stem(files[resolution], part, styles[0], resolution, problems)
    if problems:
        raise ConfigError(_shortened(problems))
    if folder:
        entries = {f"{r}/{key}": ms for r, part in parts.items() for key, ms in part.items()}
        return LatencyTable(path, styles[0], entries, tuple(parts), True)
    return LatencyTable(path, styles[0], parts[0], _stems(parts[0], styles[0])[0], False)


def compile_table(table: LatencyTable, space: ArchitectureSpace) -> SlotTable:
    """Latency in ms of every genome of a space, as one array.

    A table seldom covers all resolutions of a space: restrict the space first, with
    ``load_space(name, resolutions=table.resolutions)``.

    Args:
        table: what :func:`read_table` returned.
        space: every layer that it can produce needs a row.

    Returns:
        ``.sum(genomes)`` is the latency (n,) in ms of genomes (n, genes).

    Raises:
        SpaceError: naming all rows that are missing, and their count.
    """
    classes = _classes(space)
    resolutions = space.space.choices[0].values
    prefixes = [f"{resolution}/" if table.per_resolution else "" for resolution in resolutions]
    keys: dict[LayerShape, str | None] = {}
    needed: dict[str, None] = {}

    def latency(_slot: Slot, index: tuple[int, ...], shape: LayerShape) -> float:
        if shape not in keys:
            keys[shape] = table.style.key(shape, classes)
        key = keys[shape]
        if key is None:
            return 0.0
        row = prefixes[index[0]] + key
        needed[row] = None
        return table.entries.get(row, 0.0)

    compiled = SlotTable.per_slot(space, latency)
    missing = [row for row in needed if row not in table.entries]
    if missing:
        raise SpaceError(_missing(table, space, missing, len(needed)))
    return compiled


def _files(folder: Path, problems: list[str]) -> dict[int, Path]:
    """Resolution -> file, ascending; other files than YAML and JSON are left alone."""
    files: dict[int, Path] = {}
    found = sorted(
        file
        for file in folder.iterdir()
        if file.suffix in _SUFFIXES and not file.name.startswith(".")
    )
    if not found or len(found) > MAX_FILES:
        problems.append(
            f"{folder}: expected 1 to {MAX_FILES} files such as 160.yaml or 160.json, found "
            f"{len(found)}"
        )
        return {}
    for file in found:
        number = re.fullmatch(r"0*([1-9][0-9]{0,4})([^0-9].*)?", file.stem)
        if number is None:
            problems.append(f"{file}: expected the name to start with a resolution, as 160.yaml")
        elif int(number[1]) in files:
            problems.append(f"{file}: a second file for the resolution {number[1]}")
        else:
            files[int(number[1])] = file
    return dict(sorted(files.items()))


def _read_file(path: Path, problems: list[str]) -> dict[str, float]:
    """Key -> mean in ms; faults are added to ``problems``."""
    try:
        return _entries(_parse(path), path, problems)
    except OSError as error:
        reason = f"can't be read: {error.strerror or error}"
    except UnicodeDecodeError:
        reason = "not text in UTF-8"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        text = getattr(error, "problem", None) or " ".join(str(error).split())
        reason = f"broken YAML: {where}{text}"
    except json.JSONDecodeError as error:
        reason = f"broken JSON: line {error.lineno}: {error.msg}"
    except RecursionError:
        reason = "nested too deeply to be a latency table"
    except ValueError as error:  # raised below; also by a number of thousands of digits
        reason = str(error)
    problems.append(f"{path}: {reason}")
    return {}


def _parse(path: Path) -> _Pairs:
    if not path.is_file():
        raise ValueError("not a file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes; this is no latency table")
    text = content.decode("utf-8-sig")
    if path.suffix == ".json" and text.strip():
        root = json.loads(text, object_pairs_hook=_Pairs)
    else:
        root = _parse_yaml(text)
    if root is None or root == []:
        raise ValueError("the file is empty; expected rows such as 'Conv-input:...: {mean: 0.99}'")
    if not isinstance(root, _Pairs):
        raise ValueError("expected rows such as 'Conv-input:...: {mean: 0.99}' at the top")
    return root


def _parse_yaml(text: str) -> object:
    """Plain data from YAML, event by event.

    Composing nodes recurses in C, where a deeply nested file overflows the stack, and merge keys
    grow without bound; neither happens here. Plain numbers become floats.
    """
    open_: list[list[object]] = [[]]
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise ValueError(
                f"{_line(event)}: aliases (*name) and tags (!name) are not "
                "supported; write the value out"
            )
        if isinstance(event, yaml.DocumentStartEvent) and open_[0]:
            raise ValueError(f"{_line(event)}: a second document; expected one")
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append([])
            if len(open_) > _MAX_DEPTH:
                raise RecursionError
        elif isinstance(event, yaml.CollectionEndEvent):
            items = open_.pop()
            is_map = isinstance(event, yaml.MappingEndEvent)
            pairs = zip(items[::2], items[1::2], strict=True) if is_map else ()
            open_[-1].append(_Pairs(pairs) if is_map else items)
        elif isinstance(event, yaml.ScalarEvent):
            open_[-1].append(event.value if event.style else _plain(event.value))
    return open_[0][0] if open_[0] else None


def _line(event: yaml.Event) -> str:
    return f"line {event.start_mark.line + 1}" if event.start_mark else "unknown line"


def _plain(text: str) -> float | str:
    try:
        return float(text.removeprefix(".")) if text.startswith((".n", ".N")) else float(text)
    except ValueError:
        return text


def _entries(root: _Pairs, path: Path, problems: list[str]) -> dict[str, float]:
    entries: dict[str, float] = {}
    seen: set[str] = set()
    for key, row in root:
        if not isinstance(key, str):
            problems.append(f"{path}: expected a layer's name as key, got {_show(key)}")
            continue
        name = key if len(key) <= 150 else f"{key[:150]}..."
        if key in seen:
            problems.append(f"{path}: '{name}' is given twice")
            continue
        seen.add(key)
        fields = row if isinstance(row, _Pairs) else ()
        means = [value for field, value in fields if field == "mean"]
        if len(means) != 1:
            got = f"{len(means)} of them" if isinstance(row, _Pairs) else _show(row)
            problems.append(f"{path}: '{name}': expected fields with one 'mean', got {got}")
            continue
        ms = _number(means[0])
        if ms is None:
            problems.append(
                f"{path}: '{name}': expected a mean of 0 to {_MOST_MS:g} ms, got {_show(means[0])}"
            )
        else:
            entries[key] = ms
    return entries


def _number(value: object) -> float | None:
    """A latency in ms; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MOST_MS else None


def _show(value: object) -> str:
    if isinstance(value, _Pairs | list):
        return f"{'fields' if isinstance(value, _Pairs) else 'a list'} of {len(value)}"
    text = repr(value) if not isinstance(value, float) else f"{value:g}"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _stems(keys: Iterable[str], style: KeyStyle) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Resolutions and widths of the first convolutions among the keys, ascending."""
    found = [match for match in map(style.stem.fullmatch, keys) if match]
    return (
        tuple(sorted({int(match[1]) for match in found})),
        tuple(sorted({int(match[2]) for match in found})),
    )


def _check_stem(
    path: Path, keys: Mapping[str, float], style: KeyStyle, resolution: int, problems: list[str]
) -> None:
    """A file holds the first convolution: of one resolution, if its name says which (not 0)."""
    found, _ = _stems(keys, style)
    if keys and not found:
        problems.append(f"{path}: no row of a first convolution, so no resolution")
    elif resolution and keys and found != (resolution,):
        problems.append(
            f"{path}: the name says {resolution} pixels, the first convolution "
            f"{', '.join(map(str, found))}"
        )


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - _MOST_FAULTS
    return problems if more <= 0 else [*problems[:_MOST_FAULTS], f"and {more:,} more"]


def _classes(space: ArchitectureSpace) -> int:
    shapes = (shape for slot in space.slots for shape in slot.shapes())
    last = (s.out_channels for s in shapes if space.kind_of(s).role == "classifier")
    return max(last, default=0)


def _missing(table: LatencyTable, space: ArchitectureSpace, missing: list[str], needed: int) -> str:
    """What is missing, and why it may be: another width, other resolutions."""
    lines = [
        f"{table.path} lacks {len(missing):,} of the {needed:,} rows that {space.name} needs: "
        + ", ".join(missing)
    ]
    _, widths = _stems((key.rpartition("/")[2] for key in table.entries), table.style)
    shapes = next(iter(space.slots)).variants.values()
    wanted = sorted({shape.out_channels for shape in shapes if shape})
    if not set(wanted) <= set(widths):
        lines.append(
            f"the first convolution has {' or '.join(map(str, wanted))} channels in the space and "
            f"{' or '.join(map(str, widths))} in the table: another supernet or width multiplier"
        )
    choice = next(choice for choice in space.space.choices if choice.name == "r")
    if not set(choice.values) <= set(table.resolutions):
        covered = ", ".join(map(str, table.resolutions))
        lines.append(
            f"the table covers the resolutions {covered} alone: "
            "load_space(name, resolutions=table.resolutions)"
        )
    return "; ".join(lines)
