"""A run's folder: locked while in use, written atomically, refused for another job.

Layout: ``identity.json`` (what the house was made from), ``config.yaml`` (the resolved job),
``environment.json``, ``events.jsonl``, ``log.txt`` (what libraries said), ``house/``,
``students/<target>/``, ``report.json``, ``report.html``, ``front.png``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tailorbird.changes import differences, in_settings, job_of
from tailorbird.errors import StoreError
from tailorbird.files import write_json
from tailorbird.quiet import LOG, OLDER, keep
from tailorbird.records import as_record, read_record

CONFIG, ORIGIN = "config.yaml", "origin.json"
"""The resolved job, and the folder that its paths start from."""

IDENTITY, FORMAT = "identity.json", 3
"""What a run is made from, and the version of a run folder's layout that stands in it."""

_NOTHING_MADE = {
    *(IDENTITY, f".{IDENTITY}", CONFIG, ORIGIN, "environment.json", "events.jsonl", ".lock"),
    *(LOG, OLDER),
}
"""What a folder holds when a run found its job wrong before it made anything."""

_UNDER_WAY = ".spent.json"
"""What the stage under way has taken so far."""

_NOTHING_REDONE: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True)
class _Spent:
    """A line of ``events.jsonl`` on time spent."""

    event: str
    stage: str
    seconds: float


class RunFolder:
    """One job's folder, opened by one process at a time.

    Args:
        path: made when opened.
        beat_s: seconds between two notes of the time that a stage has taken, so that no more than
            these are lost by a kill.

    Example:
        >>> import tempfile
        >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run")
        >>> with folder.open({"seed": 0}):
        ...     folder.event("started", targets=3)
        >>> folder.path.joinpath("events.jsonl").read_text().count("started")
        1
    """

    def __init__(self, path: Path, *, beat_s: float = 15.0) -> None:
        self.path, self.beat_s = Path(path), beat_s

    @contextmanager
    def open(
        self,
        identity: Mapping[str, object] | None,
        *,
        redone: Mapping[str, Sequence[str]] = _NOTHING_REDONE,
        say: Callable[[str], None] | None = None,
        job: Mapping[str, object] | None = None,
    ) -> Iterator[RunFolder]:
        """Lock the folder and check that it belongs to ``identity`` (plain JSON-able data).

        Args:
            identity: what the run is made from; ``None`` for a run that goes on as it is.
            redone: key of ``identity`` -> files and folders that depend on it and on nothing that
                it does not name. Where only such keys differ, these are removed, to be made anew.
            say: told what is made anew.
            job: the resolved job, to tell changes by the settings that cause them.

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
            if identity is not None:
                self._claim(formatted(identity), redone, say or _unheard, job or {})
            keep(self.path)
            for torn in self.path.rglob(".*.part"):  # left by a kill; nobody else is writing
                torn.unlink(missing_ok=True)
            self._settle()
            yield self
        finally:
            lock.release()

    def _claim(
        self,
        plain: dict[str, object],
        redone: Mapping[str, Sequence[str]],
        say: Callable[[str], None],
        job: Mapping[str, object],
    ) -> None:
        stored = self.stored()
        if stored is None:
            self.identify(plain)
            return
        changed = differences(completed(stored, plain), plain)
        if changed and {p.name for p in self.path.iterdir()} <= _NOTHING_MADE:
            changed = []  # the job failed before anything was made, and was mended
        keys = [line.partition(": ")[0] for line in changed]
        told = in_settings(changed, job_of(self.path / CONFIG), job)
        if any(_depending(key, redone) is None for key in keys):
            raise StoreError(
                f"run folder {self.path} belongs to another job; what differs:\n  "
                + "\n  ".join(told)
                + "\ngive a new folder, or the job as it was to continue"
            )
        stale = {name for key in keys for name in _depending(key, redone) or ()}
        made = sorted(name for name in stale if (self.path / name).exists())
        if made:
            say(
                f"{self.path}: what differs: {'; '.join(told)}; made anew is what depends "
                f"on it: {', '.join(made)}"
            )
            self.event("made anew", changed=changed, removed=made)
        for name in made:
            _remove(self.path / name)
        if stored != plain:
            self.identify(plain)

    def stored(self) -> dict[str, object] | None:
        """What the run was made from; ``None`` for a folder that holds nothing yet.

        It is there twice, so that one damaged file takes no run with it.

        Raises:
            StoreError: for a folder of something else, or where both files are damaged.
        """
        paths = [self.path / IDENTITY, self.path / f".{IDENTITY}"]
        there = [path for path in paths if path.exists()]
        if not there:
            strangers = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if strangers:
                raise StoreError(
                    f"run folder {self.path} holds files but no {IDENTITY} "
                    f"({', '.join(sorted(strangers)[:3])}); give an empty or a new folder"
                )
            return None
        for path in there:
            with suppress(StoreError):
                return read_record(path, dict[str, object])
        raise StoreError(
            f"{paths[0]} is damaged, so that nothing tells which job the folder belongs to; put it "
            "back from a copy, or give a new folder"
        )

    def identify(self, identity: Mapping[str, object]) -> None:
        """Write down what the run is made from, twice."""
        for name in (f".{IDENTITY}", IDENTITY):
            write_json(self.path / name, formatted(identity))

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
        start, ended = time.perf_counter(), threading.Event()

        def spent() -> dict[str, object]:
            return {"stage": name, "seconds": round(time.perf_counter() - start, 3)}

        def beat() -> None:
            while not ended.wait(self.beat_s):
                with suppress(StoreError):  # a full disk is told by what matters more
                    write_json(self.path / _UNDER_WAY, {"event": "spent", **spent()})

        beating = threading.Thread(target=beat, daemon=True, name="spent")
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            self.event("spent", **spent())
            (self.path / _UNDER_WAY).unlink(missing_ok=True)

    def _settle(self) -> None:
        """Count what a process that was killed had spent on its stage."""
        with suppress(StoreError):
            known = read_record(self.path / _UNDER_WAY, _Spent)
            self.event("spent", stage=known.stage, seconds=known.seconds)
        (self.path / _UNDER_WAY).unlink(missing_ok=True)


def short_hash(plain: object) -> str:
    """Sixteen hex digits that tell plain data (as for JSON) apart, whatever the order of its keys.

    Example:
        >>> short_hash({"a": 1, "b": [2]}) == short_hash({"b": (2,), "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def formatted(identity: Mapping[str, object]) -> dict[str, object]:
    """Plain data as JSON reads it back, with the version of the layout."""
    plain: dict[str, object] = json.loads(json.dumps({**identity, "format": FORMAT}))
    return plain


def completed(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """What an earlier version wrote, with the keys that it did not know taken from ``new``.

    The first version's fingerprint of images was over a few of them; it stands in ``new`` as well.

    Raises:
        StoreError: for what a later version wrote.

    Example:
        >>> completed({"data": {"name": "a"}}, {"format": 3, "data": {"name": "b", "flip": True}})
        {'data': {'name': 'a', 'flip': True}, 'format': 3}
    """
    version = old.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise StoreError(
            f"the run folder was written by a later version of Tailorbird (layout {version!r}, "
            f"this one reads up to {FORMAT}); update Tailorbird, or give a new folder"
        )
    if version == FORMAT:
        return dict(old)
    found, known, data = _filled(old, new), old.get("data"), new.get("data")
    if version == 1 and isinstance(known, dict) and isinstance(data, dict):
        seen = known.get("fingerprint") == data.get("sampled")
        found["data"] = {**data, "name": known.get("name")} if seen else found["data"]
    return {**found, "format": FORMAT}


def _filled(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    found = dict(old)
    for key, value in new.items():
        inner = found.setdefault(key, value)
        if isinstance(inner, dict) and isinstance(value, dict):
            found[key] = _filled(inner, value)
    return found


def _depending(key: str, redone: Mapping[str, Sequence[str]]) -> Sequence[str] | None:
    """What has to be made anew for a key, ``None`` for a key that decides everything."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in redone:
            return redone[name]
    return None


def _unheard(line: str) -> None:
    """Nobody is told."""


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
