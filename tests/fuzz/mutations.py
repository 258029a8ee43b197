"""What happens to files: values swapped for absurd ones, keys lost and added, bytes damaged."""

from __future__ import annotations

import copy
import json

import yaml
from hypothesis import strategies as st

VALUES = (
    None, True, False, 0, -1, 1, 2**31, 10**9, 10**18, 2**64, -(2**63), 0.5, -0.0, 1e308, -1e-308,
    "", " ", "a", "0.5x", "a" * 300, "../..", "/", "~", "\x1b[31m", "a\x00b", "naïve", "\ud800",
    "os:system", "builtins:dict", "tailorbird.demo:digits_net", [], {}, [[]], [{}], {"": 0},
    [None], [1, "a"], {"a": {"a": {"a": []}}}, [0] * 50,
)  # fmt: skip
"""Plain values that no reader expects everywhere."""

WORDS = (
    "!!set {a}", "!!set [a]", "!!binary x", "!!binary '***'", "!!float ''", "!!int ''", "!!int 0x",
    "!!bool maybe", "!!timestamp abc", "!!timestamp 2020-99-99", "!!omap [a]", "!!pairs [a]",
    "!!null x", "!!str [a]", "!!map [a]", "!!seq {a: 1}", "!!python/name:os.system", "!own x",
    "!!python/object/apply:os.system [id]", "&a [1]", "*a", "<<", "? a", "1e308", "-.inf", ".nan",
    "1e999", "0x10", "0o7", "1_000", "2020-01-01", "yes", "12:30:45", "9" * 5000, "- a", "|", "{",
    "[" * 40, "'", '"\\ud800"', '"\\0"', "@", "%", "\t",
)  # fmt: skip
"""YAML as it may be typed, valid or not."""

Path = tuple[str | int, ...]


def places(value: object, path: Path = ()) -> list[Path]:
    """All places in nested lists and mappings, the root first."""
    found = [path]
    if isinstance(value, dict):
        for key, one in value.items():
            found += places(one, (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            found += places(one, (*path, number))
    return found


def swapped(value: object, path: Path, new: object) -> object:
    """A copy with another value at a place."""
    if not path:
        return new
    result = copy.deepcopy(value)
    inner = result
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = new
    return result


@st.composite
def trees(draw: st.DrawFn, value: object) -> object:
    """``value`` with one to three faults: a value swapped, a key lost, a key or entry added."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        inner = value
        for part in path:
            inner = inner[part]
        kind = draw(st.sampled_from(("swap", "swap", "swap", "lose", "add")))
        if kind == "lose" and path and isinstance(path[-1], str):
            parent = value
            for part in path[:-1]:
                parent = parent[part]
            value = swapped(value, path[:-1], {k: v for k, v in parent.items() if k != path[-1]})
        elif kind == "add" and isinstance(inner, dict):
            value = swapped(value, path, {**inner, "more": draw(st.sampled_from(VALUES))})
        elif kind == "add" and isinstance(inner, list):
            value = swapped(value, path, [*inner, draw(st.sampled_from(VALUES))])
        else:
            value = swapped(value, path, draw(st.sampled_from(VALUES)))
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` cut off, with bytes changed, zeroed, doubled, or put in its place."""
    kind = draw(st.sampled_from(("cut", "flip", "zero", "double", "noise", "empty")))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        changed = bytearray(content)
        for _ in range(draw(st.integers(1, 8))):
            changed[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
        return bytes(changed)
    if kind == "zero":
        return content[:at] + bytes(min(64, len(content) - at)) + content[at + 64 :]
    if kind == "double":
        return content[:at] + content
    return draw(st.binary(max_size=200)) if kind == "noise" else b""


@st.composite
def json_texts(draw: st.DrawFn, content: bytes) -> bytes:
    """A JSON file with faults in its values, or in its bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(content))
    return json.dumps(draw(trees(json.loads(content)))).encode()


@st.composite
def json_lines(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of JSON lines with faults in one of them, or in its bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(content))
    lines = content.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = json.dumps(draw(trees(json.loads(lines[number])))).encode()
    return b"\n".join(lines) + b"\n"


@st.composite
def yaml_texts(draw: st.DrawFn, content: bytes) -> bytes:
    """A YAML file with faults in its values, something odd typed in, or damaged bytes."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(damaged(content))
    value = yaml.safe_load(content)
    if kind < 4:
        return yaml.safe_dump(draw(trees(value)), allow_unicode=False).encode()
    path = draw(st.sampled_from(places(value)))
    text = yaml.safe_dump(swapped(value, path, "TYPED"))
    return text.replace("TYPED", draw(st.sampled_from(WORDS))).encode()
