"""Subnets of a trained supernet for all targets of a fleet: predict, search, make, measure.

1. A few hundred subnets are evaluated; an accuracy predictor learns from them.
2. Each device gets a latency table, checked and corrected by whole networks.
3. One search serves all targets. The best few for each are measured whole and evaluated; the
   tables are corrected by what was measured, and what is left to gain is searched for again.
4. The chosen subnets are recalibrated, fine-tuned if asked for, exported, compared to PyTorch and
   measured beside the full network. One over its limit is searched for again, more tightly.

Cost hardly grows with targets: steps 1 and 2 and the search are paid once, a further target adds
some candidates to measure and evaluate (seconds) and one export. A target that can't be met, or
whose device fails, costs the others nothing.

In the run folder: ``evaluated.jsonl``, ``fit/`` (predictor, latencies), ``students/TARGET/``
(``choice.json``, ``result.json`` and the files for the user), ``report.json``, ``report.html``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tailorbird.errors import (
    ConfigError,
    ExportError,
    InfeasibleError,
    MeasurementError,
    StoreError,
    TailorbirdError,
)
from tailorbird.export.options import ExportOptions
from tailorbird.family import Floats
from tailorbird.files import cannot_write, read_json, write_json
from tailorbird.pipeline.fitting import DELIVERED, delivered
from tailorbird.pipeline.reporting import environment, write_report
from tailorbird.pipeline.search import COUNTED
from tailorbird.pipeline.supernet_choice import Choice, Chooser, Request
from tailorbird.pipeline.supernet_predictor import Learned, learn, sampled
from tailorbird.pipeline.supernet_pricing import SupernetPricing, check_devices, contents
from tailorbird.pipeline.supernet_run import IDENTITY, SupernetRun
from tailorbird.pipeline.supernet_students import Students
from tailorbird.progress import Progress
from tailorbird.report.record import RunReport, StageCost, TargetResult
from tailorbird.report.words import figure
from tailorbird.runfolder import RunFolder, short_hash
from tailorbird.space import Genomes
from tailorbird.targets import LATENCY, Target, places_of

T = TypeVar("T")

Evaluate = Callable[[Genomes], Floats]
"""Genomes (n, genes) -> accuracies (n,) on validation images, statistics re-estimated."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a fleet is fitted.

    Args:
        subnets: evaluated for the accuracy predictor.
        images: of the validation split that each is evaluated on; ``None`` for all.
        candidates: subnets measured and evaluated per target and search.
        rounds: searches at most, and attempts to get a student under its limit.
        fine_tune: epochs that the students are fine-tuned after the full network; 0 for none.
        checks: whole networks that check and correct each latency table.
        layers_at_most: distinct layers that may be timed on a device.
        seed: of every random choice; the run's own when ``None``.
        export: of the ONNX files.

    Raises:
        ConfigError: listing every value that is out of range.
    """

    subnets: int = 200
    images: int | None = None
    candidates: int = 4
    rounds: int = 3
    fine_tune: float = 0.0
    checks: int = 12
    layers_at_most: int = 3000
    seed: int | None = None
    export: ExportOptions = field(default_factory=ExportOptions)

    def __post_init__(self) -> None:
        least = {"subnets": 8, "candidates": 1, "rounds": 1, "checks": 3, "layers_at_most": 1}
        problems = [
            f"{name}: expected {bound} or more, got {getattr(self, name)}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        if self.images is not None and self.images < 1:
            problems.append(f"images: expected 1 or more, got {self.images}")
        if not 0 <= self.fine_tune < float("inf"):
            problems.append(f"fine_tune: expected 0 or more epochs, got {self.fine_tune}")
        if self.seed is not None and self.seed < 0:
            problems.append(f"seed: expected 0 or more, got {self.seed}")
        if problems:
            raise ConfigError(problems)


def fit_fleet(
    run: SupernetRun,
    targets: Sequence[Target],
    *,
    options: FitOptions,
    evaluate: Evaluate,
    progress: Progress,
) -> RunReport:
    """One student per target of the fleet, or the reason why not; continues what was begun.

    Args:
        run: the trained supernet.
        targets: at places that have a device, a latency table or both.
        options: sizes of the steps.
        evaluate: accuracies of subnets, stored as they become known.
        progress: told what is going on.

    Raises:
        ConfigError: for a fleet without targets, tables that don't fit the space (all at once), or
            accuracies that nothing can be learned from.
        StoreError: for a run folder that is in use or can't be written.
    """
    known = (LATENCY, *COUNTED)
    problems = [
        f"{target.name}: {limit.metric} can't be limited yet; give one of {', '.join(known)}"
        for target in targets
        for limit in target.limits
        if limit.metric not in known
    ]
    if problems or not targets:
        raise ConfigError(problems or "targets: none; give each device limits such as [15, 0.5x]")
    identity = read_json(run.path / IDENTITY)
    folder = RunFolder(run.path)
    with folder.open(identity if isinstance(identity, dict) else {}):
        check_devices(places_of(targets), run.supernet.architectures, most=options.layers_at_most)
        return _Fit(run, targets, options, evaluate, progress=progress, folder=folder).run()


class _Fit:
    """One call of `fit_fleet`; see there."""

    def __init__(
        self,
        run: SupernetRun,
        targets: Sequence[Target],
        options: FitOptions,
        evaluate: Evaluate,
        *,
        progress: Progress,
        folder: RunFolder,
    ) -> None:
        self.source, self.options = run, options
        self.places = places_of(targets)
        self.evaluate, self.progress, self.folder = evaluate, progress, folder
        self.seed = run.seed if options.seed is None else options.seed
        self.requests = [
            Request(
                wanted=wanted,
                entry=wanted.place,
                home=run.path / "students" / wanted.name,
                key=self._key(wanted),
            )
            for wanted in targets
        ]
        self.details: dict[str, str] = {}

    def run(self) -> RunReport:
        """Results of all targets, in order, in the report."""
        stored = self._finished()
        if stored is not None:
            self.progress.say(f"{self.source.path} holds these students; nothing to do")
            return stored
        results = {r.name: kept for r in self.requests if (kept := _load(r)) is not None}
        waiting = [r for r in self.requests if r.name not in results]
        students = Students(
            self.source,
            epochs=self.options.fine_tune,
            export=self.options.export,
            seed=self.seed,
            progress=self.progress,
        )
        if waiting:
            for request in waiting:
                _clear(request)
            self._fit(waiting, students, results)
        with self.folder.stage("report"):
            report = self._report([results[r.name] for r in self.requests], students)
            write_report(report, self.folder.path)
        asked = {r.name: r.key for r in self.requests}
        write_json(self.folder.path / "fit" / "finished.json", asked)
        return report

    def _fit(
        self, waiting: Sequence[Request], students: Students, results: dict[str, TargetResult]
    ) -> None:
        learned = self._learn()
        pricings, failed = self._price({r.device for r in waiting}, learned.genomes)
        for request in waiting:
            if request.device in failed:
                results[request.name] = self._give_up(request, failed[request.device])
        chooser = Chooser(
            self.source,
            pricings,
            learned.predict,
            self.evaluate,
            candidates=self.options.candidates,
            rounds=self.options.rounds,
            seed=self.seed,
            progress=self.progress,
        )
        for number in range(self.options.rounds):
            left = [r for r in waiting if r.name not in results]
            if not left:
                break
            with self.folder.stage("search"):
                chosen = self._choose(chooser, left, results)
            with self.folder.stage("fine-tune"):
                students.make(chosen)
            with self.folder.stage("export"):
                for request, choice in chosen:
                    last = number == self.options.rounds - 1
                    proven = self._prove(request, choice, chooser, students, last=last)
                    if proven is not None:
                        results[request.name] = proven

    def _learn(self) -> Learned:
        genomes = sampled(self.source.supernet.architectures, self.options.subnets, seed=self.seed)
        with self.folder.stage("evaluate subnets"):
            accuracies = self.evaluate(genomes)
        with self.folder.stage("predict accuracy"):
            space = self.source.supernet.architectures
            learned = learn(space, genomes, accuracies, seed=self.seed)
        learned.predictor.save(self.folder.path / "fit" / "predictor.safetensors")
        self.details["predict accuracy"] = str(learned)
        self.progress.say(f"accuracy predictor: {learned}")
        return learned

    def _price(
        self, devices: set[str], genomes: Genomes
    ) -> tuple[dict[str, SupernetPricing], dict[str, MeasurementError | ExportError]]:
        pricings: dict[str, SupernetPricing] = {}
        failed: dict[str, MeasurementError | ExportError] = {}
        checks = genomes[:: max(1, len(genomes) // self.options.checks)][: self.options.checks]
        for name in self.places:
            if name not in devices:
                continue
            with self.folder.stage(f"latency of {name}"):
                try:
                    pricings[name] = SupernetPricing(
                        name,
                        self.places[name],
                        self.source.supernet,
                        folder=self.folder.path / "fit",
                        checks=checks,
                        progress=self.progress,
                    )
                except (MeasurementError, ExportError) as error:
                    failed[name] = error
                    continue
            check = pricings[name].check
            self.details[f"latency of {name}"] = "from its table" if check is None else str(check)
        return pricings, failed

    def _choose(
        self,
        chooser: Chooser,
        requests: Sequence[Request],
        results: dict[str, TargetResult],
    ) -> list[tuple[Request, Choice]]:
        """A choice per target; one that was made before a kill is kept."""
        chosen: dict[str, Choice] = {}
        for request in requests:
            stored = _read(request, "choice.json")
            choice = None if stored is None else _as(Choice, stored.get("choice"))
            if choice is not None and not chooser.missed(request):
                chosen[request.name] = choice
        chooser.settle([r for r in requests if r.name not in chosen])
        for request in requests:
            if request.name in chosen:
                continue
            try:
                choice = chooser.choose(request)
            except (InfeasibleError, MeasurementError, ExportError) as error:
                results[request.name] = self._give_up(request, error)
                continue
            chosen[request.name] = choice
            write_json(
                request.home / "choice.json", {"request": request.key, "choice": asdict(choice)}
            )
        return [(r, chosen[r.name]) for r in requests if r.name in chosen]

    def _prove(
        self,
        request: Request,
        choice: Choice,
        chooser: Chooser,
        students: Students,
        *,
        last: bool,
    ) -> TargetResult | None:
        """Ship and measure a student; ``None`` where it is over its limit and may be replaced."""
        begun = time.perf_counter()
        pricing = chooser.pricings[request.device]
        try:
            shipped = students.ship(request, choice, base=chooser.base(request.device))
        except StoreError:
            raise
        except TailorbirdError as error:
            return self._give_up(request, error)
        if not shipped.met and pricing.measured and not last:
            whole = choice.figures[LATENCY] / pricing.full_ms
            now = shipped.measured[LATENCY] / (shipped.full_ms or pricing.full_ms)
            self.progress.say(
                f"{request.name}: measured {figure(LATENCY, shipped.measured[LATENCY])}, over its "
                "limit; searching again"
            )
            chooser.miss(request, choice, now / whole)
            return None
        found = shipped.measured
        over = {m: found[m] for m, most in shipped.limits.items() if found.get(m, 0.0) > most}
        reason = (
            None if shipped.met else f"measured over its limit after {self.options.rounds} rounds"
        )
        if not pricing.measured and LATENCY in shipped.limits:
            expected = figure(LATENCY, choice.figures[LATENCY])
            reason = f"predicted, not measured: {expected} by {request.entry.table}"
        before, after = students.accuracies(choice)
        full = {} if shipped.full_ms is None else {"teacher_latency_ms": shipped.full_ms}
        result = TargetResult(
            name=request.name,
            device=request.entry.key,
            limits=shipped.limits,
            measured={**shipped.measured, **full},
            met=shipped.met,
            accuracy=after,
            accuracy_before=before,
            teacher_accuracy=students.full_accuracy,
            onnx=f"students/{request.name}/model.onnx",
            lowest=over,
            reason=reason,
            minutes=(time.perf_counter() - begun) / 60,
        )
        _record(request, result)
        return result

    def _give_up(self, request: Request, error: TailorbirdError) -> TargetResult:
        infeasible = isinstance(error, InfeasibleError)
        known = error.limits if isinstance(error, InfeasibleError) else {}
        absolute = {one.metric: one.value for one in request.wanted.limits if not one.share}
        result = TargetResult(
            name=request.name,
            device=request.entry.key,
            limits=known or absolute,
            met=False,
            lowest=error.lowest if isinstance(error, InfeasibleError) else {},
            reason=str(error),
        )
        self.progress.say(f"{request.name}: {error}")
        _clear(request)
        if infeasible:  # a device that does not answer is tried again by the next run
            _record(request, result)
        return result

    def _report(self, results: Sequence[TargetResult], students: Students) -> RunReport:
        return RunReport(
            run=str(self.folder.path),
            seed=self.seed,
            teacher=students.points(results),
            targets=tuple(results),
            stages=tuple(
                StageCost(name=name, minutes=seconds / 60, detail=self.details.get(name, ""))
                for name, seconds in self.folder.seconds().items()
            ),
            environment=environment(),
            accuracy_kind=students.judged_on,
            reference="full network",
        )

    def _key(self, wanted: Target) -> str:
        """A short hash of all that a target's result answers to."""
        entry, options = wanted.place, asdict(self.options)
        asked = {
            **{name: value for name, value in options.items() if name != "layers_at_most"},
            "limits": {limit.metric: [limit.value, limit.share] for limit in wanted.limits},
            "device": entry.key,
            "table": None if entry.table is None else contents(entry.table),
            "seed": self.seed,
            "weights": self.source.weights,
            "data": self.source.data.fingerprint,
        }
        return short_hash(asked)

    def _finished(self) -> RunReport | None:
        """The report of a run that has answered just this."""
        try:
            asked = read_json(self.folder.path / "fit" / "finished.json")
            report = RunReport.load(self.folder.path / "report.json")
        except StoreError:
            return None
        if asked != {r.name: r.key for r in self.requests}:
            return None
        return report if all(_load(r) is not None for r in self.requests) else None


def _read(request: Request, name: str) -> dict[str, Any] | None:
    """A stored answer to the request; ``None`` when absent, damaged or of another one."""
    path = request.home / name
    try:
        content = read_json(path) if path.exists() else None
    except StoreError:
        return None
    if not isinstance(content, dict) or content.get("request") != request.key:
        return None
    return content


def _load(request: Request) -> TargetResult | None:
    """The target's result, with its files if there are to be any."""
    stored = _read(request, "result.json")
    result = None if stored is None else _as(TargetResult, stored.get("result"))
    if result is None or (result.onnx is not None and not delivered(request.home)):
        return None
    return result


def _record(request: Request, result: TargetResult) -> None:
    plain = TypeAdapter(TargetResult).dump_python(result, mode="json")
    write_json(request.home / "result.json", {"request": request.key, "result": plain})


def _clear(request: Request) -> None:
    """Remove what an earlier request or attempt left for the user, and is no answer to this one."""
    for name in (*DELIVERED, "result.json"):
        path = request.home / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error


def _as(kind: type[T], raw: object) -> T | None:
    """Plain data as a record again; ``None`` when it no longer fits, so that it is made anew."""
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError:
        return None
