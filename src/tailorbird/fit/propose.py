"""What to measure next: one search for the limits of all targets, and for somewhat tighter ones.

The estimate of a latency is off by some per cent, so the best candidate under a limit as estimated
may lie above it as measured. Beside the limit itself tighter ones are searched for, down to
`TIGHTEST` of it; what is found for one target serves all others at its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.family import Estimated
from tailorbird.fit.candidates import Key
from tailorbird.progress import Progress
from tailorbird.search.reach import unreachable
from tailorbird.search.strategy import Limits, Strategy

TIGHTEST = 0.85
"""Candidates of a target are searched for between this share of its limits and all of them."""

SLACK = 1.001
"""What is asked for where the lowest figure is wanted, as a share of it."""


Owner = tuple[str, str]


@dataclass(frozen=True)
class Wish:
    """Limits that candidates are wanted for: metric of the search -> bound; and for whom.

    Args:
        owner: a target's name, and that of its place in some precision.
        bounds: the limits.
    """

    owner: Owner
    bounds: Limits


def propose(
    family: Estimated,
    wishes: Sequence[Wish],
    strategy: Strategy,
    *,
    candidates: int,
    seed: int,
    progress: Progress,
) -> dict[Owner, list[Key]]:
    """Candidates for each owner, best first; where nothing keeps its limits, the lowest there is.

    Args:
        family: what is searched.
        wishes: what is wanted.
        strategy: how it is searched.
        candidates: limits per wish that are searched for.
        seed: of the search.
        progress: told how it goes.

    Raises:
        KeyboardInterrupt: when the search was stopped by ctrl-C.
    """
    asked = _asked(family, wishes, candidates=candidates, seed=seed)
    found = strategy.search(family, [one.bounds for one in asked], seed=seed, progress=progress)
    if found.stopped:
        raise KeyboardInterrupt
    keys: dict[Owner, list[Key]] = {}
    for wish, winner in zip(asked, found.winners, strict=True):
        known = keys.setdefault(wish.owner, [])
        key = tuple(map(int, winner.genome))
        if key not in known:
            known.append(key)
    return keys


def _asked(family: Estimated, wishes: Sequence[Wish], *, candidates: int, seed: int) -> list[Wish]:
    """Limits that can be kept: those of a wish from its own down to tighter ones."""
    every = [
        Wish(wish.owner, {metric: bound * share for metric, bound in wish.bounds.items()})
        for wish in wishes
        for share in np.linspace(1.0, TIGHTEST, candidates).tolist()
    ]
    lowest = unreachable(family, [one.bounds for one in every], seed=seed)
    kept = []
    for row, wish in enumerate(every):
        if row not in lowest:
            kept.append(wish)
        elif row % candidates == 0:
            # Its lowest candidate is measured: it may do, and the lowest figure is told if not.
            kept.append(Wish(wish.owner, _nearest(wish.bounds, lowest[row])))
    return kept


def _nearest(bounds: Limits, lowest: Mapping[str, float]) -> dict[str, float]:
    hardest = max(bounds, key=lambda metric: lowest[metric] / bounds[metric])
    return {hardest: max(lowest[hardest] * SLACK, 1e-9 * bounds[hardest])}
