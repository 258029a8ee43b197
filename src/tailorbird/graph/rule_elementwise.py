"""How channels pass element-wise functions, of one tensor and of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from tailorbird.graph.flow import (
    Call,
    Flow,
    Grid,
    Parts,
    ShapeOf,
    SizeOf,
    State,
    Tag,
    Value,
    integer,
    need,
)

Zero = tuple[bool, ...] | None


def unary(flow: Flow, call: Call) -> State:
    """One tensor in, one of its shape out; tried on zero to see whether zeros stay zero."""
    state = call.states[0]
    need(isinstance(state, Tag | Grid) and call.out.shape == call.tensor.shape)
    assert isinstance(state, Tag | Grid)
    need(call.module is None or not list(call.module.parameters()))
    rest = (*call.args[1:], *call.kwargs.values())
    need(not any(isinstance(value, torch.Tensor) for value in rest))
    zero = call.again(torch.zeros_like(call.tensor[(slice(1),) * call.tensor.ndim]))
    if bool((zero == 0).all()):
        return state
    return replace(state, zero=(False,) * len(state.ids))


def first(flow: Flow, call: Call) -> State:
    """The first tensor in another type, which other arguments give."""
    need(call.out.shape == call.tensor.shape)
    return call.tag


def power(flow: Flow, call: Call) -> State:
    """A power with a fixed exponent, or of two tensors."""
    rest = call.args[1:]
    if isinstance(call.args[0], torch.Tensor) and not isinstance(rest[0], torch.Tensor):
        return unary(flow, call)
    return several(flow, call)


def softmax(flow: Flow, call: Call) -> State:
    """A normalised exponential over other axes than the channels'."""
    given = call.argument(1, "dim") if call.module is None else call.module.dim
    need(integer(given) % call.out.ndim != call.tag.axis)
    return call.tag.filled()


def normalise(flow: Flow, call: Call) -> State:
    """Vectors along other axes than the channels' brought to length one."""
    need(integer(call.argument(2, "dim", 1)) % call.out.ndim != call.tag.axis)
    return call.tag


# --- several tensors -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Operand:
    """One operand, its axes counted as those of the result."""

    value: Value
    tag: Tag | None
    constant: bool

    def size(self, axis: int, rank: int) -> int:
        """How long the operand is on an axis of the result; 1 where it is broadcast."""
        if not isinstance(self.value, torch.Tensor):
            return 1
        own = axis - rank + self.value.ndim
        return self.value.shape[own] if own >= 0 else 1


def several(flow: Flow, call: Call) -> State:
    """A sum, product, comparison or the like, with broadcasting: unites the channels."""
    operands = _operands(call)
    tag, zeros = _united(flow, call, operands)
    kind = call.name.removeprefix("i") if call.name in _IN_PLACE else call.name
    if kind in ("mul", "multiply", "logical_and", "bitwise_and"):
        found = [zero for zero in zeros if zero is not None]
        zero: Zero = tuple(any(column) for column in zip(*found, strict=True))
    elif kind in ("truediv", "div", "divide", "true_divide"):
        zero = zeros[0]
    elif kind == "where":
        zero = _all_zero(zeros[1:])
    elif kind in ("add", "sub", "subtract", "maximum", "minimum", "fmax", "fmin"):
        zero = _all_zero(zeros)
    else:
        zero = None
    return Tag(tag.axis, tag.ids, zero or (False,) * len(tag.ids))


_IN_PLACE = ("iadd", "isub", "imul", "itruediv")


def _all_zero(zeros: Sequence[Zero]) -> Zero:
    known = [zero for zero in zeros if zero is not None]
    if len(known) < len(zeros):
        return None
    return tuple(all(column) for column in zip(*known, strict=True))


def _operands(call: Call) -> list[_Operand]:
    need(call.kwargs.keys() <= {"alpha"})
    return [
        _operand(value, state, source, call.out.ndim)
        for value, state, source in zip(call.args, call.states, call.node.args, strict=True)
    ]


def _operand(value: Value, state: State, source: object, rank: int) -> _Operand:
    need(not isinstance(state, SizeOf | ShapeOf | Parts | Grid))
    tag = None
    if isinstance(state, Tag) and isinstance(value, torch.Tensor):
        tag = state.moved(state.axis + rank - value.ndim)
    return _Operand(value, tag, getattr(source, "op", "") == "get_attr")


def _united(flow: Flow, call: Call, operands: Sequence[_Operand]) -> tuple[Tag, list[Zero]]:
    """The result's channels, and of each operand which are zero there (unknown: None)."""
    shape = call.out.shape
    wide = [o for o in operands if o.tag is not None and len(o.tag.ids) == shape[o.tag.axis]]
    wide.sort(key=lambda o: (o.constant, -_numel(o.value)))
    main = wide[0].tag
    assert main is not None
    axis = main.axis
    for one in operands:  # first see whether all is covered, then change the flow
        aligned = one.tag is not None and one.tag.axis == axis
        need(aligned or one.constant or one.size(axis, len(shape)) == 1)
    zeros: list[Zero] = []
    for place, one in enumerate(operands):
        tag = one.tag
        if one.constant and one.size(axis, len(shape)) > 1 and (tag is None or tag.axis != axis):
            assert isinstance(one.value, torch.Tensor)
            path = call.prefix + str(getattr(call.node.args[place], "target", ""))
            tag = flow.attribute(one.value, path, axis - len(shape) + one.value.ndim).moved(axis)
        if tag is not None and tag.axis == axis and len(tag.ids) == shape[axis]:
            flow.unite(main.ids, tag.ids)
            zeros.append(tag.zero)
            continue
        if tag is not None:
            flow.pin(tag.ids, f"broadcast over channels at '{call.path}'")
        nothing = isinstance(one.value, int | float) and one.value == 0
        zeros.append((True,) * len(main.ids) if nothing else None)
    return main, zeros


def _numel(value: Value) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0


def gated(flow: Flow, call: Call) -> State:
    """GLU: one half of the channels times a gate that the other half makes."""
    given = call.argument(1, "dim", -1) if call.module is None else call.module.dim
    axis, tag = integer(given) % call.out.ndim, call.tag
    if axis != tag.axis:
        return tag
    half = len(tag.ids) // 2
    flow.unite(tag.ids[:half], tag.ids[half:])
    return Tag(axis, tag.ids[:half], tag.zero[:half])


def product(flow: Flow, call: Call) -> State:
    """A product of stacks of matrices, and attention: head by head, where heads are the channels.

    A mask of attention has the heads too, or is the same for all.
    """
    axis, rank = call.tag.axis, call.tensor.ndim
    need(0 < axis < rank - 2)
    count = 2 if call.name == "matmul" else 3
    tags = [state for state in call.states[:count] if isinstance(state, Tag)]
    need(len(tags) == count and all(tag.axis == axis for tag in tags))
    need(len({len(tag.ids) for tag in tags}) == 1 and not call.kwargs.get("enable_gqa"))
    for name, mask in (("3", (call.args[3:4] or (None,))[0]), *call.kwargs.items()):
        if isinstance(mask, torch.Tensor):
            source = call.node.args[3] if name == "3" else call.node.kwargs[name]
            assert isinstance(source, fx.Node)
            _masked(flow, call, _operand(mask, call.tags.get(source), source, rank))
    for tag in tags[1:]:
        flow.unite(tags[0].ids, tag.ids)
    if count == 2:
        return Tag(axis, tags[0].ids, tuple(map(bool.__or__, tags[0].zero, tags[1].zero)))
    return Tag(axis, tags[0].ids, tags[2].zero)


def _masked(flow: Flow, call: Call, mask: _Operand) -> None:
    axis, rank = call.tag.axis, call.tensor.ndim
    if mask.tag is not None and mask.tag.axis == axis:
        flow.unite(call.tag.ids, mask.tag.ids)
        return
    need(mask.size(axis, rank) == 1)
    flow.pin(mask.tag.ids if mask.tag is not None else (), f"broadcast over '{call.path}'")
