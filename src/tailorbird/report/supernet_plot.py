"""The picture of an evaluated supernet: accuracy over MACs, the best of each range marked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tailorbird.files import write_bytes
from tailorbird.report import drawing
from tailorbird.report.supernet_evaluation import SupernetEvaluation
from tailorbird.report.words import bare, percent, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ALL, _FRONT, _ENDS, _RANGE = drawing.SKY, drawing.VERMILION, drawing.BLACK, drawing.GREY


def picture(found: SupernetEvaluation, path: Path) -> Path:
    """Draw all subnets as a PNG.

    Raises:
        StoreError: when the file can't be written.
    """
    write_bytes(path, png(found))
    return path


def png(found: SupernetEvaluation) -> bytes:
    """The picture as the bytes of a PNG file."""
    figure = drawing.canvas(5.2)
    _draw(figure.add_subplot(), found)
    return drawing.png_of(figure)


def _draw(axes: Axes, found: SupernetEvaluation) -> None:
    front = [subnet for subnet in found.front if subnet is not None]
    for subnets, label, colour, marker, size in (
        (found.subnets, "subnet", _ALL, "o", 22),
        (front, "best of its range of MACs", _FRONT, "s", 54),
        ((found.smallest,), "smallest", _ENDS, "v", 64),
        ((found.largest,), "largest", _ENDS, "^", 64),
    ):
        axes.scatter(
            [subnet.macs for subnet in subnets],
            [100 * subnet.accuracy for subnet in subnets],
            label=label,
            marker=marker,
            s=size,
            color=colour,
            linewidths=0,
            zorder=3,
        )
    _staircase(axes, found)
    for edge in found.ranges[1:-1]:
        axes.axvline(edge, color=_RANGE, linestyle=drawing.DASHED, linewidth=0.8, zorder=1)
    axes.set_xlabel("multiply-accumulates per image")
    axes.set_ylabel(f"accuracy on {found.images} validation images, %")
    axes.xaxis.set_major_formatter(lambda value, _: bare("macs", value, 3))
    _ranges(axes, found)
    axes.set_title(
        f"{printable(found.space)}: mean Pareto accuracy {percent(found.mean_pareto_accuracy)} %",
        fontsize=10,
        parse_math=False,
        pad=30,
    )
    drawing.plain(axes)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=9)


def _staircase(axes: Axes, found: SupernetEvaluation) -> None:
    """The curve whose area is the mean Pareto accuracy."""
    serving, heights = None, []
    for subnet in found.front:
        serving = serving if subnet is None else subnet
        heights.append(np.nan if serving is None else 100 * serving.accuracy)
    axes.stairs(heights, found.ranges, baseline=None, color=_FRONT, linewidth=1.2, zorder=2)


def _ranges(axes: Axes, found: SupernetEvaluation) -> None:
    """Leave air around the marks."""
    low, high = found.ranges[0], found.ranges[-1]
    accuracies = [100 * subnet.accuracy for subnet in found.subnets]
    side, air = 0.04 * max(high - low, 0.1 * high), max(np.ptp(accuracies), 0.5)
    axes.set_xlim(low - side, high + side)
    axes.set_ylim(min(accuracies) - 0.1 * air, max(accuracies) + 0.1 * air)
