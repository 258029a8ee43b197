"""A program of ``torch.export`` as a graph of layers and public functions of torch."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tailorbird.errors import GraphError
from tailorbird.graph.aten import Operation, handed_on, name_of, public
from tailorbird.graph.leaf_calls import OPERATOR, LeafCall, LeafCalls
from tailorbird.graph.programs import batch_of
from tailorbird.graph.tracer import VALUES

Pair = tuple[Any, Any]
_CHECKS = ("_assert", "sym_constrain", "guard_size")
_BATCH = object()  # the number of images: read where it is needed
_READS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Translator:
    """Writes a program anew and runs every operation on two batches, as ``ValueTracer`` does.

    What is equal for both becomes a plain value, and each operator of ATen the first public
    function that gives the same.

    Args:
        home: the network; constants that the program was given are put on it.
        calls: what the nodes of layers stand for.
        examples: two batches of different size.
    """

    def __init__(self, home: nn.Module, calls: LeafCalls, examples: tuple[Tensor, Tensor]) -> None:
        self._home = home
        self._calls = calls
        self._examples = examples
        self._counts = (len(examples[0]), len(examples[1]))
        self._graph = fx.Graph()
        self._values: dict[fx.Node, Pair] = {}
        self._made: dict[fx.Node, Any] = {}
        self._fixed: set[fx.Node] = set()
        self._fresh: list[fx.Node] = []
        self._holders: Counter[fx.Node] = Counter()
        self._latest: fx.Node | None = None

    def graph(self, program: ExportedProgram) -> fx.Graph:
        """The program's graph, of which nodes carry the shapes or numbers that were seen.

        Raises:
            GraphError: it has parts that are no operations on tensors.
        """
        held = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        answers = program.graph_signature.user_outputs
        batch = batch_of(program).node.expr
        last = {read: node for node in program.graph.nodes for read in node.all_input_nodes}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.users:
                self._made[node] = self._input(held[node.name], program)
                if held[node.name].kind != InputKind.USER_INPUT:
                    self._fixed.add(node)
            elif _symbolic(node) == batch:
                self._made[node] = _BATCH
            elif node.op == "call_function" and not name_of(node.target).startswith(_CHECKS):
                self._made[node] = self._operation(node)
            elif node.op == "output":
                (answer,) = (n for n in node.args[0] if n.name == answers[0])
                self._graph.output(self._made[answer])
            self._forget(node, [read for read in node.all_input_nodes if last[read] is node])
        return self._graph

    def _forget(self, node: fx.Node, read: list[fx.Node]) -> None:
        """Drop the values that nothing reads any more: those of large networks are large, too."""
        self._holders.update(_nodes(self._made.get(node)))
        done = [kept for dead in read for kept in _nodes(self._made.get(dead))]
        self._holders.subtract(done)
        for kept in (*done, *self._fresh):
            if self._holders[kept] <= 0:
                self._values.pop(kept, None)
        self._fresh.clear()

    # ------------------------------------------------------------ nodes

    def _input(self, spec: Any, program: ExportedProgram) -> Any:  # noqa: ANN401
        """The image; a tensor of the network's; a tensor that its code made."""
        if spec.kind == InputKind.USER_INPUT:
            return self._note(self._graph.placeholder("image"), self._examples)
        if spec.kind not in _READS:
            raise GraphError(f"it reads {spec.target!r}, which is no tensor")
        path = str(spec.target).removeprefix("network.")
        if spec.kind == InputKind.CONSTANT_TENSOR and not _holds(self._home, path):
            path = f"constant_{path.replace('.', '_')}"
            self._home.register_buffer(path, program.constants[spec.target], persistent=False)
        return self._add(Operation("get_attr", path))

    def _operation(self, node: fx.Node) -> Any:  # noqa: ANN401
        if node.target is OPERATOR:
            return self._layer(self._calls.call(node.args[0]), node)  # type: ignore[arg-type]
        if not isinstance(node.target, torch._ops.OpOverload) and not _is_number(node):
            if node.target is not operator.getitem:
                raise GraphError(f"it holds a {node.target}, of which no layer can be made")
            source, key = cast("tuple[fx.Node, Any]", node.args)
            if isinstance(self._made[source], list):
                return self._made[source][key]
        args, kwargs = cast(Any, fx.node.map_arg((node.args, node.kwargs), self._argument))
        same = handed_on(node.target, args)
        if same is not None:
            return same
        seen = self._run(Operation("call_function", node.target, args, kwargs))
        given = args[1] if name_of(node.target) == "copy" else None
        if isinstance(given, fx.Node) and _alike(seen, self._values[given]):
            return given
        fixed = self._fixed.issuperset(node.all_input_nodes)
        if fixed:
            self._fixed.add(node)
        if isinstance(seen[0], (bool, int, float)) and (fixed or _symbolic(node) is None):
            return seen[0]
        return self._chosen(node, args, kwargs, seen)

    def _chosen(self, node: fx.Node, args: Any, kwargs: Any, seen: Pair) -> fx.Node:  # noqa: ANN401
        """The first public function that gives what the operator gives; at worst the operator."""
        for found in public(node.target, args, kwargs):
            try:
                if _equal(self._run(found), seen):
                    return self._add(found, seen)
            except Exception:
                continue
        if node.target is operator.pow:  # of numbers: the power of tensors is another operator
            raise GraphError("it raises a number that depends on the number of images to a power")
        return self._add(Operation("call_function", node.target, args, kwargs), seen)

    def _layer(self, call: LeafCall, node: fx.Node) -> list[Any]:
        """A call of a layer, as the list of its tensors."""
        tensors, numbers = cast(Any, fx.node.map_arg(node.args[1:], self._argument))
        args, kwargs = call.arguments(tensors, numbers)
        op = "call_module" if isinstance(call.target, str) else "call_function"
        made = self._add(Operation(op, call.target, args, kwargs))
        return [self._part(made, keys) for keys in call.places]

    def _part(self, node: fx.Node, keys: tuple[Any, ...]) -> fx.Node:
        for key in keys:
            node = self._add(Operation("call_function", operator.getitem, (node, key)))
        return node

    def _argument(self, node: fx.Node) -> Any:  # noqa: ANN401
        """What a node became; the batch size is read off the latest tensor that has it."""
        made = self._made[node]
        if made is not _BATCH:
            return made
        return self._add(Operation("call_method", "size", (self._latest, 0)), self._counts)

    # ------------------------------------------------------------ values

    def _add(self, operation: Operation, seen: Pair | None = None) -> fx.Node:
        values = self._run(operation) if seen is None else seen
        node = self._graph.create_node(
            operation.op, operation.target, operation.args, dict(operation.kwargs)
        )
        return self._note(node, values)

    def _note(self, node: fx.Node, values: Pair) -> fx.Node:
        self._values[node] = values
        self._fresh.append(node)
        if isinstance(values[0], Tensor):
            node.meta[VALUES] = tuple(tuple(value.shape) for value in values)
            if values[0].ndim and self._counts == tuple(len(value) for value in values):
                self._latest = node
        elif isinstance(values[0], (int, float)):
            node.meta[VALUES] = values
        return node

    def _run(self, operation: Operation) -> Pair:
        left, right = (self._run_one(operation, i) for i in range(2))
        return left, right

    def _run_one(self, operation: Operation, i: int) -> Any:  # noqa: ANN401
        args, kwargs = fx.node.map_arg(
            (operation.args, dict(operation.kwargs)), lambda node: self._values[node][i]
        )
        if operation.op == "get_attr":
            return operator.attrgetter(operation.target)(self._home)
        if operation.op == "call_module":
            return self._home.get_submodule(operation.target)(*args, **kwargs)
        if operation.op == "call_method":
            return getattr(args[0], operation.target)(*args[1:], **kwargs)
        return operation.target(*args, **kwargs)


def _nodes(made: Any) -> list[fx.Node]:  # noqa: ANN401
    return [node for node in _tensors(made) if isinstance(node, fx.Node)]


def _holds(home: nn.Module, path: str) -> bool:
    try:
        return isinstance(operator.attrgetter(path)(home), Tensor)
    except AttributeError:
        return False


def _is_number(node: fx.Node) -> bool:
    """Whether an operation is one of numbers made from sizes."""
    value = node.meta.get("val")
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float))


def _symbolic(node: fx.Node) -> Any:  # noqa: ANN401 - of sympy, which has no types
    """How a number follows from the number of images or from tensors' values, or ``None``."""
    value = node.meta.get("val")
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return None
    expression = value.node.expr
    return expression if expression.free_symbols else None


def _tensors(values: Any) -> Iterator[Any]:  # noqa: ANN401
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    else:
        yield values


def _alike(left: Pair, right: Pair) -> bool:
    """Whether values are tensors of equal shapes and types."""
    return all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(left, right, strict=True))


def _equal(left: Pair, right: Pair) -> bool:
    pairs = list(zip(_tensors(left), _tensors(right), strict=True))
    return all(
        torch.equal(a, b) or torch.allclose(a, b, equal_nan=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and _alike((a, a), (b, b))
        else type(a) is type(b) and bool(a == b)
        for a, b in pairs
    )
