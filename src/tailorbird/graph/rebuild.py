"""From JSON to modules and graphs: the other half of ``describe``, safe on hostile input."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from keyword import iskeyword
from operator import getitem
from typing import cast

import torch
from torch import fx, nn
from torch.fx.node import Argument

from tailorbird.errors import StoreError
from tailorbird.graph.callables import (
    TENSOR_ATTRIBUTES,
    as_target,
    functions,
    is_method,
    resolve_class,
    resolve_code,
    resolve_function,
)
from tailorbird.graph.encoding import Json, Scope, decode, dtype_of, items_of, shape_of

CONTAINERS: dict[str, type[nn.Module]] = {
    "Module": nn.Module,
    "Sequential": nn.Sequential,
    "ModuleList": nn.ModuleList,
    "ModuleDict": nn.ModuleDict,
}
_DEPTH = 40
_MOST_PARTS = 3_000
_CLONING = ("Transformer", "TransformerEncoder", "TransformerDecoder")
_MOST_ARITHMETIC = 16
_NUMBER_METHODS = frozenset({"size", "dim", "numel", "nelement", "ndimension", "item", "stride"})
_NUMBER_ATTRIBUTES = frozenset({"shape", "ndim", "itemsize", "nbytes"})
_NUMBER_FUNCTIONS = frozenset(
    function
    for name, function in functions().items()
    if name.startswith(("operator.", "math.", "builtins."))
)
_OPS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")
_PLUMBING = frozenset(vars(nn.Module()))


class Builder:
    """Builds the modules that ``describe`` described, with fresh weights.

    Args:
        trust: import paths of code that may be imported.
        built: modules that there are already, by path; those that are built are added.
    """

    def __init__(
        self, trust: Collection[str] = (), built: Mapping[str, nn.Module] | None = None
    ) -> None:
        self.trust = trust
        self.built = dict(built or {})
        self.references: list[tuple[nn.Module, str, object]] = []

    def rebuild(self, spec: object, path: str = "") -> nn.Module:
        """The module of a description; attributes that refer to tensors are set by `settle`.

        Raises:
            StoreError: for anything that ``describe`` would not have written.
        """
        if path.count(".") > _DEPTH:
            raise StoreError(f"module {path[:80]!r}: nested deeper than {_DEPTH}")
        table = _table(spec, f"module {path!r}")
        kind = table.get("kind")
        if kind == "shared":
            first = table.get("path")
            if not isinstance(first, str) or first not in self.built:
                raise StoreError(
                    f"module {path!r}: shares {str(first)[:80]!r}, which isn't built yet"
                )
            return self.built[first]
        if not isinstance(kind, str) or kind not in _REBUILDERS:
            raise StoreError(f"module {path!r}: unknown kind {str(kind)[:80]!r}")
        module = _REBUILDERS[kind](self, table, path)
        for name, child in module.named_modules():
            self.built.setdefault(join(path, name), child)
        return module

    def settle(self) -> None:
        """Set attributes that refer to tensors and modules, once these are what they stay."""
        for module, key, coded in self.references:
            vars(module)[key] = decode(coded, Scope(owned=owned(module), trust=self.trust))


def owned(module: nn.Module) -> dict[str, object]:
    """All modules, parameters and buffers inside a module, by dotted name, shared ones by each."""
    return {
        **{name: child for name, child in module.named_modules(remove_duplicate=False) if name},
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


@contextmanager
def _bounded() -> Iterator[None]:
    """Constructors that make parts without end are stopped."""
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1
        if count > _MOST_PARTS:
            raise StoreError(f"more than {_MOST_PARTS} parts: expected one layer")

    hooks = nn.modules.module
    handles = [
        hooks.register_module_parameter_registration_hook(note),
        hooks.register_module_module_registration_hook(note),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def _part(name: str, what: str) -> str:
    """Names of children, tensors and attributes only have to be names that torch takes."""
    if not name or "." in name or len(name) > 1000:
        raise StoreError(f"{what} {name[:80]!r}: expected a name without dots")
    return name


def _rebuild_class(build: Builder, table: Json, path: str) -> nn.Module:
    kind = resolve_class(str(table.get("class")))
    if kind.__name__ in _CLONING:
        raise StoreError(f"module {path!r}: {kind.__name__} clones layers: expected one layer")
    arguments = _table(table.get("arguments"), f"module {path!r}: arguments")
    values = {_name(key, "argument"): decode(value, Scope()) for key, value in arguments.items()}
    try:
        with _bounded():
            return kind(**values)
    except Exception as error:  # constructors raise anything on arguments that don't fit
        raise StoreError(f"module {path!r}: {kind.__name__}: {str(error)[:200]}") from error


def _rebuild_attributes(build: Builder, table: Json, path: str) -> nn.Module:
    """Without the class's constructor: what it left behind is set as it was."""
    coded = table.get("class")
    kind, trusted = _class(coded, build.trust), isinstance(coded, dict)
    module: nn.Module = object.__new__(kind)
    nn.Module.__init__(module)
    attributes = _table(table.get("attributes"), f"module {path!r}: attributes")
    for key, value in attributes.items():
        refers = _refers(value)
        made = None if refers else decode(value, Scope(trust=build.trust))
        method = callable(getattr(nn.Module, key, None)) and (refers or callable(made))
        if _part(key, "attribute") in _PLUMBING or (method and not trusted):
            raise StoreError(f"module {path!r}: attribute {key!r} is nn.Module's own")
        if refers:
            build.references.append((module, key, value))
        vars(module)[key] = made
    return _fill(build, module, table, path)


def _class(coded: object, trust: Collection[str]) -> type[nn.Module]:
    if not isinstance(coded, dict):
        return resolve_class(str(coded))
    kind = resolve_code(coded.get("code"), trust)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise StoreError(f"code {str(coded)[:80]!r}: expected a class of modules")
    return kind


def _refers(coded: object) -> bool:
    """Whether a value refers to tensors or modules of the module that holds it."""
    if isinstance(coded, dict):
        return "owned" in coded or any(map(_refers, coded.values()))
    return isinstance(coded, list) and any(map(_refers, coded))


def _rebuild_container(build: Builder, table: Json, path: str) -> nn.Module:
    kind = CONTAINERS.get(str(table.get("class")))
    if kind is None:
        raise StoreError(f"module {path!r}: unknown container {str(table.get('class'))[:80]!r}")
    return _fill(build, kind(), table, path)


def _fill(build: Builder, module: nn.Module, table: Json, path: str) -> nn.Module:
    """Give a module its tensors (zeros) and children."""
    tensors = _table(table.get("tensors"), f"module {path!r}: tensors")
    for name, record in tensors.items():
        _register(module, _part(name, "tensor"), _table(record, f"tensor {name!r}"))
    children = _table(table.get("children"), f"module {path!r}: children")
    for name, child in children.items():
        if hasattr(module, _part(name, "module")) and name not in module._modules:
            raise StoreError(f"module {path!r}: name {name!r} is taken")
        where = join(path, name)
        module._modules[name] = None if child is None else build.rebuild(child, where)
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
    elif record.get("kind") == "attribute" and tensor is not None:
        vars(module)[name] = tensor
    else:
        raise StoreError(f"tensor {name!r}: unknown kind {str(record.get('kind'))[:80]!r}")


def _rebuild_graph(build: Builder, table: Json, path: str) -> nn.Module:
    root = _fill(build, nn.Module(), table, path)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    depths: dict[fx.Node, int] = {}
    records = table.get("nodes")
    if not isinstance(records, list):
        raise StoreError(f"module {path!r}: expected a list of nodes")
    for index, item in enumerate(records):
        where = f"module {path!r}: node {index}"
        record = _table(item, where)
        if nodes and next(reversed(nodes.values())).op == "output":
            raise StoreError(f"{where}: follows the output")
        scope = Scope(nodes=nodes, trust=build.trust)
        node = _add_node(graph, root, record, scope, where)
        if record["name"] in nodes:
            raise StoreError(f"{where}: the name {str(record['name'])[:80]!r} is taken")
        nodes[cast(str, record["name"])] = node
        _bound_numbers(node, depths, where)
    if not nodes or next(reversed(nodes.values())).op != "output":
        raise StoreError(f"module {path!r}: the graph has no output")
    try:
        module = fx.GraphModule(root, graph)
    except Exception as error:  # torch.fx compiles the graph, which fails in many ways
        raise StoreError(f"module {path!r}: its graph makes no sense: {error}") from error
    for name, part in module.named_modules():  # which torch.fx makes anew
        fleeting = root.get_submodule(name)._non_persistent_buffers_set
        part._non_persistent_buffers_set = fleeting & part._buffers.keys()
    return module


def _add_node(graph: fx.Graph, root: nn.Module, record: Json, scope: Scope, where: str) -> fx.Node:
    op, name = record.get("op"), record.get("name")
    if op not in _OPS or not isinstance(op, str) or not isinstance(name, str):
        raise StoreError(f"{where}: expected an operation and a name, got {str(record)[:80]!r}")
    _name(name, where)
    args = tuple(items_of(record.get("args"), scope, 0))
    coded = _table(record.get("kwargs"), f"{where}: keyword arguments")
    kwargs = {_name(key, where): decode(value, scope) for key, value in coded.items()}
    if any(not key.isidentifier() or iskeyword(key) for key in kwargs):
        raise StoreError(f"{where}: keyword arguments must be identifiers")
    target = _target(op, record.get("target"), root, args, scope.trust, where)
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


def _bound_numbers(node: fx.Node, depths: dict[fx.Node, int], where: str) -> None:
    """Refuse arithmetic of plain numbers so deep that they may grow beyond all memory.

    ``depths`` holds, for each node that gives numbers, how many operations made them.
    """
    target, sources = node.target, [depths.get(source, 0) for source in node.all_input_nodes]
    arithmetic = getattr(target, "__module__", "") == "_operator" and target is not getitem
    if arithmetic and any(isinstance(arg, (str, list, tuple)) for arg in node.args):
        raise StoreError(f"{where}: arithmetic of {str(node.args)[:80]}: expected numbers")
    if target is getattr:
        numeric = node.args[1] in _NUMBER_ATTRIBUTES
    elif node.op == "call_method":
        numeric = target in _NUMBER_METHODS
    else:
        numeric = node.op == "call_function" and target in _NUMBER_FUNCTIONS
        numeric = numeric and all(sources)
    if numeric:
        depths[node] = 1 + max(sources, default=0)
    if depths.get(node, 0) > _MOST_ARITHMETIC:
        raise StoreError(f"{where}: numbers made of more than {_MOST_ARITHMETIC} operations")


def _target(  # noqa: PLR0917 - parts of one record
    op: str,
    target: object,
    root: nn.Module,
    args: tuple[object, ...],
    trust: Collection[str],
    where: str,
) -> str | Callable[..., object]:
    if op == "call_function" and isinstance(target, dict):
        return as_target(resolve_code(target.get("code"), trust))
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


_REBUILDERS: dict[str, Callable[[Builder, Json, str], nn.Module]] = {
    "class": _rebuild_class,
    "attributes": _rebuild_attributes,
    "container": _rebuild_container,
    "graph": _rebuild_graph,
}
