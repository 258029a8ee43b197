"""Draw the searches for many targets and put their tables into docs/results.md.

python bench/show_many_targets.py bench/results/many_targets.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from page import put

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "img"
OURS, THEIRS, GREY = "#d55e00", "#0072b2", "#777777"


def draw_front(figures: dict[str, Any]) -> None:
    """What all-at-once gains at every limit over the original search, and over which spread."""
    part = figures["original"]
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    theirs = part["original"]["accuracy"]
    for name, colour, label in (
        ("original", THEIRS, "original, ten searches"),
        ("all-at-once", OURS, "all-at-once, one search"),
    ):
        found = part[name]["accuracy"]
        gain = [100 * (a - b) for a, b in zip(found["mean"], theirs["mean"], strict=True)]
        spread = [100 * value for value in found["std"]]
        seconds = part[name]["seconds"]["mean"]
        axes.errorbar(part["limits_ms"], gain, yerr=spread, color=colour, marker="o", capsize=4,
                      linewidth=1.5, label=f"{label}: {seconds:.2g} s")  # fmt: skip
    axes.set_xlabel("limit on Note10 latency, ms")
    axes.set_ylabel("predicted accuracy, points\nover the original's mean")
    axes.set_xticks(part["limits_ms"])
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURES / "many_targets.png", dpi=120)
    plt.close(figure)


def draw_growth(figures: dict[str, Any]) -> None:
    """Seconds and memory as limits, population and genes grow."""
    part = figures["growth"]
    figure, grid = plt.subplots(2, 3, figsize=(11, 5.5), layout="constrained", sharey="row")
    for column, (key, label, log) in enumerate(
        (
            ("limits", "limits", True),
            ("children", "children a generation", True),
            ("genes", "genes of the space", False),
        )
    ):
        for row, (figure_of, unit) in enumerate((("seconds", "s"), ("peak_mb", "MB"))):
            axes = grid[row, column]
            x = [int(value) for value in part[key]]
            axes.plot(x, [cell[figure_of] for cell in part[key].values()], "o-", color=OURS,
                      label="all-at-once")  # fmt: skip
            if key == "limits":
                other = part["independent, limits"]
                axes.plot([int(value) for value in other],
                          [cell[figure_of] for cell in other.values()], "s--", color=THEIRS,
                          label="independent")  # fmt: skip
                axes.legend(frameon=False)
            if log:
                axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(x, [f"{value:,}" for value in x])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.spines[["top", "right"]].set_visible(False)
            if row:
                axes.set_xlabel(label)
            if not column:
                axes.set_ylabel("wall time, s" if unit == "s" else "peak memory, MB")
    figure.savefig(PICTURES / "many_targets_growth.png", dpi=120)
    plt.close(figure)


def accuracy_table(figures: dict[str, Any]) -> list[str]:
    """Limit by limit, original and ours."""
    part = figures["original"]
    limits = [f"{limit:g}" for limit in part["limits_ms"]]
    lines = ["| limit, ms | " + " | ".join(limits) + " | seconds for all |"]
    lines.append("|---" * (len(limits) + 2) + "|")
    for name, label in (("original", "original, 10 searches"), ("all-at-once", "all-at-once")):
        found = part[name]
        cells = [f"{100 * value:.2f}" for value in found["accuracy"]["mean"]]
        lines.append(f"| {label} | {' | '.join(cells)} | {found['seconds']['mean']:.2f} |")
    return lines


def strategy_table(figures: dict[str, Any]) -> list[str]:
    """The paper's table: seconds for 1 to 10 limits, and the mean accuracy at ten."""
    scene = figures["strategies"]["mobilenet-v3, note10"]
    counts = list(scene["vanilla"])
    lines = [
        "| strategy | "
        + " | ".join(f"{count} limits" if count != "1" else "1 limit" for count in counts)
        + " | of vanilla at 10 | mean accuracy at 10 |",
        "|---" * (len(counts) + 3) + "|",
    ]
    slowest = scene["vanilla"]["10"]["seconds"]["mean"]
    for name, cells in scene.items():
        if name == "limits":
            continue
        seconds = [f"{cells[c]['seconds']['mean']:.2f}" if c in cells else "" for c in counts]
        accuracies = cells["10"]["accuracy"]["mean"]
        lines.append(
            f"| {name} | {' | '.join(seconds)} | "
            f"{100 * cells['10']['seconds']['mean'] / slowest:.1f} % | "
            f"{100 * sum(accuracies) / len(accuracies):.2f} |"
        )
    return lines


def main() -> None:
    """Read the record, draw, and rewrite the document's part."""
    figures = json.loads(Path(sys.argv[1]).read_text())["figures"]
    PICTURES.mkdir(parents=True, exist_ok=True)
    draw_front(figures)
    draw_growth(figures)
    put("many_targets", accuracy_table(figures))
    put("strategies", strategy_table(figures))


if __name__ == "__main__":
    main()
