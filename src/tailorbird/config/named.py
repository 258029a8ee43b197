"""Objects by name: one of ours from a table, or one of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tailorbird.config.sections import near_or_own
from tailorbird.errors import ConfigError, Fault
from tailorbird.factories import is_factory, make_importable, own

Made = TypeVar("Made")


@dataclass(frozen=True)
class Named(Generic[Made]):
    """An object, and the name that it was asked for by."""

    name: str
    made: Made

    def plain(self) -> str:
        """As it would be written in a job file."""
        return self.name


def named(
    name: str,
    known: Mapping[str, Callable[[], object]],
    kind: type,
    *,
    folder: Path,
    place: str,
) -> Any:  # noqa: ANN401  # a protocol is no type that mypy lets stand for its own
    """What ``name`` stands for, with its defaults.

    Args:
        name: a key of ``known``, or ``package.module:name`` of the user's own.
        known: name -> what makes it.
        kind: the protocol that one of the user's own has to keep.
        folder: modules in it can be imported.
        place: where the name was given, for messages.

    Raises:
        ConfigError: for an unknown name, with those there are, or an object of another kind.
    """
    if name in known:
        return known[name]()
    if not is_factory(name):
        raise ConfigError(Fault(place, f"unknown name {name!r}{near_or_own(name, known)}"))
    make_importable(folder)
    return own(name, kind)
