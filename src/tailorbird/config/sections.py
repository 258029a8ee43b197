"""Sections of a job: fields taken from the records they fill, faults collected, not raised."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from tailorbird.config.reader import Path_, show
from tailorbird.errors import ConfigError, Fault, TailorbirdError

Made = TypeVar("Made")

NAMING = "letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit"
"""What names a folder or file, in words."""

REQUIRED = inspect.Parameter.empty

Reader = Callable[["Faults", Path_, object], object]
"""Checks what was written at a place; what it gives is of no interest where it noted faults."""


@dataclass(frozen=True)
class Field:
    """One key of a section: its type, and its default unless it is `REQUIRED`."""

    kind: object
    default: object = REQUIRED
    hint: str = ""


def fields_of(
    source: Callable[..., object], *, without: Iterable[str] = (), **changed: Field
) -> dict[str, Field]:
    """The keyword arguments of a function or data class as fields of a section.

    Example:
        >>> def make(size: int, *, flip: bool = False) -> None: ...
        >>> fields_of(make, without=["flip"])
        {'size': Field(kind=<class 'int'>, default=<class 'inspect._empty'>, hint='')}
    """
    init = source.__init__ if isinstance(source, type) else source  # type: ignore[misc]
    kinds = typing.get_type_hints(init)
    told = getattr(source, "__dataclass_fields__", {})
    found = {
        name: Field(
            kinds[name],
            _default(parameter, told.get(name)),
            told[name].metadata.get("hint", "") if name in told else "",
        )
        for name, parameter in inspect.signature(source).parameters.items()
    }
    return {k: v for k, v in (found | changed).items() if k not in set(without)}


def _default(parameter: inspect.Parameter, told: dataclasses.Field[object] | None) -> object:
    if told is None or told.default_factory is dataclasses.MISSING:
        return parameter.default
    return told.default_factory()


@dataclass
class Faults:
    """All that is wrong with one job, each with its place."""

    lines: Mapping[Path_, int]
    found: list[str] = field(default_factory=list)

    def add(self, path: Path_, message: str) -> None:
        """Note a fault at ``path``, with the line of the nearest key that is written down."""
        near = path
        while near and near not in self.lines:
            near = near[:-1]
        line = f" (line {self.lines[near]})" if near else ""
        self.found.append(f"{show(path) or 'job'}{line}: {message}")

    def adopt(self, path: Path_, error: TailorbirdError) -> None:
        """Note the faults of ``error``, those of single settings at their keys."""
        for problem in error.problems if isinstance(error, ConfigError) else (str(error),):
            if isinstance(problem, Fault):
                self.add((*path, *problem.place[1:]), problem.what)
            else:
                self.add(path, problem)

    def least(self, values: Mapping[str, object], **least: int) -> None:
        """Note whole numbers that are less than they may be, or too large to be a seed."""
        for key, bound in least.items():
            value = values[key]
            if isinstance(value, int) and value < bound:
                self.add((key,), f"expected {bound} or more, got {value}")
            elif isinstance(value, int) and value >= 2**63:
                self.add((key,), f"expected less than 2^63, got {value}")

    def values(self, path: Path_, raw: object, fields: Mapping[str, Field]) -> dict[str, object]:
        """Values of all ``fields``; those absent or faulty are their defaults, ``None`` without."""
        values = {k: None if f.default is REQUIRED else f.default for k, f in fields.items()}
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            self.add(path, f"expected keys and values ({', '.join(fields)}), got {short(raw)}")
            return values
        for key in raw:
            if key not in fields:
                self.add((*path, key), f"unknown key{near(key, fields)}")
        for key, one in fields.items():
            if key not in raw and one.default is REQUIRED:
                hint = f"; {one.hint}" if one.hint else ""
                self.add((*path, key), f"missing, expected {words(one.kind)}{hint}")
        known = {key: value for key, value in raw.items() if key in fields}
        wrong = _misfits(known, fields)
        for key in wrong:
            quotes = "; put it in quotes" if _wants_quotes(fields[key].kind, raw[key]) else ""
            expected = words(fields[key].kind)
            self.add((*path, key), f"expected {expected}, got {short(raw[key])}{quotes}")
        return values | {k: _plain(v, fields[k].kind) for k, v in known.items() if k not in wrong}


def is_section(kind: object) -> bool:
    """Whether a field is a section of its own: keys and values that fill a record."""
    return kind is object or record_of(kind) is not None


def record_of(kind: object) -> type | None:
    """The record that a field of this type holds, be it as one of several things."""
    choices = typing.get_args(kind) if _is_union(kind) else (kind,)
    records = [one for one in choices if isinstance(one, type) and dataclasses.is_dataclass(one)]
    return records[0] if records else None


def read_fields(
    faults: Faults,
    path: Path_,
    raw: object,
    fields: Mapping[str, Field],
    readers: Mapping[str, Reader],
) -> dict[str, object]:
    """Values of a section that has further sections in it.

    Args:
        faults: takes what is wrong.
        path: where the section stands.
        raw: as it was written.
        fields: its keys.
        readers: key -> what reads it; records that have none are filled by `settings`.
    """
    plain = {
        key: dataclasses.replace(one, kind=object)
        if key in readers or is_section(one.kind)
        else one
        for key, one in fields.items()
    }
    values = faults.values(path, raw, plain)
    given = raw if isinstance(raw, dict) else {}
    for key, one in fields.items():
        if key not in given:
            continue
        make, absent = record_of(one.kind), values[key] is None and one.default is None
        if key in readers:
            values[key] = readers[key](faults, (*path, key), values[key])
        elif make is not None and not absent:
            values[key] = settings(faults, (*path, key), values[key], make)
    return values


def settings(faults: Faults, path: Path_, raw: object, make: Callable[..., Made]) -> Made | None:
    """Build a frozen record of settings; its own range checks are reported at their keys."""
    before = len(faults.found)
    values = faults.values(path, raw, fields_of(make))
    try:
        made = make(**values)
    except ConfigError as error:
        faults.adopt(path, error)
        return None
    return made if len(faults.found) == before else None


def as_written(value: object) -> object:
    """A checked value the way YAML writes it: records as keys and values, tuples as lists."""
    if callable(plain := getattr(value, "plain", None)):
        return as_written(plain())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_written(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_written(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _misfits(values: Mapping[str, object], fields: Mapping[str, Field]) -> list[str]:
    """Keys whose values are not of their field's type, by pydantic's strict rules for JSON."""
    definitions: dict[str, typing.Any] = {
        f"f{n}": (fields[key].kind, ...) for n, key in enumerate(values)
    }
    config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    model: type[BaseModel] = create_model("Section", __config__=config, **definitions)
    text = json.dumps({f"f{n}": value for n, value in enumerate(values.values())})
    try:
        model.model_validate_json(text)
    except ValidationError as error:
        numbers = {int(str(fault["loc"][0])[1:]) for fault in error.errors(include_url=False)}
        return [key for n, key in enumerate(values) if n in numbers]
    return []


def _plain(value: object, kind: object) -> object:
    """Lists become tuples where the type asks for one; whole numbers become floats."""
    choices = typing.get_args(kind) if _is_union(kind) else (kind,)
    if isinstance(value, list) and any(typing.get_origin(c) is tuple for c in choices):
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in choices:
        return value if int in choices else float(value)
    return value


def _is_union(kind: object) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def _wants_quotes(kind: object, value: object) -> bool:
    choices = typing.get_args(kind) if _is_union(kind) else (kind,)
    return (str in choices or Path in choices) and isinstance(value, (int, float))


_WORDS: dict[object, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "trues and falses"),
    type(None): ("null", "nulls"),
    object: ("keys and values", "values"),
    Path: ("text", "texts"),
}


def words(kind: object) -> str:
    """A type in words for people who write YAML.

    Example:
        >>> words(int | tuple[int, int] | None)
        'a whole number or a list of 2 whole numbers or null'
    """
    if kind in _WORDS or is_section(kind):
        return _WORDS[kind if kind in _WORDS else object][0]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if _is_union(kind):
        return " or ".join(dict.fromkeys(filter(None, map(words, arguments))))
    if origin in (tuple, list, Sequence):
        inner = arguments[0] if arguments else object
        kinds = typing.get_args(inner) if _is_union(inner) else (inner,)
        many = " or ".join(dict.fromkeys(_WORDS.get(kind, ("", "values"))[1] for kind in kinds))
        exact = origin is tuple and Ellipsis not in arguments
        return f"a list of {len(arguments)} {many}" if exact else f"a list of {many or 'texts'}"
    return "keys and values" if origin in (dict, Mapping) else str(kind)


def short(value: object) -> str:
    """A value as it was given, cut where it is long."""
    if isinstance(value, dict):
        return "keys and values" if value else "nothing"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = "null" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def near(key: str, known: Iterable[str]) -> str:
    """A hint at what was meant, or at what there is.

    Example:
        >>> near("epoks", ["epochs", "seed"]), near("x", ["epochs", "seed"])
        ("; did you mean 'epochs'?", '; known: epochs, seed')
    """
    names = list(known)
    folded = {name.lower().replace("-", "_"): name for name in names}
    asked = key.lower().replace("-", "_")
    match = difflib.get_close_matches(asked, folded, n=2, cutoff=0.65)
    if not match and len(asked) > 2:
        match = [name for name in folded if name.startswith(asked)][:2]
    if match:
        return f"; did you mean {' or '.join(repr(folded[name]) for name in match)}?"
    return f"; known: {', '.join(names)}"


def near_or_own(key: str, known: Iterable[str]) -> str:
    """The same where one of the user's own may be named as well.

    Example:
        >>> near_or_own("tpu", ["onnxruntime"])
        '; known: onnxruntime; or name one of your own as package.module:factory'
    """
    hint = near(key, known)
    joint = " Or" if hint.endswith("?") else "; or"
    return f"{hint}{joint} name one of your own as package.module:factory"
