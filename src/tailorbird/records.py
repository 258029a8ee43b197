"""Plain data that was written by a run as records again, checked by their types."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tailorbird.errors import StoreError
from tailorbird.files import read_json

Kind = TypeVar("Kind")

_FINITE = ConfigDict(allow_inf_nan=False)


def as_record(kind: type[Kind], raw: object) -> Kind | None:
    """Plain data as a record; ``None`` when it does not fit.

    Example:
        >>> as_record(dict[str, float], {"a": 1}), as_record(dict[str, float], {"a": "b"})
        ({'a': 1.0}, None)
    """
    try:
        return _checked(kind, raw)
    except ValidationError:
        return None


def read_record(path: Path, kind: type[Kind]) -> Kind:
    """A record from a JSON file.

    Raises:
        StoreError: when the file is missing or damaged, or holds something else.
    """
    raw = read_json(path)
    try:
        return _checked(kind, raw)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"][1:])) or "the file"
        raise StoreError(
            f"{path} is damaged: {place}: {fault['msg']}; remove it to have it made anew"
        ) from error


def _checked(kind: type[Kind], raw: object) -> Kind:
    # In a tuple: a data class alone takes no configuration.
    return TypeAdapter(tuple[kind], config=_FINITE).validate_python((raw,))[0]  # type: ignore[valid-type]  # made at run time
