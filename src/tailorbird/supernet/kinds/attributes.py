"""What a space's file may say of layers: each attribute with the values that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

_MOST_NUMBER = 2**31


@dataclass(frozen=True)
class Attribute:
    """A key that layers have in a space's file; a field of a :class:`LayerShape`.

    Attributes:
        name: the key.
        wanted: the values that it takes, in words.
        fits: whether a value is one of them.

    Example:
        >>> KERNEL.fits(3), KERNEL.fits(4), KERNEL.wanted
        (True, False, 'odd whole numbers of 1 to 31')
    """

    name: str
    wanted: str
    fits: Callable[[Any], bool]


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether ``value`` is a whole number from ``least`` to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> bool:
    """Whether ``value`` is a number that isn't beyond measure, and not NaN."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) <= _MOST_NUMBER  # type: ignore[arg-type]  # plain says so


def _whole(name: str, most: int) -> Attribute:
    return Attribute(name, f"whole numbers of 1 to {most}", partial(is_whole, least=1, most=most))


def _flag(name: str) -> Attribute:
    return Attribute(name, "true or false", partial(_one_of, known=(True, False)))


def _one_of(value: object, known: tuple[object, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in known)


def _odd(value: object) -> bool:
    return is_whole(value, 1, 31) and value % 2 == 1  # type: ignore[operator]  # it is whole


def _ratio(value: object) -> bool:
    return is_number(value) and 0 < value <= 64  # type: ignore[operator]  # it is a number


_ACTIVATIONS = ("none", "relu", "relu6", "h_swish", "gelu")

OUT_CHANNELS = _whole("out_channels", 2**14)
KERNEL = Attribute("kernel", "odd whole numbers of 1 to 31", _odd)
EXPAND = Attribute("expand", "numbers above 0, at most 64", _ratio)
SE = _flag("se")
ACTIVATION = Attribute(
    "activation", f"one of {', '.join(_ACTIVATIONS)}", partial(_one_of, known=_ACTIVATIONS)
)
RESIDUAL = _flag("residual")
NORM = _flag("norm")
HEADS = _whole("heads", 256)
HEAD_CHANNELS = _whole("head_channels", 1024)
