"""Put the table of `precision.py` into docs/results.md.

python bench/show_precision.py bench/results/precision.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page import put


def rows(table: dict[str, Any]) -> Iterator[str]:
    """A line per file, those of a runtime together."""
    for network, files in table.items():
        shown = network
        for name in sorted(files, key=lambda name: name.rpartition(" ")[0]):
            runtime, _, way = name.rpartition(" ")
            row = files[name]
            kept = len(row.get("kept") or ())
            yield (
                f"| {shown} | {runtime}, {way} | {row['accuracy']:.2f} | {row['agreement']:.2f} | "
                f"{row['ms']:.3f} | {row['of its own float32']:.2f}x | {kept or ''} |"
            )
            shown = ""


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    columns = ("network", "file", "accuracy, %", "agreement, %", "ms", "of its own float32")
    lines = [
        f"| {' | '.join(columns)} | layers in float32 |",
        "|---|---|---|---|---|---|---|",
        *rows(record["figures"]["table"]),
    ]
    put("precision", lines)


if __name__ == "__main__":
    main()
