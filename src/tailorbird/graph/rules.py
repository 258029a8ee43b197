"""What each known layer does to channels. One function per kind of layer, looked up by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn

from tailorbird.graph.flow import (
    Call,
    Flow,
    RawCut,
    RawReader,
    ShapeOf,
    SizeOf,
    State,
    Tag,
)

Tags = Mapping[fx.Node, State]
Rule = Callable[[Flow, Call, str, Tags], State]

_PACKAGES = {"torch", "timm", "torchvision", "tailorbird", "_operator", "builtins"}


def apply_rule(flow: Flow, call: Call, prefix: str, tags: Tags) -> tuple[bool, State]:
    """Whether a rule covers this call, and the result's state if so."""
    table = _MODULES if call.module is not None else _FUNCTIONS
    source = type(call.module) if call.module is not None else call.node.target
    package = (getattr(source, "__module__", None) or "torch").split(".")[0]
    rule = table.get(call.name)
    if rule is None or package not in _PACKAGES:
        return False, None
    try:
        state = rule(flow, call, prefix, tags)
        return not isinstance(state, Tag) or call.out.shape[state.axis] == len(state.ids), state
    except (IndexError, KeyError, TypeError, ValueError):
        return False, None  # a use of the layer that its rule does not cover


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError("not covered")


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("expected an integer")
    return value


# --- element-wise and spatial layers -------------------------------------------------------


def _keeps(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Element-wise with f(0) = 0."""
    _need(call.out.shape == call.tensor.shape)
    _need(call.module is None or not list(call.module.parameters()))
    _need(sum(isinstance(state, Tag) for state in call.states) == 1)
    return call.tag


def _fills(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Element-wise with f(0) other than 0."""
    _keeps(flow, call, prefix, tags)
    return call.tag.filled()


def _softmax(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    dim = _integer(call.argument(1, "dim")) % call.out.ndim
    _need(dim != call.tag.axis)
    return call.tag.filled()


def _spatial(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Pooling and resizing: channels on axis 1, one by one."""
    _need(call.tag.axis == 1 and call.tensor.ndim >= 3)
    _need(call.module is None or not list(call.module.buffers()))
    _need(not getattr(call.module, "value", 0))
    return call.tag


def _reduce(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Mean or sum over other axes than the channels'."""
    dims = call.argument(1, "dim")
    listed = [dims] if isinstance(dims, int) else dims
    _need(isinstance(listed, list | tuple) and bool(listed))
    assert isinstance(listed, list | tuple)
    axes = {_integer(dim) % call.tensor.ndim for dim in listed}
    tag = call.tag
    _need(tag.axis not in axes)
    if call.out.ndim == call.tensor.ndim:
        return tag
    return tag.moved(tag.axis - sum(axis < tag.axis for axis in axes))


# --- layers with weights -------------------------------------------------------------------


def _dense(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Convolution or linear layer: reads all channels, makes new ones."""
    module, tag = call.module, call.tag
    assert module is not None
    if isinstance(module, nn.Linear):
        axis, count, groups = call.tensor.ndim - 1, module.out_features, 1
    else:
        axis, count = 1, _integer(module.out_channels)
        groups = _integer(module.groups)
    _need(tag.axis == axis)
    parameters = list(module.parameters())
    _need({name for name, _ in module.named_parameters()} <= {"weight", "bias"})
    if groups > 1:
        return _depthwise(flow, call, groups, count)
    kind = "transposed" if "Transpose" in call.name else "dense"
    key = (kind, id(module))
    known = flow.cuts.get(key)
    out = (
        flow.fresh(count, axis, call.path)
        if known is None
        else Tag(axis, known.rows, (False,) * count)
    )
    flow.register(key, RawCut(kind, call.path, rows=out.ids, columns=tag.ids), parameters)
    flow.readers.append(RawReader(call.path, tag))
    return out


def _depthwise(flow: Flow, call: Call, groups: int, count: int) -> State:
    module, tag = call.module, call.tag
    assert module is not None
    _need(groups == len(tag.ids) and "Transpose" not in call.name)
    times = count // groups
    ids = tuple(item for item in tag.ids for _ in range(times))
    bias = module.bias
    silent = [True] * count if not isinstance(bias, torch.Tensor) else (bias == 0).tolist()
    zero = tuple(tag.zero[j // times] and silent[j] for j in range(count))
    cut = RawCut("depthwise", call.path, rows=ids, columns=tag.ids)
    flow.register(("depthwise", id(module)), cut, module.parameters())
    return Tag(1, ids, zero)


def _vector(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Batch norm, PReLU, layer scale, channel mask: one number per channel."""
    module, tag = call.module, call.tag
    assert module is not None
    width = len(tag.ids)
    tensors = [*module.parameters(), *module.buffers()]
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    _need(len(own) == len(tensors) and all(t.numel() in (1, width) for t in tensors))
    if call.name != "LayerScale":
        _need(tag.axis == 1 or call.name == "ChannelMask")
    _need(call.name != "LayerScale" or tag.axis == call.tensor.ndim - 1)
    if any(t.ndim and t.numel() == width for t in tensors):
        cut = RawCut("vector", call.path, rows=tag.ids)
        flow.register(("vector", id(module)), cut, [t for t in tensors if t.ndim])
    if call.name == "ChannelMask":
        mask = module.mask
        assert isinstance(mask, torch.Tensor)
        _need(_integer(module.axis) % call.tensor.ndim == tag.axis)
        off = (mask == 0).tolist()
        flow.masked.update(item for item, zero in zip(tag.ids, off, strict=True) if zero)
        return Tag(tag.axis, tag.ids, tuple(map(bool.__or__, tag.zero, off)))
    return tag.filled() if "Norm" in call.name else tag


def _layer_norm(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Norm over the channels: can follow a cut, but its statistics then change."""
    module, tag = call.module, call.tag
    assert module is not None
    width = len(tag.ids)
    shape = getattr(module, "normalized_shape", (getattr(module, "num_channels", 0),))
    _need(tuple(shape) == (width,) and all(p.shape == (width,) for p in module.parameters()))
    if "Group" in call.name:
        _need(_integer(module.num_groups) == 1 and tag.axis == 1)
    else:
        _need(tag.axis == (1 if call.name.endswith("2d") else call.tensor.ndim - 1))
    flow.inexact.update(tag.ids)
    flow.register(
        ("vector", id(module)), RawCut("vector", call.path, rows=tag.ids), module.parameters()
    )
    return tag.filled()


# --- several inputs ------------------------------------------------------------------------


def _arithmetic(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Element-wise on two tensors, with broadcasting: unites their channels."""
    if not isinstance(call.value, torch.Tensor):
        raise TypeError("numbers only")
    _need(len(call.args) == 2)
    out, found = call.value, []
    loose = False
    for value, state in zip(call.args[:2], call.states[:2], strict=True):
        _need(not isinstance(state, SizeOf | ShapeOf))
        if isinstance(state, Tag) and isinstance(value, torch.Tensor):
            found.append(state.moved(state.axis + out.ndim - value.ndim))
        else:
            loose = loose or not (isinstance(value, int | float) and value == 0)
    axis = found[0].axis
    _need(all(tag.axis == axis for tag in found))
    wide = [tag for tag in found if len(tag.ids) == out.shape[axis]]
    for tag in found:
        if len(tag.ids) == out.shape[axis]:
            flow.unite(wide[0].ids, tag.ids)
        else:
            flow.pin(tag.ids, f"broadcast over channels at '{call.path}'")
    zeros = [tag.zero for tag in wide]
    if call.name in ("mul", "imul", "multiply"):
        zero = [any(column) for column in zip(*zeros, strict=True)]
    elif call.name in ("truediv", "itruediv", "div", "divide"):
        _need(isinstance(call.states[0], Tag) and len(found[0].ids) == out.shape[axis])
        zero = list(found[0].zero)
    else:
        whole = not loose and len(wide) == len(found)
        zero = [whole and all(column) for column in zip(*zeros, strict=True)]
    return Tag(axis, wide[0].ids, tuple(zero))


def _cat(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    parts = call.node.args[0] if call.node.args else call.node.kwargs["tensors"]
    _need(isinstance(parts, list | tuple))
    assert isinstance(parts, list | tuple)
    found = [tags[part] for part in parts if isinstance(part, fx.Node)]
    known = [tag for tag in found if isinstance(tag, Tag)]
    _need(len(known) == len(parts))
    axis = known[0].axis
    _need(all(tag.axis == axis for tag in known))
    if _integer(call.argument(1, "dim", 0)) % call.out.ndim != axis:
        for tag in known:
            flow.unite(known[0].ids, tag.ids)
        zero = [all(column) for column in zip(*(tag.zero for tag in known), strict=True)]
        return Tag(axis, known[0].ids, tuple(zero))
    return Tag(axis, sum((t.ids for t in known), ()), sum((t.zero for t in known), ()))


def _pad(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Zero padding, on channels too: the amounts follow a cut."""
    tag = call.tag
    pads = call.argument(1, "pad")
    _need(isinstance(pads, list | tuple))
    assert isinstance(pads, list | tuple)
    mode, fill = call.argument(2, "mode", "constant"), call.argument(3, "value")
    silent = mode != "constant" or not fill
    inner = tag if silent else tag.filled()
    index = 2 * (call.tensor.ndim - 1 - tag.axis)
    left, right = (_integer(p) for p in (*pads, *[0] * (index + 2))[index : index + 2])
    if left == right == 0:
        return inner
    literal = call.node.args[1] if len(call.node.args) > 1 else call.node.kwargs["pad"]
    _need(isinstance(literal, list | tuple) and all(isinstance(p, int) for p in literal))
    _need(mode == "constant" and silent and left >= 0 and right >= 0)
    before = flow.fresh(left, tag.axis, "").ids
    after = flow.fresh(right, tag.axis, "").ids
    cut = RawCut(
        "pad", prefix.rstrip("."), rows=before, columns=after, dim=index, node=_position(call.node)
    )
    flow.register(("pad", id(call.node)), cut, ())
    zero = (True,) * left + inner.zero + (True,) * right
    return Tag(tag.axis, before + tag.ids + after, zero)


def _position(node: fx.Node) -> int:
    return list(node.graph.nodes).index(node)


# --- layout --------------------------------------------------------------------------------


def _flatten(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    module = call.module
    rank = call.tensor.ndim
    if module is not None:
        start, end = _integer(module.start_dim), _integer(module.end_dim)
    else:
        start = _integer(call.argument(1, "start_dim", 0))
        end = _integer(call.argument(2, "end_dim", -1))
    return _merge(call.tag, tuple(call.tensor.shape), start % rank, end % rank)


def _merge(tag: Tag, shape: tuple[int, ...], start: int, end: int) -> Tag:
    """The tag after axes ``start`` to ``end`` became one."""
    if tag.axis < start:
        return tag
    if tag.axis > end:
        return tag.moved(tag.axis - (end - start))
    _need(start >= 1)
    before, after = math.prod(shape[start : tag.axis]), math.prod(shape[tag.axis + 1 : end + 1])
    order = [j for _ in range(before) for j in range(len(tag.ids)) for _ in range(after)]
    ids, zero = tuple(tag.ids[j] for j in order), tuple(tag.zero[j] for j in order)
    return Tag(start, ids, zero)


def _view(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """View and reshape that only merge, add or drop axes, with no literal channel count."""
    tag, before, after = call.tag, tuple(call.tensor.shape), tuple(call.out.shape)
    given = call.node.args[1:]
    dims = list(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else list(given)
    _need(len(dims) == len(after))
    wide = [size for size in before if size > 1]
    if wide == [size for size in after if size > 1]:
        _need(len(tag.ids) > 1)
        order = sum(size > 1 for size in before[: tag.axis])
        result = tag.moved([j for j, size in enumerate(after) if size > 1][order])
    else:
        gap = len(before) - len(after)
        starts = [
            k
            for k in range(len(after))
            if before[:k] == after[:k]
            and after[k] == math.prod(before[k : k + gap + 1])
            and after[k + 1 :] == before[k + gap + 1 :]
        ]
        _need(gap > 0 and len(starts) == 1)
        result = _merge(tag, before, starts[0], starts[0] + gap)
    for axis, dim in enumerate(dims):
        state = tags.get(dim) if isinstance(dim, fx.Node) else None
        if axis != result.axis:
            _need(not isinstance(state, SizeOf))
        elif isinstance(state, SizeOf):
            flow.unite(state.ids, result.ids)
        elif dim != -1:
            literal = isinstance(dim, int) and dim == len(result.ids)
            _need(literal and len(set(result.ids)) == len(result.ids))
            at = _position(call.node)
            cut = RawCut("literal", prefix.rstrip("."), rows=result.ids, dim=axis, node=at)
            flow.register(("literal", id(call.node)), cut, ())
    return result


def _expand(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    tag, given = call.tag, call.args[1:]
    dims = list(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else list(given)
    _need(call.out.ndim == call.tensor.ndim and dims[tag.axis] == -1)
    return tag


def _permute(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    given = call.args[1:] or (call.kwargs["dims"],)
    dims = list(given[0]) if isinstance(given[0], list | tuple) else list(given)
    return call.tag.moved([_integer(dim) % call.out.ndim for dim in dims].index(call.tag.axis))


def _transpose(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    a = _integer(call.argument(1, "dim0")) % call.out.ndim
    b = _integer(call.argument(2, "dim1")) % call.out.ndim
    axis = call.tag.axis
    return call.tag.moved({a: b, b: a}.get(axis, axis))


def _unsqueeze(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    dim = _integer(call.argument(1, "dim")) % call.out.ndim
    return call.tag.moved(call.tag.axis + (dim <= call.tag.axis))


def _squeeze(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    dim = call.argument(1, "dim")
    listed = [dim] if isinstance(dim, int) else dim
    if listed is None:
        listed = list(range(call.tensor.ndim))
    assert isinstance(listed, list | tuple)
    gone = {_integer(d) % call.tensor.ndim for d in listed}
    gone = {d for d in gone if call.tensor.shape[d] == 1}
    _need(call.tag.axis not in gone)
    return call.tag.moved(call.tag.axis - sum(d < call.tag.axis for d in gone))


def _getitem(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """Spatial slices of a tensor, or one entry of its shape."""
    state, index = call.states[0], call.node.args[1]
    if isinstance(state, ShapeOf):
        rank, tag = len(tuple(_shape(call.args[0]))), state.tag
        if isinstance(index, slice):
            _need(tag.axis not in range(rank)[slice(index.start, index.stop, index.step)])
            return None
        return SizeOf(tag.ids) if _integer(index) % rank == tag.axis else None
    tag, items = call.tag, list(index) if isinstance(index, tuple) else [index]
    _need(all(i is None or i is Ellipsis or isinstance(i, int | slice | fx.Node) for i in items))
    if Ellipsis in items:
        at = items.index(Ellipsis)
        used = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (call.tensor.ndim - used)
    source, target = 0, 0
    for item in items:
        if item is None:
            target += 1
            continue
        if source == tag.axis:
            _need(item == slice(None))
            break
        _need(not isinstance(item, fx.Node) or tags.get(item) is None)
        source, target = source + 1, target + isinstance(item, slice)
    return tag.moved(target + tag.axis - source)


def _shape(value: object) -> tuple[int, ...]:
    _need(isinstance(value, tuple))
    assert isinstance(value, tuple)
    return value


def _size(flow: Flow, call: Call, prefix: str, tags: Tags) -> State:
    """``x.size()``, ``x.size(1)``, ``x.shape``; other attributes of a tensor say nothing."""
    tag = call.tag
    name = call.name if call.name != "getattr" else str(call.args[1])
    if name in ("dtype", "device", "ndim", "dim", "is_cuda", "requires_grad"):
        return None
    _need(name in ("shape", "size"))
    dim = call.argument(1, "dim") if name == "size" else None
    if dim is None:
        return ShapeOf(tag)
    return SizeOf(tag.ids) if _integer(dim) % call.tensor.ndim == tag.axis else None


def _table(rules: Mapping[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rules.items() for name in names.split()}


_MODULES = _table(
    {
        _keeps: "ReLU ReLU6 SiLU Swish SwishMe Mish MishMe GELU GELUTanh GELUQuick QuickGELU "
        "Hardswish HardSwish HardSwishMe HardMish HardMishMe Tanh ELU LeakyReLU SELU CELU "
        "Softsign Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout DropPath "
        "StochasticDepth",
        _fills: "Sigmoid Hardsigmoid HardSigmoid HardSigmoidMe Softplus LogSigmoid Hardtanh",
        _spatial: "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d "
        "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool2d FastAdaptiveAvgPool "
        "FastAdaptiveAvgPool2d SelectAdaptivePool2d AvgPool2dSame MaxPool2dSame Upsample "
        "UpsamplingNearest2d UpsamplingBilinear2d ZeroPad2d ReflectionPad2d ReplicationPad2d "
        "ConstantPad2d",
        _dense: "Conv1d Conv2d Conv3d Conv2dSame Linear ConvTranspose1d ConvTranspose2d "
        "ConvTranspose3d",
        _vector: "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm BatchNormAct2d "
        "FrozenBatchNorm2d FrozenBatchNormAct2d PReLU LayerScale LayerScale2d ChannelMask",
        _layer_norm: "LayerNorm LayerNorm2d GroupNorm GroupNorm1",
        _flatten: "Flatten",
    }
)

_FUNCTIONS = _table(
    {
        _keeps: "relu relu6 silu mish gelu hardswish tanh elu leaky_relu selu celu softsign "
        "dropout dropout1d dropout2d dropout3d feature_dropout drop_path stochastic_depth "
        "contiguous clone detach neg abs float square",
        _fills: "sigmoid hardsigmoid softplus exp clamp clip hardtanh logsigmoid",
        _softmax: "softmax log_softmax",
        _spatial: "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d interpolate",
        _reduce: "mean sum amax amin",
        _arithmetic: "add iadd sub isub mul imul multiply truediv itruediv div divide subtract "
        "maximum minimum",
        _cat: "cat concat concatenate",
        _pad: "pad",
        _flatten: "flatten",
        _view: "view reshape",
        _expand: "expand",
        _permute: "permute",
        _transpose: "transpose swapaxes swapdims",
        _unsqueeze: "unsqueeze",
        _squeeze: "squeeze",
        _getitem: "getitem",
        _size: "getattr size dim ndimension",
    }
)
