"""The picture of a search: predicted accuracy over cost, with every limit marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tailorbird.errors import ConfigError
from tailorbird.family import Floats
from tailorbird.files import write_bytes
from tailorbird.report import drawing
from tailorbird.report.words import bare, printable
from tailorbird.search.front import staircase
from tailorbird.search.strategy import SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (
    drawing.VERMILION,
    drawing.BLUE,
    drawing.GREEN,
    drawing.PURPLE,
    drawing.ORANGE,
    drawing.SKY,
    drawing.BLACK,
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LABELLED = 24
"""Limits that are written out; more of them are drawn as ticks only."""

_AXES = {
    "latency_ms": "predicted latency, ms",
    "macs": "multiply-accumulates per image",
    "params": "parameters",
}


@dataclass(frozen=True)
class _Series:
    """The winners of one search under one metric's limits: (n, 2) of cost and percent."""

    name: str
    points: Floats
    found: int


@dataclass(frozen=True)
class _Panel:
    """One limited metric, its limits in rising order, and what each search found there."""

    metric: str
    limits: tuple[float, ...]
    series: tuple[_Series, ...]


def plot(results: Sequence[SearchResult], path: Path, *, quality: str = "accuracy") -> Path:
    """Draw the winners of one or more searches as a PNG, one panel per limited metric.

    A panel shows the winners whose limits bound its metric, the line under which none of them
    lies, and the limits.

    Args:
        results: what strategies returned.
        path: the file to write.
        quality: what the family's quality is; drawn in percent.

    Raises:
        ConfigError: when there is nothing to draw.
        StoreError: when the file can't be written.
    """
    write_bytes(path, png(results, quality=quality))
    return path


def png(results: Sequence[SearchResult], *, quality: str = "accuracy") -> bytes:
    """The picture of `plot` as the bytes of a PNG file."""
    panels = _panels(results)
    if not panels:
        raise ConfigError("plot: no search with a winner was given; there is nothing to draw")
    figure = drawing.canvas(4.8 * len(panels))
    with drawing.any_script():
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, number + 1)
            _draw(axes, panel, quality)
        _write_limits(figure, panels)
    return drawing.png_of(figure)


def _panels(results: Sequence[SearchResult]) -> list[_Panel]:
    metrics = dict.fromkeys(m for r in results for winner in r.winners for m in winner.limits)
    return [
        _Panel(
            metric,
            tuple(
                sorted({w.limits[metric] for r in results for w in r.winners if metric in w.limits})
            ),
            tuple(_series(result, metric) for result in results),
        )
        for metric in metrics
    ]


def _series(result: SearchResult, metric: str) -> _Series:
    winners = [winner for winner in result.winners if metric in winner.limits]
    # As in the table: shares are drawn in percent, anything else as the predictor gives it.
    factor = 100 if all(0 <= winner.quality <= 1 for winner in winners) else 1
    points = np.array([(w.cost[metric], factor * w.quality) for w in winners]).reshape(-1, 2)
    return _Series(printable(result.strategy, limit=32), np.unique(points, axis=0), len(winners))


def _draw(axes: Axes, panel: _Panel, quality: str) -> None:
    crowded = max(len(series.points) for series in panel.series) > 2 * _LABELLED
    for series, colour, marker in zip(panel.series, cycle(_COLOURS), cycle(_MARKERS)):
        if not series.found:
            continue
        line = staircase(series.points * (1.0, -1.0)) * (1.0, -1.0)
        axes.plot(*line.T, color=colour, linewidth=1.2, zorder=2)
        axes.scatter(
            series.points[:, 0],
            series.points[:, 1],
            label=f"{series.name} ({series.found} limits)",
            marker=marker,
            s=9 if crowded else 42,
            color=colour,
            linewidths=0,
            zorder=3,
        )
    name, _, device = panel.metric.partition("@")
    axes.set_xlabel(
        printable(_AXES.get(name, name)) + (f" on {printable(device)}" if device else "")
    )
    axes.set_ylabel(f"predicted {printable(quality)}, %", parse_math=False)
    axes.xaxis.label.set_parse_math(False)
    if name in ("macs", "params"):
        axes.xaxis.set_major_formatter(lambda value, _: bare(name, value, 3))
    _ranges(axes, panel)
    drawing.plain(axes)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)


def _ranges(axes: Axes, panel: _Panel) -> None:
    """Leave air above for the limits' figures, and at both sides."""
    points = np.concatenate([series.points for series in panel.series])
    costs = np.concatenate([points[:, 0], panel.limits])
    low, high = points[:, 1].min(), points[:, 1].max()
    air = max(high - low, 0.5)
    side = max(np.ptp(costs), 0.1 * costs.max())
    axes.set_xlim(max(0.0, costs.min() - 0.06 * side), costs.max() + 0.06 * side)
    axes.set_ylim(low - 0.1 * air, high + 0.12 * air)


def _write_limits(figure: Figure, panels: Sequence[_Panel]) -> None:
    """A dashed line at each limit, its figure above the frame where it overlaps no other.

    Many limits are ticks along the upper edge, and only as many figures as there is room for.
    """
    figure.canvas.draw()  # fixes the layout, so that widths in pixels are final
    for axes, panel in zip(figure.axes, panels, strict=True):
        few = len(panel.limits) <= _LABELLED
        for limit in panel.limits:
            axes.axvline(
                limit,
                ymin=0.0 if few else 0.97,
                color=drawing.GREY,
                linestyle=drawing.DASHED if few else "-",
                linewidth=0.9 if few else 0.4,
                zorder=1,
            )
        free = -np.inf
        for limit in panel.limits:
            label = axes.annotate(
                bare(panel.metric.partition("@")[0], limit, 3),
                (limit, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
                color=drawing.INK,
            )
            box = label.get_window_extent()
            if box.x0 < free:
                label.remove()
            else:
                free = box.x1 + (4.0 if few else 18.0)
        axes.set_title("limits", loc="left", fontsize=8, color=drawing.INK, pad=16)
