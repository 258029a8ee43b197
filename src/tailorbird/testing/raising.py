"""Asserting that something is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Raised = TypeVar("Raised", bound=BaseException)


def refused(kind: type[Raised], call: Callable[[], object], *says: str) -> Raised:
    """The error of ``kind`` that ``call`` has to raise, with all texts of ``says`` in it.

    Example:
        >>> str(refused(ValueError, lambda: int("x"), "invalid literal"))
        "invalid literal for int() with base 10: 'x'"
    """
    try:
        call()
    except kind as error:
        missing = [text for text in says if text not in str(error)]
        assert not missing, f"expected {missing} in the error, got: {error}"
        return error
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")
