import io
from dataclasses import replace

import pytest
from rich.console import Console

from tailorbird.report.record import Point, RunReport, TargetResult
from tailorbird.report.table import show
from tests.report.test_record import full


def target(name: str, *, met: bool = True, **changes: object) -> TargetResult:
    result = TargetResult(
        name=name,
        device="cpu",
        limits={"latency_ms": 0.88920, "params": 520_000},
        measured={"latency_ms": 0.8832, "params": 511_810, "macs": 75.4e6, "size_mb": 2.094},
        met=met,
        accuracy=0.9412,
        accuracy_before=0.9102,
        teacher_accuracy=0.9437,
        minutes=12.4,
    )
    return replace(result, **changes)


def report(*targets: TargetResult) -> RunReport:
    teacher = Point(
        name="teacher", latency_ms=1.482, accuracy=0.9437, params=853_018, macs=125_747_840,
        size_mb=3.49, device="cpu",
    )  # fmt: skip
    return RunReport(run="r", seed=0, teacher={"cpu": teacher}, targets=targets)


def printed(run: RunReport, width: int) -> list[str]:
    stream = io.StringIO()
    show(run, Console(file=stream, width=width))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_every_figure_shows_whole(width):
    lines = printed(report(target("edge-0.6x"), target("server-0.75x")), width)
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if line.startswith("edge-0.6x"))
    for figure in ("0.8892 ms", "0.8832", "yes", "91.02", "94.12", "94.37", "75.4M", "2.09", "12"):
        assert figure in row
    assert "520.0k params" in lines[lines.index(row) + 1]
    assert "..." not in "".join(lines) and "…" not in "".join(lines)
    assert ("0.60x" in row) == (width == 120)


def test_what_is_not_met_says_why_and_how_low_it_could_go():
    failed = target("tiny", met=False, reason="nothing is that fast", lowest={"latency_ms": 0.17})
    text = " ".join(printed(report(failed), 80))
    assert "tiny: not met: nothing is that fast; lowest reachable: 0.1700 ms" in text
    over = target("tiny", met=False, measured={"latency_ms": 1.0})
    assert "1.000 ms measured, limit 0.8892" in " ".join(printed(report(over), 80))


def test_names_are_not_markup_nor_control_codes():
    lines = printed(report(target("[red]x\x1b[2J")), 120)
    assert any(line.startswith("[red]x?[2J") for line in lines)


def test_missing_figures_are_dashes():
    bare = TargetResult(name="a", device="d", limits={"macs": 1e6}, met=False)
    lines = printed(RunReport(run="r", seed=0, targets=(bare,)), 80)
    assert any("1.000M MACs" in line and " no " in line and " - " in line for line in lines)
    assert "no student was made" in " ".join(lines)
    assert printed(full(), 80)
