"""``torch.autograd.Function``: looked into where its gradient is that of what it computes, else
kept whole, because its own backward would be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import _is_setup_context_defined
from torch.utils._pytree import tree_leaves, tree_map

Apply = Callable[..., Any]
MADE_FROM = "tailorbird_made_from"
"""Attribute of a function that stands for something else: what that is."""


@contextmanager
def watched(handle: Callable[[type[Function], Apply, tuple[Any, ...]], Any]) -> Iterator[None]:
    """While open, ``F.apply(*args)`` of any function ``F`` is ``handle(F, apply, args)``.

    ``apply`` is the method as it is otherwise.
    """
    original = vars(Function)["apply"]

    def apply(cls: type[Function], *args: Any) -> Any:  # noqa: ANN401
        return handle(cls, original.__get__(None, cls), args)

    setattr(Function, "apply", classmethod(apply))  # noqa: B010
    try:
        yield
    finally:
        setattr(Function, "apply", original)  # noqa: B010


@cache
def whole(function: type[Function]) -> Apply:
    """A function that applies an autograd function: one node of a graph, backward and all.

    ``torch.fx`` writes ``F.apply`` itself as if it were torch's own.
    """

    def apply(*args: Any) -> Any:  # noqa: ANN401
        return function.apply(*args)  # type: ignore[no-untyped-call]

    apply.__module__, apply.__name__ = function.__module__, function.__name__
    apply.__qualname__ = function.__qualname__
    vars(apply)[MADE_FROM] = function
    return apply


class _Context(SimpleNamespace):
    """Stands for ``ctx`` while a forward is looked into: what it keeps is for no backward."""

    def save_for_backward(self, *tensors: object) -> None:
        """Nothing is saved."""

    save_for_forward = save_for_backward
    set_materialize_grads = save_for_backward
    mark_non_differentiable = save_for_backward


def look_into(function: type[Function], args: Sequence[Any]) -> Any:  # noqa: ANN401
    """What the forward computes, as plain operations."""
    if _is_setup_context_defined(function.setup_context):  # type: ignore[no-untyped-call]
        return function.forward(*args)
    return function.forward(_Context(needs_input_grad=(True,) * len(args)), *args)


def has_own_gradient(function: type[Function], apply: Apply, args: Sequence[Any]) -> bool:
    """Whether its backward gives another gradient than its forward's operations do.

    Args:
        function: a function of whoever wrote the network.
        apply: calls it.
        args: as it was called, with tensors to try it on.
    """
    try:
        own, plain = (
            _gradients(call, args) for call in (apply, lambda *given: look_into(function, given))
        )
    except Exception:  # forwards that write in place, call numpy, ...: whatever it is, keep it
        return True
    return not all(
        torch.allclose(left, right, rtol=1e-3, atol=1e-5, equal_nan=True)
        for left, right in zip(own, plain, strict=True)
    )


def _gradients(call: Apply, args: Sequence[Any]) -> list[Tensor]:
    """Gradients of a weighted sum of the outputs, zero where none comes back."""
    inputs: list[Tensor] = []

    def fresh(value: object) -> object:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        inputs.append(value.detach().clone().requires_grad_())
        return inputs[-1]

    given = tree_map(fresh, tuple(args))
    with torch.enable_grad():
        outputs = [out for out in tree_leaves(call(*given)) if isinstance(out, Tensor)]
        outputs = [out for out in outputs if out.requires_grad]
        if not outputs or not inputs:
            return [torch.zeros_like(value) for value in inputs]
        weights = [torch.linspace(0.5, 1.5, o.numel()).reshape(o.shape).to(o) for o in outputs]
        total = torch.stack([(o * w).sum() for o, w in zip(outputs, weights, strict=True)]).sum()
        found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(inputs, found, strict=True)
    ]
