"""How channels pass what moves, joins and parts tensors; see ``flow`` for axes that views split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import fx

from tailorbird.graph.flow import (
    Axis,
    Call,
    Flow,
    Grid,
    Parts,
    RawCut,
    ShapeOf,
    SizeOf,
    State,
    Tag,
    integer,
    need,
    position,
)

# --- other axes ----------------------------------------------------------------------------


def reshaped(tag: Tag, before: Sequence[int], after: Sequence[int]) -> Tag | Grid:
    """The channels of a tensor of shape ``before`` that is read in row-major order as ``after``.

    Their axis is kept, split into several, or merged with axes beside it, but not the batch's.
    """
    lead, size = math.prod(before[: tag.axis]), len(tag.ids)
    for k in range(len(after)):
        for end in range(k + 1, len(after) + 1):
            if math.prod(after[:k]) == lead and math.prod(after[k:end]) == size:
                wide = [j for j in range(k, end) if after[j] > 1] or [k]
                if len(wide) == 1:
                    return tag.moved(wide[0])
                axes = tuple(Axis(j, after[j], None) for j in wide)
                return Grid(axes, tag.ids, tag.zero)
    for start in range(tag.axis, 0, -1):
        for end in range(tag.axis + 1, len(before) + 1):
            for k, merged in enumerate(after):
                same = math.prod(after[:k]) == math.prod(before[:start])
                if same and merged == math.prod(before[start:end]):
                    outer = math.prod(before[start : tag.axis])
                    inner = math.prod(before[tag.axis + 1 : end])
                    order = [j for _ in range(outer) for j in range(size) for _ in range(inner)]
                    return tag.picked(order).moved(k)
    raise ValueError("not covered")


def flatten(flow: Flow, call: Call) -> State:
    """Merges axes; no size is written anywhere."""
    result = reshaped(call.tag, call.tensor.shape, call.out.shape)
    need(isinstance(result, Tag))
    return result


def view(flow: Flow, call: Call) -> State:
    """View, reshape and unflatten: a channel count written in it follows a cut."""
    tag, before, after = call.tag, tuple(call.tensor.shape), tuple(call.out.shape)
    first, base = 1, 0
    if call.name == "unflatten":
        first, base = 2, integer(call.args[1]) % call.tensor.ndim
    dims, listed = _listed(call, first)
    result = reshaped(tag, before, after)
    axes = [result.axis] if isinstance(result, Tag) else [axis.at for axis in result.axes]
    for axis, dim in enumerate(dims, base):
        size_of = isinstance(dim, fx.Node) and isinstance(call.tags.get(dim), SizeOf)
        need(not size_of or axes == [axis])

    def cut(axis: int) -> RawCut | None:
        dim = dims[axis - base] if 0 <= axis - base < len(dims) else -1
        if dim == -1:
            return None
        need(dim == after[axis])
        where = (first, axis - base) if listed else (first + axis - base,)
        return call.cut("literal", where=where)

    if isinstance(result, Grid):
        return replace(result, axes=tuple(replace(one, cut=cut(one.at)) for one in result.axes))
    dim = dims[result.axis - base] if 0 <= result.axis - base < len(dims) else -1
    state = call.tags.get(dim) if isinstance(dim, fx.Node) else None
    if isinstance(state, SizeOf):
        flow.unite(state.ids, result.ids)
    elif (literal := cut(result.axis)) is not None:
        flow.follow(literal, result.ids)
    return result


def _listed(call: Call, start: int) -> tuple[list[object], bool]:
    """Sizes given one by one or as a list, and whether it is a list."""
    given = call.node.args[start:]
    if len(given) == 1 and isinstance(given[0], list | tuple):
        return list(given[0]), True
    return list(given), False


def expand(flow: Flow, call: Call) -> State:
    """Repeats axes of size one; a channel count that one channel is repeated to follows a cut."""
    tag = call.tag
    dims, listed = _listed(call, 1)
    need(len(dims) == call.out.ndim)
    axis = tag.axis + call.out.ndim - call.tensor.ndim
    wide, dim = call.out.shape[axis], dims[axis]
    if dim == -1:
        return tag.moved(axis)
    need(dim == wide)
    result = tag.moved(axis)
    if len(tag.ids) < wide:
        flow.pin(tag.ids, f"broadcast over channels at '{call.path}'")
        result = Tag(axis, flow.fresh(wide, axis, "").ids, tag.zero * wide)
    flow.follow(call.cut("literal", where=(1, axis) if listed else (1 + axis,)), result.ids)
    return result


def expand_as(flow: Flow, call: Call) -> State:
    """Repeats axes of size one as another tensor has them."""
    tag, other = call.tag, call.states[1]
    need(isinstance(other, Tag) and call.tensor.ndim == call.out.ndim)
    assert isinstance(other, Tag)
    need(tag.axis == other.axis and call.out.shape[tag.axis] == len(other.ids))
    if len(tag.ids) == len(other.ids):
        flow.unite(tag.ids, other.ids)
        return tag
    flow.pin(tag.ids, f"broadcast over channels at '{call.path}'")
    return Tag(tag.axis, other.ids, tag.zero * len(other.ids))


def reshape_as(flow: Flow, call: Call) -> State:
    """Takes the shape of a tensor that has the same channels on the axis where they end up."""
    other = call.states[1]
    result = reshaped(call.tag, call.tensor.shape, call.out.shape)
    need(isinstance(result, Tag) and isinstance(other, Tag))
    assert isinstance(result, Tag)
    assert isinstance(other, Tag)
    need(result.axis == other.axis)
    flow.unite(result.ids, other.ids)
    return result


def turned(flow: Flow, call: Call) -> State:
    """Roll and flip along other axes than the channels'."""
    dims = call.argument(2, "dims") if call.name == "roll" else call.argument(1, "dims")
    listed = [dims] if isinstance(dims, int) else dims
    need(isinstance(listed, list | tuple) and not call.args[3:])
    assert isinstance(listed, list | tuple)
    need(call.tag.axis not in {integer(dim) % call.out.ndim for dim in listed})
    return call.tag


def permute(flow: Flow, call: Call) -> State:
    """Axes in another order."""
    given = call.args[1:] or (call.kwargs["dims"],)
    dims = list(given[0]) if isinstance(given[0], list | tuple) else list(given)
    order = [integer(dim) % call.out.ndim for dim in dims]
    return call.moved(order.index)


def transpose(flow: Flow, call: Call) -> State:
    """Two axes change places."""
    a = integer(call.argument(1, "dim0")) % call.out.ndim
    b = integer(call.argument(2, "dim1")) % call.out.ndim
    return call.moved(lambda axis: {a: b, b: a}.get(axis, axis))


def unsqueeze(flow: Flow, call: Call) -> State:
    """A new axis."""
    dim = integer(call.argument(1, "dim")) % call.out.ndim
    return call.moved(lambda axis: axis + (dim <= axis))


def squeeze(flow: Flow, call: Call) -> State:
    """Axes of size one go."""
    dim = call.argument(1, "dim")
    listed = [dim] if isinstance(dim, int) else dim
    if listed is None:
        listed = list(range(call.tensor.ndim))
    assert isinstance(listed, list | tuple)
    gone = {integer(d) % call.tensor.ndim for d in listed}
    gone = {d for d in gone if call.tensor.shape[d] == 1}
    need(call.tag.axis not in gone)
    return call.moved(lambda axis: axis - sum(d < axis for d in gone))


# --- joined and parted ---------------------------------------------------------------------


def cat(flow: Flow, call: Call) -> State:
    """Tensors one after another, along the channels or another axis."""
    known = _parts(call)
    axis = known[0].axis
    if integer(call.argument(1, "dim", 0)) % call.out.ndim != axis:
        return _tied(flow, known)
    return Tag(axis, sum((t.ids for t in known), ()), sum((t.zero for t in known), ()))


def stack(flow: Flow, call: Call) -> State:
    """Tensors on a new axis."""
    tag = _tied(flow, _parts(call))
    dim = integer(call.argument(1, "dim", 0)) % call.out.ndim
    return tag.moved(tag.axis + (dim <= tag.axis))


def _parts(call: Call) -> list[Tag]:
    parts = call.node.args[0] if call.node.args else call.node.kwargs["tensors"]
    need(isinstance(parts, list | tuple))
    assert isinstance(parts, list | tuple)
    found = [call.tags[part] for part in parts if isinstance(part, fx.Node)]
    known = [tag for tag in found if isinstance(tag, Tag)]
    need(len(known) == len(parts) and len({tag.axis for tag in known}) == 1)
    return known


def _tied(flow: Flow, tags: Sequence[Tag]) -> Tag:
    for tag in tags[1:]:
        flow.unite(tags[0].ids, tag.ids)
    zero = tuple(all(column) for column in zip(*(tag.zero for tag in tags), strict=True))
    return Tag(tags[0].axis, tags[0].ids, zero)


def split(flow: Flow, call: Call) -> State:
    """Split and chunk: the parts' sizes are written out where they follow a cut."""
    tag, values = call.tag, call.value
    need(isinstance(values, list | tuple))
    assert isinstance(values, list | tuple)
    if integer(call.argument(2, "dim", 0)) % call.tensor.ndim != tag.axis:
        return Parts((tag,) * len(values))
    sizes = tuple(part.shape[tag.axis] for part in values)
    need(sum(sizes) == len(tag.ids))
    flow.follow(call.cut("split", dim=tag.axis, sizes=sizes), tag.ids)
    ends = pairwise(accumulate(sizes, initial=0))
    pieces = (tag.picked(range(low, high)) for low, high in ends)
    return Parts(tuple(flow.part(call.path, piece) for piece in pieces))


def unbind(flow: Flow, call: Call) -> State:
    """Parts along another axis than the channels'."""
    tag, values = call.tag, call.value
    dim = integer(call.argument(1, "dim", 0)) % call.tensor.ndim
    need(dim != tag.axis and isinstance(values, list | tuple))
    assert isinstance(values, list | tuple)
    return Parts((tag.moved(tag.axis - (dim < tag.axis)),) * len(values))


def getitem(flow: Flow, call: Call) -> State:
    """Slices of a tensor, one of its parts, or one entry of its shape."""
    state, index = call.states[0], call.args[1]
    if isinstance(state, Parts):
        return state.states[integer(index)]
    if isinstance(state, ShapeOf):
        shape = call.args[0]
        assert isinstance(shape, tuple)
        rank, tag = len(shape), state.tag
        if isinstance(index, slice):
            need(tag.axis not in range(rank)[slice(index.start, index.stop, index.step)])
            return None
        return SizeOf(tag.ids) if integer(index) % rank == tag.axis else None
    return _sliced(flow, call, index)


def _sliced(flow: Flow, call: Call, index: object) -> State:
    tag, rank = call.tag, call.tensor.ndim
    given = list(index) if isinstance(index, tuple) else [index]
    literal = call.node.args[1]
    need(not any(isinstance(call.tags.get(n), SizeOf) for n in call.node.all_input_nodes))
    items = list(enumerate(given))
    if Ellipsis in given:
        at = given.index(Ellipsis)
        used = sum(item is not None for item in given) - 1
        items[at : at + 1] = [(-1, slice(None))] * (rank - used)
    if getattr(call.node.args[0], "op", "") == "get_attr":
        tag = _whole_axis(flow, call, [item for _, item in items if item is not None])
    source, target = 0, 0
    for place, item in items:
        if item is None:
            target += 1
            continue
        if source == tag.axis:
            need(isinstance(item, slice))
            assert isinstance(item, slice)
            where = (1, place) if isinstance(literal, tuple) else (1,)
            tag = _slice(flow, call, tag, item, where)
            break
        whole = isinstance(item, torch.Tensor) and not item.is_floating_point()
        need(whole or isinstance(item, int | slice))
        source += 1
        target += item.ndim if isinstance(item, torch.Tensor) else isinstance(item, slice)
    return tag.moved(target + tag.axis - source)


def _whole_axis(flow: Flow, call: Call, items: Sequence[object]) -> Tag:
    """A parameter's channels on an axis that is not looked up in, if there is one."""
    looked_up = [isinstance(item, torch.Tensor) for item in items]
    looked_up += [False] * (call.tensor.ndim - len(items))
    free = [axis for axis, size in enumerate(call.tensor.shape) if size > 1 and not looked_up[axis]]
    if not looked_up[call.tag.axis] or not free:
        return call.tag
    path = call.prefix + str(getattr(call.node.args[0], "target", ""))
    return flow.attribute(call.tensor, path, free[-1])


def _slice(flow: Flow, call: Call, tag: Tag, item: slice, where: tuple[int, ...]) -> Tag:
    """Neighbouring channels; the ends of the slice follow a cut."""
    if item == slice(None):
        return tag
    need(item.step in (None, 1))
    need(all(isinstance(end, int | None) for end in (item.start, item.stop)))
    flow.follow(call.cut("slice", where=where), tag.ids)
    return flow.part(call.path, tag.picked(range(len(tag.ids))[item]))


# --- channels for positions ----------------------------------------------------------------


def pixel_shuffle(flow: Flow, call: Call) -> State:
    """Blocks of channels become positions: a block goes as a whole."""
    factor = call.argument(1, "upscale_factor")
    if call.module is not None:
        factor = call.module.upscale_factor
    tag, block = call.tag, integer(factor) ** 2
    need(tag.axis == call.tensor.ndim - 3)
    starts = range(0, len(tag.ids), block)
    ids = tuple(flow.tie(tag.ids[j : j + block]) for j in starts)
    return Tag(tag.axis, ids, tuple(all(tag.zero[j : j + block]) for j in starts))


def pixel_unshuffle(flow: Flow, call: Call) -> State:
    """Positions become blocks of channels, one block for each channel before."""
    tag = call.tag
    need(tag.axis == call.tensor.ndim - 3)
    times = call.out.shape[tag.axis] // len(tag.ids)
    return tag.picked(j for j in range(len(tag.ids)) for _ in range(times))


def channel_shuffle(flow: Flow, call: Call) -> State:
    """The channels of groups in turn: the same ones of every group go."""
    given = call.argument(1, "groups") if call.module is None else call.module.groups
    tag = call.tag
    each = len(tag.ids) // integer(given)
    need(tag.axis == 1)
    for j in range(each):
        flow.tie(tag.ids[j::each])
    return tag.picked(i for j in range(each) for i in range(j, len(tag.ids), each))


def pad(flow: Flow, call: Call) -> State:
    """Zero padding, on channels too: the amounts follow a cut."""
    tag = call.tag
    pads = call.argument(1, "pad")
    need(isinstance(pads, list | tuple))
    assert isinstance(pads, list | tuple)
    mode, fill = call.argument(2, "mode", "constant"), call.argument(3, "value")
    silent = mode != "constant" or not fill
    inner = tag if silent else tag.filled()
    index = 2 * (call.tensor.ndim - 1 - tag.axis)
    left, right = (integer(p) for p in (*pads, *[0] * (index + 2))[index : index + 2])
    if left == right == 0:
        return inner
    literal = call.node.args[1] if len(call.node.args) > 1 else call.node.kwargs["pad"]
    need(isinstance(literal, list | tuple) and all(isinstance(p, int) for p in literal))
    need(mode == "constant" and silent and left >= 0 and right >= 0)
    before = flow.fresh(left, tag.axis, "").ids
    after = flow.fresh(right, tag.axis, "").ids
    cut = RawCut(
        "pad",
        call.prefix.rstrip("."),
        rows=before,
        columns=after,
        dim=index,
        node=position(call.node),
    )
    flow.register(("pad", id(call.node)), cut, ())
    zero = (True,) * left + inner.zero + (True,) * right
    return Tag(tag.axis, before + tag.ids + after, zero)


def size(flow: Flow, call: Call) -> State:
    """``x.size()``, ``x.size(1)``, ``x.shape``; other attributes of a tensor say nothing."""
    tag = call.tag
    name = call.name if call.name != "getattr" else str(call.args[1])
    if name in ("dtype", "device", "ndim", "dim", "is_cuda", "requires_grad"):
        return None
    need(name in ("shape", "size"))
    dim = call.argument(1, "dim") if name == "size" else None
    if dim is None:
        return ShapeOf(tag)
    return SizeOf(tag.ids) if integer(dim) % call.tensor.ndim == tag.axis else None
