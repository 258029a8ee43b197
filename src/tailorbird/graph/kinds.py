"""What a traced node does, in the words that blocks and reports use."""

from __future__ import annotations

from torch import fx, nn

CONSTANT = "constant"  # depends on no image: parameters, buffers and what is made of them alone
SIZE = "size"  # a number made from the batch size
HEAVY = frozenset({"conv", "linear", "attention", "recurrent"})
BOUNDARIES = frozenset(
    {"input", "activation", "norm", "add", "concat", "dropout", "multiply", "pool", "composite"}
)

_FUNCTIONS = {
    "add": ("add", "sub", "subtract", "iadd", "isub"),
    "multiply": ("mul", "multiply", "imul", "div", "truediv", "divide"),
    "concat": ("cat", "concat", "concatenate", "stack"),
    "conv": ("conv1d", "conv2d", "conv3d", "conv_transpose2d"),
    "linear": ("linear",),
    "attention": ("scaled_dot_product_attention", "multi_head_attention_forward"),
    "matmul": ("matmul", "bmm", "mm", "einsum", "baddbmm"),
    "norm": ("batch_norm", "layer_norm", "group_norm", "rms_norm", "normalize", "instance_norm"),
    "activation": (
        *("relu", "relu6", "silu", "gelu", "sigmoid", "hardswish", "hardsigmoid", "hardtanh"),
        *("softmax", "log_softmax", "tanh", "mish", "elu", "leaky_relu", "prelu", "clamp", "celu"),
        *("selu", "softplus", "logsigmoid", "relu_", "threshold", "clip", "hard_sigmoid"),
    ),
    "pool": (
        *("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean"),
        *("boolean_dispatch", "amax", "max_pool2d_with_indices", "lp_pool2d"),
        "sum",
    ),
    "dropout": ("dropout", "dropout1d", "dropout2d", "alpha_dropout", "stochastic_depth"),
    "resize": ("interpolate", "upsample"),
    "shape": (
        *("view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze"),
        *("unsqueeze", "contiguous", "chunk", "split", "unbind", "expand", "getitem", "roll"),
        *("pad", "swapaxes", "movedim", "pixel_shuffle", "pixel_unshuffle", "unfold", "narrow"),
        *("reshape_as", "view_as", "expand_as", "tile", "repeat", "flip"),
    ),
}
_BY_NAME = {name: kind for kind, names in _FUNCTIONS.items() for name in names}
_MODULES: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("conv", (nn.modules.conv._ConvNd,)),
    ("linear", (nn.Linear, nn.Bilinear)),
    ("attention", (nn.MultiheadAttention,)),
    ("recurrent", (nn.RNNBase, nn.RNNCellBase)),
    (
        "norm",
        (
            nn.modules.batchnorm._NormBase,
            nn.LayerNorm,
            nn.GroupNorm,
            nn.RMSNorm,
            nn.LocalResponseNorm,
        ),
    ),
    ("dropout", (nn.modules.dropout._DropoutNd,)),
    ("resize", (nn.Upsample,)),
    ("shape", (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.Fold, nn.Unfold)),
)

_BY_PART = {
    "attention": "attention",
    "droppath": "dropout",
    "dropblock": "dropout",
    "dropout": "dropout",
    "stochasticdepth": "dropout",
    "batchnorm": "norm",
    "layernorm": "norm",
    "groupnorm": "norm",
}


def kind_of(node: fx.Node, root: nn.Module) -> str:
    """The kind of one node of a graph whose modules are in ``root``.

    Kinds: input, constant, conv, linear, attention, recurrent, matmul, norm, activation, pool,
    dropout, add, multiply, concat, resize, shape, composite (a leaf that holds layers of its own),
    other.
    """
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return CONSTANT
    if node.op == "call_module":
        return kind_of_module(root.get_submodule(str(node.target)))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return _BY_NAME.get(str(name), "other")


def kind_of_module(module: nn.Module) -> str:
    """The kind of one leaf module."""
    for kind, classes in _MODULES:
        if isinstance(module, classes):
            return kind
    homes = {base.__module__ for base in type(module).__mro__}
    for kind in ("activation", "pooling"):
        if f"torch.nn.modules.{kind}" in homes:
            return "pool" if kind == "pooling" else kind
    named = type(module).__name__.lower()
    for part, kind in _BY_PART.items():
        if part in named:
            return kind
    return "other" if next(module.children(), None) is None else "composite"
