"""The closing table: one row per target, and what stands behind a target that is not met."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tailorbird.report.record import RunReport, TargetResult
from tailorbird.report.verdict import remarks, verdict
from tailorbird.report.words import bare, bounds, minutes, percent, printable, summary

WIDE = 100
"""From this many columns on, the table also shows parameters and the teacher's share."""


def show(report: RunReport, console: Console) -> None:
    """Print the closing table."""
    console.print(closing(report, width=console.width), highlight=False)


def closing(report: RunReport, *, width: int) -> RenderableType:
    """The closing table for a terminal of ``width`` columns.

    Example:
        >>> from tailorbird.report.record import RunReport
        >>> Console(width=80).print(closing(RunReport(run="runs/a", seed=0), width=80))
        no targets
    """
    if not report.targets:
        return Text("no targets")
    parts: list[RenderableType] = [*_teachers(report), _table(report, wide=width >= WIDE)]
    for target in report.targets:
        line = f"{printable(target.name)}: {printable(verdict(report, target), limit=600)}"
        parts.append(Text(line, style="" if target.met else "yellow"))
        for word in remarks(report, target):
            line = f"{printable(target.name)}: {printable(word, limit=600)}"
            parts.append(Text(line, style="yellow"))
    met = sum(target.met for target in report.targets)
    parts.append(
        Text(
            f"{met} of {len(report.targets)} targets met, {minutes(report.minutes)} min in all; "
            f"accuracy is {printable(report.accuracy_kind)}, in %"
        )
    )
    if report.decided:
        parts.append(Text(f"chosen on {printable(report.decided)}", style="dim"))
    return Group(*parts)


def _teachers(report: RunReport) -> list[Text]:
    several = len(report.teacher) > 1
    return [
        Text(
            f"{printable(report.reference)}: {summary(point, report.accuracy_kind)}"
            + (f" ({printable(device)})" if several else "")
        )
        for device, point in report.teacher.items()
    ]


def _table(report: RunReport, *, wide: bool) -> Table:
    gap = 1 if wide else 0  # beside the one column that the box itself puts between
    table = Table(box=SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    whole = printable(report.reference.partition(" ")[0])  # columns are narrow
    table.add_column("target", overflow="fold", min_width=6)
    for name in ("limit", "measured"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column(f"of {whole}", justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    for name in ("before", "after", whole):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("params", justify="right", no_wrap=True)
    for name in ("MACs", "MB", "min"):
        table.add_column(name, justify="right", no_wrap=True)
    for target in report.targets:
        table.add_row(*_row(report, target, wide=wide))
    return table


def _row(report: RunReport, target: TargetResult, *, wide: bool) -> list[Text]:
    limits = bounds(target)
    measured = target.measured
    cells = [
        printable(target.name),
        "\n".join(limits.values()),
        "\n".join(bare(metric, measured.get(metric)) for metric in limits),
    ]
    if wide:
        cells.append("\n".join(_share(report, target, metric) for metric in limits))
    met = (
        Text("yes", style="green")
        if target.met
        else Text("?" if target.undecided else "no", style="bold red")
    )
    tail = [
        percent(target.accuracy_before),
        percent(target.accuracy),
        percent(target.teacher_accuracy),
    ]
    if wide:
        tail.append(bare("params", measured.get("params"), 3))
    tail += [
        bare("macs", measured.get("macs"), 3),
        bare("size_mb", measured.get("size_mb"), 3),
        minutes(target.minutes),
    ]
    return [*map(Text, cells), met, *map(Text, tail)]


def _share(report: RunReport, target: TargetResult, metric: str) -> str:
    """The measured figure as a share of the teacher's, such as ``0.49x``; not of an accuracy."""
    if metric in target.least:
        return "-"
    teacher = report.teacher.get(target.device)
    whole = getattr(teacher, metric, None)
    part = target.measured.get(metric)
    return f"{part / whole:.2f}x" if part is not None and whole else "-"
