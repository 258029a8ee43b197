"""The page: a run's report as one HTML file that needs no network and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path, PurePath
from urllib.parse import quote

from tailorbird.files import write_bytes
from tailorbird.report.plot import png
from tailorbird.report.record import TEACHER, Point, RunReport, TargetResult
from tailorbird.report.verdict import limit, remarks, verdict
from tailorbird.report.words import bare, met, minutes, percent, printable

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6672; --line: #d9dee4;
  --ground: #ffffff; --card: #f6f7f9; --good: #00704f; --bad: #b03a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #a3adb8; --line: #39424d;
  --ground: #14181d; --card: #1c2229; --good: #4fc79e; --bad: #ff9466; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 2rem 1.25rem 4rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .4rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 7rem; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
figure { margin: 1.25rem auto 0; max-width: 64rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 0 3rem; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px;
  border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
ul { margin: .3rem 0; padding-left: 1.2rem; } li { overflow-wrap: anywhere; }
details { margin-top: .4rem; } summary { cursor: pointer; }
a { color: inherit; }
@media (max-width: 48rem) { body { padding: 1.25rem .9rem 3rem; } h1 { font-size: 1.3rem; }
  .cards thead { display: none; } .cards tr { display: block; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  .cards td { display: flex; justify-content: space-between; gap: 1.5rem; padding: .12rem 0;
    border: 0; text-align: right; white-space: normal; min-width: 0; }
  .cards td::before { content: attr(data-label); color: var(--soft); text-align: left;
    white-space: nowrap; font-weight: 400; } .cards td:first-child { font-weight: 600; } }
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
"""The browser itself refuses whatever is not in this file, should a name get past escaping."""

Cell = tuple[str, str]
"""HTML content and class of a table's cell."""


def html(report: RunReport, path: Path) -> Path:
    """Write the page as one file, the picture in it.

    Raises:
        StoreError: when the file can't be written.
    """
    write_bytes(path, page(report).encode("utf-8"))
    return path


def page(report: RunReport) -> str:
    """The page's text. Every name and figure in it is escaped."""
    kept = sum(target.met for target in report.targets)
    title = f"Tailorbird: {_safe(PurePath(report.run).name or report.run)}"
    own = report.reference == TEACHER
    donors = ", donors" if own else ""
    as_is = "and donors as they are" if own else "as it is"
    picture = base64.b64encode(png(report)).decode("ascii")
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="soft">{kept} of {len(report.targets)} targets met, '
        f"{minutes(report.minutes)} minutes in all, seed {report.seed}</p>",
        _verdicts(report),
        "<figure>",
        f'<img alt="Accuracy over cost of {_safe(report.reference)}{donors} and students" '
        f'src="data:image/png;base64,{picture}">',
        "<figcaption>Each student stands at what was measured on the exported file; "
        "dashed lines are the targets&rsquo; limits, dotted ones lead from a student to its own."
        "</figcaption></figure>",
        _section("Targets", _targets(report)),
        _section(f"{_safe(report.reference.capitalize())} {as_is}", _networks(report)),
        _section("What was replaced", _replaced(report.targets)),
        _section("Contenders, round by round", _rounds(report.targets)),
        '<div class="columns">',
        _section("Cost of the stages", _stages(report)),
        _section("Candidates turned away", _pairs(("reason", "count"), report.rejections)),
        _section("Environment", _pairs(("what", "value"), report.environment)),
        "</div>",
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _safe(text: object) -> str:
    return escape(printable(text, limit=600), quote=True)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _table(head: Iterable[Cell], rows: Iterable[Sequence[Cell]]) -> str:
    head = list(head)
    above = "".join(f'<th class="{kind}">{text}</th>' for text, kind in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}" data-label="{label}">{text}</td>'
            for (label, _), (text, kind) in zip(head, cells, strict=True)
        )
        + "</tr>"
        for cells in rows
    )
    if not body:
        return ""
    cards = ' class="cards"' if len(head) > 3 else ""  # on a narrow screen, a row is a card
    return (
        f'<div class="wide"><table{cards}><thead><tr>{above}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _number(text: str) -> Cell:
    return escape(text), "number"


def _name(text: object) -> Cell:
    return _safe(text), "name"


def _targets(report: RunReport) -> str:
    head = [
        ("target", ""),
        ("file", ""),
        ("limit", "number"),
        ("measured", "number"),
        ("met", ""),
        ("before, %", "number"),
        ("after, %", "number"),
        (f"{_safe(report.reference)}, %", "number"),
        ("params", "number"),
        ("MACs", "number"),
        ("MB", "number"),
        ("min", "number"),
    ]
    table = _table(head, (_target_row(target) for target in report.targets))
    note = f"Accuracy is {_safe(report.accuracy_kind)}, before and after retraining."
    if report.decided:
        note += f" Chosen on {_safe(report.decided)}."
    return table and f'{table}<p class="soft">{note}</p>'


def _target_row(target: TargetResult) -> list[Cell]:
    measured = target.measured
    limited = [*target.limits, *target.least]
    bounds = "<br>".join(_safe(limit(target, metric)) for metric in limited)
    found = "<br>".join(_safe(bare(metric, measured.get(metric))) for metric in limited)
    link = f'<a href="./{quote(target.onnx)}">{_safe(target.precision)}</a>' if target.onnx else "-"
    return [
        _name(target.name),
        (link, ""),
        (bounds, "number"),
        (found, "number"),
        (met(target), "yes" if target.met else "no"),
        _number(percent(target.accuracy_before)),
        _number(percent(target.accuracy)),
        _number(percent(target.teacher_accuracy)),
        _number(bare("params", measured.get("params"), 3)),
        _number(bare("macs", measured.get("macs"), 3)),
        _number(bare("size_mb", measured.get("size_mb"), 3)),
        _number(minutes(target.minutes)),
    ]


def _verdicts(report: RunReport) -> str:
    lines = "".join(
        f'<li><b class="{"yes" if target.met else "no"}">{_safe(target.name)}</b>: '
        f"{_safe(verdict(report, target))}"
        + "".join(f"<br>{_safe(word)}" for word in remarks(report, target))
        + "</li>"
        for target in report.targets
    )
    return lines and f"<ul>{lines}</ul>"


def _networks(report: RunReport) -> str:
    points: list[Point] = [*report.teacher.values(), *report.donors]
    head = [
        ("network", ""),
        ("accuracy, %", "number"),
        ("latency, ms", "number"),
        ("params", "number"),
        ("MACs", "number"),
        ("MB", "number"),
        ("device", ""),
    ]
    return _table(
        head,
        (
            [
                _name(point.name),
                _number(percent(point.accuracy)),
                _number(bare("latency_ms", point.latency_ms)),
                _number(bare("params", point.params, 3)),
                _number(bare("macs", point.macs, 3)),
                _number(bare("size_mb", point.size_mb, 3)),
                _name(point.device),
            ]
            for point in points
        ),
    )


def _replaced(targets: Sequence[TargetResult]) -> str:
    return "".join(
        f"<details><summary>{_safe(target.name)}: {len(target.replaced)} blocks</summary><ul>"
        + "".join(f"<li>{_safe(line)}</li>" for line in target.replaced)
        + "</ul></details>"
        for target in targets
        if target.replaced
    )


def _rounds(targets: Sequence[TargetResult]) -> str:
    """Who was trained for each target, and who stayed after each round."""
    head = [
        ("epochs", "number"),
        ("contender", ""),
        ("precision", ""),
        ("latency, ms", "number"),
        ("before, %", "number"),
        ("then, %", "number"),
        ("trained on", ""),
    ]
    return "".join(
        f"<details><summary>{_safe(target.name)}: {len(target.rounds)} rounds before the last"
        "</summary>"
        + _table(
            head,
            (
                [
                    _number(f"{one.epochs:.3g}"),
                    _name(f"#{contender.number} {contender.name}"),
                    _name(contender.precision),
                    _number(bare("latency_ms", contender.latency_ms)),
                    _number(percent(contender.before)),
                    _number(percent(contender.accuracy)),
                    ("yes", "yes") if contender.stayed else ("no", ""),
                ]
                for one in target.rounds
                for contender in one.contenders
            ),
        )
        + '<p class="soft">Accuracy is of validation images; the one that is left is trained '
        "to the end.</p></details>"
        for target in targets
        if target.rounds
    )


def _stages(report: RunReport) -> str:
    return _table(
        [("stage", ""), ("minutes", "number"), ("detail", "")],
        (
            [_name(stage.name), _number(f"{stage.minutes:.1f}"), _name(stage.detail)]
            for stage in report.stages
        ),
    )


def _pairs(head: tuple[str, str], values: Mapping[str, object]) -> str:
    kind = "number" if head[1] == "count" else "name"
    rows = ([_name(name), (_text(value), kind)] for name, value in values.items())
    return _table([(head[0], ""), (head[1], kind)], rows)


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return _safe(", ".join(map(str, value)))
    return _safe("-" if value is None else value)
