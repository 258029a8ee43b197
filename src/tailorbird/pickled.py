"""What a torch file would take of memory and time, read off it without running anything.

PyTorch's careful reader runs nothing foreign, but it does as it is told: a file of 400 bytes can
ask for ten gigabytes of zeros, or for a key whose parts are shared so often that its hash never
ends.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MOST_PARTS = 1_000_000
"""Parts, counted as often as they are shared, of one value that is no container in a file."""

MOST_GROWTH = 16
"""How many times as large as the file what it holds may be; torch itself doesn't compress."""

_LEGACY = 5
"""Pickles in a row at the start of a file as torch wrote them before 1.6."""

_OPEN = ("list", "dict", "set")
"""Values that are never hashed, whose parts are looked at once."""


def absurdity(file: Path) -> str:
    """Why reading a torch file would take absurdly long or much memory; empty where nothing does.

    Args:
        file: there; as ``torch.save`` writes it now, or wrote it before 1.6.

    Raises:
        Exception: of any kind, for a file that is damaged.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "weights.pth"
        >>> torch.save({"weight": torch.zeros(2)}, path)
        >>> absurdity(path)
        ''
    """
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            return next(filter(None, _each(stream)), "")
    with zipfile.ZipFile(file) as archive:
        size, inside = file.stat().st_size, sum(one.file_size for one in archive.infolist())
        if inside > MOST_GROWTH * size:
            return f"{size:,} bytes that unpack to {inside:,}"
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(set(names)) < len(names):
            return "two records of one name"
        for name in names:
            with archive.open(name) as stream:
                if found := _of(stream):
                    return found
    return ""


def _each(stream: IO[bytes]) -> Iterator[str]:
    """`_of` the pickles at the start of a file."""
    for _ in range(_LEGACY):
        if not stream.read(1):
            return
        stream.seek(-1, os.SEEK_CUR)
        yield _of(stream)


def _of(stream: IO[bytes]) -> str:
    """What one pickle asks for: the weight of each value is followed, not its content."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[object, int] = {}
    for code, argument, _ in pickletools.genops(stream):
        if code.name == "GLOBAL" and str(argument).endswith(" bytearray"):
            return "a bytearray, which may be of any size"
        if code.name == "MARK":
            marks.append(len(stack))
        elif code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if code.name == "MEMOIZE" else argument] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            parts = _popped(code, stack, marks)
            open_ones = any(made.name in _OPEN for made in code.stack_after)
            weight = 1 if open_ones else 1 + sum(parts)
            if weight > MOST_PARTS:
                return f"a value of more than {MOST_PARTS:,} parts"
            stack += [weight] * len(code.stack_after)
    return ""


def _popped(code: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> list[int]:
    """Take off the stack what an instruction uses."""
    count = len(code.stack_before)
    if pickletools.markobject in code.stack_before:
        start = marks.pop() - code.stack_before.index(pickletools.markobject)
    else:
        start = len(stack) - count
    if start < 0:
        raise ValueError("uses more than there is")
    parts = stack[start:]
    del stack[start:]
    return parts
