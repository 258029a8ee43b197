"""What timed runs amount to: one latency, and whether the device kept its speed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tailorbird.device import Latency

DRIFT = 0.1
"""A session in which a file drifts by more than this share is measured once more."""


def summary(rounds_ms: Sequence[Sequence[float]], *, warmup: int) -> Latency:
    """One latency of a file's runs.

    Args:
        rounds_ms: times in ms as [round][run], in the order they were taken.
        warmup: untimed runs before them.

    Returns:
        The median over rounds of each round's median, and the interquartile range over all runs;
        and the drift, from six rounds on.

    Example:
        >>> found = summary([[2.0, 2.0], [2.0, 2.2], [2.0, 2.0]], warmup=5)
        >>> found.median_ms, found.runs, found.drift
        (2.0, 6, None)
        >>> round(summary([[1.0]] * 4 + [[1.3]] * 2, warmup=0).drift, 2)
        0.3
    """
    medians = np.array([np.median(one) for one in rounds_ms])
    every = np.concatenate([np.asarray(one, dtype=float) for one in rounds_ms])
    low, high = np.percentile(every, [25, 75])
    third = len(medians) // 3
    drift = None
    if third >= 2:
        drift = float(np.median(medians[-third:]) / np.median(medians[:third])) - 1
    return Latency(
        median_ms=float(np.median(medians)),
        spread_ms=float(high - low),
        runs=len(every),
        warmup=warmup,
        drift=drift,
    )


def steady(session: Callable[[], list[Latency]]) -> list[Latency]:
    """A session's latencies; one during which the device's own speed drifted is held once more.

    Files take turns in a session, so a device that gets slower slows all of them: the median drift
    over files tells. Of two sessions that drifted, the one that did less counts.

    Args:
        session: times all files.

    Example:
        >>> held = [[Latency(median_ms=m, spread_ms=0, runs=9, warmup=0, drift=d)]
        ...         for m, d in ((2.6, 0.4), (3.0, 0.01))]
        >>> steady(lambda: held.pop(0))[0].median_ms
        3.0
    """
    first = session()
    if _drift(first) <= DRIFT:
        return first
    return min(first, session(), key=_drift)


def _drift(latencies: Sequence[Latency]) -> float:
    known = [one.drift for one in latencies if one.drift is not None]
    return abs(float(np.median(known))) if known else 0.0
