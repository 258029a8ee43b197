"""Draw the supernet benchmarks and put their tables into docs/results.md.

python bench/show_supernets.py            # whatever results there are in bench/results
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from page import put

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PICTURE = ROOT / "docs" / "img" / "supernet_training.png"
STYLES = {
    "DepS": ("#d55e00", "o", "-"),
    "BigNAS": ("#0072b2", "s", "-"),
    "progressive shrinking": ("#009e73", "^", "-"),
    "CompOFA": ("#cc79a7", "v", "-"),
    "DepS without full warm-up": ("#e69f00", "D", ":"),
    "DepS without ramp": ("#000000", "x", ":"),
    "DepS without distillation": ("#999999", "P", ":"),
}
CURVES = ("DepS", "DepS without ramp", "DepS without full warm-up")


def training_table(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row per method and budget."""
    lines = [
        "| budget | scheme | mean Pareto accuracy | smallest | largest | cost | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for budget in ("equal images", "equal cost"):
        for method in STYLES:
            for row in summary:
                if (row["budget"], row["method"]) != (budget, method):
                    continue
                low, high = row["mean_pareto_range"]
                spread = f" ({low:.2f} to {high:.2f})" if row["seeds"] > 1 else ""
                lines.append(
                    f"| {budget} | {method} | {row['mean_pareto']:.2f} %{spread} | "
                    f"{row['smallest']:.2f} % | {row['largest']:.2f} % | "
                    f"{row['macs_vs_deps']:.2f}x | {row['seconds']:.0f} | {row['seeds']} |"
                )
    return lines


def cost_table(figures: Mapping[str, Any]) -> list[str]:
    """Steps, then evaluation."""
    lines = [
        "| full network of | as a supernet | plain | ratio | training loop | memory, ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["steps"]:
        lines.append(
            f"| {row['space']} ({row['macs'] / 1e6:.1f} M MACs) | "
            f"{row['elastic_images_per_second']:.0f} images/s | "
            f"{row['plain_images_per_second']:.0f} images/s | {row['ratio']:.2f} | "
            f"{row['loop_images_per_second']:.0f} images/s | {row['memory_ratio']:.2f} |"
        )
    lines += ["", "| 100 subnets of | together | one by one | ratio |", "|---|---|---|---|"]
    for row in figures["evaluation"]:
        lines.append(
            f"| {row['space']} | {row['together_s']:.0f} s | {row['apart_s']:.0f} s | "
            f"{row['ratio']:.2f} |"
        )
    return lines


def draw(runs: Sequence[Mapping[str, Any]]) -> None:
    """Fronts of all schemes at equal images, and the full network while shrinking starts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for method, (colour, mark, _) in list(STYLES.items())[:4]:
        for budget, line in (("equal images", "-"), ("equal cost", "--")):
            found = [r for r in runs if (r["method"], r["budget"]) == (method, budget)]
            if not found:
                continue
            macs, accuracies = front(found)
            left.plot(
                macs,
                accuracies,
                color=colour,
                marker=mark,
                linestyle=line,
                linewidth=1.3,
                markersize=5,
                label=method if line == "-" else None,
            )
    left.set_xlabel("multiply-accumulates, millions")
    left.set_ylabel("test top-1 of the best subnet, %")
    left.set_title("solid: equal images seen; dashed: equal cost", fontsize=10)
    for method in CURVES:
        found = [r for r in runs if (r["method"], r["budget"]) == (method, "equal images")]
        if not found:
            continue
        epochs = [point[0] for point in found[0]["curve"]]
        for column, line, end in ((2, "-", "full"), (3, ":", "smallest")):
            means = [fmean(r["curve"][i][column] for r in found) for i in range(len(epochs))]
            right.plot(
                epochs,
                means,
                color=STYLES[method][0],
                linestyle=line,
                linewidth=1.5,
                label=f"{method}, {end}",
            )
    right.set_xlabel("epochs")
    right.set_ylabel("top-1 on 1,000 held-out images, %")
    right.set_title("while training", fontsize=10)
    for axes in (left, right):
        axes.legend(
            fontsize=8, frameon=False, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.14)
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)


def front(runs: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Mean over the seeds of the best subnet in each range: millions of MACs, top-1."""
    most = min(len(run["front"]) for run in runs)
    points = [[run["front"][i] for run in runs] for i in range(most)]
    return (
        [fmean(macs for macs, _ in point) / 1e6 for point in points],
        [fmean(top1 for _, top1 in point) for point in points],
    )


def main() -> None:
    """Read the records, draw, and rewrite the document's parts."""
    training = RESULTS / "supernet_training_cpu.json"
    if training.exists():
        figures = json.loads(training.read_text())["figures"]
        draw(figures["runs"])
        put("supernet_training", training_table(figures["summary"]))
    cost = RESULTS / "supernet_cost.json"
    if cost.exists():
        put("supernet_cost", cost_table(json.loads(cost.read_text())["figures"]))


if __name__ == "__main__":
    main()
