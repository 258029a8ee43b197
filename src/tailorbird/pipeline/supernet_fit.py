"""Subnets of a trained supernet for all targets: predict, then the one path of `tailorbird.fit`.

1. A few hundred subnets are evaluated; an accuracy predictor learns from them.
2. Each place gets a latency table, checked and corrected by whole networks.
3. One search serves all targets; the best few are measured whole and evaluated; the chosen subnets
   are recalibrated, fine-tuned if asked for, exported, compared to PyTorch and measured beside the
   full network.

Cost hardly grows with targets: steps 1 and 2 and the search are paid once, a further target adds
some candidates to measure and evaluate (seconds) and one export. A target that can't be met, or
whose device fails, costs the others nothing.

In the run folder: ``evaluated.jsonl``, ``fit/`` (predictor, latencies), ``students/TARGET/``
(``choice.json``, ``result.json`` and the files for the user), ``report.json``, ``report.html``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from tailorbird.errors import ConfigError, StoreError
from tailorbird.estimate.latency_files import contents
from tailorbird.export.exporters import Exporter
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.family import Floats
from tailorbird.files import read_json, write_json
from tailorbird.fit.answers import Answers, Student, request_of
from tailorbird.fit.fit import fit
from tailorbird.fit.judge import judged_on
from tailorbird.fit.sessions import MOST
from tailorbird.fit.settings import Settings
from tailorbird.pipeline.house import Write
from tailorbird.pipeline.reporting import environment, point_of, stage_costs, write_report
from tailorbird.pipeline.supernet_run import SupernetRun, evaluate_subnets
from tailorbird.progress import Progress
from tailorbird.report.record import Point, RunReport, TargetResult
from tailorbird.runfolder import RunFolder
from tailorbird.search.strategy import Strategy
from tailorbird.space import Genomes
from tailorbird.supernet.candidates import (
    PREDICTOR,
    SubnetOptions,
    SupernetCandidates,
    check_places,
)
from tailorbird.targets import Target, places_of

Evaluate = Callable[[Genomes], Floats]
"""Genomes (n, genes) -> accuracies (n,) on validation images, statistics re-estimated."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How subnets are fitted to targets.

    Args:
        subnets: evaluated for the accuracy predictor.
        images: of the validation split that each is evaluated on; ``None`` for all.
        candidates: subnets measured and evaluated per target and search.
        contenders: subnets of a target that are fine-tuned, in rounds that leave the better half,
            until one is left; their accuracies before that rank them well.
        rounds: searches at most, and attempts to get a student under its limit.
        sessions: measurements of a finished student at most, until its limit is clear.
        fine_tune: epochs that the students are fine-tuned after the full network; 0 for none.
        checks: whole networks that check and correct each latency table.
        layers_at_most: distinct layers that may be timed on a device.
        seed: of every random choice; the run's own when ``None``.
        export: of the ONNX files.
        quantise: how files in int8 are made.

    Raises:
        ConfigError: listing every value that is out of range.
    """

    subnets: int = 200
    images: int | None = None
    candidates: int = 4
    contenders: int = 1
    rounds: int = 3
    sessions: int = MOST
    fine_tune: float = 0.0
    checks: int = 12
    layers_at_most: int = 3000
    seed: int | None = None
    export: ExportOptions = field(default_factory=ExportOptions)
    quantise: QuantiseOptions = field(default_factory=QuantiseOptions)

    def __post_init__(self) -> None:
        least = {
            "subnets": 8,
            "candidates": 1,
            "contenders": 1,
            "rounds": 1,
            "sessions": 1,
            "checks": 3,
            "layers_at_most": 1,
        }
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


def fit_run(
    run: SupernetRun,
    targets: Sequence[Target],
    *,
    options: FitOptions,
    evaluate: Evaluate | None = None,
    strategy: Strategy | None = None,
    exporter: Exporter | None = None,
    write: Write | None = None,
    before: Callable[[], None] | None = None,
    progress: Progress,
) -> list[Student]:
    """One student per target, or the reason why not; continues what was begun.

    The report in the run folder is of these targets.

    Args:
        run: the trained supernet.
        targets: a place and limits each.
        options: sizes of the steps.
        evaluate: accuracies of subnets; `evaluate_subnets` of the run by default.
        strategy: how subnets are searched; what suits the space by default.
        exporter: makes files of networks; ONNX by default.
        write: writes the report into the run folder; with picture and page by default.
        before: called where no subnet has been evaluated for the predictor yet, such as
            `tailorbird.pipeline.supernet_preflight.tell_fit`.
        progress: told what is going on.

    Raises:
        ConfigError: for no targets, tables that don't fit the space (all at once), or accuracies
            that nothing can be learned from.
        StoreError: for a run folder that is in use or can't be written.
    """
    if not targets:
        raise ConfigError("targets: none are given; give each device limits such as [15, 0.5x]")
    folder = RunFolder(run.path)
    with folder.open(None):
        places = list(places_of(targets).values())
        check_places(places, run.supernet, layers_at_most=options.layers_at_most)
        seed = run.seed if options.seed is None else options.seed
        asked = {target.name: _request(run, target, options, seed, strategy) for target in targets}
        stored = _finished(folder, asked, Answers(run.path))
        if stored is not None:
            progress.say(f"{run.path} holds these students; nothing to do")
            return stored
        if before is not None and not (run.path / "fit" / PREDICTOR).exists():
            with folder.stage("preflight"):
                before()
        candidates = SupernetCandidates(
            run.supernet,
            run.data,
            weights=run.weights,
            evaluate=evaluate
            or partial(evaluate_subnets, run, images=options.images, progress=progress),
            calibration=run.calibration,
            folder=run.path / "fit",
            options=SubnetOptions(
                subnets=options.subnets,
                checks=options.checks,
                fine_tune=options.fine_tune,
                seed=seed,
            ),
            stage=folder.stage,
            progress=progress,
        )
        students = fit(
            candidates,
            targets,
            data=run.data,
            folder=folder,
            request=lambda target: asked[target.name],
            settings=_settings(options, seed),
            reference=lambda: candidates.full_network,
            beside=run.path / "fit" / run.weights / "teacher",
            strategy=strategy,
            exporter=exporter,
            progress=progress,
        )
        with folder.stage("report"):
            results = [student.result for student in students]
            details = {
                candidates.words.opening.format(place=place.name): candidates.note(place)
                for place in places
            }
            details["predict accuracy"] = str(candidates.learned or "")
            (write or write_report)(
                _report(run, results, candidates, folder, seed=seed, details=details), run.path
            )
        write_json(run.path / "fit" / "finished.json", asked)
    return students


def _report(
    run: SupernetRun,
    results: Sequence[TargetResult],
    candidates: SupernetCandidates,
    folder: RunFolder,
    *,
    seed: int,
    details: dict[str, str],
) -> RunReport:
    which = judged_on(run.data)
    return RunReport(
        run=str(run.path),
        seed=seed,
        teacher=_full_points(candidates, results),
        targets=tuple(results),
        stages=stage_costs(folder, details),
        environment=environment(),
        accuracy_kind=f"top-1 ({which})",
        reference=candidates.words.reference,
        judged=len(run.data.test or run.data.validation),
        images=which,
    )


def _full_points(
    candidates: SupernetCandidates, results: Sequence[TargetResult]
) -> dict[str, Point]:
    """The full network's figures for each device that has a student."""
    judged = {r.device: r for r in reversed(results) if r.teacher_accuracy is not None}
    if not judged:
        return {}
    network = candidates.network(candidates.reference)
    point = point_of(network, candidates.words.reference)
    return {
        device: replace(
            point,
            device=device,
            latency_ms=result.measured.get("teacher_latency_ms"),
            accuracy=result.teacher_accuracy,
        )
        for device, result in judged.items()
    }


def _settings(options: FitOptions, seed: int) -> Settings:
    return Settings(
        rounds=options.rounds,
        candidates=options.candidates,
        contenders=options.contenders,
        sessions=options.sessions,
        export=options.export,
        quantise=options.quantise,
        seed=seed,
    )


def _request(
    run: SupernetRun, target: Target, options: FitOptions, seed: int, strategy: Strategy | None
) -> str:
    """A short hash of all that a target's result answers to."""
    known = {**asdict(options), **_settings(options, seed).asked()}
    left_out = {"layers_at_most", *(["sessions"] if options.sessions == MOST else [])}
    if options.contenders == 1:
        left_out.add("contenders")
    if options.quantise == QuantiseOptions():  # answers of before have none
        left_out.add("quantise")
    sizes = {name: value for name, value in known.items() if name not in left_out}
    table = target.place.table
    made_from = {
        **sizes,
        "table": None if table is None else contents(table),
        "seed": seed,
        "weights": run.weights,
        "data": run.data.fingerprint,
    }
    return request_of(target, strategy, **made_from)


def _finished(folder: RunFolder, asked: dict[str, str], answers: Answers) -> list[Student] | None:
    """The students of a run that has answered just this, and reported it."""
    try:
        if read_json(folder.path / "fit" / "finished.json") != asked:
            return None
        RunReport.load(folder.path / "report.json")
    except StoreError:
        return None
    stored = [answers.student(name, request) for name, request in asked.items()]
    students = [student for student in stored if student is not None]
    return students if len(students) == len(stored) else None
