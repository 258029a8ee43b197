"""The model house as users hold it: built once, fitted to any number of targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from tailorbird.data.images import ImageData
from tailorbird.data.unfamiliar import compared_on
from tailorbird.errors import (
    ConfigError,
    ExportError,
    GraphError,
    MeasurementError,
)
from tailorbird.export.exporters import Exporter, OnnxExporter
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.fit.answers import Student, request_of
from tailorbird.fit.bench import time_networks
from tailorbird.fit.candidates import Network
from tailorbird.fit.fit import fit
from tailorbird.fit.judge import Judge, judged_on
from tailorbird.fit.sessions import MOST
from tailorbird.fit.settings import Settings
from tailorbird.fit.ship import export_reference
from tailorbird.graph.serial import code_of
from tailorbird.graph.trace import LayerGraph, trace
from tailorbird.house.build import House, build_house
from tailorbird.house.candidates import HouseCandidates
from tailorbird.house.options import HouseOptions
from tailorbird.house.store import HouseStore
from tailorbird.house.structures import TEACHER, donor_labels
from tailorbird.house.wholes import same_outputs
from tailorbird.pipeline.job import REDONE, Until, identity, prepared_all
from tailorbird.pipeline.readings import check_structures, note_readings, tell_storing
from tailorbird.pipeline.reporting import environment, point_of, stage_costs, write_report
from tailorbird.pipeline.timings import timings_at
from tailorbird.progress import Progress, Silent
from tailorbird.report.record import Point, RunReport, TargetResult
from tailorbird.runfolder import RunFolder
from tailorbird.search.strategy import Strategy
from tailorbird.targets import Place, Target
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.recipe import Recipe

Write = Callable[[RunReport, Path], None]
"""Writes a report into a run folder."""


@dataclass(eq=False, repr=False)
class ModelHouse:
    """A scored house in a run folder; made by `build`, fitted to targets by `fit`.

    Example (it takes minutes, so it is not run as a test)::

        house = ModelHouse.build(teacher, donors=[donor], data=data, run="runs/a")
        students = house.fit([Target("edge", OnnxRuntime(threads=1), {"latency": "0.5x"})])
    """

    house: House
    data: ImageData
    folder: RunFolder
    _: KW_ONLY
    donors: Mapping[str, LayerGraph]
    made_from: Mapping[str, object]
    seed: int
    exporter: Exporter
    write: Write
    progress: Progress

    def __post_init__(self) -> None:
        self._accuracies: dict[str, float] = {}

    @staticmethod
    def build(
        teacher: nn.Module,
        *,
        data: ImageData,
        run: str | Path,
        donors: Sequence[nn.Module] | Mapping[str, nn.Module] = (),
        targets: Sequence[Target] = (),
        options: HouseOptions | None = None,
        seed: int = 0,
        task: Task = CLASSIFICATION,
        exporter: Exporter | None = None,
        progress: Progress | None = None,
    ) -> ModelHouse:
        """Sample, expand, distil and score; continues what ``run`` already holds.

        Args:
            teacher: trained network from images (n, C, H, W) to logits; it is left as it is.
            data: images; the training split distils, the holdout scores, or else validation images,
                see `tailorbird.data.unfamiliar`.
            run: the run folder, made when missing.
            donors: pretrained networks that blocks are taken from.
            targets: that it will be fitted to, as far as they are known. What is faster on one of
                their devices is an alternative then, else what has fewer multiply-accumulates.
                Others can be fitted later: they don't belong to the house's identity.
            options: sizes and budgets of the house.
            seed: of every random choice.
            task: what the networks' outputs mean.
            exporter: makes files of networks; ONNX by default.
            progress: shown nothing by default.

        Raises:
            GraphError: when the teacher or a donor can't be traced, or no block is found.
            ExportError: when the teacher can't be exported.
            DataError: when the classes in the data and the teacher's head differ.
            StoreError: for a folder of another job, in use, or not writable.
        """
        given = dict(donors) if isinstance(donors, Mapping) else _named(donors)
        named, notes = prepared_all({"teacher": teacher, **given}, data)
        teacher, chosen = named.pop("teacher"), options or HouseOptions()
        folder = RunFolder(Path(run))
        made_from = identity(
            teacher=teacher,
            donors=named,
            data=data,
            options=chosen,
            training={},
            seed=seed,
            task=task,
        )
        shown = progress or Silent()
        with folder.open(made_from, redone=REDONE, say=shown.say):
            for note in notes:
                shown.say(f"note: {note}")
            return assemble(
                teacher,
                named,
                data,
                chosen,
                folder=folder,
                made_from=made_from,
                seed=seed,
                task=task,
                targets=targets,
                exporter=exporter or OnnxExporter(),
                progress=shown,
            )

    def fit(
        self,
        targets: Sequence[Target],
        *,
        recipe: Recipe | None = None,
        rounds: int = 3,
        candidates: int = 4,
        contenders: int = 4,
        sessions: int = MOST,
        export: ExportOptions | None = None,
        quantise: QuantiseOptions | None = None,
        strategy: Strategy | None = None,
        until: Until = "export",
    ) -> list[Student]:
        """One student per target, in order; students are retrained together.

        A student that comes out over its limit is searched for again under a tighter limit and
        retrained, in all at most ``rounds`` times; then it is reported as not met. A target that
        can't be met costs the others nothing: its result says the lowest figures reached. Nor does
        a device that fails: its targets are reported as not met, and tried again the next time.
        The report in the run folder is of these targets.

        Args:
            targets: each with a device that measures.
            recipe: how students are retrained.
            rounds: most searches in a row, and most attempts at a target's limits.
            candidates: selections measured whole per target, precision and search.
            contenders: of a target that are retrained, in rounds that leave the better half, until
                one is left; it takes about 1.7 times as long for 4 as for 1, 2.1 times for 8.
            sessions: measurements of a finished student at most, until its limit is clear.
            export: of the files.
            quantise: of files in lower precisions, where a device runs them.
            strategy: how selections are searched; proven by integer programming by default.
            until: where to stop.

        Raises:
            ConfigError: for no targets, names that occur twice, or a target without a device.
        """
        with self.folder.open(self.made_from):
            return self.fit_open(
                targets,
                recipe=recipe or Recipe(),
                settings=Settings(
                    rounds=rounds,
                    candidates=candidates,
                    contenders=contenders,
                    sessions=sessions,
                    export=export or ExportOptions(),
                    quantise=quantise or QuantiseOptions(),
                    seed=self.seed,
                ),
                strategy=strategy,
                until=until,
            )

    def fit_open(
        self,
        targets: Sequence[Target],
        *,
        recipe: Recipe,
        settings: Settings,
        strategy: Strategy | None = None,
        until: Until,
    ) -> list[Student]:
        """`fit` inside an open run folder."""
        students = fit(
            self.candidates(recipe),
            targets,
            data=self.data,
            folder=self.folder,
            request=lambda target: asked_of_house(
                target, strategy, recipe=recipe, settings=settings
            ),
            settings=settings,
            reference=lambda: self._teacher,
            beside=self.folder.path / "teacher",
            task=self.house.task,
            strategy=strategy,
            exporter=self.exporter,
            until="search" if until == "house" else until,
            progress=self.progress,
            trust=code_of_all(self.house.teacher, self.donors),
        )
        self.report(targets, [student.result for student in students])
        return students

    def candidates(self, recipe: Recipe) -> HouseCandidates:
        """The house's networks as `fit` chooses from them and retrains them by ``recipe``."""
        return HouseCandidates(
            self.house,
            self.data,
            folder=self.folder.path / "retrain",
            recipe=recipe,
            seed=self.seed,
            progress=self.progress,
            donors=self._answering_donors,
        )

    def __repr__(self) -> str:
        sample = self.house.sample
        found = f"{len(self.house.choices)} alternatives for {len(sample.blocks)} blocks"
        return f"<ModelHouse {self.folder.path}: {found}>"

    def report(
        self, targets: Sequence[Target], results: Sequence[TargetResult], *, keep: bool = False
    ) -> RunReport:
        """Write ``report.json``, ``report.html`` and ``front.png`` of ``results``.

        Args:
            keep: leave files of an earlier report as they are.
        """
        teacher: dict[str, Point] = {}
        others: list[Point] = []
        if results:
            with self.folder.stage("report"):
                for key, place in {t.place.key: t.place for t in targets}.items():
                    points = self._points(place)
                    teacher[key] = points.pop("teacher")
                    others += points.values()
        report = RunReport(
            run=str(self.folder.path),
            seed=self.seed,
            teacher=teacher,
            donors=tuple(others),
            targets=tuple(results),
            stages=stage_costs(self.folder),
            rejections=dict(self.house.rejections),
            environment=environment(),
            accuracy_kind=self.house.task.measure
            if self.data.labelled
            else "agreement with the teacher",
            judged=len(self.data.test or self.data.choosing),
            images=judged_on(self.data),
            decided=compared_on(self.data),
        )
        if not (keep and (self.folder.path / "report.json").exists()):
            self.write(report, self.folder.path)
        return report

    @property
    def _teacher(self) -> Network:
        return _network(self.house.teacher)

    def _points(self, place: Place) -> dict[str, Point]:
        """The teacher and those donors that answer to the same classes, as they are: latencies as
        if the teacher took what shares of limits are of.
        """
        donors = {name: _network(donor) for name, donor in self._answering_donors.items()}
        networks = {TEACHER: self._teacher, **donors}
        known = self.house.store.latencies(place.key).known
        labels = donor_labels(self.house.teacher, self.house.sample.alternatives)
        labels = {TEACHER: TEACHER, **labels}
        latencies = {n: known[label].median_ms for n, label in labels.items() if label in known}
        try:
            latencies = self._timed(networks, place, latencies)
        except (ExportError, MeasurementError) as error:
            self.progress.say(f"donors are not drawn in the report: {error}")
            networks = {n: one for n, one in networks.items() if n in {TEACHER, *latencies}}
        points = {}
        for name, network in networks.items():
            points[name] = point_of(
                network,
                name,
                place.key,
                latency_ms=latencies.get(name),
                accuracy=self._accuracy(name),
            )
        return points

    def _timed(
        self, networks: Mapping[str, Network], place: Place, known: Mapping[str, float]
    ) -> dict[str, float]:
        """Latencies of all networks; those that are not known are timed beside the teacher."""
        new = [name for name in networks if name not in known and name != TEACHER]
        if not new and TEACHER in known:
            return dict(known)
        assert place.device is not None
        asked = [networks[name] for name in (TEACHER, *new)]
        first, *others = time_networks(asked, place.device, self.exporter, batch=place.batch)
        whole = known.get(TEACHER, first.median_ms)
        found = {
            n: one.median_ms * whole / first.median_ms for n, one in zip(new, others, strict=True)
        }
        return {**known, TEACHER: whole, **found}

    @cached_property
    def _answering_donors(self) -> dict[str, LayerGraph]:
        teacher = self.house.teacher
        return {name: d for name, d in self.donors.items() if same_outputs(teacher, d)}

    def _accuracy(self, name: str) -> float:
        """Of the teacher or a donor, on the last split; each is judged once."""
        if name not in self._accuracies:
            network = self._teacher if name == "teacher" else _network(self._answering_donors[name])
            self._accuracies[name] = self._judge.accuracy(network)
        return self._accuracies[name]

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.data, self._teacher, self.house.task)


def asked_of_house(
    target: Target, strategy: Strategy | None, *, recipe: Recipe, settings: Settings
) -> str:
    """A short hash of all that a target's result answers to.

    Raises:
        ConfigError: for a target without a device, which a house can't serve.
    """
    _ = target.device
    own = {"device": target.place.key, "recipe": asdict(recipe), **settings.asked()}
    return request_of(target, strategy, **own)


def assemble(
    teacher: nn.Module,
    donors: Mapping[str, nn.Module],
    data: ImageData,
    options: HouseOptions,
    *,
    folder: RunFolder,
    made_from: Mapping[str, object],
    seed: int,
    task: Task = CLASSIFICATION,
    targets: Sequence[Target] = (),
    exporter: Exporter,
    write: Write = write_report,
    graphs: tuple[LayerGraph, dict[str, LayerGraph]] | None = None,
    progress: Progress,
) -> ModelHouse:
    """Trace, check and build inside an open run folder; see `ModelHouse.build`.

    Args:
        graphs: the networks', where they have been traced.
    """
    with folder.stage("trace"), progress.task("trace", 3) as shown:
        graph, traced = graphs or trace_all(teacher, donors, data, options, task)
        tell_storing({"the teacher": graph, **traced}, progress)
        shown.advance()
        export_reference(_network(graph), data, folder.path / "teacher", exporter, name="teacher")
        shown.advance()
        check_structures(folder.path, graph, traced)
        note_readings(folder.path, {"teacher": graph, **traced}, progress)
        shown.advance()
    store = HouseStore(folder.path / "house", code_of_all(graph, traced))
    house = build_house(
        graph,
        traced,
        data,
        options,
        seed=seed,
        store=store,
        stage=folder.stage,
        distilled=folder.seconds().get("distil", 0.0),
        task=task,
        timings=timings_at(targets, _network(graph), store, exporter, progress),
        progress=progress,
    )
    return ModelHouse(
        house,
        data,
        folder,
        donors=traced,
        made_from=made_from,
        seed=seed,
        exporter=exporter,
        write=write,
        progress=progress,
    )


def trace_all(
    teacher: nn.Module,
    donors: Mapping[str, nn.Module],
    data: ImageData,
    options: HouseOptions,
    task: Task = CLASSIFICATION,
) -> tuple[LayerGraph, dict[str, LayerGraph]]:
    """The teacher's graph and the donors', checked against the images.

    Raises:
        GraphError: for a network that can't be traced, or a teacher that returns no logits.
        DataError: when the classes in the data and the teacher's head differ.
    """
    networks = [teacher, *donors.values()]
    leaves = [str(leaf) for leaf in options.leaves]
    unknown = [leaf for leaf in leaves if not any(_held(n, (leaf,)) for n in networks)]
    if unknown:
        raise GraphError(
            f"house.leaves: neither the teacher nor a donor has a module {', '.join(unknown)}; "
            "give dotted paths as in named_modules()"
        )
    graph = trace(teacher, data.input_shape, leaves=_held(teacher, leaves))
    outputs = torch.zeros(2, *graph.layer(graph.output).shape)
    try:
        task.check(outputs, data, what=type(teacher).__name__)
    except ConfigError as error:
        raise GraphError(f"{error}; wrap the network so that forward returns just that") from error
    traced = {}
    for name, donor in donors.items():
        try:
            traced[name] = trace(donor, data.input_shape, leaves=_held(donor, leaves))
        except GraphError as error:
            raise GraphError(f"donor '{name}': {error}", module=error.module) from error
    return graph, traced


def code_of_all(teacher: LayerGraph, donors: Mapping[str, LayerGraph]) -> tuple[str, ...]:
    """Import paths of the user's own code in the networks of a job, which the job thus trusts."""
    networks = (teacher, *donors.values())
    return tuple(sorted({path for graph in networks for path in code_of(graph.module)}))


def _held(network: nn.Module, leaves: Sequence[str]) -> list[str]:
    """Those of ``leaves`` that are modules of ``network``."""
    paths = {path for path, _ in network.named_modules()}
    return [leaf for leaf in leaves if leaf in paths]


def _named(donors: Sequence[nn.Module]) -> dict[str, nn.Module]:
    return {f"donor{number}": donor for number, donor in enumerate(donors)}


def _network(graph: LayerGraph) -> Network:
    return Network(graph.module, graph.input_shape)
