"""What stands in a run's folder: blocks, alternatives with their figures, students."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tailorbird.errors import StoreError
from tailorbird.report.record import RunReport, is_figure
from tailorbird.report.table import show
from tailorbird.report.words import NOTHING, bare, count, minutes, printable, significant


@dataclass(frozen=True, kw_only=True)
class Row:
    """One alternative of the house, as far as it has been brought.

    Args:
        state: ``sampled``, ``distilled``, ``stopped`` (in distillation) or ``scored``.
        error: relative error of its output against the block's, ``None`` before it is known.
        accuracy_loss: what replacing its block alone costs, in 0..1.
        latency_ms: device key -> median of the alternative alone.
    """

    name: str
    block: str
    origin: str
    variant: str
    macs: int
    params: int
    state: str
    error: float | None
    accuracy_loss: float | None
    latency_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A run folder's contents, read without loading a single weight.

    Args:
        notes: network -> what read its code; what of its train mode was left out or replaced.
    """

    blocks: Mapping[str, Mapping[str, int]]
    rows: tuple[Row, ...]
    rejections: Mapping[str, int]
    report: RunReport | None
    faults: tuple[str, ...]
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> str:
        """All of it as JSON text."""
        content = {
            "blocks": {key: dict(figures) for key, figures in self.blocks.items()},
            "alternatives": [asdict(row) for row in self.rows],
            "rejections": dict(self.rejections),
            "report": None if self.report is None else json.loads(self.report.to_json()),
            "faults": list(self.faults),
            "notes": {name: list(lines) for name, lines in self.notes.items()},
        }
        return json.dumps(content, indent=1)


def contents(run: Path) -> Contents:
    """Read a run folder, finished or not.

    Raises:
        StoreError: when it is no run folder.
    """
    if not run.is_dir():
        raise StoreError(f"{run}: no such folder; give the run folder that the job names")
    house = run / "house"
    if not (house.is_dir() or (run / "report.json").exists()):
        raise StoreError(
            f"{run}: holds neither a house nor a report; give the run folder that the job names, "
            "or wait until the run has sampled its blocks"
        )
    faults: list[str] = []
    sample = _mapping(house / "sample.json", faults)
    scores = _mapping(house / "scores.json", faults)
    latencies = [_mapping(path, faults) for path in sorted((house / "latency").glob("*.json"))]
    trained = {
        path.stem: _dict(_mapping(path, faults).get("extra"))
        for path in sorted((house / "trained").glob("*.json"))
    }
    notes = _mapping(house / "notes.json", faults)
    report = None
    if (run / "report.json").exists():
        try:
            report = RunReport.load(run / "report.json")
        except StoreError as error:
            faults.append(str(error))
    return Contents(
        blocks={
            _key(block): {name: _whole(block.get(name)) for name in ("macs", "params")}
            for block in _records(sample.get("blocks"))
        },
        rows=tuple(
            _row(raw, trained, scores, latencies) for raw in _records(sample.get("alternatives"))
        ),
        rejections={str(k): _whole(v) for k, v in _dict(sample.get("rejections")).items()},
        report=report,
        faults=tuple(faults),
        notes={
            name: tuple(map(str, lines)) for name, lines in notes.items() if isinstance(lines, list)
        },
    )


def show_contents(found: Contents, console: Console, *, most: int) -> None:
    """Print what is in the house, at most ``most`` alternatives, best ones first."""
    origins = Counter(row.origin for row in found.rows)
    states = Counter(row.state for row in found.rows)
    console.print(
        Text(
            f"house: {len(found.blocks)} blocks of the teacher, {len(found.rows)} alternatives "
            f"({_counted(origins)}); {_counted(states)}; losses are in points of accuracy"
            if found.rows
            else "house: nothing has been sampled yet"
        )
    )
    if found.rows:
        console.print(_blocks_table(found, most))
        console.print(_table(found.rows, most))
    if len(found.rows) > most:
        console.print(Text(f"{most} of {len(found.rows)} alternatives shown; see --most"))
    for name, lines in found.notes.items():
        for line in lines:
            console.print(Text(f"{printable(name)}: {printable(line, limit=500)}"))
    if found.rejections:
        console.print(Text(f"turned away: {_counted(Counter(found.rejections))}"))
    if found.report is not None:
        stages = ", ".join(f"{s.name} {minutes(s.minutes)}" for s in found.report.stages)
        console.print(Text(f"minutes: {printable(stages, limit=500) or NOTHING}"))
        show(found.report, console)
    for fault in found.faults:
        console.print(Text(f"can't be read: {printable(fault, limit=500)}", style="yellow"))


def _blocks_table(found: Contents, most: int) -> Table:
    per_block = Counter(row.block for row in found.rows)
    best: dict[str, float] = {}
    for row in found.rows:
        if row.accuracy_loss is not None:
            best[row.block] = min(row.accuracy_loss, best.get(row.block, row.accuracy_loss))
    table = _new("block", ("alternatives", "MACs", "params", "least loss"))
    for key, figures in list(found.blocks.items())[:most]:
        table.add_row(
            Text(printable(key)),
            str(per_block[key]),
            bare("macs", figures["macs"], 3),
            bare("params", figures["params"], 3),
            _points(best.get(key)),
        )
    return table


def _table(rows: Sequence[Row], most: int) -> Table:
    timed = any(row.latency_ms for row in rows)
    columns = ["MACs", "error", "loss", *(["ms"] if timed else [])]
    table = _new("name", columns, ("block", "origin", "variant"))
    ordered = sorted(
        rows,
        key=lambda row: (row.accuracy_loss is None, row.accuracy_loss or 0.0, row.macs, row.name),
    )
    for row in ordered[:most]:
        latency = next(iter(row.latency_ms.values()), None)
        figures = [
            bare("macs", row.macs, 3),
            significant(row.error, 3) if row.error is not None else NOTHING,
            _points(row.accuracy_loss) if row.state == "scored" else row.state,
            *([bare("latency_ms", latency)] if timed else []),
        ]
        names = (row.name, row.block, row.origin, row.variant)
        table.add_row(*(Text(printable(name)) for name in names), *map(Text, figures))
    return table


def _new(first: str, numbers: Sequence[str], texts: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False)
    for name in (first, *texts):
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _points(loss: float | None) -> str:
    return NOTHING if loss is None else f"{100 * loss:.2f}"


def _counted(counter: Mapping[str, int]) -> str:
    most = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count(number)} {printable(name)}" for name, number in most) or "none"


def _row(
    raw: Mapping[str, object],
    trained: Mapping[str, Mapping[str, object]],
    scores: Mapping[str, object],
    latencies: Sequence[Mapping[str, object]],
) -> Row:
    name = str(raw.get("name", "?"))
    score = _dict(scores.get(name))
    timed = {}
    for device in latencies:
        known = _dict(device.get("latencies"))
        entry = _dict(known.get(str(raw.get("structure")), known.get(f"net:{name}")))
        if is_figure(median := entry.get("median_ms")):
            timed[str(device.get("device"))] = float(median)
    return Row(
        name=name,
        block=str(raw.get("block", "?")),
        origin=str(raw.get("origin", "?")),
        variant=str(raw.get("variant", "?")),
        macs=_whole(raw.get("macs")),
        params=_whole(raw.get("params")),
        state=_state(bool(score), trained.get(name)),
        error=_figure(score.get("distillation", trained.get(name, {}).get("relative_error"))),
        accuracy_loss=_figure(score.get("accuracy_loss")),
        latency_ms=timed,
    )


def _state(scored: bool, figures: Mapping[str, object] | None) -> str:
    if scored:
        return "scored"
    if figures is None:
        return "sampled"
    return "stopped" if figures.get("stopped") else "distilled"


def _key(block: Mapping[str, object]) -> str:
    nodes = block.get("nodes")
    first = nodes[0] if isinstance(nodes, list) and nodes else "?"
    return f"{first}..{block.get('output', '?')}"


def _mapping(path: Path, faults: list[str]) -> Mapping[str, object]:
    """A JSON object, or nothing where there is no such file or it can't be read."""
    try:
        return _dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        faults.append(f"{path}: {error}")
        return {}


def _records(value: object) -> Iterator[Mapping[str, object]]:
    yield from (one for one in value if isinstance(one, dict)) if isinstance(value, list) else ()


def _dict(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _figure(value: object) -> float | None:
    return float(value) if is_figure(value) else None


def _whole(value: object) -> int:
    return int(value) if is_figure(value) else 0
