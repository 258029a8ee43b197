"""Keys of what networks compute: equal for equal networks, however they are put together.

Names of nodes and modules, the order in which independent branches are listed, and graphs within
graphs make no difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import fx, nn

from tailorbird.graph.callables import class_name, function_name
from tailorbird.graph.describe import plain_attributes, tensor_shapes, trace_leaf
from tailorbird.graph.encoding import Terms, UnstorableError, encode

VERSION = 3
"""Of keys; those of another version say nothing."""


def structure_key(module: fx.GraphModule, in_shape: Sequence[int]) -> str:
    """SHA-256 of what the network computes and costs, apart from its weights' values.

    Equal for networks of the same operations, attributes, connections and shapes, whatever their
    nodes and modules are called and in whatever order independent branches are listed; so one
    measured latency serves them all. ``in_shape`` excludes the batch dimension.

    Example:
        >>> net = lambda stride: fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3, stride)))
        >>> structure_key(net(1), (3, 8, 8)) == structure_key(net(1), (3, 8, 8))
        True
        >>> structure_key(net(1), (3, 8, 8)) == structure_key(net(2), (3, 8, 8))
        False
    """
    canonical = [list(in_shape), _Canonical().graph(module)]
    return hashlib.sha256(_bytes(canonical)).hexdigest()


def content_key(module: fx.GraphModule, in_shape: Sequence[int]) -> str:
    """SHA-256 as of `structure_key`, of the weights' and buffers' values too.

    Equal for networks that give equal answers because they are the same, however they came about.

    Example:
        >>> first, second = (fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))) for _ in range(2))
        >>> content_key(first, (2,)) == content_key(second, (2,))
        False
        >>> _ = second.load_state_dict(first.state_dict())
        >>> content_key(first, (2,)) == content_key(second, (2,))
        True
    """
    canonical = _Canonical()
    digest = hashlib.sha256(_bytes([list(in_shape), canonical.graph(module)]))
    for tensor in canonical.tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Canonical:
    """Numbers nodes, modules and tensors in the order in which the output needs them.

    Attributes:
        tensors: the parameters and buffers, by their numbers.
    """

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._modules: dict[nn.Module, int] = {}
        self._graphs: dict[nn.Module, nn.Module] = {}
        self._tensors: dict[int, int] = {}

    def graph(self, module: fx.GraphModule) -> list[object]:
        """A graph as a list of records without names; graphs that it calls stand in their place."""
        records: list[object] = []
        records.append(["output", self._walk(module, None, records)])
        return records

    def _walk(
        self, module: fx.GraphModule, given: Mapping[str, object] | None, records: list[object]
    ) -> object:
        """Add a graph's records in the order in which its output needs them; the output.

        Args:
            given: placeholder's name -> what is handed in, for a graph within another one.
        """
        values: dict[str, object] = {}
        inputs = _inputs(module)
        if given is not None:
            values |= {name: given[name] for name in inputs if name in given}
        output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
        stack = [output]
        while stack:
            node = stack[-1]
            waiting = [
                other for other in reversed(node.all_input_nodes) if other.name not in values
            ]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if node.name not in values:
                values[node.name] = self._value(module, node, inputs, values, records)
        return values[output.name]

    def _value(
        self,
        module: fx.GraphModule,
        node: fx.Node,
        inputs: list[str],
        values: Mapping[str, object],
        records: list[object],
    ) -> object:
        """What stands for a node's value, its record added: a number, or what a graph gives."""
        if node.op == "output":
            return _filled(_coded(node.args[0]), values)
        args, kwargs = (_filled(_coded(value), values) for value in (node.args, dict(node.kwargs)))
        target: object = node.target
        if node.op == "placeholder":
            target = inputs.index(node.name)
        elif node.op == "get_attr":
            owner, _, last = str(target).rpartition(".")
            target = self._tensor(getattr(module.get_submodule(owner), last))
        elif node.op == "call_module":
            called = self._opened(module.get_submodule(str(target)))
            if isinstance(called, fx.GraphModule):
                handed = [_filled(_coded(value), values) for value in node.args]
                by_name = {
                    key: _filled(_coded(value), values) for key, value in node.kwargs.items()
                }
                given = dict(zip(_inputs(called), handed, strict=False)) | by_name
                return self._walk(called, given, records)
            target = self._module(called)
        elif node.op == "call_function":
            target = function_name(target) or repr(target)
        records.append([node.op, target, args, kwargs])
        return {"node": len(records) - 1}

    def _tensor(self, tensor: object) -> list[object]:
        if not isinstance(tensor, torch.Tensor):
            return [_coded(tensor)]
        number = self._tensors.setdefault(id(tensor), len(self._tensors))
        if number == len(self.tensors):
            self.tensors.append(tensor)
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        return [number, kind, list(tensor.shape), str(tensor.dtype)]

    def _opened(self, module: nn.Module) -> nn.Module:
        """A module of the user's as its graph, where it can be traced."""
        if module not in self._graphs:
            self._graphs[module] = module
            if class_name(type(module)) is None and not isinstance(module, fx.GraphModule):
                with suppress(UnstorableError):
                    self._graphs[module] = trace_leaf(module)
        return self._graphs[module]

    def _module(self, module: nn.Module) -> list[object]:
        if module in self._modules:
            return [self._modules[module]]
        self._modules[module] = len(self._modules)
        module = self._opened(module)
        if isinstance(module, fx.GraphModule):
            return ["graph", self.graph(module)]
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        attributes = sorted((key, _coded(value)) for key, value in plain_attributes(module))
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        children = [[name, self._module(child)] for name, child in module._modules.items() if child]
        tensors = [self._tensor(tensor) for tensor in own]
        return [kind, attributes, sorted(tensor_shapes(module).items()), tensors, children]


def _coded(value: object) -> object:
    try:
        return encode(value, Terms(nodes=True))
    except UnstorableError:
        return {"other": f"{type(value).__module__}.{type(value).__qualname__}"}


def _inputs(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes if node.op == "placeholder"]


def _filled(coded: object, values: Mapping[str, object]) -> object:
    """With what stands for nodes in the place of their names."""
    if isinstance(coded, list):
        return [_filled(item, values) for item in coded]
    if isinstance(coded, dict):
        if set(coded) == {"node"}:
            return values[coded["node"]]
        return {key: _filled(item, values) for key, item in coded.items()}
    return coded


def _bytes(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
