"""Targets in, students out: choose, retrain together, prove, and try again where a limit is missed.

On disk: ``students/TARGET/choice.json`` when a candidate is chosen, ``result.json`` when it is
proven. Both carry the request that they answer (limits, device, recipe, seed), so that a changed
target is done anew, an unchanged one is not. ``retrain/`` holds the networks in training: targets
for which the same candidate was chosen share one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import fx

from tailorbird.data.images import ImageData, Split
from tailorbird.errors import (
    ConfigError,
    InfeasibleError,
    MeasurementError,
    StoreError,
    TailorbirdError,
)
from tailorbird.export.bundle import load_student
from tailorbird.export.options import ExportOptions
from tailorbird.files import read_json, write_json
from tailorbird.graph.surgery import capture
from tailorbird.house.build import House
from tailorbird.pipeline.choose import Choice, choose, judge_module
from tailorbird.pipeline.finish import Proof, Shipping
from tailorbird.pipeline.job import Until, check_targets
from tailorbird.pipeline.pricing import Names, Pricing
from tailorbird.progress import Progress
from tailorbird.report.record import TargetResult
from tailorbird.runfolder import RunFolder, short_hash
from tailorbird.targets import Target
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain_all

T = TypeVar("T")

DELIVERED = ("model.onnx", "student.json", "student.safetensors", "verify.json")
"""What a target's folder holds for the user."""


def delivered(home: Path) -> bool:
    """Whether a target's folder holds everything that it should."""
    return all((home / name).exists() for name in DELIVERED)


@dataclass(frozen=True, kw_only=True)
class Student:
    """What one target got: the record, and the trained network where there is one."""

    result: TargetResult
    module: fx.GraphModule | None

    @property
    def met(self) -> bool:
        """Every limit is kept, as measured."""
        return self.result.met


def request_of(
    target: Target,
    *,
    recipe: Recipe,
    rounds: int,
    candidates: int,
    export: ExportOptions,
    seed: int,
) -> str:
    """A short hash of all that a target's result answers to."""
    asked = {
        "limits": {limit.metric: [limit.value, limit.share] for limit in target.limits},
        "device": target.device.key,
        "recipe": asdict(recipe),
        "rounds": rounds,
        "candidates": candidates,
        "export": asdict(export),
        "seed": seed,
    }
    return short_hash(asked)


@dataclass
class _Attempt:
    """One target on its way; ``scale`` tightens the latency limit after a miss."""

    target: Target
    home: Path
    request: str
    scale: float = 1.0
    number: int = 0
    choice: Choice | None = None
    module: fx.GraphModule | None = None
    result: TargetResult | None = None
    seconds: float = 0.0


class Fitting:
    """One call of `ModelHouse.fit`; see there."""

    def __init__(
        self,
        *,
        house: House,
        data: ImageData,
        folder: RunFolder,
        pricing: Callable[[Target], Pricing],
        recipe: Recipe,
        rounds: int,
        candidates: int,
        export: ExportOptions,
        seed: int,
        progress: Progress,
    ) -> None:
        self.house = house
        self.data = data
        self.folder = folder
        self.pricing = pricing
        self.recipe = recipe
        self.rounds = rounds
        self.candidates = candidates
        self.export = export
        self.seed = seed
        self.progress = progress
        self._shipping = Shipping(data, folder.path, export)
        self._judged: dict[Names, tuple[float, float]] = {}
        self._silent: dict[str, MeasurementError] = {}

    def run(self, targets: Sequence[Target], until: Until) -> list[Student]:
        """Students of ``targets``, in order."""
        problems = check_targets(tuple(targets))
        if problems:
            raise ConfigError(problems)
        attempts = [self._open(target) for target in targets]
        for number in range(self.rounds):
            open_ones = [a for a in attempts if a.result is None]
            if not open_ones:
                break
            open_ones = [a for a in open_ones if self._price(a)]
            with self.folder.stage("search"):
                for attempt in open_ones:
                    attempt.number = number
                    self._choose(attempt)
            if until == "search":
                break
            chosen = [a for a in open_ones if a.result is None]
            with self.folder.stage("retrain"):
                self._retrain(chosen)
            if until == "retrain":
                break
            with self.folder.stage("export"):
                for attempt in chosen:
                    if attempt.result is None:
                        self._prove(attempt, last=number == self.rounds - 1)
        return [self._student(attempt, until) for attempt in attempts]

    # one target ---------------------------------------------------------------------------------

    def _open(self, target: Target) -> _Attempt:
        request = request_of(
            target,
            recipe=self.recipe,
            rounds=self.rounds,
            candidates=self.candidates,
            export=self.export,
            seed=self.seed,
        )
        attempt = _Attempt(target, self.folder.path / "students" / target.name, request)
        stored = _load(attempt.home / "result.json", request)
        if stored is not None:
            attempt.result = _as(TargetResult, stored["result"])
            if attempt.result is not None and attempt.result.onnx is not None:
                try:
                    attempt.module = load_student(attempt.home).module
                except StoreError:
                    attempt.result = None
                if not delivered(attempt.home):
                    attempt.result = None
        return attempt

    def _price(self, attempt: _Attempt) -> bool:
        """Price the house on the target's device; one that fails costs its own targets only."""
        key = attempt.target.device.key
        if key not in self._silent:
            try:
                self.pricing(attempt.target)  # a stage of its own: it is not counted twice
                return True
            except MeasurementError as error:
                self._silent[key] = error
        self._give_up(attempt, self._silent[key], {})
        return False

    def _choose(self, attempt: _Attempt) -> None:
        start = time.perf_counter()
        stored = _load(attempt.home / "choice.json", attempt.request)
        if stored is not None and stored["number"] >= attempt.number:
            attempt.choice = _as(Choice, stored["choice"])
            attempt.number, attempt.scale = int(stored["number"]), float(stored["scale"])
        if attempt.choice is None:
            try:
                attempt.choice = choose(
                    attempt.target,
                    self.pricing(attempt.target),
                    self.data.validation,
                    scale=attempt.scale,
                    rounds=self.rounds,
                    candidates=self.candidates,
                    seed=self.seed,
                    progress=self.progress,
                    known=self._known(attempt),
                )
            except InfeasibleError as error:
                self._give_up(attempt, error, error.lowest)
                return
            except MeasurementError as error:
                self._give_up(attempt, error, {})
                return
            write_json(
                attempt.home / "choice.json",
                {
                    "request": attempt.request,
                    "number": attempt.number,
                    "scale": attempt.scale,
                    "choice": asdict(attempt.choice),
                },
            )
        attempt.seconds += time.perf_counter() - start

    def _known(self, attempt: _Attempt) -> list[Names]:
        """The networks that had been measured when this search began, before any kill."""
        path = attempt.home / "search.json"
        stored = _load(path, attempt.request)
        if stored is None or stored["number"] != attempt.number:
            known = self.pricing(attempt.target).measured()
            stored = {"request": attempt.request, "number": attempt.number, "known": known}
            write_json(path, stored)
        return [tuple(names) for names in stored["known"]]

    def _retrain(self, attempts: Sequence[_Attempt]) -> None:
        """Retrain all students in one pass of the teacher per batch; equal ones are one."""
        owners: dict[Names, list[_Attempt]] = {}
        for attempt in attempts:
            assert attempt.choice is not None
            owners.setdefault(attempt.choice.names, []).append(attempt)
        if not owners:
            return
        assignments = []
        for names, alike in owners.items():
            module, hints = self._assemble(alike[0])
            assignments.append(
                Assignment(
                    name=", ".join(attempt.target.name for attempt in alike),
                    student=module,
                    hints=hints,
                    checkpoint=self.folder.path / "retrain" / self._training(names),
                )
            )
        nodes = sorted({node for assignment in assignments for _, node in assignment.hints})
        outcomes = retrain_all(
            assignments,
            capture(self.house.teacher, nodes),
            self.data,
            recipe=self.recipe,
            seed=self.seed,
            progress=self.progress,
        )
        for alike, outcome in zip(owners.values(), outcomes, strict=True):
            if outcome.stopped is not None:
                self.progress.say(
                    f"{outcome.name}: retraining stopped: {outcome.stopped}; going on with "
                    f"the best weights, of epoch {outcome.best_epoch:g}"
                )
            for attempt in alike:
                own = copy.deepcopy(outcome.module)
                assert isinstance(own, fx.GraphModule)
                attempt.module = self.house.cut(own)
                attempt.seconds += outcome.seconds / len(alike)

    def _training(self, names: Names) -> str:
        """A short hash of what a retrained network comes from, whatever its targets."""
        made_from = {"names": names, "recipe": asdict(self.recipe), "seed": self.seed}
        return short_hash(made_from)

    def _assemble(self, attempt: _Attempt) -> tuple[fx.GraphModule, tuple[tuple[str, str], ...]]:
        """The induced network, and (its submodule, teacher's node) pairs to compare."""
        assert attempt.choice is not None
        family = self.pricing(attempt.target).family
        module = family.induce(attempt.choice.names)
        blocks = {a.name: self.house.sample.blocks[a.block] for a in family.alternatives}
        hints = tuple(
            (f"replaced_{number}", blocks[name].output)
            for number, name in enumerate(attempt.choice.names)
        )
        return module, hints

    def _prove(self, attempt: _Attempt, *, last: bool) -> None:
        assert attempt.module is not None
        assert attempt.choice is not None
        start = time.perf_counter()
        pricing = self.pricing(attempt.target)
        try:
            proof = self._shipping.prove(
                attempt.module,
                attempt.target,
                network=attempt.choice.names,
                teacher=self.house.teacher,
                base=pricing.base,
            )
        except TailorbirdError as error:
            if isinstance(error, StoreError):
                raise
            self._give_up(attempt, error, {})
            return
        attempt.seconds += time.perf_counter() - start
        if not proof.met and not last:
            self._tighten(attempt, proof)
            return
        result = self._result(attempt, proof)
        self._record(attempt, result)

    def _tighten(self, attempt: _Attempt, proof: Proof) -> None:
        """Ask for a candidate that keeps the limit if it comes out as much slower as this one."""
        assert attempt.choice is not None
        bound, measured = proof.limits.get("latency_ms"), proof.measured["latency_ms"]
        if bound is not None and measured > bound:
            slower = measured / attempt.choice.figures["latency_ms"]
            attempt.scale = bound / slower / attempt.choice.limits["latency_ms"]
        self.progress.say(
            f"{attempt.target.name}: measured {measured:.3f} ms, over its limit; searching again"
        )
        attempt.choice = attempt.module = None

    @property
    def _last_split(self) -> Split:
        return self.data.test or self.data.validation

    @cached_property
    def _teacher_accuracy(self) -> float:
        return judge_module(self.house.teacher.module, self.house.teacher, self._last_split)

    def _accuracies(self, attempt: _Attempt) -> tuple[float, float]:
        """The student's accuracy before it was retrained, and as it is.

        The test split is read here and nowhere else: nothing is chosen from now on.
        """
        assert attempt.choice is not None
        assert attempt.module is not None
        names, split, teacher = attempt.choice.names, self._last_split, self.house.teacher
        if names not in self._judged:
            before, _ = self._assemble(attempt)
            self._judged[names] = (
                judge_module(before, teacher, split),
                judge_module(attempt.module, teacher, split),
            )
        return self._judged[names]

    def _result(self, attempt: _Attempt, proof: Proof) -> TargetResult:
        assert attempt.choice is not None
        before, after = self._accuracies(attempt)
        known = {a.name: a for a in self.house.choices}
        over = [m for m, bound in proof.limits.items() if proof.measured[m] > bound]
        return TargetResult(
            name=attempt.target.name,
            device=attempt.target.device.key,
            limits=proof.limits,
            measured={**proof.measured, "teacher_latency_ms": proof.teacher_ms},
            met=proof.met,
            accuracy=after,
            accuracy_before=before,
            teacher_accuracy=self._teacher_accuracy,
            onnx=f"students/{attempt.target.name}/model.onnx",
            lowest={metric: proof.measured[metric] for metric in over},
            reason=None
            if proof.met
            else f"measured over its limit after {self.rounds} rounds: "
            + ", ".join(f"{m} {proof.measured[m]:.4g} > {proof.limits[m]:.4g}" for m in over),
            minutes=attempt.seconds / 60,
            replaced=tuple(
                f"{known[n].block} -> {n} ({known[n].origin}, {known[n].variant})"
                for n in attempt.choice.names
            ),
        )

    def _give_up(
        self, attempt: _Attempt, error: TailorbirdError, lowest: Mapping[str, float]
    ) -> None:
        result = TargetResult(
            name=attempt.target.name,
            device=attempt.target.device.key,
            limits=self._limits(attempt.target),
            met=False,
            lowest=lowest,
            reason=str(error),
            minutes=attempt.seconds / 60,
        )
        self.progress.say(f"{attempt.target.name}: {error}")
        if isinstance(error, InfeasibleError):
            for name in DELIVERED:  # of an earlier request: what misses its limits is not left
                (attempt.home / name).unlink(missing_ok=True)
            self._record(attempt, result)
        else:  # such as a device that does not answer: the next run tries again
            attempt.result = result

    def _limits(self, target: Target) -> dict[str, float]:
        """Bounds in their units; without a share of a latency that could not be measured."""
        teacher = self.house.teacher
        base = self.house.figures(teacher.module, teacher.input_shape)
        known = self.house.store.load_latencies(target.device.key)
        if "teacher" in known:
            base["latency_ms"] = known["teacher"].median_ms
        return {
            limit.metric: limit.absolute(base)
            for limit in target.limits
            if not limit.share or limit.metric in base
        }

    def _record(self, attempt: _Attempt, result: TargetResult) -> None:
        attempt.result = result
        write_json(
            attempt.home / "result.json",
            {
                "request": attempt.request,
                "result": TypeAdapter(TargetResult).dump_python(result, mode="json"),
            },
        )

    def _student(self, attempt: _Attempt, until: Until) -> Student:
        if attempt.result is not None:
            return Student(result=attempt.result, module=attempt.module)
        choice = attempt.choice
        base = self.pricing(attempt.target).base
        result = TargetResult(
            name=attempt.target.name,
            device=attempt.target.device.key,
            limits=attempt.target.absolute(base),
            measured=choice.figures if choice else {},
            met=False,
            reason=f"the run was asked to stop after '{until}'",
            minutes=attempt.seconds / 60,
            replaced=choice.names if choice else (),
        )
        return Student(result=result, module=attempt.module)


def _load(path: Path, request: str) -> dict[str, Any] | None:
    """A stored answer to ``request``; ``None`` when absent, damaged or of another request."""
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except StoreError:
        return None
    if not isinstance(content, dict) or content.get("request") != request:
        return None
    return content


def _as(kind: type[T], raw: object) -> T | None:
    """Plain data as a record again; ``None`` when it no longer fits, so that it is made anew."""
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError:
        return None
