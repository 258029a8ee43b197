"""Which functions, methods and module classes a stored network may name.

A stored network is data: loading one must never run anything but network layers. So every
callable is looked up in lists: of what torch itself declares to work on tensors, and of the few
functions of other libraries that tracers record. Classes are looked up below the packages that
hold layers. Code of the user's own is imported only where the caller says that it is trusted.
"""

from __future__ import annotations

import enum
import importlib
import math
import operator
import sys
from collections.abc import Callable, Collection
from functools import cache
from types import FunctionType, MethodType
from typing import cast

import torch
from torch import nn
from torch.autograd import Function
from torch.overrides import get_overridable_functions

from tailorbird.errors import ConfigError, StoreError
from tailorbird.factories import resolve_factory
from tailorbird.graph.functions import MADE_FROM, whole

TENSOR_ATTRIBUTES = frozenset(
    {"shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag", "requires_grad"}
    | {"is_cuda", "layout", "itemsize", "nbytes"}
)
"""What ``getattr`` may read of a tensor in a stored network."""

_FACTORIES = (
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "normal", "ones",
    "rand", "rand_like", "randn", "randn_like", "scalar_tensor", "tensor", "tril_indices",
    "triu_indices", "zeros", "broadcast_shapes", "zeros_like", "ones_like", "full_like",
    "empty_like", "is_tensor", "_assert", "sym_int", "sym_max", "sym_min", "sym_float", "sym_not",
)  # fmt: skip
_ACTIVATIONS = (
    "celu_", "elu_", "hardsigmoid", "hardswish", "hardtanh_", "leaky_relu_", "relu_", "rrelu_",
    "selu_", "sigmoid", "tanh", "threshold_", "upsample", "upsample_bilinear", "upsample_nearest",
)  # fmt: skip
_OPERATORS = (
    "eq", "ne", "lt", "gt", "le", "ge", "pos", "neg", "invert", "abs", "add", "sub", "mul",
    "matmul", "truediv", "floordiv", "mod", "and_", "or_", "xor", "getitem", "iadd", "isub", "imul",
    "imatmul", "itruediv", "ifloordiv", "imod", "iand", "ior", "ixor",
)  # fmt: skip
_AS_TENSORS = {
    "operator.pow": torch.pow,
    "operator.ipow": torch.pow,
    "operator.lshift": torch.bitwise_left_shift,
    "operator.ilshift": torch.bitwise_left_shift,
    "operator.rshift": torch.bitwise_right_shift,
    "operator.irshift": torch.bitwise_right_shift,
}
"""Operators that make numbers beyond all memory of two small ones; on tensors these do the same."""
_NUMBERS = ("ceil", "floor", "sqrt", "prod", "log", "log2")
_BUILTINS = (getattr, len, int, float, bool, max, min, sum, abs, round, slice, tuple, list)
_NOT_OF_TORCH = ("_sym_sqrt", "autocast", "fbgemm_", "miopen_", "quantize", "fused_moving_avg")
_LAYERS = {
    "timm.layers.attention": ("maybe_add_mask", "resolve_self_attn_mask"),
    "timm.layers.drop": ("drop_block_2d", "drop_block_fast_2d", "drop_path"),
    "timm.layers.pos_embed": ("resample_abs_pos_embed", "resample_abs_pos_embed_nhwc"),
    "timm.layers.pos_embed_sincos": ("get_mixed_grid", "make_coords_dinov3"),
    "timm.models.crossvit": ("scale_image",),
    "timm.models.davit": ("window_reverse",),
    "timm.models.gcvit": ("window_reverse",),
    "timm.models.hiera": ("get_resized_mask",),
    "timm.models.maxxvit": (
        *("window_reverse", "grid_reverse", "window_reverse_nchw", "grid_reverse_nchw"),
    ),
    "timm.models.mvitv2": ("reshape_pre_pool", "reshape_post_pool", "cal_rel_pos_type"),
    "timm.models.naflexvit": ("create_attention_mask", "global_pool_naflex"),
    "timm.models.nest": ("deblockify",),
    "timm.models.qwen3_vit": ("resample_pos_embed_grid",),
    "timm.models.swin_transformer": ("window_reverse",),
    "timm.models.swin_transformer_v2": ("window_reverse",),
    "timm.models.swin_transformer_v2_cr": ("window_reverse",),
    "timm.models.vision_transformer_sam": ("get_rel_pos",),
    "torchvision.models.swin_transformer": (
        *("_patch_merging_pad", "_get_relative_position_bias", "shifted_window_attention"),
    ),
    "torchvision.ops.drop_block": ("drop_block2d", "drop_block3d"),
    "torchvision.ops.stochastic_depth": ("stochastic_depth",),
}
"""What timm and torchvision ask tracers not to look into: module -> functions."""
_LIBRARY_OPERATORS = {
    "torchvision": ("deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"),
}
_NOT_ATEN = frozenset({"from_file"})
_NOT_METHODS = frozenset((
    "apply_", "as_subclass", "backward", "const_data_ptr", "data_ptr", "map_", "map2_",
    "module_load", "new", "numpy", "record_stream", "register_hook",
    "register_post_accumulate_grad_hook", "reinforce", "resize", "resize_", "resize_as",
    "resize_as_", "resize_as_sparse_", "retain_grad", "set_", "share_memory_", "sparse_resize_",
    "sparse_resize_and_clear_", "storage", "storage_type", "tolist", "untyped_storage",
))  # fmt: skip
_ENUM_ROOTS = ("timm.layers.", "torch.nn.")
_CLASS_ROOTS = (
    "torch.nn.modules.", "timm.layers.", "timm.models.", "torchvision.ops.", "torchvision.models.",
    "tailorbird.graph.", "tailorbird.house.", "tailorbird.supernet.",
)  # fmt: skip


@cache
def functions() -> dict[str, Callable[..., object]]:
    """Qualified name -> function, for all of torch, operator and math that a network may call.

    Of timm and torchvision only what they ask tracers not to look into, see `resolve_function`.
    """
    known: dict[str, Callable[..., object]] = {}
    tables = get_overridable_functions()
    spaces = {
        "torch": torch,
        "torch.nn.functional": torch.nn.functional,
        "torch.linalg": torch.linalg,
        "torch.fft": torch.fft,
        "torch.special": torch.special,
    }
    for name, space in spaces.items():
        allowed = {id(function) for function in tables.get(space, ())}
        for key in dir(space):
            value = getattr(space, key)
            if id(value) in allowed and not key.startswith(("__", *_NOT_OF_TORCH)):
                known[f"{name}.{key}"] = value
    known |= {f"torch.{key}": getattr(torch, key) for key in _FACTORIES}
    known |= {
        f"torch.nn.functional.{key}": getattr(torch.nn.functional, key) for key in _ACTIVATIONS
    }
    known |= {f"operator.{key}": getattr(operator, key) for key in _OPERATORS}
    known |= {f"math.{key}": getattr(math, key) for key in _NUMBERS}
    known |= {f"builtins.{function.__name__}": function for function in _BUILTINS}
    return known


@cache
def _names() -> dict[int, str]:
    """Identity of a function -> its shortest listed name."""
    names: dict[int, str] = {}
    for name, function in functions().items():
        if id(function) not in names or len(name) < len(names[id(function)]):
            names[id(function)] = name
    return names | {
        id(getattr(operator, name.removeprefix("operator."))): names[id(function)]
        for name, function in _AS_TENSORS.items()
    }


def function_name(function: object) -> str | None:
    """The name under which a function may be stored, or ``None`` if it may not.

    Example:
        >>> import os
        >>> function_name(torch.flatten), function_name(os.system), function_name(operator.pow)
        ('torch.flatten', None, 'torch.pow')
    """
    name = _names().get(id(function))
    if name is not None:
        return name
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        name = f"torch.ops.{function!s}"
    elif isinstance(function, FunctionType):
        name = f"{function.__module__}.{function.__qualname__}"
    try:
        return name if name and resolve_function(name) is function else None
    except StoreError:
        return None


def resolve_function(name: str) -> Callable[..., object]:
    """The function of that name.

    Raises:
        StoreError: when the name is not on the list.
    """
    for find in (functions().get, _AS_TENSORS.get, _operator, _layer):
        if (found := find(name)) is not None:
            return cast("Callable[..., object]", found)
    raise StoreError(
        f"function {name!r}: expected a tensor function of torch, operator, timm or torchvision; "
        "a stored network may call nothing else"
    )


def _layer(name: str) -> Callable[..., object] | None:
    """A function of timm or torchvision that is listed here."""
    module, _, attribute = name.rpartition(".")
    if attribute not in _LAYERS.get(module, ()):
        return None
    found = _from_module(name, ("timm.", "torchvision."))
    return found if callable(found) else None


def _operator(name: str) -> Callable[..., object] | None:
    """An operator of torch's dispatcher that writes into nothing, such as
    ``torch.ops.aten.relu.default``."""
    parts = name.split(".")
    if parts[:2] != ["torch", "ops"] or not 4 <= len(parts) <= 5:
        return None
    library, operation = parts[2:4]
    if any(not part.isidentifier() or part.startswith("__") for part in parts):
        return None
    if library == "aten":
        if len(parts) == 4 or operation in _NOT_ATEN:
            return None
    elif operation not in _LIBRARY_OPERATORS.get(library, ()):
        return None
    elif library == "torchvision":
        importlib.import_module("torchvision.ops")
    found = getattr(getattr(torch.ops, library), operation, None)
    if len(parts) == 4:
        return found if isinstance(found, torch._ops.OpOverloadPacket) else None
    found = getattr(found, parts[4], None)
    pure = isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable
    return cast("Callable[..., object]", found) if pure else None


def _from_module(name: str, roots: tuple[str, ...]) -> object | None:
    """``module.attribute`` where the module lies under a root and defines the attribute itself."""
    module, _, attribute = name.rpartition(".")
    if not f"{module}.".startswith(roots) or "__" in name:
        return None
    if not all(atom.isidentifier() for atom in name.split(".")):
        return None
    try:
        value = vars(importlib.import_module(module)).get(attribute)
    except ImportError:
        return None
    return value if getattr(value, "__module__", None) == module else None


def class_name(kind: type) -> str | None:
    """The name under which a module class may be stored, or ``None`` if it may not.

    Example:
        >>> class_name(nn.Conv2d), class_name(torch.fx.GraphModule)
        ('torch.nn.modules.conv.Conv2d', None)
    """
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return name if resolve_class(name) is kind else None
    except StoreError:
        return None


def resolve_class(name: str) -> type[nn.Module]:
    """The module class of that name.

    Raises:
        StoreError: when the name is not a layer class of torch.nn, timm, torchvision, tailorbird.
    """
    kind = _from_module(name, _CLASS_ROOTS)
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return kind
    raise StoreError(
        f"class {name!r}: expected a layer class of torch.nn, timm, torchvision or tailorbird"
    )


def enum_name(kind: type) -> str | None:
    """The name under which an enumeration may be stored, or ``None`` if it may not."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return name if resolve_enum(name) is kind else None
    except StoreError:
        return None


def resolve_enum(name: str) -> type[enum.Enum]:
    """The enumeration of that name.

    Raises:
        StoreError: when the name is not an enumeration of timm's or torch's layers.
    """
    kind = _from_module(name, _ENUM_ROOTS)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind
    raise StoreError(f"enumeration {name!r}: expected one of timm's or torch's layers")


def is_method(name: object) -> bool:
    """Whether a stored network may call the tensor method of that name.

    Example:
        >>> is_method("flatten"), is_method("__reduce__"), is_method("share_memory_")
        (True, False, False)
    """
    return isinstance(name, str) and name in methods()


@cache
def methods() -> frozenset[str]:
    """Methods of tensors that a stored network may call."""
    return frozenset(
        name
        for name in dir(torch.Tensor)
        if not name.startswith("_")
        and name not in _NOT_METHODS
        and callable(getattr(torch.Tensor, name, None))
    )


# ---------------------------------------------------------------- code of the user's own


def code_path(found: object) -> str | None:
    """``module:name``, under which a class or function of the user's own can be imported again.

    ``None`` for what stands inside a function, or isn't what is found under its name.

    Example:
        >>> import fractions
        >>> code_path(fractions.Fraction), code_path(fractions.Fraction.from_float)
        ('fractions:Fraction', 'fractions:Fraction.from_float')
        >>> code_path(lambda x: x)
    """
    found = _origin(found)
    owner = getattr(found, "__self__", None)
    module = getattr(owner if isinstance(owner, type) else found, "__module__", None)
    name = getattr(found, "__qualname__", None)
    if isinstance(owner, type) and isinstance(found, MethodType):
        name = f"{owner.__qualname__}.{found.__name__}"
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    there: object = sys.modules.get(module)
    for atom in name.split("."):
        there = getattr(there, atom, None)
    return f"{module}:{name}" if _origin(there) == found else None


def _origin(found: object) -> object:
    """An autograd function, for the one that stands for it in graphs."""
    return getattr(found, MADE_FROM, found)


def resolve_code(path: object, trust: Collection[str]) -> Callable[..., object]:
    """The class or function of that path; only what is trusted is imported.

    Raises:
        StoreError: for a path that isn't trusted, or that can't be imported.
    """
    if not isinstance(path, str) or path not in trust:
        raise StoreError(f"code {str(path)[:80]!r}: not among what was said to be trusted")
    try:
        return resolve_factory(path)
    except ConfigError as error:
        raise StoreError(str(error)) from error


def as_target(found: Callable[..., object]) -> Callable[..., object]:
    """What a graph calls: an autograd function is applied."""
    return whole(found) if isinstance(found, type) and issubclass(found, Function) else found
