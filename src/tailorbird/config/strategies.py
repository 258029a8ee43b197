"""Search strategies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tailorbird.config.named import named
from tailorbird.search.additive import Annealing, Exact, RandomSelection
from tailorbird.search.baselines import Exhaustive, RandomSearch
from tailorbird.search.evolution import BottomUp, Independent, TopDown
from tailorbird.search.many_targets import AllAtOnce
from tailorbird.search.nsga2 import Nsga2
from tailorbird.search.strategy import Strategy

_KINDS: tuple[Callable[[], Strategy], ...] = (
    AllAtOnce,
    Independent,
    TopDown,
    BottomUp,
    RandomSearch,
    Exhaustive,
    Nsga2,
    Exact,
    Annealing,
    RandomSelection,
)

STRATEGIES: Mapping[str, Callable[[], Strategy]] = {make().name: make for make in _KINDS}
"""Name -> strategy. A new one is a line in the list above."""


def strategy(name: str, *, folder: Path = Path(), place: str = "strategy") -> Strategy:
    """The strategy called ``name``, see `named`.

    Example:
        >>> strategy("top-down").name
        'top-down'
        >>> strategy("topdown")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: strategy: unknown name 'topdown'; did you mean 'top-down'?...
    """
    made: Strategy = named(name, STRATEGIES, Strategy, folder=folder, place=place)
    return made
