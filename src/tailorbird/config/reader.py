"""YAML as plain data: safe, bounded, without YAML 1.1's surprises, and with line numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tailorbird.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 30
SUPERNET_JOB_HINT = "`tailorbird supernet init > job.yaml` writes a job to start from"
JOB_HINT = "`tailorbird init > job.yaml` writes a job to start from"

Path_ = tuple[str | int, ...]
"""Keys and positions from the root of a document."""


@dataclass(frozen=True)
class Document:
    """Plain data, and the line on which each key or entry stands."""

    data: Mapping[str, object]
    lines: Mapping[Path_, int]


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2's plain types: 1e-3 is a number; no, on and dates are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported; write the value out",
                problem_mark=self.get_mark(),
            )
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""]
    )


_TAG = "tag:yaml.org,2002:"
_RESOLVER = _Loader("")
_ODD = re.compile("[\0\ud800-\udfff]")
"""Null characters and halves of characters, which no file name or JSON can hold."""


def read(text: str, *, name: str = "job", hint: str = JOB_HINT) -> Document:
    """Read one YAML document whose root is a mapping.

    Raises:
        ConfigError: for a syntax error (with its line), keys that occur twice, anything but plain
            data, or a document too large or too deep.

    Example:
        >>> read("a: 1e-3\\nb: [no, 2020-01-01]").data
        {'a': 0.001, 'b': ['no', '2020-01-01']}
        >>> read("a: 1\\na: 2")
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: job: 'a' is given twice, in lines 1 and 2
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_BYTES} bytes; this is no job file")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"{name}: the file is empty; {hint}")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{name}: expected keys and values at the top, such as 'teacher: ...'"
            )
        lines: dict[Path_, int] = {}
        problems: list[str] = []
        _walk(root, (), lines, problems)
        if problems:
            raise ConfigError([f"{name}: {problem}" for problem in problems])
        data = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {_reason(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply to be a job") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{name}: a value can't be read: {error}") from error
    return Document(data, lines)


def read_file(path: Path, *, hint: str = JOB_HINT) -> Document:
    """Read a YAML file; see `read`.

    Raises:
        ConfigError: also when the file can't be read or is not text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        way = f"; {hint}" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{path}: can't be read: {error.strerror or error}{way}") from error
    try:
        return read(content.decode("utf-8-sig"), name=str(path), hint=hint)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8") from error


def show(path: Path_) -> str:
    """A place in a document as people write it.

    Example:
        >>> show(("targets", 0, "limits", "latency"))
        'targets[0].limits.latency'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _walk(node: yaml.Node, path: Path_, lines: dict[Path_, int], problems: list[str]) -> None:
    """Note lines and find keys that occur twice, are no text, or lie too deep."""
    if len(path) > MAX_DEPTH:
        raise yaml.YAMLError("nested too deeply to be a job")
    if isinstance(node, yaml.ScalarNode) and (odd := _ODD.search(node.value)):
        line = node.start_mark.line + 1
        what = "a null character (\\0)" if odd[0] == "\0" else f"half a character ({odd[0]!a})"
        problems.append(f"line {line}: text with {what}")
    if not _is_plain(node):
        tag = node.tag.replace(_TAG, "!!")
        problems.append(
            f"line {node.start_mark.line + 1}: {tag} can't be used here; write the value "
            "without a tag"
        )
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            lines[(*path, position)] = item.start_mark.line + 1
            _walk(item, (*path, position), lines, problems)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
            problems.append(f"line {line}: a key has to be plain text")
            continue
        # A number as a name ("8: ...") is meant as text: no section has numbers for keys.
        key.tag = "tag:yaml.org,2002:str"
        place = (*path, str(key.value))
        if place in lines:
            problems.append(f"'{show(place)}' is given twice, in lines {lines[place]} and {line}")
        lines[place] = line
        _walk(value, place, lines, problems)


def _is_plain(node: yaml.Node) -> bool:
    """Whether a node is what it would be without a tag, or text."""
    if not isinstance(node, yaml.ScalarNode):
        return node.tag == _TAG + ("map" if isinstance(node, yaml.MappingNode) else "seq")
    meant = _RESOLVER.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]  # of PyYAML
    return node.tag in (_TAG + "str", meant)


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        where = error.problem_mark or error.context_mark
        line = f"line {where.line + 1}: " if where is not None else ""
        return f"{line}{error.problem or error.context}"
    return " ".join(str(error).split())
