"""Draw the CIFAR-10 comparison and put its table into docs/results.md.

python bench/show_cifar10.py bench/results/compress_cifar10.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "img" / "cifar10_front.png"
STYLES = {
    "tailorbird": ("#d55e00", "o", "Tailorbird"),
    "best donor, retrained": ("#0072b2", "s", "best donor, retrained"),
    "best donor, as it is": ("#0072b2", "D", "best donor, as it is"),
    "torch-pruning": ("#009e73", "^", "torch-pruning"),
    "FastNAS": ("#cc79a7", "v", "FastNAS"),
    "only (no donors)": ("#e69f00", "P", "house without donors"),
    "half of the house": ("#999999", "<", "half of the house"),
    "3/4 of the house": ("#666666", ">", "three quarters of the house"),
    "random choice": ("#000000", "x", "random choice from the house"),
}


def draw(record: dict[str, Any]) -> None:
    """Latency against accuracy, one colour and mark per method."""
    rows = record["figures"]["rows"]
    figure, axes = plt.subplots(figsize=(9.5, 5), layout="constrained")
    for method, (colour, mark, label) in STYLES.items():
        points = [row for row in rows if row["method"] == method]
        axes.scatter(
            [row["share_of_teacher"] for row in points],
            [row["top1"] for row in points],
            c=colour,
            marker=mark,
            s=70 if method == "tailorbird" else 45,
            label=label,
            zorder=3 if method == "tailorbird" else 2,
        )
    for share in sorted({row["target"] for row in rows}):
        axes.axvline(share, color="#888888", linestyle="--", linewidth=1)
    teacher = record["figures"]["networks"]["resnet56"]["top1"]
    axes.axhline(teacher, color="#bbbbbb", linewidth=1)
    axes.annotate("ResNet-56", (0.995, teacher), xycoords=("axes fraction", "data"),
                  ha="right", va="bottom", color="#555555")  # fmt: skip
    floor = min(row["top1"] for row in rows if row["method"] == "tailorbird") - 10
    axes.set_ylim(floor, teacher + 0.7)
    below = sorted({row["method"] for row in rows if row["top1"] < floor})
    if below:
        axes.annotate(
            f"below the picture: {', '.join(below)}",
            (0.01, 0.01),
            xycoords="axes fraction",
            color="#555555",
            fontsize=8,
        )
    axes.set_xlabel("latency as a share of ResNet-56's (dashed: the limits)")
    axes.set_ylabel("CIFAR-10 test top-1, %")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)


def table(record: dict[str, Any]) -> str:
    """One row per method, one column per limit: top-1 and what was measured."""
    rows = record["figures"]["rows"]
    shares = sorted({row["target"] for row in rows}, reverse=True)
    lines = [
        "| method | " + " | ".join(f"limit {share}x" for share in shares) + " |",
        "|---" * (len(shares) + 1) + "|",
    ]
    for method, (_, _, label) in STYLES.items():
        cells = []
        for share in shares:
            found = [r for r in rows if r["method"] == method and r["target"] == share]
            if not found:
                cells.append("can't reach it")
                continue
            row = found[0]
            over = "" if row["met"] else ", over"
            cells.append(f"{row['top1']:.2f} % ({row['share_of_teacher']:.3f}x{over})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the record, draw, and rewrite the document's part."""
    path = Path(sys.argv[1])
    record = json.loads(path.read_text())
    draw(record)
    document = ROOT / "docs" / "results.md"
    text = document.read_text()
    start, end = "<!-- table:cifar10 -->", "<!-- /table:cifar10 -->"
    if start not in text:
        raise SystemExit(f"{document}: no place marked {start}")
    part = f"{start}\n\n{table(record)}\n\n{end}"
    document.write_text(re.sub(f"{start}.*?{end}", lambda _: part, text, flags=re.DOTALL))
    print(table(record))


if __name__ == "__main__":
    main()
