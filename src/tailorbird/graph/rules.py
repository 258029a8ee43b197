"""What each known layer and function does to channels: which rule covers it, by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from torch import fx

from tailorbird.graph import rule_elementwise as elementwise
from tailorbird.graph import rule_layers as layers
from tailorbird.graph import rule_layout as layout
from tailorbird.graph.flow import Call, Flow, Grid, State, Tag, need

Rule = Callable[[Flow, Call], State]

_PACKAGES = {"torch", "timm", "torchvision", "tailorbird", "_operator", "builtins"}


def apply_rule(flow: Flow, call: Call, tags: dict[fx.Node, State]) -> tuple[bool, State]:
    """Whether a rule covers this call, and the result's state if so.

    Where channels are spread over several axes and the rule needs one, they are tried, from the
    outermost on, or the longest first where it only merges them; the first that the rule covers is
    decided for all that reads them.
    """
    table = _MODULES if call.module is not None else _FUNCTIONS
    source = type(call.module) if call.module is not None else call.node.target
    package = (getattr(source, "__module__", None) or "torch").split(".")[0]
    rule = table.get(call.name)
    if rule is None or package not in _PACKAGES:
        return False, None
    for at in _choices(call, rule):
        known = len(flow.parent)
        chosen = [
            state if at is None or not isinstance(state, Grid) else state.along(at + rank)
            for state, rank in zip(call.states, call.ranks, strict=True)
        ]
        try:
            state = rule(flow, replace(call, states=chosen))
            need(not isinstance(state, Tag) or call.out.shape[state.axis] == len(state.ids))
        except (IndexError, KeyError, TypeError, ValueError, RuntimeError):
            # A use of the layer that its rule does not cover; what it made so far stays whole.
            flow.pin(range(known, len(flow.parent)), f"'{call.path}' is not understood")
            continue
        for node, was, rank in zip(call.node.args, call.states, call.ranks, strict=True):
            if at is not None and isinstance(was, Grid) and isinstance(node, fx.Node):
                tags[node] = flow.decide(was, at + rank)
        return True, state
    return False, None


def _choices(call: Call, rule: Rule) -> Iterator[int | None]:
    """Axes, counted from the end, that might carry the channels; None where nothing is open."""
    grids = [
        {axis.at - rank: axis.size for axis in state.axes}
        for state, rank in zip(call.states, call.ranks, strict=True)
        if isinstance(state, Grid)
    ]
    if not grids or rule in _ON_GRIDS:
        yield None
        return
    common = [at for at in grids[0] if all(at in grid for grid in grids)]
    if rule in (layout.view, layout.flatten):
        common.sort(key=lambda at: -grids[0][at])
    yield from common


def _table(rules: Mapping[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rules.items() for name in names.split()}


_ON_GRIDS = (elementwise.unary, layout.permute, layout.transpose, layout.unsqueeze)
"""Rules that leave it open which of several axes carries the channels."""

_MODULES = _table(
    {
        elementwise.unary: "ReLU ReLU6 SiLU Swish SwishMe Mish MishMe GELU GELUTanh GELUQuick "
        "QuickGELU Hardswish HardSwish HardSwishMe HardMish HardMishMe Tanh ELU LeakyReLU SELU "
        "CELU Softsign Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout DropPath "
        "StochasticDepth Sigmoid Hardsigmoid HardSigmoid HardSigmoidMe Softplus LogSigmoid "
        "Hardtanh Tanhshrink Softshrink Hardshrink Threshold",
        elementwise.softmax: "Softmax LogSoftmax",
        elementwise.gated: "GLU",
        elementwise.product: "DropoutAttention",
        layers.spatial: "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d "
        "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d "
        "AdaptiveMaxPool2d AdaptiveMaxPool3d FastAdaptiveAvgPool FastAdaptiveAvgPool2d "
        "SelectAdaptivePool2d AvgPool2dSame MaxPool2dSame LPPool2d Upsample "
        "UpsamplingNearest2d UpsamplingBilinear2d ZeroPad2d ReflectionPad2d ReplicationPad2d "
        "ConstantPad2d",
        layers.dense: "Conv1d Conv2d Conv3d Conv2dSame Linear ConvTranspose1d ConvTranspose2d "
        "ConvTranspose3d NonDynamicallyQuantizableLinear",
        layers.vector: "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm BatchNormAct2d "
        "FrozenBatchNorm2d FrozenBatchNormAct2d InstanceNorm1d InstanceNorm2d InstanceNorm3d "
        "PReLU LayerScale LayerScale2d ChannelMask",
        layers.layer_norm: "LayerNorm LayerNorm2d LayerNormAct LayerNormAct2d LayerNormFp32 "
        "LayerNorm2dFp32 RMSNorm RmsNorm RmsNorm2d",
        layers.group_norm: "GroupNorm GroupNorm1 GroupNormAct",
        layout.flatten: "Flatten",
        layout.pixel_shuffle: "PixelShuffle",
        layout.pixel_unshuffle: "PixelUnshuffle",
        layout.channel_shuffle: "ChannelShuffle",
    }
)

_FUNCTIONS = _table(
    {
        elementwise.unary: "relu relu6 silu mish gelu hardswish tanh elu leaky_relu selu celu "
        "softsign tanhshrink softshrink hardshrink threshold dropout dropout1d dropout2d "
        "dropout3d feature_dropout drop_path stochastic_depth contiguous clone detach neg abs "
        "absolute positive float half double bfloat16 square sqrt rsqrt reciprocal exp expm1 "
        "exp2 log log1p log2 log10 sin cos tan asin acos atan sinh cosh asinh acosh atanh sinc "
        "erf erfc sign sgn floor ceil round trunc frac sigmoid hardsigmoid logit softplus clamp "
        "clamp_min clamp_max clip hardtanh logsigmoid nan_to_num logical_not isnan isfinite",
        elementwise.first: "type_as to type",
        elementwise.power: "pow",
        elementwise.softmax: "softmax log_softmax",
        elementwise.normalise: "normalize",
        elementwise.gated: "glu",
        elementwise.product: "matmul scaled_dot_product_attention",
        elementwise.several: "add iadd sub isub rsub mul imul multiply truediv itruediv div divide "
        "true_divide subtract floordiv mod remainder fmod atan2 maximum minimum fmax fmin where "
        "gt ge lt le eq ne greater less greater_equal less_equal logical_and logical_or "
        "logical_xor",
        layers.spatial: "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "adaptive_max_pool2d adaptive_max_pool3d lp_pool2d interpolate",
        layers.reduction: "mean sum amax amin std var",
        layout.cat: "cat concat concatenate",
        layout.stack: "stack",
        layout.split: "split chunk split_with_sizes",
        layout.unbind: "unbind",
        layout.pad: "pad",
        layout.flatten: "flatten",
        layout.view: "view reshape unflatten",
        layout.expand: "expand",
        layout.expand_as: "expand_as",
        layout.reshape_as: "reshape_as view_as",
        layout.turned: "roll flip",
        layout.permute: "permute",
        layout.transpose: "transpose swapaxes swapdims",
        layout.unsqueeze: "unsqueeze",
        layout.squeeze: "squeeze",
        layout.getitem: "getitem",
        layout.pixel_shuffle: "pixel_shuffle",
        layout.pixel_unshuffle: "pixel_unshuffle",
        layout.channel_shuffle: "channel_shuffle native_channel_shuffle",
        layout.size: "getattr size dim ndimension",
    }
)


def covered() -> dict[str, list[str]]:
    """The names of layers and of functions that there is a rule for."""
    return {"Layers": sorted(_MODULES), "Functions and methods": sorted(_FUNCTIONS)}
