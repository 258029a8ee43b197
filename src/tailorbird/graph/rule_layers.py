"""How channels pass layers with weights, norms, pooling and attention."""

from __future__ import annotations

import torch
from torch import nn

from tailorbird.graph.flow import Call, Flow, RawCut, RawReader, State, Tag, integer, need


def spatial(flow: Flow, call: Call) -> State:
    """Pooling and resizing: channels on axis 1, one by one."""
    need(call.tag.axis == 1 and call.tensor.ndim >= 3)
    need(call.module is None or not list(call.module.buffers()))
    need(not getattr(call.module, "value", 0))
    return call.tag


def reduction(flow: Flow, call: Call) -> State:
    """Mean or sum over other axes than the channels'."""
    dims = call.argument(1, "dim")
    listed = [dims] if isinstance(dims, int) else dims
    need(isinstance(listed, list | tuple) and bool(listed))
    assert isinstance(listed, list | tuple)
    axes = {integer(dim) % call.tensor.ndim for dim in listed}
    tag = call.tag
    need(tag.axis not in axes)
    if call.out.ndim == call.tensor.ndim:
        return tag
    return tag.moved(tag.axis - sum(axis < tag.axis for axis in axes))


def dense(flow: Flow, call: Call) -> State:
    """Convolution or linear layer: reads all channels, makes new ones."""
    module, tag = call.module, call.tag
    assert module is not None
    if isinstance(module, nn.Linear):
        axis, count, groups = call.tensor.ndim - 1, module.out_features, 1
    else:
        axis, count = 1, integer(module.out_channels)
        groups = integer(module.groups)
    need(tag.axis == axis)
    need({name for name, _ in module.named_parameters()} <= {"weight", "bias"})
    if groups > 1:
        return _grouped(flow, call, groups, count)
    return _made(flow, call, "dense", count)


def _made(flow: Flow, call: Call, kind: str, count: int) -> Tag:
    """New channels, those of an earlier call where the module is called again."""
    module, tag = call.module, call.tag
    assert module is not None
    kind += "_transposed" * ("Transpose" in call.name)
    key = (kind, id(module))
    known = flow.cuts.get(key)
    out = (
        flow.fresh(count, tag.axis, call.path)
        if known is None
        else Tag(tag.axis, known.rows, (False,) * count)
    )
    cut = RawCut(kind, call.path, rows=out.ids, columns=tag.ids)
    flow.register(key, cut, module.parameters())
    flow.readers.append(RawReader(call.path, tag))
    return out


def _grouped(flow: Flow, call: Call, groups: int, count: int) -> State:
    """Grouped convolution: whole groups go, or the same channels of every group.

    Whole groups where that leaves more choice; a depthwise layer has groups of one channel. A group
    that goes takes its outputs along, so nothing is mixed and there is nothing to read.
    """
    module, tag = call.module, call.tag
    assert module is not None
    each, made = len(tag.ids) // groups, count // groups
    if groups < min(each, made):
        for j in range(each):
            flow.tie(tag.ids[j::each])
        out = _made(flow, call, "even", count)
        for j in range(made):
            flow.tie(out.ids[j::made])
        return out
    firsts = [flow.tie(tag.ids[g * each : (g + 1) * each]) for g in range(groups)]
    ids = tuple(item for item in firsts for _ in range(made))
    bias = module.bias
    silent = [True] * count if not isinstance(bias, torch.Tensor) else (bias == 0).tolist()
    empty = [all(tag.zero[g * each : (g + 1) * each]) for g in range(groups)]
    zero = tuple(empty[j // made] and silent[j] for j in range(count))
    cut = RawCut("grouped", call.path, rows=ids, columns=tag.ids)
    flow.register(("grouped", id(module)), cut, module.parameters())
    return Tag(1, ids, zero)


def vector(flow: Flow, call: Call) -> State:
    """Batch norm, PReLU, layer scale, channel mask: one number per channel."""
    module, tag = call.module, call.tag
    assert module is not None
    width = len(tag.ids)
    tensors = [*module.parameters(), *module.buffers()]
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    need(len(own) == len(tensors) and all(t.numel() in (1, width) for t in tensors))
    if call.name != "LayerScale":
        need(tag.axis == 1 or call.name == "ChannelMask")
    need(call.name != "LayerScale" or tag.axis == call.tensor.ndim - 1)
    if "Norm" in call.name or any(t.ndim and t.numel() == width for t in tensors):
        cut = RawCut("vector", call.path, rows=tag.ids)
        flow.register(("vector", id(module)), cut, [t for t in tensors if t.ndim])
    if call.name == "ChannelMask":
        mask = module.mask
        assert isinstance(mask, torch.Tensor)
        need(integer(module.axis) % call.tensor.ndim == tag.axis)
        off = (mask == 0).tolist()
        flow.masked.update(item for item, zero in zip(tag.ids, off, strict=True) if zero)
        return Tag(tag.axis, tag.ids, tuple(map(bool.__or__, tag.zero, off)))
    return tag.filled() if "Norm" in call.name else tag


def layer_norm(flow: Flow, call: Call) -> State:
    """Norm over the channels: can follow a cut, but its statistics then change.

    Norms over other axes, such as those of single heads, leave the channels alone.
    """
    module, tag = call.module, call.tag
    assert module is not None
    width, rank = len(tag.ids), call.tensor.ndim
    shape = module.normalized_shape
    assert isinstance(shape, tuple)
    if not call.name.endswith("2d") and tag.axis < rank - len(shape):
        return tag.filled()
    need(shape == (width,) and all(p.shape == (width,) for p in module.parameters()))
    need(tag.axis == (1 if call.name.endswith("2d") else rank - 1))
    flow.inexact.update(tag.ids)
    cut = RawCut("vector", call.path, rows=tag.ids)
    flow.register(("vector", id(module)), cut, module.parameters())
    return tag.filled()


def group_norm(flow: Flow, call: Call) -> State:
    """Norm over groups of channels: whole groups go, or of a single group any channel."""
    module, tag = call.module, call.tag
    assert module is not None
    width, groups = len(tag.ids), integer(module.num_groups)
    need(tag.axis == 1 and all(p.shape == (width,) for p in module.parameters()))
    if groups == 1:
        flow.inexact.update(tag.ids)
    for g in range(groups if groups > 1 else 0):
        flow.tie(tag.ids[g * width // groups : (g + 1) * width // groups])
    cut = RawCut("vector", call.path, rows=tag.ids)
    flow.register(("vector", id(module)), cut, module.parameters())
    return tag.filled()
