"""The parts of docs/results.md that are written by scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "results.md"


def put(name: str, lines: Iterable[str]) -> None:
    """Replace the page's part ``table:name`` by lines of Markdown, and print them.

    Raises:
        SystemExit: where the page has no such part.
    """
    table, text = "\n".join(lines), PAGE.read_text(encoding="utf-8")
    start, end = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
    if start not in text:
        raise SystemExit(f"{PAGE}: no place marked {start}")
    part = f"{start}\n\n{table}\n\n{end}"
    text = re.sub(f"{start}.*?{end}", lambda _: part, text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")
    print(table)
