"""The table of a contest: every method at every limit, over seeds, compared image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contest import FLOAT, OURS, PART, UNLABELLED, Entry, named


@dataclass(frozen=True)
class Row:
    """A method at a limit, over seeds.

    Args:
        target: of the limit.
        method: whose file it is.
        network: which of the method's networks.
        precision: that it computes in.
        share: measured, of the teacher's float32 latency; the largest of the seeds.
        top1: mean accuracy on the test images, in percent.
        top1s: by seed.
        met: whether that share is within the limit.
        ahead: by how many points ours is better, image by image.
        error: the standard error of that.
    """

    target: str
    method: str
    network: str
    precision: str
    share: float
    top1: float
    top1s: tuple[float, ...]
    met: bool
    ahead: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Judged:
    """One seed's pool: right or wrong on each test image, and share of the teacher's latency."""

    right: Mapping[Entry, npt.NDArray[np.bool_]]
    share: Mapping[Entry, float]

    def named(self, method: str, network: str) -> Entry | None:
        """A method's file for a target."""
        own = (e for e in self.right if e.method == method and e.network == network)
        return next(own, None)

    def best(self, method: str, runtime: str, limit: float, *, alone: bool) -> Entry | None:
        """A method's most accurate file within a limit; ``alone``: in float32."""
        own = [
            entry
            for entry in self.right
            if entry.method == method
            and entry.runtime == runtime
            and self.share[entry] <= limit
            and (not alone or entry.precision == "float32")
        ]
        return max(own, key=lambda entry: float(self.right[entry].mean()), default=None)


def rows(seeds: Sequence[Judged], limits: Sequence[tuple[str, float]], mine: str) -> list[Row]:
    """Every method at every limit that it keeps.

    Args:
        seeds: one pool each.
        limits: runtime and share.
        mine: what the others are compared to; `FLOAT` compares networks in float32 alone.

    A rival is its file that is best on the test images among those within the limit; ours, and what
    parts of it made, are the files for that target, also where they turn out over the limit.
    """
    alone, known = mine == FLOAT, {entry.method for judged in seeds for entry in judged.right}
    methods = sorted(method for method in known if not of_ours(method))
    own_ones = [mine] if alone else [mine, *sorted(known - {mine, FLOAT, *methods})]
    found = []
    for runtime, limit in limits:
        target = named(runtime, limit, alone=alone)
        picked = {name: [one.named(name, target) for one in seeds] for name in own_ones}
        own = picked[mine]
        for method in methods:
            picked[method] = [one.best(method, runtime, limit, alone=alone) for one in seeds]
        for method, picks in picked.items():
            if all(pick is not None for pick in picks):
                found.append(_row(target, method, limit, seeds, picks, own))
    return found


def _row(
    target: str,
    method: str,
    limit: float,
    seeds: Sequence[Judged],
    picks: Sequence[Entry | None],
    own: Sequence[Entry | None],
) -> Row:
    top1s, shares, pairs = [], [], []
    for judged, pick, mine in zip(seeds, picks, own, strict=True):
        assert pick is not None
        right = judged.right[pick]
        top1s.append(100 * float(right.mean()))
        shares.append(judged.share[pick])
        if mine is not None and mine != pick:
            pairs.append(100 * (judged.right[mine].astype(float) - right))
    # Seeds answer the same images: these are what is drawn at random, so seeds are averaged first.
    beside = np.mean(pairs, axis=0) if pairs else None
    first = picks[0]
    assert first is not None
    return Row(
        target=target,
        method=method,
        network=first.network,
        precision=first.precision,
        share=max(shares),
        top1=sum(top1s) / len(top1s),
        top1s=tuple(top1s),
        met=max(shares) <= limit,
        ahead=None if beside is None else float(beside.mean()),
        error=None if beside is None else float(beside.std() / len(beside) ** 0.5),
    )


def of_ours(method: str) -> bool:
    """Whether a method is ours or a part of it: its files are made for a target each."""
    return method in (OURS, FLOAT, UNLABELLED) or method.startswith(PART)


def best_rival(table: Sequence[Row], target: str) -> Row | None:
    """The most accurate other at a target."""
    others = [row for row in table if row.target == target and not of_ours(row.method)]
    return max(others, key=lambda row: row.top1, default=None)


def show(table: Sequence[Row]) -> None:
    """Print it."""
    for row in table:
        beside = "" if row.ahead is None else f"{row.ahead:+6.2f} +- {row.error:.2f}"
        print(
            f"{row.target:22} {row.method:28} {row.share:6.3f}x {'' if row.met else 'OVER':4} "
            f"{row.top1:6.2f} %  {beside:16} {row.precision:8} {row.network}"
        )
