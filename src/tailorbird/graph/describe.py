"""Modules and graphs as JSON-able values.

Four ways to store a module, tried in this order; each is proved by rebuilding the module (on
the meta device, so that it costs no memory) and comparing it with the original:

1. its class and constructor arguments, read back from attributes of the same name;
2. its class, plain attributes, tensors' shapes and children, where the constructor can't be
   inferred (timm's ``SqueezeExcite`` computes widths and keeps only the result);
3. its traced graph, where the class isn't torch's, timm's, torchvision's or Tailorbird's;
4. as in 2, with code of the user's own by its import path: reading it back then needs that code.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from tailorbird.errors import GraphError, TailorbirdError
from tailorbird.graph import functions
from tailorbird.graph.callables import class_name, code_path, function_name, is_method
from tailorbird.graph.encoding import Json, Terms, UnstorableError, code_in, encode
from tailorbird.graph.naming import gather
from tailorbird.graph.rebuild import CONTAINERS, Builder, join, owned

_PLUMBING = frozenset(vars(nn.Module()))
_ARGUMENTS = Terms(nodes=True, code=True)


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
                record = _shape(tensor) | {"kind": kind}
                if kind == "buffer":
                    record["persistent"] = name not in module._non_persistent_buffers_set
            table[name] = record or {"kind": kind, "shape": None}
    return table | {
        name: _shape(tensor) | {"kind": "attribute"} for name, tensor in plain_tensors(module)
    }


def _shape(tensor: torch.Tensor) -> Json:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def plain_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that are attributes and nothing more, neither parameters nor buffers."""
    return ((key, value) for key, value in vars(module).items() if isinstance(value, torch.Tensor))


def _describe_leaf(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    reasons: list[str] = []
    for attempt in (_by_constructor, _by_attributes, _by_tracing, _by_code):
        known = dict(seen)
        try:
            spec = attempt(module, path, known)
            if attempt is not _by_tracing:
                _prove(module, spec, path, seen)
        except (UnstorableError, TailorbirdError) as error:
            reasons.append(str(error))
            continue
        except RecursionError:
            reasons.append("its attributes refer to each other without end")
            continue
        seen.update(known)
        return spec
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    raise GraphError(
        f"module {path!r} ({kind}) can't be stored without pickle: "
        + "; ".join(dict.fromkeys(reasons))
        + ". Give it a class at the top of a module, with plain attributes; or write it so that "
        "torch.fx can trace it",
        module=path,
    )


def _prove(module: nn.Module, spec: Json, path: str, seen: dict[nn.Module, str]) -> None:
    """Rebuild a leaf from its spec and compare; ``UnstorableError`` says what came back wrong."""
    built = {where: other for other, where in seen.items() if other is not module}
    builder = Builder(code_in(spec), built)
    with torch.device("meta"):
        rebuilt = builder.rebuild(spec, path)
        builder.settle()
    fault = difference(module, rebuilt)
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


def _by_attributes(
    module: nn.Module, path: str, seen: dict[nn.Module, str], *, code: bool = False
) -> Json:
    """The class, and all that its constructor left behind."""
    kind: object = class_name(type(module))
    if kind is None:
        where = code_path(type(module)) if code else None
        if where is None:
            raise UnstorableError(
                f"its class {type(module).__qualname__!r} isn't found in its module"
                if code
                else "its class is the user's own"
            )
        kind = {"code": where}
    terms = Terms(owned=_identities(module), code=code)
    attributes: Json = {}
    for key, value in plain_attributes(module):
        try:
            attributes[key] = encode(value, terms)
        except UnstorableError as error:
            raise UnstorableError(f"attribute {key!r} holds a {error}") from None
    return {
        "kind": "attributes",
        "class": kind,
        "attributes": attributes,
        "tensors": tensor_shapes(module),
        "children": _describe_children(module, path, seen),
    }


def _by_code(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    """As by attributes, with classes and functions of the user's own by their import paths."""
    return _by_attributes(module, path, seen, code=True)


def _identities(module: nn.Module) -> dict[int, str]:
    return {id(part): name for name, part in reversed(owned(module).items())}


class _Tracer(fx.Tracer):
    """Stops at every class that can be stored by name."""

    def is_leaf_module(self, m: nn.Module, _qualified_name: str) -> bool:
        return class_name(type(m)) is not None and not isinstance(m, nn.Sequential)


class _GradModes(TorchFunctionMode):
    """Refuses what a trace would forget: that gradients were switched off or on."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is torch._C._set_grad_enabled:
            raise UnstorableError("it switches gradients off or on")
        return func(*args, **(kwargs or {}))


def _by_tracing(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> Json:
    """The module's own graph; the class isn't needed any more."""
    return describe(trace_leaf(module), path, seen)


def trace_leaf(module: nn.Module) -> fx.GraphModule:
    """The graph of a module of the user's own class; its children are shared, not copied.

    It is traced twice, and in either mode, so that state kept between calls shows.

    Raises:
        UnstorableError: when torch.fx can't trace it, or the trace would not be the module.
    """
    one, other = copy.deepcopy(module), copy.deepcopy(module).train(not module.training)
    graphs = [_graph(one), _graph(one), _graph(other)]
    first, *others = (_graph_nodes(gather(graph, one, other), "") for graph in graphs)
    if any(nodes != first for nodes in others):
        raise UnstorableError(
            "its forward differs between train and eval mode or from call to call, and would be "
            "frozen"
        )
    return gather(graphs[0], module, one)


def _graph(module: nn.Module) -> fx.Graph:
    """The graph of a module of the user's own class.

    Raises:
        UnstorableError: when torch.fx can't trace it, or the trace would lose a gradient.
    """

    def refuse(function: type, apply: Callable[..., object], args: tuple[object, ...]) -> object:
        if any(isinstance(arg, fx.Proxy) for arg in args):
            raise UnstorableError(f"{function.__name__} has a backward of its own")
        return apply(*args)

    try:
        with functions.watched(refuse), _GradModes():
            return _Tracer().trace(module)
    except Exception as error:  # tracing runs foreign code, which may raise anything
        raise UnstorableError(f"torch.fx can't trace it ({str(error)[:200]})") from error


def plain_attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """What the module's class set, apart from tensors, children and nn.Module's own plumbing."""
    return (
        (key, value)
        for key, value in vars(module).items()
        if key not in _PLUMBING and not isinstance(value, torch.Tensor)
    )


def difference(original: nn.Module, rebuilt: nn.Module) -> str:
    """What a rebuilt module has wrong, in words; empty when nothing."""
    kind = type(original).__name__
    left, right = dict(plain_attributes(original)), dict(plain_attributes(rebuilt))
    ours, theirs = (Terms(owned=_identities(m), code=True) for m in (original, rebuilt))
    wrong = [
        key
        for key in sorted(left.keys() | right.keys())
        if key not in left or key not in right or not _alike(left[key], ours, right[key], theirs)
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


def _alike(left: object, ours: Terms, right: object, theirs: Terms) -> bool:
    try:
        return encode(left, ours) == encode(right, theirs)
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


def unlisted(module: fx.GraphModule) -> bool:
    """Whether a graph calls what can't be stored by name, or modules with hooks.

    Example:
        >>> unlisted(fx.symbolic_trace(nn.ReLU()))
        False
    """
    names = (node for node in module.graph.nodes if node.op in ("call_function", "call_method"))
    return any(
        function_name(node.target) is None and code_path(node.target) is None
        if node.op == "call_function"
        else not is_method(node.target)
        for node in names
    ) or any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _graph_nodes(module: fx.GraphModule, path: str) -> list[Json]:
    records: list[Json] = []
    for node in module.graph.nodes:
        where = f"{path or 'network'}: node {node.name!r}"
        target: object = node.target
        if node.op == "call_function":
            target, code = function_name(node.target), code_path(node.target)
            if target is None and code is not None:
                target = {"code": code}
            if target is None:
                raise GraphError(
                    f"{where} calls {node.target!r}, which can't be stored by name; use "
                    "functions of torch, or one that stands at the top of a module",
                    module=path,
                )
        elif node.op == "call_method" and not is_method(target):
            raise GraphError(f"{where} calls method {target!r}, which can't be stored", module=path)
        try:
            args = [encode(value, _ARGUMENTS) for value in node.args]
            kwargs = {key: encode(value, _ARGUMENTS) for key, value in node.kwargs.items()}
        except UnstorableError as error:
            raise GraphError(
                f"{where}: an argument can't be stored: {error}", module=path
            ) from None
        records.append(
            {"op": node.op, "name": node.name, "target": target, "args": args, "kwargs": kwargs}
        )
    return records
