"""Layers as one operation each while ``torch.export`` reads a network.

``torch.export`` looks into everything. So that layers stay layers, the forward of each in a copy of
the network calls one operator of PyTorch's dispatcher, of which only the results' shapes are known;
in the program that comes out, every such call is one node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.autograd import Function
from torch.utils._pytree import (
    TreeSpec,
    tree_flatten,
    tree_flatten_with_path,
    tree_map,
    tree_unflatten,
)

from tailorbird.graph import functions

_LIBRARY = torch.library.Library("tailorbird", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "layer(int call, Tensor[] tensors, SymInt[] numbers) -> Tensor[]"
)
_VIEWS = (nn.Identity, nn.Flatten, nn.Unflatten)
"""Layers that hand on what they are given: as functions they are as good, and writes are seen."""


@dataclass(frozen=True)
class LeafCall:
    """One call of a layer, or of a function that must not be looked into.

    Args:
        target: the layer's dotted path, or the function.
        run: what computes it.
        slots: its arguments, flat; ``Tensor`` and ``int`` stand for a tensor and a size.
        form: how the flat arguments make ``args, kwargs``.
        seen: what it gave when the network was run with values, in shapes alone, if that is known.
        places: keys that lead to each tensor of the result, filled in when it is first called.
        result: the result's constants and ``Tensor`` for each tensor, and its form.
    """

    target: str | Callable[..., Any]
    run: Callable[..., Any]
    slots: tuple[Any, ...]
    form: TreeSpec
    seen: Any = None
    places: list[tuple[Any, ...]] = field(default_factory=list)
    result: list[tuple[list[Any], TreeSpec]] = field(default_factory=list)

    def arguments(self, tensors: Iterable[Any], numbers: Iterable[Any]) -> Any:  # noqa: ANN401
        """``args, kwargs`` with these tensors and sizes, or with what stands for them."""
        given = {Tensor: iter(tensors), int: iter(numbers)}
        flat = [next(given[slot]) if _is_slot(slot) else slot for slot in self.slots]
        return tree_unflatten(flat, self.form)


_CALLS: dict[int, LeafCall] = {}
_NUMBERS = itertools.count()


@torch.library.register_fake("tailorbird::layer", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shapes(call: int, tensors: list[Tensor], numbers: list[int]) -> list[Tensor]:
    """What a call gives, in shapes alone."""
    made = _CALLS[call]
    args, kwargs = made.arguments(tensors, numbers)
    try:
        with _no_new_symbols(tensors):
            results = made.run(*args, **kwargs)
    except Exception:  # it asks for values: a leaf may
        if made.seen is None or not tensors:
            raise
        results = tree_map(lambda value: _with_batch(value, tensors[0]), made.seen)
    found, form = tree_flatten_with_path(results)
    flat = [value for _, value in found]
    if not made.result:
        made.result.append(([Tensor if isinstance(v, Tensor) else v for v in flat], form))
        made.places.extend(_keys(path) for path, v in found if isinstance(v, Tensor))
    return [value.clone() for value in flat if isinstance(value, Tensor)]


def _no_new_symbols(tensors: list[Tensor]) -> AbstractContextManager[None]:
    """Values that a layer asks for are its own affair: no later shape depends on them."""
    mode = detect_fake_mode(tensors)
    if mode is None or mode.shape_env is None:
        return nullcontext()
    return mode.shape_env.ignore_fresh_unbacked_symbols()


def _with_batch(seen: Any, like: Tensor) -> Any:  # noqa: ANN401
    """A tensor of the shape that was seen, with as many images as there are here."""
    if not isinstance(seen, Tensor):
        return seen
    sizes = (like.shape[0], *seen.shape[1:]) if seen.ndim else ()
    return like.new_empty(sizes, dtype=seen.dtype)


OPERATOR = torch.ops.tailorbird.layer.default


def _keys(path: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(getattr(key, "idx", getattr(key, "key", None)) for key in path)


def _is_slot(slot: object) -> bool:
    return slot is Tensor or slot is int


class LeafCalls:
    """Layers of a copy of a network become one operation each, for as long as this is open.

    Args:
        home: the network; its layers compute the shapes, and are what the program names.
        leaves: paths of those of its modules that are not looked into.
    """

    def __init__(self, home: nn.Module, leaves: Sequence[str]) -> None:
        self._home = home
        self._leaves = leaves
        self._made: list[int] = []
        self._inside = False
        self._whole: set[type[Function]] = set()
        self._seen: dict[object, Any] = {}
        self._own: dict[nn.Module, list[int]] = {}

    def call(self, number: int) -> LeafCall:
        """The call of that number."""
        return _CALLS[number]

    @contextmanager
    def open(self, copy: nn.Module, images: Tensor) -> Iterator[None]:
        """Replace the layers' forwards in a copy of the network; forget all calls at the end.

        Args:
            copy: it is run on ``images`` once.
            images: with values.
        """
        handles = [
            layer.register_forward_hook(partial(self._saw, path))
            for path, layer in self._layers(copy)
        ]
        with functions.watched(self._judged):
            copy(images)
        for handle in handles:
            handle.remove()
        for path, layer in self._layers(copy):
            layer.forward = self._forward(path, layer)
        try:
            yield
        finally:
            self._forget()

    def watched(self) -> AbstractContextManager[None]:
        """While open, autograd functions of the user's own are one operation each."""
        return functions.watched(self._applied)

    @contextmanager
    def open_plain(self, copy: nn.Module, images: Tensor) -> Iterator[None]:
        """The same with forwards that bytecode is read of, for layers that make one tensor of one
        when the network runs on ``images``; others are looked into."""
        simple = _of_one_tensor(copy, dict(self._layers(copy)), images)
        for path, layer in simple.items():
            _, form = tree_flatten(((images,), {}))
            number = self._keep(LeafCall(path, self._real(path), (Tensor,), form))
            layer.forward = _plain_forward(number, getattr(layer, "inplace", False) is True)
        try:
            yield
        finally:
            self._forget()

    def begin(self) -> None:
        """Note which tensors the layers hold: one that is called with others is looked into."""
        self._own = {layer: _identities(layer) for layer in self._own}

    def _layers(self, copy: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for path in self._leaves:
            layer = copy.get_submodule(path)
            if not isinstance(layer, _VIEWS):
                yield path, layer

    def _real(self, path: str) -> nn.Module:
        """The layer itself: what its hooks do is in the program."""
        layer = self._home.get_submodule(path)
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()
        return layer

    def _keep(self, call: LeafCall) -> int:
        number = next(_NUMBERS)
        _CALLS[number] = call
        self._made.append(number)
        return number

    def _forget(self) -> None:
        for number in self._made:
            del _CALLS[number]
        self._made.clear()

    def _forward(self, path: str, layer: nn.Module) -> Callable[..., Any]:
        plain, real = layer.forward, self._real(path)
        in_place = getattr(layer, "inplace", False) is True
        self._own[layer] = []

        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if self._own[layer] != _identities(layer):
                return plain(*args, **kwargs)
            result = self._record(path, real, plain, args, kwargs)
            return args[0].copy_(result) if in_place else result

        return forward

    def _saw(self, path: str, _layer: nn.Module, _args: Any, found: Any) -> None:  # noqa: ANN401
        self._seen[path] = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, found)

    def _judged(self, function: type[Function], apply: functions.Apply, args: Any) -> Any:  # noqa: ANN401
        """Note the functions whose own gradient is needed, while there are values."""
        own = not function.__module__.startswith("torch.")
        if own and functions.has_own_gradient(function, apply, args):
            self._whole.add(function)
        return apply(*args)

    def _applied(self, function: type[Function], apply: functions.Apply, args: Any) -> Any:  # noqa: ANN401
        """A function is called where a call's shapes are worked out, or kept whole, backward and
        all, or looked into where its gradient is that of its forward; torch's own are called."""
        if self._inside or function.__module__.startswith("torch."):
            return apply(*args)
        if function not in self._whole:
            return functions.look_into(function, args)
        kept = functions.whole(function)
        return self._record(kept, kept, apply, args, {})

    def _record(
        self,
        target: str | Callable[..., Any],
        run: Callable[..., Any],
        plain: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401
        """Call the operator; ``plain`` where values go in or out that it can't take."""
        if not _can_pass((args, dict(kwargs))):
            return plain(*args, **kwargs)
        flat, form = tree_flatten((args, dict(kwargs)))
        slots = tuple(
            Tensor if isinstance(v, Tensor) else int if isinstance(v, torch.SymInt) else v
            for v in flat
        )
        made = LeafCall(target, self._alone(run), slots, form, self._seen.get(target))
        number = self._keep(made)
        tensors = [value for value in flat if isinstance(value, Tensor)]
        sizes = [value for value in flat if isinstance(value, torch.SymInt)]
        found = iter(OPERATOR(number, tensors, sizes))
        constants, out = made.result[0]
        result = tree_unflatten([next(found) if v is Tensor else v for v in constants], out)
        return result if _can_pass(result) else plain(*args, **kwargs)

    def _alone(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def alone(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self._inside = True
            try:
                return run(*args, **kwargs)
            finally:
                self._inside = False

        return alone


def _of_one_tensor(
    network: nn.Module, layers: Mapping[str, nn.Module], images: Tensor
) -> dict[str, nn.Module]:
    """Those of the layers that are given one tensor, and give one, wherever they are called."""
    seen: dict[str, bool] = {}

    def note(path: str, args: Any, kwargs: Any, found: Any) -> None:  # noqa: ANN401
        simple = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        seen[path] = seen.get(path, True) and simple and isinstance(found, Tensor)

    def hook(path: str) -> Callable[..., None]:
        return lambda _layer, args, kwargs, found: note(path, args, kwargs, found)

    handles = [
        layer.register_forward_hook(hook(path), with_kwargs=True) for path, layer in layers.items()
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {path: layer for path, layer in layers.items() if seen.get(path)}


def _plain_forward(number: int, in_place: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.tailorbird.layer(number, [x], [])[0]
        return x.copy_(result) if in_place else result

    return forward


def _identities(layer: nn.Module) -> list[int]:
    return [id(tensor) for tensor in (*layer.parameters(), *layer.buffers())]


def _can_pass(value: object) -> bool:
    """Whether it is made of tensors, sizes and plain values, in plain containers."""
    if type(value) in (tuple, list, dict):
        held = value.values() if isinstance(value, dict) else value
        return all(map(_can_pass, cast("Iterable[object]", held)))
    plain = (Tensor, torch.SymInt, bool, int, float, str, torch.dtype, type(None))
    return isinstance(value, plain)
