"""How targets are fitted, and what is wrong with a list of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from tailorbird.device import Precision
from tailorbird.errors import ConfigError
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.fit.sessions import MOST
from tailorbird.targets import Target, places_of

Until = Literal["search", "retrain", "export"]
"""Where to stop; each value includes what comes before it."""


FEWER = len(get_args(Precision)) - 1
"""Rounds beside those that were asked for: a precision that loses too much costs none of them."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How targets are fitted.

    Args:
        rounds: most searches in a row, and most attempts at a target's limits.
        candidates: proposed per target and search.
        contenders: of a target that are trained, in rounds, to find the best.
        sessions: measurements of a finished student at most, until its limit is clear.
        export: of the files.
        quantise: of files in lower precisions.
        seed: of the search.

    Raises:
        ConfigError: listing every value out of range.
    """

    rounds: int = 3
    candidates: int = 4
    contenders: int = 1
    sessions: int = MOST
    export: ExportOptions = field(default_factory=ExportOptions)
    quantise: QuantiseOptions = field(default_factory=QuantiseOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"rounds": 1, "candidates": 1, "contenders": 1, "sessions": 1, "seed": 0}
        problems = [
            f"{name}: expected {bound} or more, got {getattr(self, name)}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        if problems:
            raise ConfigError(problems)

    def asked(self) -> dict[str, object]:
        """The settings as a request counts them: those that came later only where they are set."""
        found = {**asdict(self), "export": self.export.asked()}
        later = {"contenders": 1, "sessions": MOST, "quantise": asdict(QuantiseOptions())}
        return {k: v for k, v in found.items() if k not in later or v != later[k]}


def check_targets(targets: Sequence[Target]) -> list[str]:
    """Faults of a list of targets: none at all, names that occur twice, places that differ."""
    if not targets:
        return ["targets: the list is empty; give at least one device with a limit"]
    names = [target.name for target in targets]
    problems = [
        f"targets: the name '{name}' occurs twice"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    try:
        places_of(targets)
    except ConfigError as error:
        problems += error.problems
    return problems
