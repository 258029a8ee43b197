"""From JSON to modules and graphs: the other half of ``describe``, safe on hostile input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from keyword import iskeyword
from typing import cast

import torch
from torch import fx, nn
from torch.fx.node import Argument

from tailorbird.errors import StoreError
from tailorbird.graph.callables import TENSOR_ATTRIBUTES, is_method, resolve_class, resolve_function
from tailorbird.graph.encoding import Json, decode, dtype_of, items_of, shape_of

CONTAINERS: dict[str, type[nn.Module]] = {
    "Module": nn.Module,
    "Sequential": nn.Sequential,
    "ModuleList": nn.ModuleList,
    "ModuleDict": nn.ModuleDict,
}
_DEPTH = 40
_OPS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")
_PLUMBING = frozenset(vars(nn.Module()))


def rebuild(spec: object, path: str, built: dict[str, nn.Module]) -> nn.Module:
    """The module that ``describe`` described, with fresh weights; ``built`` maps path to module.

    Raises:
        StoreError: for anything that ``describe`` would not have written.
    """
    if path.count(".") > _DEPTH:
        raise StoreError(f"module {path[:80]!r}: nested deeper than {_DEPTH}")
    table = _table(spec, f"module {path!r}")
    kind = table.get("kind")
    if kind == "shared":
        first = table.get("path")
        if not isinstance(first, str) or first not in built:
            raise StoreError(f"module {path!r}: shares {str(first)[:80]!r}, which isn't built yet")
        return built[first]
    if not isinstance(kind, str) or kind not in _REBUILDERS:
        raise StoreError(f"module {path!r}: unknown kind {str(kind)[:80]!r}")
    module = _REBUILDERS[kind](table, path, built)
    for name, child in module.named_modules():
        built.setdefault(join(path, name), child)
    return module


def join(path: str, name: str) -> str:
    """The dotted path of a child."""
    return f"{path}.{name}" if path and name else path or name


def _table(value: object, what: str) -> Json:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise StoreError(f"{what}: expected a table with names, got {str(value)[:80]!r}")
    return value


def _name(name: str, what: str) -> str:
    """Names become source text in torch.fx, so only letters, digits and underscores pass."""
    if not name or not name.replace("_", "a").isalnum() or not name.isascii():
        raise StoreError(f"{what} {name[:80]!r}: expected letters, digits and underscores")
    if name.startswith("__"):
        raise StoreError(f"{what} {name[:80]!r}: names with two leading underscores are refused")
    return name


def _rebuild_class(table: Json, path: str, _built: dict[str, nn.Module]) -> nn.Module:
    kind = resolve_class(str(table.get("class")))
    arguments = _table(table.get("arguments"), f"module {path!r}: arguments")
    values = {_name(key, "argument"): decode(value, {}) for key, value in arguments.items()}
    try:
        return kind(**values)
    except Exception as error:  # constructors raise anything on arguments that don't fit
        raise StoreError(f"module {path!r}: {kind.__name__}: {str(error)[:200]}") from error


def _rebuild_attributes(table: Json, path: str, built: dict[str, nn.Module]) -> nn.Module:
    kind = resolve_class(str(table.get("class")))
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    attributes = _table(table.get("attributes"), f"module {path!r}: attributes")
    for key, value in attributes.items():
        if _name(key, "attribute") in _PLUMBING or callable(getattr(nn.Module, key, None)):
            raise StoreError(f"module {path!r}: attribute {key!r} is nn.Module's own")
        vars(module)[key] = decode(value, {})
    return _fill(module, table, path, built)


def _rebuild_container(table: Json, path: str, built: dict[str, nn.Module]) -> nn.Module:
    kind = CONTAINERS.get(str(table.get("class")))
    if kind is None:
        raise StoreError(f"module {path!r}: unknown container {str(table.get('class'))[:80]!r}")
    return _fill(kind(), table, path, built)


def _fill(module: nn.Module, table: Json, path: str, built: dict[str, nn.Module]) -> nn.Module:
    """Give a module its tensors (zeros) and children."""
    tensors = _table(table.get("tensors"), f"module {path!r}: tensors")
    for name, record in tensors.items():
        _register(module, _name(name, "tensor"), _table(record, f"tensor {name!r}"))
    children = _table(table.get("children"), f"module {path!r}: children")
    for name, child in children.items():
        if hasattr(module, _name(name, "module")) and name not in module._modules:
            raise StoreError(f"module {path!r}: name {name!r} is taken")
        where = join(path, name)
        module._modules[name] = None if child is None else rebuild(child, where, built)
    return module


def _register(module: nn.Module, name: str, record: Json) -> None:
    if hasattr(module, name):
        raise StoreError(f"tensor {name!r}: the name is taken")
    tensor = None
    if record.get("shape") is not None:
        dtype = dtype_of(record.get("dtype"))
        shape = shape_of(record.get("shape"))
        if math.prod(shape) >= 2**33:
            raise StoreError(f"tensor {name!r}: shape {shape} is beyond all reason")
        tensor = torch.zeros(shape, dtype=dtype)
    if record.get("kind") == "buffer":
        module.register_buffer(name, tensor, persistent=bool(record.get("persistent", True)))
    elif record.get("kind") == "parameter":
        number = tensor is None or tensor.is_floating_point() or tensor.is_complex()
        value = None if tensor is None else nn.Parameter(tensor, requires_grad=number)
        module.register_parameter(name, value)
    else:
        raise StoreError(f"tensor {name!r}: unknown kind {str(record.get('kind'))[:80]!r}")


def _rebuild_graph(table: Json, path: str, built: dict[str, nn.Module]) -> nn.Module:
    root = _fill(nn.Module(), table, path, built)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    records = table.get("nodes")
    if not isinstance(records, list):
        raise StoreError(f"module {path!r}: expected a list of nodes")
    for index, item in enumerate(records):
        where = f"module {path!r}: node {index}"
        record = _table(item, where)
        if nodes and next(reversed(nodes.values())).op == "output":
            raise StoreError(f"{where}: follows the output")
        node = _add_node(graph, root, record, nodes, where)
        if record["name"] in nodes:
            raise StoreError(f"{where}: the name {str(record['name'])[:80]!r} is taken")
        nodes[cast(str, record["name"])] = node
    if not nodes or next(reversed(nodes.values())).op != "output":
        raise StoreError(f"module {path!r}: the graph has no output")
    try:
        return fx.GraphModule(root, graph)
    except Exception as error:  # torch.fx compiles the graph, which fails in many ways
        raise StoreError(f"module {path!r}: its graph makes no sense: {error}") from error


def _add_node(
    graph: fx.Graph, root: nn.Module, record: Json, nodes: Mapping[str, fx.Node], where: str
) -> fx.Node:
    op, name = record.get("op"), record.get("name")
    if op not in _OPS or not isinstance(op, str) or not isinstance(name, str):
        raise StoreError(f"{where}: expected an operation and a name, got {str(record)[:80]!r}")
    _name(name, where)
    args = tuple(items_of(record.get("args"), nodes, 0))
    coded = _table(record.get("kwargs"), f"{where}: keyword arguments")
    kwargs = {_name(key, where): decode(value, nodes) for key, value in coded.items()}
    if any(not key.isidentifier() or iskeyword(key) for key in kwargs):
        raise StoreError(f"{where}: keyword arguments must be identifiers")
    target = _target(op, record.get("target"), root, args, where)
    try:
        return graph.create_node(
            op,
            target,
            cast(tuple[Argument, ...], args),
            cast(dict[str, Argument], kwargs),
            name,
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise StoreError(f"{where}: {str(error)[:200]}") from error


def _target(
    op: str, target: object, root: nn.Module, args: tuple[object, ...], where: str
) -> str | Callable[..., object]:
    if not isinstance(target, str):
        raise StoreError(f"{where}: expected a target's name, got {str(target)[:80]!r}")
    if op == "call_function":
        function = resolve_function(target)
        if function is getattr and (len(args) != 2 or args[1] not in TENSOR_ATTRIBUTES):
            raise StoreError(f"{where}: reads attribute {str(args[1:])[:80]}, which isn't allowed")
        return function
    if op == "call_method":
        if not is_method(target) or not args or not isinstance(args[0], fx.Node):
            raise StoreError(f"{where}: method {target[:80]!r} isn't a tensor's, or has no tensor")
    elif op in ("call_module", "get_attr"):
        holder: object = root
        for atom in target.split("."):
            holder = _child(holder, _name(atom, where), where)
        if isinstance(holder, nn.Module) != (op == "call_module"):
            raise StoreError(f"{where}: {target[:80]!r} is of the wrong kind for {op}")
    elif not target.isidentifier() or iskeyword(target) or target.startswith("__"):
        raise StoreError(f"{where}: target {target[:80]!r} isn't an identifier")
    return target


def _child(holder: object, name: str, where: str) -> object:
    if isinstance(holder, nn.Module):
        for table in (holder._modules, holder._parameters, holder._buffers):
            if table.get(name) is not None:
                return table[name]
    raise StoreError(f"{where}: there is no {name!r}")


_REBUILDERS: dict[str, Callable[[Json, str, dict[str, nn.Module]], nn.Module]] = {
    "class": _rebuild_class,
    "attributes": _rebuild_attributes,
    "container": _rebuild_container,
    "graph": _rebuild_graph,
}
