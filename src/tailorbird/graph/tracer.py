"""Symbolic tracing that knows the values: shapes steer control flow, only the batch is symbolic.

``torch.fx`` alone stops at the first ``if height % window``. Here every recorded operation is also
run, on one batch of two images and one of three. What is equal for both (heights, widths, dtypes,
comparisons of them) enters the program as a plain Python value; what differs depends on the batch
size and stays symbolic. So a graph can't bake a batch size in, and shape arithmetic leaves no
nodes behind.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.autograd import Function
from torch.fx.node import Argument, Target, map_aggregate
from torch.fx.proxy import Attribute

from tailorbird.graph import functions
from tailorbird.graph.answers import Answers

VALUES = "tailorbird_values"  # node.meta key: the pair of shapes or numbers seen
SCOPE = "tailorbird_scope"  # node.meta key: dotted path of the module that made the node

# Functions that take a number before any tensor, so torch.fx does not see a symbolic one.
_FACTORIES: tuple[tuple[types.ModuleType, str], ...] = (
    *((torch, name) for name in ("zeros", "ones", "full", "empty", "arange", "linspace", "eye")),
    *((torch, name) for name in ("rand", "randn")),
    *((math, name) for name in ("ceil", "floor", "sqrt", "log", "log2", "prod")),
)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
COMPOSITES = (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder)
"""Of torch.nn, and made of layers that are worth a look; one that resists is kept whole."""


class BatchDependenceError(TypeError):
    """Python asked for the value of a number that changes with the batch size."""


class _Shape(tuple[Any, ...]):
    """A tensor's shape; a size that changes with the batch is a proxy."""

    __slots__ = ()

    def numel(self) -> Any:  # noqa: ANN401 - an int or a proxy
        """Number of elements."""
        return math.prod(self)


class ValueProxy(fx.Proxy):
    """A proxy that carries what its node gives for the two example batches."""

    def __init__(self, node: fx.Node, tracer: ValueTracer, pair: tuple[Any, Any]) -> None:
        super().__init__(node, tracer)
        self._pair = pair

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a tensor
        if name == "_pair":  # not set yet
            raise AttributeError(name)
        if callable(getattr(self._pair[0], name)):
            return Attribute(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    @property
    def shape(self) -> Any:  # noqa: ANN401 - sizes are ints or proxies
        """Sizes as ints, those that change with the batch as proxies."""
        if not isinstance(self._pair[0], torch.Tensor):
            return self.__getattr__("shape")
        pairs = zip(*(value.shape for value in self._pair), strict=True)
        return _Shape(
            left
            if left == right
            else self.tracer.create_proxy("call_method", "size", (self, d), {})
            for d, (left, right) in enumerate(pairs)
        )

    def _constant(self, what: str) -> Any:  # noqa: ANN401
        left, right = self._pair
        if isinstance(left, torch.Tensor) or left != right:
            raise BatchDependenceError(
                f"{what} needs a value that depends on the images or on the batch size"
            )
        return left

    def __bool__(self) -> bool:
        return bool(self._constant("a Python condition"))

    def __int__(self) -> int:
        return int(self._constant("int()"))

    def is_whole(self) -> bool:
        """Whether it stands for an int."""
        return isinstance(self._pair[0], int)

    def whole(self) -> Any:  # noqa: ANN401 - an int or a proxy
        """What ``int()`` gives."""
        return (
            self if self.is_whole() else self.tracer.create_proxy("call_function", int, (self,), {})
        )

    def __float__(self) -> float:
        return float(self._constant("float()"))

    def __index__(self) -> int:
        return int(self._constant("an index or range()"))

    def __len__(self) -> int:
        left, right = (len(value) for value in self._pair)
        if left != right:
            raise BatchDependenceError("len() needs a value that depends on the batch size")
        return left

    def __iter__(self) -> Iterator[Any]:
        return (
            self.tracer.create_proxy("call_function", operator.getitem, (self, i), {})
            for i in range(len(self))
        )


class TensorProxy(ValueProxy, torch.Tensor):  # type: ignore[misc, override]
    """A proxy for a tensor that is one to Python: ``isinstance`` and ``Tensor.relu(x)`` work.

    Only the class is a tensor's; whatever is read of it, and whatever is done with it, goes
    through the proxy.
    """

    def __new__(cls, node: fx.Node, tracer: ValueTracer, pair: tuple[Any, Any]) -> TensorProxy:
        """An empty tensor in name; ``__init__`` makes the proxy."""
        return torch.Tensor._make_subclass(cls, torch.empty(0))

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a tensor
        if name in _OWN or name.startswith("__"):
            return object.__getattribute__(self, name)
        return ValueProxy.__getattr__(self, name)

    def __setitem__(self, index: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # noqa: ANN401
        return f"{type(self).__name__}({self.node.name})"

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __hash__(self) -> int:
        return id(self)


def _in_place(name: str) -> Callable[[TensorProxy, object], Any]:
    target = getattr(operator, f"i{name}")

    def write(self: TensorProxy, other: object) -> Any:  # noqa: ANN401
        return self.tracer.create_proxy("call_function", target, (self, other), {}, name)

    return write


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(TensorProxy, f"__i{_name}__", _in_place(_name))

_OWN = frozenset({"node", "tracer", "shape", "_pair", "_constant"})


class ValueTracer(fx.Tracer):
    """Records the network's operations and runs each on two batches of different size.

    Args:
        examples: the two batches (2, C, H, W) and (3, C, H, W).
        leaves: dotted paths and classes that are recorded as one node.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        examples: tuple[torch.Tensor, torch.Tensor],
        leaves: Sequence[str | type[nn.Module]],
    ) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self._examples = examples
        self._leaf_paths = {leaf for leaf in leaves if isinstance(leaf, str)}
        self._leaf_types = tuple(leaf for leaf in leaves if not isinstance(leaf, str))
        self._running = False
        self.failed_in: list[tuple[str, nn.Module]] | None = None
        self._stack: list[tuple[str, nn.Module]] = []
        self._answers = Answers(TensorProxy, ValueProxy, ValueProxy.whole, ValueProxy.is_whole)

    def trace(
        self,
        root: nn.Module | Callable[..., Any],
        concrete_args: dict[str, Any] | None = None,
    ) -> fx.Graph:
        """The network's program on one image batch."""
        originals = [(home, name, getattr(home, name)) for home, name in _FACTORIES]
        try:
            for home, name, function in originals:
                setattr(home, name, self._recorded(function))
            torch.jit.ScriptFunction.__call__ = _unscripted  # type: ignore[method-assign, assignment]
            with self._answers, functions.watched(self._applied):
                return super().trace(root, concrete_args)
        finally:
            torch.jit.ScriptFunction.__call__ = _CALL_SCRIPT  # type: ignore[method-assign]
            for home, name, function in originals:
                setattr(home, name, function)

    def _recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            proxies: list[Any] = []
            map_aggregate((args, kwargs), proxies.append)
            if any(isinstance(a, ValueProxy) for a in proxies):
                return self.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return recorded

    def _applied(self, function: type[Function], apply: functions.Apply, args: Any) -> Any:  # noqa: ANN401
        """An autograd function: its forward's operations, or one that keeps its own backward."""
        proxies: list[Any] = []
        map_aggregate(args, proxies.append)
        if self._running or not any(isinstance(a, ValueProxy) for a in proxies):
            return apply(*args)
        own = not function.__module__.startswith("torch.")  # checkpointing and the like
        if own and functions.has_own_gradient(
            function, apply, map_aggregate(args, partial(_value, 0))
        ):
            return self.create_proxy("call_function", functions.whole(function), args, {})
        return functions.look_into(function, args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of torch.nn, classes derived from them, and what the caller names."""
        if module_qualified_name in self._leaf_paths or isinstance(m, self._leaf_types):
            return True
        return is_torch_layer(m)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[FunctionType, list[Any]]:
        """One placeholder for the image; further arguments keep their defaults."""
        node = self.create_node("placeholder", "image", (), {})
        self._note(node, self._examples)
        if not isinstance(root_fn, types.FunctionType):
            raise TypeError(f"forward is {type(root_fn).__name__}, expected a Python function")
        return root_fn, [self.root, TensorProxy(node, self, self._examples)]

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # noqa: ANN401
        """Record a leaf, look into anything else; remember where it failed."""
        if self._running:
            return forward(*args, **kwargs)
        self._stack.append((self.path_of_module(m), m))
        self._answers.give_module(getattr(type(m).forward, "__globals__", {}))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = list(self._stack)
            raise
        finally:
            self._stack.pop()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:  # noqa: ANN401
        """Parameters and buffers are recorded, except while a recorded operation runs."""
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Argument:  # noqa: ANN401
        """Shapes and torch's named results are recorded as plain tuples."""
        if isinstance(a, TensorProxy):
            return a.node
        plain = isinstance(a, tuple) and not hasattr(a, "_fields")
        return super().create_arg(tuple(a) if plain else a)

    def create_proxy(  # noqa: PLR0917 - the signature of torch.fx
        self,
        kind: str,
        target: Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,  # noqa: ANN401
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:  # noqa: ANN401
        """Record the operation, run it on both examples, hand back what differs as a proxy."""
        self._answers.give(sys._getframe(1))
        arguments, keywords = self.create_arg(args), self.create_arg(kwargs)
        assert isinstance(arguments, tuple)
        assert isinstance(keywords, dict)
        node = self.create_node(kind, target, arguments, keywords, name, type_expr)
        results = []
        self._running = True
        try:
            for i in range(2):
                here, named = map_aggregate((args, kwargs), partial(_value, i))
                results.append(self._run(kind, target, here, named))
        finally:
            self._running = False
        return self._lift(node, results[0], results[1])

    def _run(self, kind: str, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        if kind == "get_attr":
            value: Any = self.root
            for atom in str(target).split("."):
                value = getattr(value, atom)
            return value
        if kind == "call_module":
            return self.root.get_submodule(str(target))(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], str(target))(*args[1:], **kwargs)
        assert callable(target)
        return target(*args, **kwargs)

    def _note(self, node: fx.Node, values: tuple[Any, Any]) -> None:
        node.meta[SCOPE] = self._stack[-1][0] if self._stack else ""
        if isinstance(values[0], torch.Tensor):
            node.meta[VALUES] = tuple(tuple(value.shape) for value in values)
        elif isinstance(values[0], (int, float)):
            node.meta[VALUES] = values

    def _lift(self, node: fx.Node, left: Any, right: Any) -> Any:  # noqa: ANN401
        self._note(node, (left, right))
        if isinstance(left, dict):
            return {key: self._item(node, key, left[key], right[key]) for key in left}
        if isinstance(left, (tuple, list)) and len(left) == len(right):
            pairs = enumerate(zip(left, right, strict=True))
            return _regrouped(left, [self._item(node, i, *pair) for i, pair in pairs])
        if not isinstance(left, torch.Tensor) and type(left) is type(right) and left == right:
            return left
        kind = TensorProxy if isinstance(left, torch.Tensor) else ValueProxy
        return kind(node, self, (left, right))

    def _item(self, node: fx.Node, key: object, left: Any, right: Any) -> Any:  # noqa: ANN401
        if left is None and right is None:
            return None
        item = self.create_node("call_function", operator.getitem, (node, key), {})  # type: ignore[arg-type]
        return self._lift(item, left, right)


def _unscripted(function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Call a scripted function; what it was made from, where a proxy is among the arguments."""
    found: list[bool] = []
    map_aggregate((args, kwargs), lambda a: found.append(isinstance(a, ValueProxy)))
    if any(found) and hasattr(function, "_torchdynamo_inline"):
        return function._torchdynamo_inline(*args, **kwargs)
    return _CALL_SCRIPT(function, *args, **kwargs)


_CALL_SCRIPT = torch.jit.ScriptFunction.__call__


def _regrouped(like: Any, items: list[Any]) -> Any:  # noqa: ANN401
    """Items as the list, tuple, named tuple or named result of torch that ``like`` is."""
    if isinstance(like, list):
        return items
    if hasattr(like, "_fields"):
        return type(like)(*items)
    return type(like)(items) if hasattr(like, "n_fields") else _Shape(items)


def is_torch_layer(m: nn.Module) -> bool:
    """Whether a module is a layer of torch.nn or derives from one, such as a norm-act layer."""
    if isinstance(m, _CONTAINERS) or type(m) in COMPOSITES:
        return False
    return any(
        base.__module__.startswith(("torch.nn", "torch.ao.nn")) and base is not nn.Module
        for base in type(m).__mro__
    )


def _value(i: int, argument: Any) -> Any:  # noqa: ANN401
    return argument._pair[i] if isinstance(argument, ValueProxy) else argument
