"""The model house as users hold it: built once, fitted to any number of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from tailorbird.data.images import ImageData, check_head
from tailorbird.errors import GraphError, StoreError
from tailorbird.export.options import ExportOptions
from tailorbird.files import read_json, write_json
from tailorbird.graph.serial import structure_key, to_spec
from tailorbird.graph.trace import LayerGraph, trace
from tailorbird.house.build import House, build_house
from tailorbird.house.options import HouseOptions
from tailorbird.house.store import HouseStore
from tailorbird.pipeline.finish import export_teacher
from tailorbird.pipeline.fitting import Fitting, Student
from tailorbird.pipeline.job import Until, identity
from tailorbird.pipeline.pricing import Pricing
from tailorbird.pipeline.reporting import make_report, write_report
from tailorbird.progress import Progress, Silent
from tailorbird.report.record import RunReport, TargetResult
from tailorbird.runfolder import RunFolder, differences
from tailorbird.targets import Target
from tailorbird.train.recipe import Recipe


class ModelHouse:
    """A scored house in a run folder; made by `build`, fitted to targets by `fit`.

    Example (it takes minutes, so it is not run as a test)::

        house = ModelHouse.build(teacher, donors=[donor], data=data, run="runs/a")
        students = house.fit([Target("edge", OnnxRuntime(threads=1), {"latency": "0.5x"})])
    """

    def __init__(
        self,
        house: House,
        data: ImageData,
        folder: RunFolder,
        *,
        donors: Mapping[str, LayerGraph],
        made_from: Mapping[str, object],
        seed: int,
        progress: Progress,
    ) -> None:
        self.house = house
        self.data = data
        self.folder = folder
        self.donors = donors
        self.made_from = made_from
        self.seed = seed
        self.progress = progress
        self._pricings: dict[str, Pricing] = {}

    @staticmethod
    def build(
        teacher: nn.Module,
        *,
        data: ImageData,
        run: str | Path,
        donors: Sequence[nn.Module] | Mapping[str, nn.Module] = (),
        options: HouseOptions | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ModelHouse:
        """Sample, expand, distil and score; continues what ``run`` already holds.

        Args:
            teacher: trained network from images (n, C, H, W) to logits; it is left as it is.
            data: images; the training split distils, the validation split scores.
            run: the run folder, made when missing.
            donors: pretrained networks that blocks are taken from.
            options: sizes and budgets of the house.
            seed: of every random choice.
            progress: shown nothing by default.

        Raises:
            GraphError: when the teacher or a donor can't be traced, or no block is found.
            ExportError: when the teacher can't be exported.
            DataError: when the classes in the data and the teacher's head differ.
            StoreError: for a folder of another job, in use, or not writable.
        """
        named = dict(donors) if isinstance(donors, Mapping) else _named(donors)
        chosen = options or HouseOptions()
        folder = RunFolder(Path(run))
        made_from = identity(
            teacher=teacher, donors=named, data=data, options=chosen, training={}, seed=seed
        )
        with folder.open(made_from):
            return assemble(
                teacher,
                named,
                data,
                chosen,
                folder=folder,
                made_from=made_from,
                seed=seed,
                progress=progress or Silent(),
            )

    def fit(
        self,
        targets: Sequence[Target],
        *,
        recipe: Recipe | None = None,
        rounds: int = 3,
        candidates: int = 4,
        export: ExportOptions | None = None,
        until: Until = "export",
    ) -> list[Student]:
        """One student per target, in order; students are retrained together.

        A student that comes out over its limit is searched for again under a tighter limit and
        retrained, in all at most ``rounds`` times; then it is reported as not met. A target that
        can't be met costs the others nothing: its result says the lowest figures reached. Nor does
        a device that fails: its targets are reported as not met, and tried again the next time.
        The report in the run folder is of these targets.

        Raises:
            ConfigError: for no targets or names that occur twice.
        """
        with self.folder.open(self.made_from):
            return self.fit_open(
                targets,
                recipe=recipe or Recipe(),
                rounds=rounds,
                candidates=candidates,
                export=export or ExportOptions(),
                until=until,
            )

    def fit_open(
        self,
        targets: Sequence[Target],
        *,
        recipe: Recipe,
        rounds: int,
        candidates: int,
        export: ExportOptions,
        until: Until,
    ) -> list[Student]:
        """`fit` inside an open run folder."""
        fitting = Fitting(
            house=self.house,
            data=self.data,
            folder=self.folder,
            pricing=self.pricing,
            recipe=recipe,
            rounds=rounds,
            candidates=candidates,
            export=export,
            seed=self.seed,
            progress=self.progress,
        )
        students = fitting.run(targets, until)
        self.report(targets, [student.result for student in students])
        return students

    def report(
        self, targets: Sequence[Target], results: Sequence[TargetResult], *, keep: bool = False
    ) -> RunReport:
        """Write ``report.json``, ``report.html`` and ``front.png`` of ``results``.

        Args:
            keep: leave files of an earlier report as they are.
        """
        report = make_report(
            self.house,
            self.data,
            self.donors,
            targets,
            results,
            folder=self.folder,
            seed=self.seed,
            progress=self.progress,
        )
        if not (keep and (self.folder.path / "report.json").exists()):
            write_report(report, self.folder.path)
        return report

    def pricing(self, target: Target) -> Pricing:
        """The house priced for the target's device, once per device."""
        key = target.device.key
        if key not in self._pricings:
            with self.folder.stage("measure"):
                self._pricings[key] = Pricing(self.house, target.device, progress=self.progress)
        return self._pricings[key]


def assemble(
    teacher: nn.Module,
    donors: Mapping[str, nn.Module],
    data: ImageData,
    options: HouseOptions,
    *,
    folder: RunFolder,
    made_from: Mapping[str, object],
    seed: int,
    progress: Progress,
) -> ModelHouse:
    """Trace, check and build inside an open run folder; see `ModelHouse.build`."""
    with folder.stage("trace"):
        graph, traced = trace_all(teacher, donors, data, options)
        export_teacher(graph, data, folder.path)
        check_structures(folder.path, graph, traced)
    house = build_house(
        graph,
        traced,
        data,
        options,
        seed=seed,
        store=HouseStore(folder.path / "house"),
        stage=folder.stage,
        distilled=folder.seconds().get("distil", 0.0),
        progress=progress,
    )
    return ModelHouse(
        house, data, folder, donors=traced, made_from=made_from, seed=seed, progress=progress
    )


def check_structures(run: Path, teacher: LayerGraph, donors: Mapping[str, LayerGraph]) -> None:
    """Refuse networks of the job's weights that compute something else than those of the run.

    `identity` sees weights alone: two networks may hold the same and differ in ``forward``. What
    is computed is known once they are traced; it is noted then, and compared from then on.

    Raises:
        StoreError: naming the networks that differ.
    """
    path = run / "house" / "structures.json"
    known = {
        name: structure_key(graph.module, graph.input_shape)
        for name, graph in {"teacher": teacher, **donors}.items()
    }
    if not path.exists():
        write_json(path, known)
    elif changed := differences(read_json(path), known):
        raise StoreError(
            f"run folder {run} belongs to another job: networks of the same weights compute "
            "something else now; what differs:\n  "
            + "\n  ".join(changed)
            + "\ngive a new folder, or the networks as they were to continue"
        )


def trace_all(
    teacher: nn.Module,
    donors: Mapping[str, nn.Module],
    data: ImageData,
    options: HouseOptions,
) -> tuple[LayerGraph, dict[str, LayerGraph]]:
    """The teacher's graph and the donors', checked against the images.

    Raises:
        GraphError: for a network that can't be traced, or a teacher that returns no logits.
        DataError: when the classes in the data and the teacher's head differ.
    """
    networks = [teacher, *donors.values()]
    unknown = [leaf for leaf in options.leaves if not any(_held(n, (leaf,)) for n in networks)]
    if unknown:
        raise GraphError(
            f"house.leaves: neither the teacher nor a donor has a module {', '.join(unknown)}; "
            "give dotted paths as in named_modules()"
        )
    graph = trace(teacher, data.input_shape, leaves=_held(teacher, options.leaves))
    to_spec(graph.module)  # fails here, not after hours, for a leaf that can't be stored
    shape = graph.layer(graph.output).shape
    if len(shape) != 1:
        raise GraphError(
            f"{type(teacher).__name__} returns a tensor of shape {shape} per image; expected one "
            "number per class: wrap the network so that forward returns its logits (n, classes)"
        )
    check_head(data, shape[0])
    traced = {}
    for name, donor in donors.items():
        try:
            traced[name] = trace(donor, data.input_shape, leaves=_held(donor, options.leaves))
        except GraphError as error:
            raise GraphError(f"donor '{name}': {error}", module=error.module) from error
    return graph, traced


def _held(network: nn.Module, leaves: Sequence[str]) -> list[str]:
    """Those of ``leaves`` that are modules of ``network``."""
    paths = {path for path, _ in network.named_modules()}
    return [leaf for leaf in leaves if leaf in paths]


def _named(donors: Sequence[nn.Module]) -> dict[str, nn.Module]:
    return {f"donor{number}": donor for number, donor in enumerate(donors)}
