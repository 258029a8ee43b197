"""Modules and graphs as JSON-able values.

Three ways to store a module, tried in this order; each is proved by rebuilding the module (on
the meta device, so that it costs no memory) and comparing it with the original:

1. its class and constructor arguments, read back from attributes of the same name;
2. its class, plain attributes, tensors' shapes and children, where the constructor can't be
   inferred (timm's ``SqueezeExcite`` computes widths and keeps only the result);
3. its traced graph, where the class isn't torch's, timm's, torchvision's or Tailorbird's.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

import torch
from torch import fx, nn

from tailorbird.errors import GraphError, TailorbirdError
from tailorbird.graph.callables import class_name, function_name, is_method
from tailorbird.graph.encoding import Json, UnstorableError, encode
from tailorbird.graph.rebuild import CONTAINERS, join, rebuild

_PLUMBING = frozenset(vars(nn.Module()))


def describe(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    """How to rebuild a module (without its weights); ``seen`` maps modules to paths.

    Raises:
        GraphError: naming the module that can't be stored, and why.
    """
    if module in seen:
        return {"kind": "shared", "path": seen[module]}
    seen[module] = path
    if module._forward_hooks or module._forward_pre_hooks:
        raise GraphError(
            f"module {path!r} ({type(module).__name__}) has forward hooks, which can't be "
            "stored; remove them first, or build what they do into the network",
            module=path,
        )
    if isinstance(module, fx.GraphModule):
        return _describe_graph(module, path, seen)
    for name, kind in CONTAINERS.items():
        if type(module) is kind:
            return {
                "kind": "container",
                "class": name,
                "tensors": tensor_shapes(module),
                "children": _describe_children(module, path, seen),
            }
    return _describe_leaf(module, path, seen)


def _describe_children(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    return {
        name: None if child is None else describe(child, join(path, name), seen)
        for name, child in module._modules.items()
    }


def tensor_shapes(module: nn.Module) -> Json:
    """The module's own parameters and buffers: kind, shape and type; ``None`` for empty slots."""
    table: Json = {}
    for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
        for name, tensor in tensors.items():
            record: Json | None = None
            if tensor is not None:
                dtype = str(tensor.dtype).removeprefix("torch.")
                record = {"kind": kind, "shape": list(tensor.shape), "dtype": dtype}
                if kind == "buffer":
                    record["persistent"] = name not in module._non_persistent_buffers_set
            table[name] = record or {"kind": kind, "shape": None}
    return table


def _describe_leaf(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    reasons: list[str] = []
    for attempt in (_by_constructor, _by_attributes, _by_tracing):
        known = dict(seen)
        try:
            spec = attempt(module, path, known)
            if attempt is not _by_tracing:
                _prove(module, spec, path, seen)
        except (UnstorableError, TailorbirdError) as error:
            reasons.append(str(error))
            continue
        seen.update(known)
        return spec
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    raise GraphError(
        f"module {path!r} ({kind}) can't be stored without pickle: "
        + "; ".join(dict.fromkeys(reasons))
        + ". Write it so that torch.fx can trace it, or use a layer of torch.nn or timm",
        module=path,
    )


def _prove(module: nn.Module, spec: Json, path: str, seen: dict[nn.Module, str]) -> None:
    """Rebuild a leaf from its spec and compare; ``UnstorableError`` says what came back wrong."""
    built = {where: other for other, where in seen.items() if other is not module}
    with torch.device("meta"):
        fault = difference(module, rebuild(spec, path, built))
    if fault:
        raise UnstorableError(fault)


def _by_constructor(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    """Arguments are attributes of the same name; what is missing is left to its default."""
    name = class_name(type(module))
    if name is None:
        raise UnstorableError("its class is the user's own")
    for inner, child in module.named_modules():
        if seen.setdefault(child, join(path, inner)) != join(path, inner) and child is not module:
            raise UnstorableError(f"{inner!r} inside it is shared with {seen[child]!r}")
    arguments: Json = {}
    for parameter in inspect.signature(type(module)).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = _argument(module, parameter.name)
        if value is parameter.default:
            continue
        try:
            arguments[parameter.name] = encode(value)
        except UnstorableError:
            continue
    return {"kind": "class", "class": name, "arguments": arguments}


def _argument(module: nn.Module, name: str) -> object:
    value = getattr(module, name, inspect.Parameter.empty)
    if name == "bias" and (value is None or isinstance(value, torch.Tensor)):
        return value is not None
    if name == "dtype":
        weight = next(module.parameters(), None)
        changed = weight is not None and weight.dtype != torch.get_default_dtype()
        return weight.dtype if weight is not None and changed else None
    if name == "device":
        return None
    if name == "num_parameters" and isinstance(module, nn.PReLU):
        return module.weight.numel()
    if isinstance(value, torch.Tensor):
        return inspect.Parameter.empty
    return value


def _by_attributes(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    """The class, and all that its constructor left behind."""
    name = class_name(type(module))
    if name is None:
        raise UnstorableError("its class is the user's own")
    attributes: Json = {}
    for key, value in plain_attributes(module):
        try:
            attributes[key] = encode(value)
        except UnstorableError as error:
            raise UnstorableError(f"attribute {key!r} holds a {error}") from None
    return {
        "kind": "attributes",
        "class": name,
        "attributes": attributes,
        "tensors": tensor_shapes(module),
        "children": _describe_children(module, path, seen),
    }


class _Tracer(fx.Tracer):
    """Stops at every class that can be stored by name."""

    def is_leaf_module(self, m: nn.Module, _qualified_name: str) -> bool:
        return class_name(type(m)) is not None and not isinstance(m, nn.Sequential)


def _by_tracing(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    """The module's own graph; the class isn't needed any more."""
    twin = copy.deepcopy(module).train(not module.training)
    traced, other = trace_leaf(module), trace_leaf(twin)
    if _graph_nodes(traced, path) != _graph_nodes(other, path):
        raise UnstorableError(
            "its forward differs between train and eval mode, and would be frozen"
        )
    return describe(traced, path, seen)


def trace_leaf(module: nn.Module) -> fx.GraphModule:
    """The graph of a module of the user's own class; its children are shared, not copied.

    Raises:
        UnstorableError: when torch.fx can't trace it.
    """
    try:
        return fx.GraphModule(module, _Tracer().trace(module))
    except Exception as error:  # tracing runs foreign code, which may raise anything
        raise UnstorableError(f"torch.fx can't trace it ({str(error)[:200]})") from error


def plain_attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """What the module's class set, apart from tensors, children and nn.Module's own plumbing."""
    return ((key, value) for key, value in vars(module).items() if key not in _PLUMBING)


def difference(original: nn.Module, rebuilt: nn.Module) -> str:
    """What a rebuilt module has wrong, in words; empty when nothing."""
    kind = type(original).__name__
    left, right = dict(plain_attributes(original)), dict(plain_attributes(rebuilt))
    wrong = [
        key
        for key in sorted(left.keys() | right.keys())
        if key not in left or key not in right or not _alike(left[key], right[key])
    ]
    faults = {
        f"{kind} comes back as {type(rebuilt).__name__}": type(original) is not type(rebuilt),
        f"{kind}: other parameters or buffers come back": (
            tensor_shapes(original) != tensor_shapes(rebuilt)
        ),
        f"{kind}: attributes {wrong} come back otherwise": bool(wrong),
        f"{kind}: other children come back": (
            [(name, child is None) for name, child in original._modules.items()]
            != [(name, child is None) for name, child in rebuilt._modules.items()]
        ),
    }
    for fault, found in faults.items():
        if found:
            return fault
    pairs = zip(original.children(), rebuilt.children(), strict=True)
    return next(filter(None, (difference(child, again) for child, again in pairs)), "")


def _alike(left: object, right: object) -> bool:
    try:
        return encode(left) == encode(right)
    except UnstorableError:
        return left is right


def _describe_graph(module: fx.GraphModule, path: str, seen: dict[nn.Module, str]) -> Json:
    if type(module.graph._codegen) is not fx.graph.CodeGen:
        raise GraphError(f"module {path!r}: graphs with structured inputs can't be stored")
    return {
        "kind": "graph",
        "nodes": _graph_nodes(module, path),
        "tensors": tensor_shapes(module),
        "children": _describe_children(module, path, seen),
    }


def _graph_nodes(module: fx.GraphModule, path: str) -> list[Json]:
    records: list[Json] = []
    for node in module.graph.nodes:
        where = f"{path or 'network'}: node {node.name!r}"
        target = node.target
        if node.op == "call_function":
            target = function_name(node.target)
            if target is None:
                raise GraphError(
                    f"{where} calls {node.target!r}, which can't be stored by name; use "
                    "functions of torch, operator or timm, or put the call into a module",
                    module=path,
                )
        elif node.op == "call_method" and not is_method(target):
            raise GraphError(f"{where} calls method {target!r}, which can't be stored", module=path)
        try:
            args = [encode(value, nodes=True) for value in node.args]
            kwargs = {key: encode(value, nodes=True) for key, value in node.kwargs.items()}
        except UnstorableError as error:
            raise GraphError(
                f"{where}: an argument can't be stored: {error}", module=path
            ) from None
        records.append(
            {"op": node.op, "name": node.name, "target": target, "args": args, "kwargs": kwargs}
        )
    return records
