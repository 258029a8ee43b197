"""Plain values (arguments and attributes of layers) as JSON, and back."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import fx, nn

from tailorbird.errors import StoreError
from tailorbird.graph.callables import (
    class_name,
    enum_name,
    function_name,
    resolve_class,
    resolve_enum,
    resolve_function,
)

Json = dict[str, object]

_DEPTH = 40
_ENUMS = {
    "dtype": torch.dtype,
    "memory_format": torch.memory_format,
    "layout": torch.layout,
}
_LARGEST_INT = 2**63


class UnstorableError(Exception):
    """A value has no JSON form; the message says what it is."""


def encode(value: object, nodes: bool = False) -> object:
    """The JSON form of an argument; ``nodes`` allows references to graph nodes.

    Raises:
        UnstorableError: for anything but numbers, strings, containers, slices, torch constants,
            listed functions, enumerations and module classes.

    Example:
        >>> encode((1, slice(None, 2), torch.float16))
        {'tuple': [1, {'slice': [None, 2, None]}, {'dtype': 'float16'}]}
    """
    if nodes and isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int and abs(value) < _LARGEST_INT:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, (list, tuple, set, Mapping, slice)):
        return _encode_container(value, nodes)
    return _encode_constant(value)


def _encode_container(
    value: list[object] | tuple[object, ...] | set[object] | Mapping[object, object] | slice,
    nodes: bool,
) -> object:
    if isinstance(value, Mapping):
        return {"dict": [[encode(key), encode(item, nodes)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(part, nodes) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, set):
        return {"set": [encode(item) for item in sorted(value, key=repr)]}
    if hasattr(value, "_fields"):
        raise UnstorableError(f"named tuple {str(value)[:80]!r}")
    items = [encode(item, nodes) for item in value]
    if isinstance(value, list):
        return items
    return {"size" if isinstance(value, torch.Size) else "tuple": items}


def _encode_constant(value: object) -> object:
    name: str | None = None
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for form, kind in _ENUMS.items():
        if isinstance(value, kind):
            return {form: str(value).removeprefix("torch.")}
    if isinstance(value, enum.Enum):
        name = enum_name(type(value))
        if name:
            return {"enum": [name, value.name]}
    elif isinstance(value, type) and issubclass(value, nn.Module):
        name = class_name(value)
        if name:
            return {"class": name}
    elif callable(value) and not isinstance(value, nn.Module):
        name = function_name(value)
        if name:
            return {"function": name}
    raise UnstorableError(f"{type(value).__name__} {str(value)[:80]!r}")


def decode(coded: object, nodes: Mapping[str, fx.Node], depth: int = 0) -> object:
    """The value of a JSON form; references are looked up in ``nodes``.

    Raises:
        StoreError: for an unknown form, an unknown or later node, or nesting beyond all reason.
    """
    if depth > _DEPTH:
        raise StoreError(f"values nested deeper than {_DEPTH}: expected a network's arguments")
    if coded is None or isinstance(coded, (bool, int, float, str)):
        if type(coded) is int and abs(coded) >= _LARGEST_INT:
            raise StoreError(f"number {str(coded)[:30]}...: beyond 64 bits")
        return coded
    if isinstance(coded, list):
        return [decode(item, nodes, depth + 1) for item in coded]
    if isinstance(coded, dict) and len(coded) == 1:
        (kind, body), *_ = coded.items()
        if kind in _DECODERS:
            return _DECODERS[kind](body, nodes, depth + 1)
    raise StoreError(f"value {str(coded)[:80]!r}: unknown form")


def items_of(body: object, nodes: Mapping[str, fx.Node], depth: int) -> list[object]:
    """The values of a JSON list.

    Raises:
        StoreError: when it is no list, or an item can't be decoded.
    """
    if not isinstance(body, list):
        raise StoreError(f"value {str(body)[:80]!r}: expected a list")
    return [decode(item, nodes, depth) for item in body]


def _slice(body: object, nodes: Mapping[str, fx.Node], depth: int) -> slice:
    parts = items_of(body, nodes, depth)
    if len(parts) != 3:
        raise StoreError(f"slice {str(body)[:80]!r}: expected start, stop and step")
    return slice(*parts)


def _dict(body: object, nodes: Mapping[str, fx.Node], depth: int) -> dict[object, object]:
    pairs = items_of(body, nodes, depth)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise StoreError(f"dict {str(body)[:80]!r}: expected pairs")
    try:
        return dict(cast(list[tuple[object, object]], pairs))
    except TypeError:
        raise StoreError(f"dict {str(body)[:80]!r}: keys must be plain") from None


def _set(body: object, nodes: Mapping[str, fx.Node], depth: int) -> set[object]:
    try:
        return set(items_of(body, nodes, depth))
    except TypeError:
        raise StoreError(f"set {str(body)[:80]!r}: items must be plain") from None


def _node(body: object, nodes: Mapping[str, fx.Node], _depth: int) -> fx.Node:
    if not isinstance(body, str) or body not in nodes:
        raise StoreError(f"node {str(body)[:80]!r}: used before it is defined, or unknown")
    return nodes[body]


def _float(body: object, _nodes: Mapping[str, fx.Node], _depth: int) -> float:
    if body not in ("inf", "-inf", "nan"):
        raise StoreError(f"float {str(body)[:80]!r}: expected inf, -inf or nan")
    return float(body)


def _size(body: object, nodes: Mapping[str, fx.Node], depth: int) -> torch.Size:
    return torch.Size(shape_of(items_of(body, nodes, depth)))


def _device(body: object, _nodes: Mapping[str, fx.Node], _depth: int) -> torch.device:
    try:
        return torch.device(str(body))
    except RuntimeError:
        raise StoreError(f"device {str(body)[:80]!r}: unknown") from None


def _member(body: object, _nodes: Mapping[str, fx.Node], _depth: int) -> enum.Enum:
    if isinstance(body, list) and len(body) == 2 and all(isinstance(part, str) for part in body):
        members = resolve_enum(body[0]).__members__
        if body[1] in members:
            return members[body[1]]
    raise StoreError(f"enumeration {str(body)[:80]!r}: unknown")


def _enum(kind: str) -> Callable[[object, Mapping[str, fx.Node], int], object]:
    def read(body: object, _nodes: Mapping[str, fx.Node], _depth: int) -> object:
        value = getattr(torch, body, None) if isinstance(body, str) else None
        if not isinstance(value, _ENUMS[kind]):
            raise StoreError(f"{kind} {str(body)[:80]!r}: unknown")
        return value

    return read


_DECODERS: dict[str, Callable[[object, Mapping[str, fx.Node], int], object]] = {
    "node": _node,
    "float": _float,
    "tuple": lambda body, nodes, depth: tuple(items_of(body, nodes, depth)),
    "size": _size,
    "set": _set,
    "dict": _dict,
    "slice": _slice,
    "enum": _member,
    "ellipsis": lambda _body, _nodes, _depth: ...,
    "device": _device,
    "class": lambda body, _nodes, _depth: resolve_class(str(body)),
    "function": lambda body, _nodes, _depth: resolve_function(str(body)),
    **{kind: _enum(kind) for kind in _ENUMS},
}


def dtype_of(coded: object) -> torch.dtype:
    """A tensor's type by name, such as ``"float32"``.

    Raises:
        StoreError: for an unknown name.
    """
    return cast(torch.dtype, _enum("dtype")(coded, {}, 0))


def shape_of(coded: object) -> tuple[int, ...]:
    """A tensor shape, checked.

    Raises:
        StoreError: for anything but at most 8 whole numbers from 0 to 2^31.
    """
    if isinstance(coded, (list, tuple)) and len(coded) <= 8:
        sizes = tuple(coded)
        if all(type(size) is int and 0 <= size < 2**31 for size in sizes):
            return sizes
    raise StoreError(f"shape {str(coded)[:80]!r}: expected at most 8 whole numbers below 2^31")
