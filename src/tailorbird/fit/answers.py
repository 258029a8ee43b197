"""What a fit leaves on disk: choices, results, and what a round of searches began with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter
from torch import fx

from tailorbird.errors import StoreError
from tailorbird.export.bundle import load_student
from tailorbird.files import digest_of, write_json
from tailorbird.fit.places import precisions_for
from tailorbird.fit.pools import Aim, Choice, Past
from tailorbird.fit.ship import DELIVERED
from tailorbird.records import Kind, read_record
from tailorbird.report.record import TargetResult
from tailorbird.runfolder import short_hash
from tailorbird.search.strategy import Strategy
from tailorbird.targets import PLAIN, Target


@dataclass(frozen=True, kw_only=True, repr=False)
class Student:
    """What one target got: the record, and the trained network where there is one."""

    result: TargetResult
    module: fx.GraphModule | None

    def __repr__(self) -> str:
        met = "met" if self.met else "not met"
        return f"<Student '{self.result.name}': {met}, {self.result.onnx or 'no file'}>"

    @property
    def met(self) -> bool:
        """Every limit is kept, as measured."""
        return self.result.met


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round of searches began with.

    Args:
        begun: hash of all requests of the fit.
        number: of the round, from 0.
        open: names of the targets that were not answered yet.
        aims: target's name -> how it is chosen for.
        pools: place's name -> the networks known there.
        known: judgements of trained candidates that were known.
    """

    begun: str
    number: int
    open: tuple[str, ...]
    aims: Mapping[str, Aim]
    pools: Mapping[str, Past]
    known: int = 0


def request_of(target: Target, strategy: Strategy | None, **made_from: object) -> str:
    """A short hash of all that a target's result answers to.

    Args:
        target: limits and place.
        strategy: how candidates are searched, if it was asked for.
        made_from: what else decides the result, as plain data.
    """
    asked = {
        "limits": {limit.metric: [limit.value, limit.share] for limit in target.limits},
        "device": target.place.key,
        **made_from,
    }
    precisions = precisions_for(target)
    if precisions != (PLAIN,):
        asked["precisions"] = precisions
    if strategy is not None:
        asked["strategy"] = strategy.name
    return short_hash(asked)


class Answers:
    """The answers in a run folder.

    Args:
        folder: the run folder.
        trust: import paths of code that stored students may be made of: the networks' own.
    """

    def __init__(self, folder: Path, trust: Collection[str] = ()) -> None:
        self.folder = folder
        self._trust = tuple(trust)
        self._round = folder / "fit" / "search.json"

    def student(self, name: str, request: str) -> Student | None:
        """A target's answer, with its files if there are to be any; ``None`` where it is no answer
        to ``request``, or damaged, so that it is made anew.
        """
        result = self.result(name, request)
        if result is None or result.onnx is None or result.unstored is not None:
            return None if result is None else Student(result=result, module=None)
        home = self.folder / "students" / name
        try:
            return Student(result=result, module=load_student(home, trust=self._trust).module)
        except StoreError:
            return None

    def result(self, name: str, request: str) -> TargetResult | None:
        """What was found for a target, with its files as they were delivered; else ``None``.

        That a limit is undecided is no answer: the next run tries again.
        """
        home = self.folder / "students" / name
        stored = _read(home / "result.json", _Stored)
        if stored is None or stored.request != request or stored.result.undecided:
            return None
        files = stored.files or dict.fromkeys(DELIVERED)  # an earlier version noted no digests
        if stored.result.onnx is not None and not stored.files:
            files[Path(stored.result.onnx).name] = None
        kept = stored.result.onnx is None or all(
            (home / file).is_file() if digest is None else digest_of(home / file) == digest
            for file, digest in files.items()
        )
        return stored.result if kept else None

    def others(self, names: Collection[str]) -> list[str]:
        """Targets that have a student here and are none of ``names``."""
        return sorted(
            result.parent.name
            for result in (self.folder / "students").glob("*/result.json")
            if result.parent.name not in names
        )

    def record(self, request: str, result: TargetResult) -> None:
        """Write a target's result, with digests of the files that were delivered."""
        plain = TypeAdapter(TargetResult).dump_python(result, mode="json")
        home = self.folder / "students" / result.name
        files = {} if result.onnx is None else _digests(home)
        write_json(home / "result.json", {"request": request, "result": plain, "files": files})

    def chosen(self, name: str, request: str, choice: Choice) -> None:
        """Write a target's choice."""
        home = self.folder / "students" / name
        write_json(home / "choice.json", {"request": request, "choice": asdict(choice)})

    @staticmethod
    def begun(requests: Sequence[str]) -> str:
        """A short hash of all requests of a fit."""
        return short_hash(list(requests))

    def round(self, begun: str) -> Round | None:
        """The round that was under way in this fit, if one was."""
        found = _read(self._round, Round)
        return found if found is not None and found.begun == begun else None

    def note(self, found: Round) -> None:
        """Write down what a round begins with."""
        write_json(self._round, asdict(found))

    def forget(self) -> None:
        """A fit has come to its end: what is asked next begins anew."""
        self._round.unlink(missing_ok=True)


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    """A record; ``None`` where there is none, or it is damaged."""
    try:
        return read_record(path, kind)
    except StoreError:
        return None


def _digests(home: Path) -> dict[str, str | None]:
    """The files that a target's folder delivers; what tells how they were found is none of them."""
    own = {"result.json", "choice.json"}
    return {
        path.name: digest_of(path)
        for path in sorted(home.iterdir())
        if path.is_file() and path.name not in own and not path.name.startswith(".")
    }


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What ``result.json`` holds."""

    request: str
    result: TargetResult
    files: dict[str, str | None] = field(default_factory=dict)
