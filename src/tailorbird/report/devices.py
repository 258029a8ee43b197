"""What a check of devices found, and what timing files on one did, as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tailorbird.device import Description, Latency
from tailorbird.measure.check import Checked
from tailorbird.report.words import NOTHING, count, figure, printable, significant


def show_checked(found: Sequence[Checked], console: Console) -> None:
    """Print a row per device, and below what it does not do and what is odd about it."""
    table = _table("device", "machine", "runtime", "conditions")
    for name in ("runs", "answers in"):
        table.add_column(name, no_wrap=True)
    for one in found:
        told = one.description
        table.add_row(
            Text(f"{printable(one.name)}\n{printable(one.kind)}"),
            Text(NOTHING if told is None else _lines(told.machine, told.system)),
            Text(NOTHING if told is None else _lines(told.runtime, told.version)),
            Text(NOTHING if told is None else _conditions(told)),
            Text(_runs(one), style="" if one.answers else "bold red"),
            Text(figure("latency_ms", one.answered_ms)),
        )
    console.print(table, highlight=False)
    for one in found:
        for line in remarks(one):
            text = Text(f"{printable(one.name)}: {printable(line, limit=600)}", style="yellow")
            console.print(text, highlight=False)
    answer = sum(one.answers for one in found)
    console.print(Text(f"{answer} of {len(found)} devices answer"))


def remarks(found: Checked) -> list[str]:
    """What a device does not do, and what is odd about it, a sentence each.

    Example:
        >>> remarks(Checked(name="a", kind="Ssh", key="a", fault="no route to host"))
        ['does not answer: no route to host']
    """
    if found.fault:
        return [f"does not answer: {found.fault}", *found.notes]
    lost = [f"{one.precision} does not run: {one.fault}" for one in found.tried if one.fault]
    return [*lost, *found.notes]


def show_latencies(
    title: str, rows: Sequence[tuple[str, Latency, int | None]], console: Console
) -> None:
    """Print a row per file that was timed.

    Args:
        title: the device.
        rows: a file, its latency, and images in a call, ``None`` where that isn't known.
        console: where to.
    """
    console.print(Text(printable(title, limit=600)), highlight=False)
    table = _table("file", "ms median", "between quartiles", "drift", "runs", "batch", "images/s")
    for name, latency, batch in rows:
        rate = images_per_second(latency, batch)
        cells = (
            printable(name, limit=300),
            significant(latency.median_ms),
            significant(latency.spread_ms),
            NOTHING if latency.drift is None else f"{latency.drift:+.1%}",
            str(latency.runs),
            NOTHING if batch is None else str(batch),
            NOTHING if rate is None else count(rate),
        )
        table.add_row(*map(Text, cells))
    console.print(table, highlight=False)


def images_per_second(latency: Latency, batch: int | None) -> float | None:
    """What a file does in a second, call after call.

    Example:
        >>> images_per_second(Latency(median_ms=4.0, spread_ms=0.0, runs=9, warmup=0), 8)
        2000.0
    """
    return None if batch is None else 1000 * batch / latency.median_ms


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _lines(*parts: str) -> str:
    return "\n".join(printable(part) for part in parts if part)


def _conditions(told: Description) -> str:
    """Cores, memory, clock and temperature, as far as they are known."""
    found = []
    if told.cores is not None:
        found.append(f"{told.cores} core{'s' if told.cores != 1 else ''}")
    if told.memory_mb is not None:
        found.append(f"{told.memory_mb:.0f} MB free")
    if told.governor is not None:
        found.append(f"governor {told.governor}")
    if told.temperature_c is not None:
        found.append(f"{told.temperature_c:.0f} C")
    return _lines(*found) or NOTHING


def _runs(one: Checked) -> str:
    if one.fault:
        return "no answer"
    return _lines(
        *(
            f"{tried.precision} "
            f"{'no' if tried.latency is None else figure('latency_ms', tried.latency.median_ms)}"
            for tried in one.tried
        )
    )
