"""A run's folder: locked while in use, written atomically, refused for another job.

Layout: ``identity.json`` (what the house was made from), ``config.yaml`` (the resolved job),
``environment.json``, ``events.jsonl``, ``house/``,
``students/<target>/``, ``report.json``, ``report.html``, ``front.png``.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tailorbird.errors import StoreError
from tailorbird.files import read_json, write_json
from tailorbird.records import as_record

CONFIG, ORIGIN = "config.yaml", "origin.json"
"""The resolved job, and the folder that its paths start from."""

_NOTHING_MADE = {"identity.json", CONFIG, "environment.json", "events.jsonl", ".lock"}
"""What a folder holds when a run found its job wrong before it made anything."""


@dataclass(frozen=True)
class _Spent:
    """A line of ``events.jsonl`` on time spent."""

    event: str
    stage: str
    seconds: float


class RunFolder:
    """One job's folder, opened by one process at a time.

    Example:
        >>> import tempfile
        >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run")
        >>> with folder.open({"seed": 0}):
        ...     folder.event("started", targets=3)
        >>> folder.path.joinpath("events.jsonl").read_text().count("started")
        1
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @contextmanager
    def open(self, identity: Mapping[str, object]) -> Iterator[RunFolder]:
        """Lock the folder and check that it belongs to ``identity`` (plain JSON-able data).

        Raises:
            StoreError: for an unwritable folder, one in use by another process, or one that
                holds another job (the differing keys are listed).
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"run folder {self.path} is in use by another process; wait for it, or give "
                "another folder"
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            reason = getattr(error, "strerror", None) or error
            raise StoreError(
                f"run folder {self.path} can't be written: {reason}; give a folder that you may "
                "write to"
            ) from error
        try:
            self._claim(identity)
            for torn in self.path.rglob(".*.part"):  # left by a kill; nobody else is writing
                torn.unlink(missing_ok=True)
            yield self
        finally:
            lock.release()

    def _claim(self, identity: Mapping[str, object]) -> None:
        path = self.path / "identity.json"
        plain = json.loads(json.dumps(identity))
        if not path.exists():
            strangers = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if strangers:
                raise StoreError(
                    f"run folder {self.path} holds files but no identity.json "
                    f"({', '.join(sorted(strangers)[:3])}); give an empty or a new folder"
                )
            write_json(path, plain)
            return
        changed = differences(read_json(path), plain)
        if changed and {p.name for p in self.path.iterdir()} <= _NOTHING_MADE:
            write_json(path, plain)  # the job failed before anything was made, and was mended
        elif changed:
            raise StoreError(
                f"run folder {self.path} belongs to another job; what differs:\n  "
                + "\n  ".join(changed)
                + "\ngive a new folder, or the job as it was to continue"
            )

    def event(self, kind: str, **data: object) -> None:
        """Append one line to ``events.jsonl``.

        Raises:
            StoreError: when it can't be written.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **data}, default=str)
        try:
            with (self.path / "events.jsonl").open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # torn off by a kill
                        line = "\n" + line
                file.write(line.encode() + b"\n")
        except OSError as error:
            raise StoreError(
                f"can't write {self.path / 'events.jsonl'}: {error.strerror or error}"
            ) from error

    def seconds(self) -> dict[str, float]:
        """Time spent per stage over all processes that worked on this run."""
        totals: dict[str, float] = {}
        path = self.path / "events.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                spent = as_record(_Spent, json.loads(line))
            except ValueError:
                continue  # a line cut off by a kill: only its own seconds are lost
            if spent is not None and spent.event == "spent":
                totals[spent.stage] = totals.get(spent.stage, 0.0) + spent.seconds
        return totals

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time spent inside under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.event("spent", stage=name, seconds=round(time.perf_counter() - start, 3))


def short_hash(plain: object) -> str:
    """Sixteen hex digits that tell plain data (as for JSON) apart, whatever the order of its keys.

    Example:
        >>> short_hash({"a": 1, "b": [2]}) == short_hash({"b": (2,), "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Leaves where two plain structures differ, as ``path: old -> new``.

    Example:
        >>> differences({"seed": 0, "run": "a"}, {"seed": 1, "run": "a"})
        ['seed: 0 -> 1']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}):
            lines += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return lines
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
