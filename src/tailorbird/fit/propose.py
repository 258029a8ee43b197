"""What to measure next: one search for the limits of all targets, and for somewhat less.

The estimate of a latency is off by some per cent, so the best candidate under a limit as estimated
may lie above it as measured; and what is estimated to be best may leave much of a limit unused,
while others gain more by being trained. So beside a limit itself, candidates between `TIGHTEST` of
it and all of it are searched for. Where costs add up, each has a band of that range to itself, and
a candidate that was found before gives way to the next best one. Else the limit is tightened step
by step: such families get better with every millisecond. What is found for one target serves all
others at its place.

Some kinds of candidates can't be compared before they are trained: a network of the teacher's own
layers, some left out, answers worse at first than one that holds a donor, and may be better in the
end. So each kind that a flow names is searched by itself as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from tailorbird.family import Estimated, is_additive
from tailorbird.fit.candidates import Key
from tailorbird.progress import Progress
from tailorbird.search.additive import Ranks
from tailorbird.search.near import Near, Within
from tailorbird.search.reach import unreachable
from tailorbird.search.strategy import Limits, Strategy
from tailorbird.space import Genome

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
        near: the metric whose limit is to be used.
    """

    owner: Owner
    bounds: Limits
    near: str


def propose(
    family: Estimated,
    wishes: Sequence[Wish],
    strategy: Strategy,
    *,
    candidates: int,
    kinds: Sequence[Sequence[int]] = (),
    content: Callable[[Key], Hashable] = lambda key: key,
    seed: int,
    progress: Progress,
) -> dict[Owner, list[Key]]:
    """Candidates for each owner, best first; where nothing keeps its limits, the lowest there is.

    Args:
        family: what is searched.
        wishes: what is wanted.
        strategy: how it is searched.
        candidates: per wish, at most; for each kind half as many.
        kinds: indices of alternatives, of which members are searched by themselves near the limits;
            where costs add up.
        content: equal for keys of one network: no two of an owner's are.
        seed: of the search.
        progress: told how it goes.

    Raises:
        KeyboardInterrupt: when the search was stopped by ctrl-C.
    """
    find = partial(
        _found,
        wishes=wishes,
        strategy=strategy,
        count=candidates,
        content=content,
        seed=seed,
        progress=progress,
    )
    if not is_additive(family):
        return find(family)
    parts = [Within(family, kind) for kind in kinds if len(kind)]
    ceilings = {one.near: 0.0 for one in wishes}
    for one in wishes:
        ceilings[one.near] = max(ceilings[one.near], 2 * one.bounds[one.near])
    keys = find(Near(family, ceilings))
    for part in parts:
        near = Near(part, ceilings)
        asked = _bands(near, wishes, max(1, candidates // 2), seed=seed)
        more = _search(near, asked, strategy, seed=seed, progress=progress)
        for wish, genome in zip(asked, more, strict=True):
            known = {content(one) for one in keys[wish.owner]}
            if content(key := _key(genome)) not in known:
                keys[wish.owner].append(key)
    return keys


def _found(
    family: Estimated,
    *,
    wishes: Sequence[Wish],
    strategy: Strategy,
    count: int,
    content: Callable[[Key], Hashable],
    seed: int,
    progress: Progress,
) -> dict[Owner, list[Key]]:
    """So many candidates for each wish, by owners; each network once."""
    asked = _asked(family, wishes, candidates=count, seed=seed)
    keys: dict[Owner, list[Key]] = {wish.owner: [] for wish in asked}
    found = _search(family, asked, strategy, seed=seed, progress=progress)
    for wish, genome in zip(asked, found, strict=True):
        key, known = _key(genome), {content(one) for one in keys[wish.owner]}
        if content(key) in known:
            others = _others(family, wish, strategy, count=2 * len(known) + 1)
            key = next((one for one in others if content(one) not in known), key)
        if content(key) not in known:
            keys[wish.owner].append(key)
    return keys


def _search(
    family: Estimated,
    asked: Sequence[Wish],
    strategy: Strategy,
    *,
    seed: int,
    progress: Progress,
) -> list[Genome]:
    """The best member for each set of limits."""
    if not asked:
        return []
    found = strategy.search(family, [one.bounds for one in asked], seed=seed, progress=progress)
    if found.stopped:
        raise KeyboardInterrupt
    return [winner.genome for winner in found.winners]


def _bands(family: Near, wishes: Sequence[Wish], count: int, *, seed: int) -> list[Wish]:
    """The bands of each wish that hold anything, so many of equal width."""
    every = [
        replace(wish, bounds=bounds)
        for wish in wishes
        for bounds in _limits(family, wish, count + 1)[1:]
    ]
    empty = unreachable(family, [one.bounds for one in every], seed=seed)
    return [wish for row, wish in enumerate(every) if row not in empty]


def _others(family: Estimated, wish: Wish, strategy: Strategy, *, count: int) -> list[Key]:
    """The next best ones under the same limits, from a strategy that can tell."""
    if isinstance(family, Near) and isinstance(strategy, Ranks):
        return [_key(one) for one in strategy.ranked(family, wish.bounds, count=count)]
    return []


def _key(genome: Genome) -> Key:
    return tuple(map(int, genome))


def _asked(family: Estimated, wishes: Sequence[Wish], *, candidates: int, seed: int) -> list[Wish]:
    """Limits that can be kept: those of each wish, then those of its bands or tighter ones.

    A band that holds nothing gives way to the whole range, or else to the wish itself.
    """
    every = [
        replace(wish, bounds=bounds)
        for wish in wishes
        for bounds in _limits(family, wish, candidates)
    ]
    lowest = unreachable(family, [one.bounds for one in every], seed=seed)
    ranges = [_range(family, wish) for wish in wishes]
    empty = unreachable(family, ranges, seed=seed) if isinstance(family, Near) else {}
    kept = []
    for row, wish in enumerate(every):
        number, first = row // candidates, row - row % candidates
        if row not in lowest:
            kept.append(wish)
        elif row == first:
            # Its lowest candidate is measured: it may do, and the lowest figure is told if not.
            kept.append(replace(wish, bounds=_nearest(wish.bounds, lowest[row])))
        elif isinstance(family, Near) and first not in lowest:
            whole = wishes[number].bounds if number in empty else ranges[number]
            kept.append(replace(wish, bounds=whole))
    return kept


def _limits(family: Estimated, wish: Wish, candidates: int) -> list[Limits]:
    """So many sets of limits for one wish; the first is its own."""
    shares = np.linspace(1.0, TIGHTEST, candidates).tolist()
    tighter: list[Limits] = [
        {metric: bound * share for metric, bound in wish.bounds.items()} for share in shares
    ]
    if not isinstance(family, Near):
        return tighter
    lower = [wish.bounds[wish.near] * share for share in shares[1:]]
    bands = [
        {**above, **family.at_least(wish.near, floor)}
        for above, floor in zip(tighter[:-1], lower, strict=True)
    ]
    return [wish.bounds, *bands]


def _range(family: Estimated, wish: Wish) -> Limits:
    """All from `TIGHTEST` of a wish's limit to that limit."""
    if not isinstance(family, Near):
        return wish.bounds
    return {**wish.bounds, **family.at_least(wish.near, TIGHTEST * wish.bounds[wish.near])}


def _nearest(bounds: Limits, lowest: Mapping[str, float]) -> dict[str, float]:
    hardest = max(bounds, key=lambda metric: lowest[metric] / bounds[metric])
    return {hardest: max(lowest[hardest] * SLACK, 1e-9 * bounds[hardest])}
