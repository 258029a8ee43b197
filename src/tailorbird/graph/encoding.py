"""Plain values (arguments and attributes of layers) as JSON, and back."""

from __future__ import annotations

import enum
import functools
import math
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import cast

import numpy as np
import torch
from torch import fx, nn

from tailorbird.errors import StoreError
from tailorbird.graph.callables import (
    class_name,
    code_path,
    enum_name,
    function_name,
    resolve_class,
    resolve_code,
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


@dataclass(frozen=True)
class Scope:
    """What the values of a stored network may refer to while they are read.

    Args:
        nodes: of the graph so far, by name.
        owned: tensors and modules inside the module whose attributes are read, by dotted name.
        trust: import paths of code that may be imported, see ``callables.code_path``.
    """

    nodes: Mapping[str, fx.Node] = field(default_factory=dict)
    owned: Mapping[str, object] = field(default_factory=dict)
    trust: Collection[str] = ()


@dataclass(frozen=True)
class Terms:
    """What a value may refer to when it is written.

    Args:
        nodes: nodes of the graph.
        owned: identity of each tensor and module inside the module -> its dotted name.
        code: code of the user's own, by its import path.
    """

    nodes: bool = False
    owned: Mapping[int, str] = field(default_factory=dict)
    code: bool = False


def encode(value: object, terms: Terms = Terms()) -> object:
    """The JSON form of an argument or attribute.

    Raises:
        UnstorableError: for anything but numbers, strings, containers, slices, torch constants,
            listed functions, enumerations, module classes, and what ``terms`` allows.

    Example:
        >>> encode((1, slice(None, 2), torch.float16))
        {'tuple': [1, {'slice': [None, 2, None]}, {'dtype': 'float16'}]}
    """
    if terms.nodes and isinstance(value, fx.Node):
        return {"node": value.name}
    small = type(value) is int and abs(value) < _LARGEST_INT
    if value is None or type(value) in (bool, str) or small:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if id(value) in terms.owned:
        return {"owned": terms.owned[id(value)]}
    if isinstance(value, (list, tuple, set, Mapping, slice)):
        return _encode_container(value, terms)
    return _encode_constant(value, terms)


def _encode_container(
    value: list[object] | tuple[object, ...] | set[object] | Mapping[object, object] | slice,
    terms: Terms,
) -> object:
    if isinstance(value, Mapping):
        return {"dict": [[encode(key), encode(item, terms)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(part, terms) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, set):
        return {"set": [encode(item, terms) for item in sorted(value, key=repr)]}
    items = [encode(item, terms) for item in value]
    if isinstance(value, list):
        return items
    if hasattr(value, "_fields"):
        return {"named": [_encode_code(type(value), terms), items]}
    return {"size" if isinstance(value, torch.Size) else "tuple": items}


def _encode_constant(value: object, terms: Terms) -> object:
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, np.generic):
        return encode(value.item(), terms)
    for form, kind in _ENUMS.items():
        if isinstance(value, kind):
            return {form: str(value).removeprefix("torch.")}
    if isinstance(value, functools.partial):
        parts = (value.func, list(value.args), dict(value.keywords))
        return {"partial": [encode(part, terms) for part in parts]}
    return _encode_named(value, terms)


def _encode_named(value: object, terms: Terms) -> object:
    """What has a name to be found by, or a class that has."""
    if isinstance(value, weakref.ref):
        return {"weak": encode(value(), terms)}
    if isinstance(value, enum.Enum):
        name = enum_name(type(value))
        kind = "enum" if name else "member"
        return {kind: [name or _encode_code(type(value), terms), value.name]}
    if isinstance(value, type) and issubclass(value, nn.Module):
        name = class_name(value)
        return {"class": name} if name else _encode_code(value, terms)
    if callable(value) and not isinstance(value, nn.Module):
        name = function_name(value)
        return {"function": name} if name else _encode_code(value, terms)
    return _encode_object(value, terms)


def _encode_code(value: object, terms: Terms) -> Json:
    path = code_path(value) if terms.code else None
    if path is None:
        raise UnstorableError(f"{type(value).__name__} {str(value)[:80]!r}")
    return {"code": path}


def _encode_object(value: object, terms: Terms) -> Json:
    """A plain record of the user's own, such as a configuration: its class and attributes."""
    try:
        held = vars(value)
    except TypeError:
        held = None
    if held is None or isinstance(value, (nn.Module, torch.Tensor, ModuleType)):
        raise UnstorableError(f"{type(value).__name__} {str(value)[:80]!r}")
    return {"object": [_encode_code(type(value), terms), encode(dict(held), terms)]}


def code_in(coded: object) -> set[str]:
    """Import paths of all code that a JSON form names."""
    if isinstance(coded, dict):
        path = coded.get("code")
        if len(coded) == 1 and isinstance(path, str):
            return {path}
        coded = list(coded.values())
    if isinstance(coded, list):
        return set().union(*map(code_in, coded))
    return set()


def decode(coded: object, scope: Scope, depth: int = 0) -> object:
    """The value of a JSON form; references are looked up in ``scope``.

    Raises:
        StoreError: for an unknown form, an unknown or later node, code that isn't trusted, or
            nesting beyond all reason.
    """
    if depth > _DEPTH:
        raise StoreError(f"values nested deeper than {_DEPTH}: expected a network's arguments")
    if coded is None or isinstance(coded, (bool, int, float, str)):
        if type(coded) is int and abs(coded) >= _LARGEST_INT:
            raise StoreError(f"number {str(coded)[:30]}...: beyond 64 bits")
        return coded
    if isinstance(coded, list):
        return [decode(item, scope, depth + 1) for item in coded]
    if isinstance(coded, dict) and len(coded) == 1:
        (kind, body), *_ = coded.items()
        if kind in _DECODERS:
            return _DECODERS[kind](body, scope, depth + 1)
    raise StoreError(f"value {str(coded)[:80]!r}: unknown form")


def items_of(body: object, scope: Scope, depth: int) -> list[object]:
    """The values of a JSON list.

    Raises:
        StoreError: when it is no list, or an item can't be decoded.
    """
    if not isinstance(body, list):
        raise StoreError(f"value {str(body)[:80]!r}: expected a list")
    return [decode(item, scope, depth) for item in body]


def _slice(body: object, scope: Scope, depth: int) -> slice:
    parts = items_of(body, scope, depth)
    if len(parts) != 3:
        raise StoreError(f"slice {str(body)[:80]!r}: expected start, stop and step")
    return slice(*parts)


def _dict(body: object, scope: Scope, depth: int) -> dict[object, object]:
    pairs = items_of(body, scope, depth)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise StoreError(f"dict {str(body)[:80]!r}: expected pairs")
    try:
        return dict(cast(list[tuple[object, object]], pairs))
    except TypeError:
        raise StoreError(f"dict {str(body)[:80]!r}: keys must be plain") from None


def _set(body: object, scope: Scope, depth: int) -> set[object]:
    try:
        return set(items_of(body, scope, depth))
    except TypeError:
        raise StoreError(f"set {str(body)[:80]!r}: items must be plain") from None


def _node(body: object, scope: Scope, _depth: int) -> fx.Node:
    if not isinstance(body, str) or body not in scope.nodes:
        raise StoreError(f"node {str(body)[:80]!r}: used before it is defined, or unknown")
    return scope.nodes[body]


def _float(body: object, _scope: Scope, _depth: int) -> float:
    if body not in ("inf", "-inf", "nan"):
        raise StoreError(f"float {str(body)[:80]!r}: expected inf, -inf or nan")
    return float(body)


def _size(body: object, scope: Scope, depth: int) -> torch.Size:
    return torch.Size(shape_of(items_of(body, scope, depth)))


def _device(body: object, _scope: Scope, _depth: int) -> torch.device:
    try:
        return torch.device(str(body))
    except RuntimeError:
        raise StoreError(f"device {str(body)[:80]!r}: unknown") from None


def _member(body: object, _scope: Scope, _depth: int) -> enum.Enum:
    if isinstance(body, list) and len(body) == 2 and all(isinstance(part, str) for part in body):
        members = resolve_enum(body[0]).__members__
        if body[1] in members:
            return members[body[1]]
    raise StoreError(f"enumeration {str(body)[:80]!r}: unknown")


def _enum(kind: str) -> Callable[[object, Scope, int], object]:
    def read(body: object, _scope: Scope, _depth: int) -> object:
        value = getattr(torch, body, None) if isinstance(body, str) else None
        if not isinstance(value, _ENUMS[kind]):
            raise StoreError(f"{kind} {str(body)[:80]!r}: unknown")
        return value

    return read


def _owned(body: object, scope: Scope, _depth: int) -> object:
    if not isinstance(body, str) or body not in scope.owned:
        raise StoreError(f"reference to {str(body)[:80]!r}, which is not in the module")
    return scope.owned[body]


def _weak(body: object, scope: Scope, depth: int) -> object:
    value = decode(body, scope, depth)
    if not isinstance(value, (torch.Tensor, nn.Module)):
        raise StoreError(f"weak reference to {str(body)[:80]!r}: expected a tensor or module")
    return weakref.ref(value)


def _pair(body: object, what: str) -> tuple[object, object]:
    if not isinstance(body, list) or len(body) != 2:
        raise StoreError(f"{what} {str(body)[:80]!r}: expected two parts")
    return body[0], body[1]


def _partial(body: object, scope: Scope, depth: int) -> object:
    parts = items_of(body, scope, depth)
    if len(parts) == 3:
        function, args, keywords = parts
        if callable(function) and isinstance(args, list) and isinstance(keywords, dict):
            return functools.partial(function, *args, **keywords)
    raise StoreError(f"partial {str(body)[:80]!r}: expected a function and its arguments")


def _code_class(coded: object, scope: Scope) -> type:
    path = coded.get("code") if isinstance(coded, dict) else None
    kind = resolve_code(path, scope.trust)
    if not isinstance(kind, type):
        raise StoreError(f"code {path!r}: expected a class")
    return kind


def _named(body: object, scope: Scope, depth: int) -> object:
    kind, items = _pair(body, "named tuple")
    make = _code_class(kind, scope)
    if not issubclass(make, tuple):
        raise StoreError(f"code {str(kind)[:80]!r}: expected a named tuple")
    return tuple.__new__(make, items_of(items, scope, depth))


def _user_member(body: object, scope: Scope, _depth: int) -> object:
    kind, name = _pair(body, "enumeration")
    found = _code_class(kind, scope)
    if not issubclass(found, enum.Enum) or name not in found.__members__:
        raise StoreError(f"enumeration {str(body)[:80]!r}: unknown")
    return found.__members__[cast(str, name)]


def _object(body: object, scope: Scope, depth: int) -> object:
    kind, held = _pair(body, "object")
    made: object = object.__new__(_code_class(kind, scope))
    attributes = decode(held, scope, depth)
    if not isinstance(attributes, dict) or not all(isinstance(key, str) for key in attributes):
        raise StoreError(f"object {str(kind)[:80]!r}: expected attributes with names")
    vars(made).update(attributes)
    return made


_DECODERS: dict[str, Callable[[object, Scope, int], object]] = {
    "node": _node,
    "float": _float,
    "tuple": lambda body, scope, depth: tuple(items_of(body, scope, depth)),
    "size": _size,
    "set": _set,
    "dict": _dict,
    "slice": _slice,
    "enum": _member,
    "ellipsis": lambda _body, _scope, _depth: ...,
    "device": _device,
    "class": lambda body, _scope, _depth: resolve_class(str(body)),
    "owned": _owned,
    "weak": _weak,
    "partial": _partial,
    "named": _named,
    "member": _user_member,
    "object": _object,
    "code": lambda body, scope, _depth: resolve_code(body, scope.trust),
    "function": lambda body, _scope, _depth: resolve_function(str(body)),
    **{kind: _enum(kind) for kind in _ENUMS},
}


def dtype_of(coded: object) -> torch.dtype:
    """A tensor's type by name, such as ``"float32"``.

    Raises:
        StoreError: for an unknown name.
    """
    return cast(torch.dtype, _enum("dtype")(coded, Scope(), 0))


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
