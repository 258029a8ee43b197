"""Additive problems for the search tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tailorbird.family import AdditiveProblem


@st.composite
def small_problems(draw):
    """Up to 7 alternatives of any layers, 1 or 2 metrics; small whole numbers, so many ties."""
    n, layers, m = draw(st.integers(0, 7)), draw(st.integers(1, 5)), draw(st.integers(1, 2))
    whole = st.integers(-2, 6)
    rows = st.lists(whole, min_size=n * m, max_size=n * m)
    loss = draw(st.lists(whole, min_size=n, max_size=n))
    bits = draw(st.lists(st.booleans(), min_size=n * layers, max_size=n * layers))
    return AdditiveProblem(
        loss=np.array(loss, dtype=float) / 100,
        saving=np.array(draw(rows), dtype=float).reshape(n, m),
        base=np.full(m, 12.0),
        covers=np.array(bits, dtype=bool).reshape(n, layers),
        metrics=("latency_ms", "size_mb")[:m],
    )


def intervals(n, layers, *, seed, metrics=("latency_ms",), harmful=False):
    """``n`` alternatives of blocks that are runs of layers; the more is saved, the more is lost."""
    rng = np.random.default_rng(seed)
    m = len(metrics)
    cost = rng.gamma(2.0, 1.0, (layers, 1)) * rng.uniform(0.5, 1.5, (layers, m))
    blocks = max(1, n // 8)
    start = rng.integers(0, layers - 2, blocks)
    length = np.minimum(rng.integers(1, int(0.3 * layers) + 1, blocks), layers - start)
    which = rng.integers(0, blocks, n)
    place = np.arange(layers)
    covers = (place >= start[which, None]) & (place < (start + length)[which, None])
    share = rng.uniform(-0.05, 0.95, n)
    saving = (covers @ cost) * share[:, None] * rng.uniform(0.9, 1.1, (n, m))
    loss = rng.lognormal(-4.5, 1.0, n) * np.maximum(share, 0.02) * length[which] / 10
    return AdditiveProblem(
        loss=loss if harmful else loss - 0.001 * rng.random(n),
        saving=saving,
        base=cost.sum(axis=0),
        covers=covers,
        metrics=metrics,
    )
