"""Operators of ATen, which programs of ``torch.export`` call, as public functions of torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from tailorbird.graph.callables import functions, is_method
from tailorbird.graph.passes import assign

_END = 2**63 - 1  # how ATen writes an open end of a slice
_WHOLE: tuple[tuple[object, ...], ...] = ((), (0, _END), (None, None), (0, _END, 1))
_SPLAT = frozenset({"view", "reshape", "expand", "permute", "repeat"})
"""Methods whose list of numbers is written as arguments."""
_SPACES = {"linalg_": "torch.linalg.", "special_": "torch.special.", "fft_": "torch.fft."}
_HANDED_ON = frozenset({"alias", "lift_fresh", "lift_fresh_copy", "lift"})
_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
_RESIZES = {
    "upsample_nearest1d": "nearest",
    "upsample_nearest2d": "nearest",
    "upsample_nearest3d": "nearest",
    "upsample_linear1d": "linear",
    "upsample_bilinear2d": "bilinear",
    "upsample_bicubic2d": "bicubic",
    "upsample_trilinear3d": "trilinear",
}
_NUMBERS: dict[Any, Any] = {
    torch.sym_float: float,
    torch.sym_int: int,
    torch._sym_sqrt: math.sqrt,  # type: ignore[attr-defined]
}


@dataclass(frozen=True)
class Operation:
    """A node of a graph that is yet to be made: as ``fx.Graph.create_node`` takes it."""

    op: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def name_of(target: object) -> str:
    """An operator's name without library and overload; empty for anything else.

    Example:
        >>> name_of(torch.ops.aten.add.Tensor), name_of(torch.add)
        ('add', '')
    """
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    library, _, name = target._schema.name.partition("::")
    return name if library == "aten" else ""


def handed_on(target: object, args: tuple[Any, ...]) -> Any:  # noqa: ANN401 - an argument or None
    """The argument that the operator hands on as it is, in eval mode, else ``None``."""
    name = name_of(target)
    if name in _HANDED_ON or (name in _DROPOUTS and args[2] is False):
        return args[0]
    if name == "slice" and args[2:] in _WHOLE:
        return args[0]
    if name == "slice_scatter" and args[3:] in _WHOLE:
        return args[1]
    return None


def public(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Operation]:  # noqa: ANN401
    """Public functions that might do what an operator does, the best first; to be tried.

    Example:
        >>> [found.target for found in public(torch.ops.aten.flatten.using_ints, (None, 1), {})]
        [<built-in method flatten of type object at ...>, 'flatten']
    """
    name = name_of(target)
    kept = {
        key: value
        for key, value in kwargs.items()
        if not (key in ("pin_memory", "layout") and not value) and value != torch.device("cpu")
    }
    if name in _SPECIAL:
        made = _SPECIAL[name](args, kept)
        if made is not None:
            yield made
    function = functions().get(_listed(name))
    if name and not name.startswith("_"):
        for listed in (_listed(name), f"torch.nn.functional.{name}"):
            function = functions().get(listed)
            if function is not None and not (name in _SPLAT and name != "reshape"):
                yield Operation("call_function", function, args, kept)
        if is_method(name) and args:
            yield _method(name, args, kept)
    if target is operator.pow and args[1] == 0.5:
        yield Operation("call_function", math.sqrt, args[:1])
    if target is operator.pow and args[1] == 2:
        yield Operation("call_function", operator.mul, (args[0], args[0]))
    if target in _NUMBERS:
        yield Operation("call_function", _NUMBERS[target], args, kept)


def _listed(name: str) -> str:
    for start, space in _SPACES.items():
        if name.startswith(start):
            return space + name.removeprefix(start)
    return f"torch.{name}"


def _method(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Operation:
    if name in _SPLAT and len(args) == 2 and isinstance(args[1], (list, tuple)):
        args = (args[0], *args[1])
    return Operation("call_method", name, args, kwargs)


Arguments = tuple[Any, ...]
Make = Callable[[Arguments, Mapping[str, Any]], Operation | None]


def _size(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation:
    return Operation("call_method", "size", args)


def _at(axis: int, at: object) -> Arguments | None:
    """What indexes one axis."""
    return (*(slice(None) for _ in range(axis)), at) if axis >= 0 else None


def _range(start: object = None, end: object = None, step: int = 1) -> slice:
    end = None if isinstance(end, int) and end == _END else end
    return slice(start, end, None if step == 1 else step)


def _item(x: object, index: Arguments | None) -> Operation | None:
    return None if index is None else Operation("call_function", operator.getitem, (x, index))


def _slice(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation | None:
    x, axis, *given = args
    return _item(x, _at(axis, _range(*given)))


def _select(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation | None:
    x, axis, at = args
    return _item(x, _at(axis, at))


def _assign(x: object, index: Arguments | None, value: object) -> Operation | None:
    return None if index is None else Operation("call_function", assign, (x, index, value))


def _slice_scatter(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation | None:
    x, value, axis, *given = args
    return _assign(x, _at(axis, _range(*given)), value)


def _select_scatter(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation | None:
    x, value, axis, at = args
    return _assign(x, _at(axis, at), value)


def _index(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation:
    index = tuple(slice(None) if part is None else part for part in args[1])
    return Operation("call_function", operator.getitem, (args[0], index))


def _to(args: Arguments, kwargs: Mapping[str, Any]) -> Operation:
    return Operation("call_method", "to", args[:2], kwargs)


def _copy(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation:
    """What is written over a tensor has its shape and type."""
    return Operation("call_method", "expand_as", (args[1], args[0]))


def _constant_pad(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation:
    return Operation("call_function", F.pad, (*args[:2], "constant", *args[2:]))


def _resize(mode: str) -> Make:
    def make(args: Arguments, _kwargs: Mapping[str, Any]) -> Operation | None:
        if len(args) != (3 if mode == "nearest" else 4):
            return None
        x, size, *align, factors = args
        named = {"size": size, "scale_factor": factors, "mode": mode}
        named |= {"align_corners": align[0]} if align else {}
        return Operation("call_function", F.interpolate, (x,), named)

    return make


_SPECIAL: dict[str, Make] = {
    "sym_size": _size,
    "slice": _slice,
    "select": _select,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "index": _index,
    "to": _to,
    "_to_copy": _to,
    "copy": _copy,
    "constant_pad_nd": _constant_pad,
    **{name: _resize(mode) for name, mode in _RESIZES.items()},
}
