"""Which functions, methods and module classes a stored network may name.

A stored network is data: loading one must never run anything but network layers. So every
callable is looked up in lists that are built here from what torch itself declares to work on
tensors, and never by following dots through arbitrary modules.
"""

from __future__ import annotations

import enum
import importlib
import math
import operator
from collections.abc import Callable
from functools import cache
from types import FunctionType

import torch
from torch import nn
from torch.overrides import get_overridable_functions

from tailorbird.errors import StoreError

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
_NOT_OPERATORS = {"attrgetter", "itemgetter", "methodcaller", "call"}
_BUILTINS = (getattr, len, int, float, bool, max, min, sum, abs, round, slice, tuple, list)
_NOT_METHODS = frozenset((
    "apply_", "as_subclass", "backward", "const_data_ptr", "data_ptr", "map_", "map2_",
    "module_load", "new", "numpy", "record_stream", "register_hook",
    "register_post_accumulate_grad_hook", "reinforce", "resize", "resize_", "resize_as",
    "resize_as_", "resize_as_sparse_", "retain_grad", "set_", "share_memory_", "sparse_resize_",
    "sparse_resize_and_clear_", "storage", "storage_type", "tolist", "untyped_storage",
))  # fmt: skip
_NOT_LAYERS = tuple(
    f"tailorbird.graph.{name}"
    for name in ("callables", "describe", "encoding", "rebuild", "serial")
)
_FUNCTION_ROOTS = (
    "timm.layers.",
    "timm.models.",
    "torchvision.ops.",
    "tailorbird.graph.",
    "tailorbird.supernet.",
)
_ENUM_ROOTS = ("timm.layers.", "torch.nn.")
_CLASS_ROOTS = (
    "torch.nn.modules.", "timm.layers.", "timm.models.", "torchvision.ops.", "torchvision.models.",
    "tailorbird.graph.", "tailorbird.house.", "tailorbird.supernet.",
)  # fmt: skip


@cache
def _functions() -> dict[str, Callable[..., object]]:
    """Qualified name -> function, for all that torch, operator and math offer on tensors."""
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
            if callable(value) and id(value) in allowed and not key.startswith("__"):
                known[f"{name}.{key}"] = value
    for key in _FACTORIES:
        known[f"torch.{key}"] = getattr(torch, key)
    for key in _ACTIVATIONS:
        known[f"torch.nn.functional.{key}"] = getattr(torch.nn.functional, key)
    for key in dir(operator):
        value = getattr(operator, key)
        if not key.startswith("_") and callable(value) and key not in _NOT_OPERATORS:
            known[f"operator.{key}"] = value
    known.update({f"math.{key}": getattr(math, key) for key in ("ceil", "floor", "sqrt", "prod")})
    known.update({f"builtins.{function.__name__}": function for function in _BUILTINS})
    return known


@cache
def _names() -> dict[int, str]:
    """Identity of a function -> its shortest listed name."""
    names: dict[int, str] = {}
    for name, function in _functions().items():
        if id(function) not in names or len(name) < len(names[id(function)]):
            names[id(function)] = name
    return names


def function_name(function: object) -> str | None:
    """The name under which a function may be stored, or ``None`` if it may not.

    Example:
        >>> import os
        >>> function_name(torch.flatten), function_name(os.system)
        ('torch.flatten', None)
    """
    name = _names().get(id(function))
    if name is None and isinstance(function, FunctionType):
        name = f"{function.__module__}.{function.__qualname__}"
        try:
            found = resolve_function(name)
        except StoreError:
            return None
        return name if found is function else None
    return name


def resolve_function(name: str) -> Callable[..., object]:
    """The function of that name.

    Raises:
        StoreError: when the name is not on the list.
    """
    if name in _functions():
        return _functions()[name]
    function = _from_module(name, _FUNCTION_ROOTS)
    if isinstance(function, FunctionType) and _is_layer_function(function):
        return function
    raise StoreError(
        f"function {name!r}: expected a tensor function of torch, operator, timm or tailorbird; "
        "a stored network may call nothing else"
    )


def _is_layer_function(function: FunctionType) -> bool:
    """Tailorbird's own graph functions, and what timm or torchvision mark as graph leaves."""
    if function.__module__.startswith("tailorbird."):
        return function.__module__ not in _NOT_LAYERS
    if function.__module__.startswith("torchvision."):
        return True
    from timm.layers._fx import is_notrace_function

    extra = function.__module__ == "timm.layers.drop" and function.__name__.startswith("drop_")
    return extra or bool(is_notrace_function(function))


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
    return (
        isinstance(name, str)
        and name.isidentifier()
        and not name.startswith("_")
        and name not in _NOT_METHODS
        and callable(getattr(torch.Tensor, name, None))
    )
