"""What Python's own ``int``, ``len`` and ``type`` answer to a network's code while it is traced.

They insist on true numbers and true classes, which a proxy can't be. So the modules whose code
runs find these names among their globals, for as long as the trace lasts.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

_NAMES = ("int", "len", "type")


class Answers:
    """Lends ``int``, ``len`` and ``type`` to modules outside torch; takes them back on exit.

    Args:
        tensor: the class of what stands for a tensor.
        number: the classes of what stands for a number.
        whole: what ``int`` gives for such a number.
        is_whole: whether such a number is an ``int``.
    """

    def __init__(
        self,
        tensor: type[Any],
        number: type[Any] | tuple[type[Any], ...],
        whole: Callable[[Any], object],
        is_whole: Callable[[Any], bool],
    ) -> None:
        self._names = dict(
            zip(
                _NAMES,
                (_int(tensor, number, whole, is_whole), _len(tensor), _type(tensor)),
                strict=True,
            )
        )
        self._lent: list[tuple[dict[str, Any], str]] = []
        self._seen: set[int] = set()
        self._active = False

    def __enter__(self) -> Answers:
        self._active = True
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False
        for space, name in self._lent:
            del space[name]
        self._lent.clear()
        self._seen.clear()

    def give(self, frame: FrameType | None) -> None:
        """Lend to the module of the innermost frame that is neither torch's nor ours."""
        while frame is not None and _ours(frame.f_globals):
            frame = frame.f_back
        if frame is not None:
            self.give_module(frame.f_globals)

    def give_module(self, space: dict[str, Any]) -> None:
        """Lend to a module, given by its globals."""
        if not self._active or id(space) in self._seen or _ours(space):
            return
        self._seen.add(id(space))
        for name, value in self._names.items():
            if name not in space:
                space[name] = value
                self._lent.append((space, name))


def _ours(space: dict[str, Any]) -> bool:
    return str(space.get("__name__")).partition(".")[0] in ("torch", "tailorbird", "math")


def _int(
    tensor: type[Any],
    number: type[Any] | tuple[type[Any], ...],
    whole: Callable[[Any], object],
    is_whole: Callable[[Any], bool],
) -> type:
    """An ``int`` whose instances are ints and numbers that change with the batch."""

    class Meta(type):
        def __call__(cls, *args: Any) -> Any:  # noqa: ANN401
            if args and isinstance(args[0], number) and not isinstance(args[0], tensor):
                return whole(args[0])
            return builtins.int(*args)

        def __instancecheck__(cls, instance: object) -> bool:
            if isinstance(instance, tensor):
                return False
            return isinstance(instance, builtins.int) or (
                isinstance(instance, number) and is_whole(instance)
            )

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is builtins.int

        def __hash__(cls) -> builtins.int:
            return hash(builtins.int)

    return Meta("int", (builtins.int,), {})


def _len(tensor: type[Any]) -> Callable[[Any], object]:
    return lambda value: value.shape[0] if isinstance(value, tensor) else builtins.len(value)


def _type(tensor: type[Any]) -> type:
    """A ``type`` by which a tensor's proxy is a tensor."""

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if builtins.len(args) == 1 and isinstance(args[0], tensor):
                return torch.Tensor
            return builtins.type(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, builtins.type)

    return Meta("type", (builtins.type,), {})
