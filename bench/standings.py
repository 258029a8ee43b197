"""The table of a contest: every method at every limit, over seeds, compared image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contest import FLOAT, OURS, UNLABELLED, Entry, named


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
    """
    alone, without = mine == FLOAT, {OURS, FLOAT, *([UNLABELLED] if mine == FLOAT else ())}
    methods = sorted({entry.method for judged in seeds for entry in judged.right} - without)
    found = []
    for runtime, limit in limits:
        target = named(runtime, limit, alone=alone)
        own = [judged.named(mine, target) for judged in seeds]
        picked = {mine: own}
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
    top1s, shares, differences, variances = [], [], [], []
    for judged, pick, mine in zip(seeds, picks, own, strict=True):
        assert pick is not None
        right = judged.right[pick]
        top1s.append(100 * float(right.mean()))
        shares.append(judged.share[pick])
        if mine is not None and mine != pick:
            pairs = judged.right[mine].astype(float) - right
            differences.append(100 * float(pairs.mean()))
            variances.append(1e4 * float(pairs.var()) / len(pairs))
    first = picks[0]
    assert first is not None
    count = len(differences)
    return Row(
        target=target,
        method=method,
        network=first.network,
        precision=first.precision,
        share=max(shares),
        top1=sum(top1s) / len(top1s),
        top1s=tuple(top1s),
        met=max(shares) <= limit,
        ahead=sum(differences) / count if count else None,
        error=(sum(variances) ** 0.5) / count if count else None,
    )


def best_rival(table: Sequence[Row], target: str) -> Row | None:
    """The most accurate other at a target."""
    own = (OURS, FLOAT, UNLABELLED)
    others = [row for row in table if row.target == target and row.method not in own]
    return max(others, key=lambda row: row.top1, default=None)


def show(table: Sequence[Row]) -> None:
    """Print it."""
    for row in table:
        beside = "" if row.ahead is None else f"{row.ahead:+6.2f} +- {row.error:.2f}"
        print(
            f"{row.target:22} {row.method:28} {row.share:6.3f}x {'' if row.met else 'OVER':4} "
            f"{row.top1:6.2f} %  {beside:16} {row.precision:8} {row.network}"
        )
