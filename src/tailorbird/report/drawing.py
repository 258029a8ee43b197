"""What the pictures have in common: the canvas, how axes look, the bytes of a PNG file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common kind of colour blindness. Shapes differ too.
BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
GREY, INK = "#6b7280", "#4b5563"
"""Of lines that mark limits and ranges, and of what is written at them."""

DASHED = (0, (5, 4))


def canvas(height: float) -> Figure:
    """An empty figure, so many inches high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, *, grid: Literal["both", "y"] = "y") -> None:
    """A pale grid behind the marks, no frame above and at the right."""
    axes.grid(visible=True, axis=grid, color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


@contextmanager
def any_script() -> Iterator[None]:
    """A name in a script that the font lacks is drawn as boxes; that is no reason to fail."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def png_of(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with any_script():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
