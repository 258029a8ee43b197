"""The picture: accuracy over latency of teacher, donors and students, with the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from tailorbird.files import write_bytes
from tailorbird.report import drawing
from tailorbird.report.record import RunReport, TargetResult, is_figure
from tailorbird.report.words import figure, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_TEACHER, _DONOR, _BEFORE, _AFTER, _LIMIT = (
    drawing.BLACK,
    drawing.BLUE,
    drawing.ORANGE,
    drawing.VERMILION,
    drawing.GREY,
)

_AXES = {"latency_ms": "latency, ms (batch 1, median)", "macs": "multiply-accumulates per image"}


@dataclass(frozen=True)
class Mark:
    """One mark of the picture; ``accuracy`` in percent."""

    kind: str
    name: str
    cost: float
    accuracy: float


@dataclass(frozen=True)
class Panel:
    """One device's part of the picture.

    ``limits`` pairs names with positions on the cost axis, ``links`` students with their limits'.
    """

    device: str
    marks: tuple[Mark, ...]
    limits: tuple[tuple[str, float], ...]
    moves: tuple[tuple[Mark, Mark], ...]
    links: tuple[tuple[Mark, float], ...] = ()


def front(report: RunReport, path: Path) -> Path:
    """Draw the accuracy-latency front as a PNG, one panel per device.

    Latencies of two devices share no axis. Where nothing was timed, MACs take latency's place.

    Raises:
        StoreError: when the file can't be written.
    """
    write_bytes(path, png(report))
    return path


def png(report: RunReport) -> bytes:
    """The picture as the bytes of a PNG file."""
    return drawing.png_of(picture(report))


def picture(report: RunReport) -> Figure:
    """The picture as matplotlib's figure, every label at its final place."""
    metric = _metric(report)
    panels = _panels(report, metric)
    figure_ = drawing.canvas(5.2 * max(len(panels), 1))
    with drawing.any_script():
        if not panels:
            figure_.text(0.5, 0.5, "nothing was measured yet", ha="center", va="center")
        for index, panel in enumerate(panels):
            axes = figure_.add_subplot(len(panels), 1, index + 1)
            _draw(axes, panel, metric, report, titled=len(panels) > 1)
        _place_labels(figure_, panels)
    return figure_


def _metric(report: RunReport) -> str:
    timed = [point.latency_ms for point in report.teacher.values()]
    timed += [target.measured.get("latency_ms") for target in report.targets]
    return "latency_ms" if any(map(is_figure, timed)) else "macs"


def _panels(report: RunReport, metric: str) -> list[Panel]:
    devices = dict.fromkeys([*report.teacher, *(target.device for target in report.targets)])
    panels = [_panel(report, device, metric) for device in devices]
    return [panel for panel in panels if panel.marks]


def _panel(report: RunReport, device: str, metric: str) -> Panel:
    points = [("teacher", report.teacher[device])] if device in report.teacher else []
    points += [("donor", donor) for donor in report.donors if donor.device in (device, "")]
    marks = []
    for kind, point in points:
        cost = getattr(point, metric)
        if is_figure(cost) and is_figure(point.accuracy):
            marks.append(Mark(kind, printable(point.name, limit=32), cost, 100 * point.accuracy))
    moves, limits, links = [], [], []
    for target in report.targets:
        if target.device != device:
            continue
        students = _students(target, metric)
        marks += students
        if len(students) > 1:
            moves.append((students[0], students[1]))
        if metric in target.limits:
            name = f"{printable(target.name, limit=32)}: {figure(metric, target.limits[metric])}"
            limits.append((name, target.limits[metric]))
            links += [(students[-1], target.limits[metric])] if students else []
    return _raised(
        Panel(printable(device), tuple(marks), tuple(limits), tuple(moves), tuple(links))
    )


def _raised(panel: Panel) -> Panel:
    """Move students that start far below everything else to the lower edge, figure in the name.

    One student at 10 % before retraining would press all that matters into a thin band.
    """
    final = [mark.accuracy for mark in panel.marks if mark.kind != "before"]
    if not final:
        return panel
    floor = min(final) - max(max(final) - min(final), 1.0)

    def raised(mark: Mark) -> Mark:
        if mark.kind != "before" or mark.accuracy >= floor:
            return mark
        return Mark("below", f"{mark.accuracy:.0f} %", mark.cost, floor)

    marks = tuple(raised(mark) for mark in panel.marks)
    moves = tuple((raised(before), after) for before, after in panel.moves)
    return replace(panel, marks=marks, moves=moves)


def _students(target: TargetResult, metric: str) -> list[Mark]:
    cost = target.measured.get(metric)
    if cost is None:
        return []
    name = printable(target.name, limit=32)
    after = "student" if target.met else "missed"
    stages = (("before", target.accuracy_before), (after, target.accuracy))
    return [Mark(kind, name, cost, 100 * value) for kind, value in stages if is_figure(value)]


@dataclass(frozen=True)
class _Style:
    label: str
    marker: str
    size: float
    edge: str
    face: str


_STYLES = {
    "teacher": _Style("teacher", "*", 190, _TEACHER, _TEACHER),
    "donor": _Style("donor as it is", "s", 48, _DONOR, _DONOR),
    "before": _Style("student before retraining", "o", 48, _BEFORE, "white"),
    "below": _Style("before retraining, below the picture", "v", 48, _BEFORE, "white"),
    "student": _Style("student, limits met", "o", 64, _AFTER, _AFTER),
    "missed": _Style("student, a limit not met", "X", 72, _AFTER, _AFTER),
}


def _draw(axes: Axes, panel: Panel, metric: str, report: RunReport, *, titled: bool) -> None:
    for name, style in _STYLES.items():
        chosen = [mark for mark in panel.marks if mark.kind == name]
        if chosen:
            axes.scatter(
                [mark.cost for mark in chosen],
                [mark.accuracy for mark in chosen],
                label=printable(report.reference) if name == "teacher" else style.label,
                marker=style.marker,
                s=style.size,
                facecolors=style.face,
                edgecolors=style.edge,
                linewidths=1.8 if style.face == "white" else 0,
                zorder=3,
            )
    for before, after in panel.moves:
        costs, accuracies = (before.cost, after.cost), (before.accuracy, after.accuracy)
        axes.plot(costs, accuracies, color=_BEFORE, linewidth=1.1, zorder=2)
    for mark, position in panel.links:
        axes.plot(
            (mark.cost, position),
            (mark.accuracy, mark.accuracy),
            color=_LIMIT,
            linestyle=":",
            linewidth=1.1,
            zorder=1,
        )
    for index, (_, position) in enumerate(panel.limits):
        axes.axvline(
            position,
            color=_LIMIT,
            linestyle=drawing.DASHED,
            linewidth=1.1,
            zorder=1,
            label=None if index else "a target's limit",
        )
    _ranges(axes, panel)
    axes.set_xlabel(_AXES[metric])
    axes.set_ylabel(f"{printable(report.accuracy_kind)}, %", parse_math=False)
    if titled:
        axes.set_title(panel.device, fontsize=10, parse_math=False)
    drawing.plain(axes, grid="both")
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.06 if titled else 1.0),
        ncols=3,
        frameon=False,
        fontsize=9,
    )


def _ranges(axes: Axes, panel: Panel) -> None:
    """Leave air for the labels; the cost axis begins at zero so that lengths can be compared."""
    right = max([mark.cost for mark in panel.marks] + [place for _, place in panel.limits])
    accuracies = [mark.accuracy for mark in panel.marks]
    low, high = min(accuracies), max(accuracies)
    alone = max(0.0, 1 - (high - low) / 2)  # points: one network alone needs a scale too
    low, high = low - alone, high + alone
    air = high - low
    axes.set_xlim(0, right * 1.12)
    axes.set_ylim(low - 0.14 * air, high + 0.12 * air)


def _place_labels(figure_: Figure, panels: Sequence[Panel]) -> None:
    """Put every name where it hides nothing.

    Limits are written along their lines first. Then each mark's name takes the candidate place
    (around the mark, nearest first) that overlaps least with what is there already.
    """
    figure_.canvas.draw()  # fixes the layout: from here on, places in pixels are final
    figure_.set_layout_engine("none")
    for axes, panel in zip(figure_.axes, panels, strict=True):
        taken = [_around(axes, mark, 7.0) for mark in panel.marks]
        lines = [_line(axes, position) for _, position in panel.limits]
        lines += [_line(axes, after.cost) for _, after in panel.moves]
        lines += [_across(axes, mark, position) for mark, position in panel.links]
        named = sorted(panel.marks, key=lambda mark: (mark.cost, mark.accuracy))
        for mark in named:
            if mark.kind == "below":
                taken.append(_best_place(axes, _label(axes, mark), taken, [], _UNDER))
        taken += [label.get_window_extent() for label in _limit_labels(axes, panel, taken)]
        for mark in named:
            if mark.kind not in ("before", "below"):
                taken.append(_best_place(axes, _label(axes, mark), taken, lines, _SIDES))


def _around(axes: Axes, mark: Mark, radius: float) -> Bbox:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((mark.cost, mark.accuracy))
    radius *= axes.figure.dpi / 100
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _line(axes: Axes, position: float) -> Bbox:
    from matplotlib.transforms import Bbox

    x = axes.transData.transform((position, 0))[0]
    return Bbox.from_extents(x - 1, axes.bbox.y0, x + 1, axes.bbox.y1)


def _across(axes: Axes, mark: Mark, position: float) -> Bbox:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((mark.cost, mark.accuracy))
    end = axes.transData.transform((position, mark.accuracy))[0]
    return Bbox.from_extents(min(x, end), y - 6, max(x, end), y + 6)


def _limit_labels(axes: Axes, panel: Panel, marks: Sequence[Bbox]) -> list[Annotation]:
    """Write limits upwards along their lines, each at the first height that is free."""
    labels: list[Annotation] = []
    for name, position in sorted(panel.limits, key=lambda limit: limit[1]):
        best: tuple[float, float, str] | None = None
        label = axes.annotate(
            name,
            (position, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            xytext=(0, 0),
            rotation=90,
            fontsize=8,
            color=drawing.INK,
            va="bottom",
            parse_math=False,
        )
        for height, side in product((0.02, 0.2, 0.4, 0.6), ("right", "left")):
            _along(label, position, height, side)
            box = label.get_window_extent()
            others = [*marks, *(other.get_window_extent() for other in labels)]
            fault = _overlap(box, others) + 5 * _outside(box, axes.bbox)
            if best is None or fault < best[0]:
                best = (fault, height, side)
        if best is not None:
            _along(label, position, *best[1:])
        labels.append(label)
    return labels


def _along(label: Annotation, position: float, height: float, side: str) -> None:
    label.xy = (position, height)
    label.set(ha=side, position=(-3 if side == "right" else 3, 0))


def _label(axes: Axes, mark: Mark) -> Annotation:
    from matplotlib.patheffects import withStroke

    return axes.annotate(
        mark.name,
        (mark.cost, mark.accuracy),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=8 if mark.kind == "below" else 9,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        color=_NAME_COLOURS.get(mark.kind, "#a34700"),
        zorder=4,
        parse_math=False,
    )


_NAME_COLOURS = {"teacher": _TEACHER, "donor": _DONOR, "below": "#7a5200"}

_SIDES = (
    ("left", "center", 1, 0),
    ("center", "bottom", 0, 1),
    ("center", "top", 0, -1),
    ("right", "center", -1, 0),
    ("left", "bottom", 0.7, 0.7),
    ("right", "bottom", -0.7, 0.7),
    ("left", "top", 0.7, -0.7),
    ("right", "top", -0.7, -0.7),
)


_UNDER = (("center", "top", 0, -1), ("center", "bottom", 0, 1))


def _best_place(
    axes: Axes,
    label: Annotation,
    taken: Sequence[Bbox],
    lines: Sequence[Bbox],
    sides: Sequence[tuple[str, str, float, float]],
) -> Bbox:
    best: tuple[float, _Place, Bbox] | None = None
    for distance, (horizontal, vertical, right, up) in product((8, 14, 22, 32, 44), sides):
        place = _Place(horizontal, vertical, right * distance, up * distance)
        place.apply(label)
        box = label.get_window_extent()
        fault = _overlap(box, taken) + 0.3 * _overlap(box, lines) + 5 * _outside(box, axes.bbox)
        fault += 0.08 * float(box.width * box.height) * (distance / 8 - 1)
        if best is None or fault < best[0]:
            best = (fault, place, box)
    if best is None:
        return label.get_window_extent()
    best[1].apply(label)
    return best[2]


@dataclass(frozen=True)
class _Place:
    """Where a label stands: alignment, and offset from the mark in points."""

    horizontal: str
    vertical: str
    right: float
    up: float

    def apply(self, label: Annotation) -> None:
        label.set(ha=self.horizontal, va=self.vertical, position=(self.right, self.up))


def _overlap(box: Bbox, others: Sequence[Bbox]) -> float:
    """Pixels that ``box`` shares with the others; a line counts as if it were a letter wide."""
    total = 0.0
    for other in others:
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        if width > 0 and height > 0:
            total += max(width, 6.0) * height
    return total


def _outside(box: Bbox, frame: Bbox) -> float:
    """Pixels of ``box`` that lie outside of the frame."""
    width = max(0.0, min(box.x1, frame.x1) - max(box.x0, frame.x0))
    height = max(0.0, min(box.y1, frame.y1) - max(box.y0, frame.y0))
    return float(box.width * box.height - width * height)
