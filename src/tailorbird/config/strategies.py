"""Search strategies by name, for the command line."""

from __future__ import annotations

from collections.abc import Callable

from tailorbird.config.sections import near
from tailorbird.errors import ConfigError
from tailorbird.search.baselines import Exhaustive, RandomSearch
from tailorbird.search.evolution import BottomUp, Independent, TopDown
from tailorbird.search.many_targets import AllAtOnce
from tailorbird.search.nsga2 import Nsga2
from tailorbird.search.strategy import Strategy

_STRATEGIES: tuple[Callable[[], Strategy], ...] = (
    AllAtOnce,
    Independent,
    TopDown,
    BottomUp,
    RandomSearch,
    Exhaustive,
    Nsga2,
)


def strategy(name: str) -> Strategy:
    """The strategy called ``name``, with its defaults.

    Raises:
        ConfigError: for an unknown name, with those there are.

    Example:
        >>> strategy("top-down").name
        'top-down'
        >>> strategy("topdown")
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: --strategy: unknown name 'topdown'; did you mean 'top-down'?
    """
    known = {one.name: one for one in (make() for make in _STRATEGIES)}
    if name not in known:
        raise ConfigError(f"--strategy: unknown name {name!r}{near(name, known)}")
    return known[name]
