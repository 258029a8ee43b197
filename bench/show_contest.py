"""Draw a contest and put its tables into docs/results.md.

python bench/show_contest.py cifar10 bench/results/compress_cifar10.json
python bench/show_contest.py photos bench/results/real_photos.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from page import put

PICTURES = Path(__file__).parent.parent / "docs" / "img"

STYLES = {
    "tailorbird": ("#d55e00", "o"),
    "teacher": ("#222222", "*"),
    "donor as it is": ("#0072b2", "D"),
    "donor, retrained": ("#56b4e9", "s"),
    "torch-pruning": ("#009e73", "^"),
    "FastNAS": ("#cc79a7", "v"),
}
"""Method -> colour and mark; hollow in int8. Parts of ours are in the table alone."""

Row = dict[str, Any]


def family(method: str) -> str:
    """A method without the precision of its files.

    >>> family("donor as it is, int8"), family("teacher as it is"), family("tailorbird, float32")
    ('donor as it is', 'teacher', 'tailorbird')
    """
    bare = re.sub(r", (int8|float32)$", "", method)
    return "teacher" if bare.startswith("teacher") else bare


def panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Runtime, as targets name it -> its rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["target"].partition("-")[0], []).append(row)
    return found


def limit(row: Row) -> float:
    """The share that a target allows."""
    return float(row["target"].split("-")[1])


def points(axes: Axes, rows: Sequence[Row], floor: float) -> None:
    """Latency against accuracy, one colour and mark per method; limits dashed."""
    for method, (colour, mark) in STYLES.items():
        own = [row for row in rows if family(row["method"]) == method and row["top1"] >= floor]
        for precision in ("float32", "int8"):
            some = [row for row in own if row["precision"] == precision]
            axes.scatter(
                [row["share"] for row in some],
                [row["top1"] for row in some],
                facecolors=colour if precision == "float32" else "none",
                edgecolors=colour,
                marker=mark,
                s=80 if method == "tailorbird" else 45,
                label=f"{method}, {precision}" if some else None,
                zorder=3 if method == "tailorbird" else 2,
            )
    for share in {limit(row) for row in rows}:
        axes.axvline(share, color="#888888", linestyle="--", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("latency, share of the teacher's in float32")


def draw(rows: Sequence[Row], picture: Path) -> None:
    """One panel per runtime."""
    found = panels(rows)
    figure, axes = plt.subplots(
        1, len(found), figsize=(5.2 * len(found), 5.2), layout="constrained", sharey=True
    )
    floor = min(row["top1"] for row in rows if family(row["method"]) == "tailorbird") - 1.5
    titles = {"ort": "ONNX Runtime, 1 thread", "openvino": "OpenVINO, 1 thread"}
    for one, (runtime, own) in zip([axes] if len(found) == 1 else axes, found.items(), strict=True):
        points(one, own, floor)
        one.set_title(titles.get(runtime, runtime))
    first = figure.axes[0]
    first.set_ylabel("accuracy on test images, %")
    names = {
        label: handle
        for one in figure.axes
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    figure.legend(names.values(), names.keys(), fontsize=8, loc="outside lower center", ncols=4)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


def duels(rows: Sequence[Row], results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line per limit: ours, and the best of the others."""
    yield "| limit | Tailorbird | latency | what it is | best of the others | ahead |"
    yield "|---|---|---|---|---|---|"
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        ours = next((row for row in own if family(row["method"]) == "tailorbird"), None)
        others = [
            row
            for row in own
            if family(row["method"]) in STYLES and family(row["method"]) != "tailorbird"
        ]
        rival = max(others, key=lambda row: row["top1"], default=None)
        cells = [target, "none", "", "", "none", ""]
        if ours is not None:
            what = " / ".join(dict.fromkeys(described(one.get(target, {})) for one in results))
            cells[1:4] = [f"{ours['top1']:.2f} %", f"{ours['share']:.3f}x", what]
        if rival is not None:
            name = f"{rival['method']}: {rival['network']}"
            cells[4] = f"{rival['top1']:.2f} %, {rival['share']:.3f}x ({name})"
            if rival["ahead"] is not None:
                cells[5] = f"{rival['ahead']:+.2f} ± {rival['error']:.2f}"
            elif ours is not None:
                cells[5] = "the same file"
        yield f"| {' | '.join(cells)} |"


def described(result: dict[str, Any]) -> str:
    """What ours is, in a few words."""
    what = str(result.get("what", ""))
    made = what if "->" not in what else f"{what.count(' | ') + 1} blocks replaced"
    return f"{made or 'the teacher'}, {result.get('precision', '')}".rstrip(", ")


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line per method, a column per limit: accuracy, and latency as it was measured."""
    for own in panels(rows).values():
        targets = list(dict.fromkeys(row["target"] for row in own))
        yield ""
        yield f"| method | {' | '.join(targets)} |"
        yield "|---" * (len(targets) + 1) + "|"
        for method in dict.fromkeys(row["method"] for row in own):
            by_target = {row["target"]: row for row in own if row["method"] == method}
            cells = (cell(by_target.get(target)) for target in targets)
            yield f"| {method} | {' | '.join(cells)} |"


def cell(row: Row | None) -> str:
    """A method's file at a limit."""
    if row is None:
        return ""
    return f"{row['top1']:.2f} % ({row['share']:.3f}x{'' if row['met'] else ', over'})"


def notes(figures: dict[str, Any]) -> Iterator[str]:
    """The bars, what the recipe wins donors, and how losses of blocks rank what was trained."""
    yield ""
    yield "| bar | at least | is | |"
    yield "|---|---|---|---|"
    for bar in figures["bars"]:
        found = "none" if bar["is"] is None else f"{bar['is']:g}"
        word = "met" if bar["met"] else "missed"
        yield f"| {bar['what']} | {bar['at least']:g} | {found} | {word} |"
    won = figures["points that the recipe wins donors"]
    told = ", ".join(f"{name} {points:+.2f}" for name, points in won.items())
    yield ""
    yield f"Points that retraining wins donors as they are: {told or 'none'}."
    for one in filter(None, figures["ranked by losses of blocks"]):
        weights = ", ".join(f"{weight:.2f}" for weight in one["weights"])
        yield ""
        yield (
            f"{one['points']} candidates after their first training are ranked with Kendall's tau "
            f"{one['tau_of_sums']:.2f} by plain sums of losses of blocks, {one['tau']:.2f} by "
            f"DONNA's weighted ones ({weights} from the first to the last part of the network), "
            "each left out in turn."
        )


def main() -> None:
    """Read the record, draw, and rewrite the document's part."""
    name, path = sys.argv[1], Path(sys.argv[2])
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    rows = figures["rows"]
    draw(rows, PICTURES / f"{name}_front.png")
    put(name, [*duels(rows, figures["results"]), *table(rows), *notes(figures)])


if __name__ == "__main__":
    main()
