"""Every error that Tailorbird raises on purpose. Each says what was expected, what was given,
and the way out, and carries the data that a program needs to react."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class TailorbirdError(Exception):
    """Root of all errors raised on purpose."""


class Fault(str):
    """What is wrong with one setting: the text as it is told, and its two halves.

    Who knows better where the setting stands, such as in which line of a file, tells ``what``
    there, and needs to take no text apart.

    Args:
        place: dotted, beginning with what the setting belongs to.
        what: what was expected, what was given.

    Example:
        >>> fault = Fault("recipe.epochs", "expected a number above 0, got 0")
        >>> print(fault)
        recipe.epochs: expected a number above 0, got 0
        >>> fault.place
        ('recipe', 'epochs')
    """

    place: tuple[str, ...]
    what: str

    def __new__(cls, place: str, what: str) -> Fault:  # noqa: D102
        fault = super().__new__(cls, f"{place}: {what}")
        fault.place, fault.what = tuple(place.split(".")), what
        return fault


class ConfigError(TailorbirdError):
    """The job or its arguments are wrong. All problems are reported at once.

    Example:
        >>> error = ConfigError(["data: unknown kind 'cifra10'", "targets: list is empty"])
        >>> print(error)
        2 problems:
          - data: unknown kind 'cifra10'
          - targets: list is empty
        >>> len(error.problems)
        2
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            super().__init__(f"{len(self.problems)} problems:{lines}")


class GraphError(TailorbirdError):
    """A network can't be traced, cut or stitched. ``module`` names the place, if known."""

    def __init__(self, message: str, *, module: str | None = None) -> None:
        super().__init__(message)
        self.module = module


class SpaceError(TailorbirdError):
    """A genome lies outside its space, or a space is ill-formed."""


class InfeasibleError(TailorbirdError):
    """No candidate meets the limits. ``lowest`` holds the lowest reachable figure per metric."""

    def __init__(
        self,
        message: str,
        *,
        target: str | None = None,
        limits: Mapping[str, float] | None = None,
        lowest: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(message)
        self.target = target
        self.limits = dict(limits or {})
        self.lowest = dict(lowest or {})


class MeasurementError(TailorbirdError):
    """A device could not run or time a network."""


class ExportError(TailorbirdError):
    """A network can't be exported, or the export disagrees with the network."""


class PrecisionError(ExportError):
    """A network loses too much in a precision; in another one it may be shipped."""


class StoreError(TailorbirdError):
    """A run folder, checkpoint or saved student can't be read or written."""


class DataError(TailorbirdError):
    """Images or labels can't be used. All faults found are in the message."""


class TrainingError(TailorbirdError):
    """Training can't go on, such as when the loss is not finite. ``step`` says where."""

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step
