"""What a search found, as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tailorbird.search.strategy import SearchResult, Winner

MOST = 60
"""Rows shown; files hold them all."""


def show(result: SearchResult, console: Console) -> None:
    """Print one line per target, and what the search took.

    Accuracies are shown in percent where they are shares; else as the predictor gives them.
    """
    metrics = [m for m in result.winners[0].cost if "@" not in m]
    devices = any("@" in metric for winner in result.winners for metric in winner.limits)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("limit")
    if devices:
        table.add_column("latency ms", justify="right")
    for metric in metrics:
        table.add_column(metric.replace("_", " "), justify="right")
    table.add_column("predicted accuracy", justify="right")
    share = all(0 <= winner.quality <= 1 for winner in result.winners)
    for winner in result.winners[:MOST]:
        own = [_latency(winner)] if devices else []
        figures = [figure(winner.cost[metric]) for metric in metrics]
        quality = f"{100 * winner.quality:.2f} %" if share else f"{winner.quality:.2f}"
        table.add_row(limits(winner), *own, *figures, quality)
    console.print(table)
    if len(result.winners) > MOST:
        console.print(f"... and {len(result.winners) - MOST} more; --json or --csv writes all")
    ended = "stopped early, the best so far: " if result.stopped else ""
    console.print(
        f"{ended}{len(result.winners)} targets by {result.strategy} in {result.seconds:.2f} s, "
        f"{result.evaluations:,} accuracy predictions, seed {result.seed}"
    )


def limits(winner: Winner) -> str:
    """The limits of one winner in words.

    Example:
        >>> import numpy as np
        >>> limits(Winner(limits={"latency_ms@phone": 15.0, "macs": 3e8},
        ...               genome=np.zeros(1, int), quality=0.7, cost={}))
        'phone: latency_ms <= 15, macs <= 300M'
    """
    devices = dict.fromkeys(m.partition("@")[2] for m in winner.limits if "@" in m)
    bounds = ", ".join(f"{m.partition('@')[0]} <= {figure(b)}" for m, b in winner.limits.items())
    return f"{', '.join(devices)}: {bounds}" if devices else bounds


def figure(value: float) -> str:
    """A cost in few digits; millions as M.

    Example:
        >>> figure(14.9712), figure(2.4e8), figure(15.0)
        ('14.97', '240M', '15')
    """
    return f"{value / 1e6:.4g}M" if abs(value) >= 1e6 else f"{value:.4g}"


def _latency(winner: Winner) -> str:
    own = [metric for metric in winner.limits if "@" in metric]
    return ", ".join(figure(winner.cost[metric]) for metric in own) or "-"
