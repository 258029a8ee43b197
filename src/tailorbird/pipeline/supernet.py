"""A supernet as users hold it: trained or loaded once, fitted to any number of targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path

import yaml

from tailorbird.data.colour import for_supernets
from tailorbird.data.images import ImageData, classes_in
from tailorbird.device import Device
from tailorbird.errors import ConfigError, StoreError
from tailorbird.export.exporters import Exporter
from tailorbird.export.options import ExportOptions
from tailorbird.fit.answers import Student
from tailorbird.fit.sessions import MOST
from tailorbird.pipeline.supernet_evaluation import evaluate_run
from tailorbird.pipeline.supernet_fit import Evaluate, FitOptions, fit_run
from tailorbird.pipeline.supernet_import import import_supernet
from tailorbird.pipeline.supernet_preflight import tell_fit, tell_training
from tailorbird.pipeline.supernet_run import SupernetRun, check_whole, open_run
from tailorbird.pipeline.supernet_training import SupernetJob, train_run
from tailorbird.progress import Progress, Silent
from tailorbird.report.supernet_evaluation import SupernetEvaluation
from tailorbird.runfolder import CONFIG
from tailorbird.search.strategy import Strategy
from tailorbird.supernet.architecture import ArchitectureSpace, load_space
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.schemes.scheme import Scheme
from tailorbird.supernet.start import starting_supernet
from tailorbird.supernet.train_state import SupernetRecipe
from tailorbird.targets import Target


class Supernet:
    """A trained supernet in a run folder; from `train`, `load` or `open`, fitted by `fit`.

    The folder is that of ``tailorbird supernet``: the commands ``evaluate`` and ``fit`` work on it,
    with ``--data``, and `open` opens theirs.

    Example (it takes hours, so it is not run as a test)::

        supernet = Supernet.train("cifar-mbv3-w0.5", data=data, run="runs/a", scheme=DepS())
        students = supernet.fit([Target("edge", OnnxRuntime(threads=1), {"latency": "0.5x"})])
    """

    def __init__(
        self, path: Path, data: ImageData, *, seed: int, exporter: Exporter | None, show: Progress
    ) -> None:
        self.path = path
        self.data = data
        self.seed = seed
        self.exporter = exporter
        self.progress = show

    def __repr__(self) -> str:
        return f"<Supernet {self.path}: {self.data!r}>"

    @staticmethod
    def train(
        space: str | Path | ArchitectureSpace,
        *,
        data: ImageData,
        run: str | Path,
        scheme: Scheme | None = None,
        recipe: SupernetRecipe | None = None,
        resolutions: Sequence[int] | None = None,
        dropout: float = 0.0,
        start: str | Path | None = None,
        new_classifier: bool = False,
        save_steps: int | None = None,
        validate_epochs: int | None = 1,
        tensorboard: bool = False,
        accept_changes: bool = False,
        seed: int = 0,
        exporter: Exporter | None = None,
        progress: Progress | None = None,
    ) -> Supernet:
        """Train; continues what ``run`` already holds.

        Started by ``torchrun``, all processes train together; let the main one alone go on.

        Args:
            space: a name (``tailorbird spaces`` lists them), the path of a JSON file, or a space.
            data: labelled images (n, C, H, W); one channel is made three.
            run: the run folder, made when missing.
            scheme: how it is trained; DepS over 200 epochs by default.
            recipe: how steps are made.
            resolutions: image sizes in pixels; the space's own when ``None``.
            dropout: probability before the classifier.
            start: weights to begin with: an official checkpoint, or a supernet's.
            new_classifier: take all of ``start`` but its classifier: for images of other classes.
            save_steps: steps between checkpoints; ``None`` for an epoch.
            validate_epochs: epochs between validations; ``None`` for none.
            tensorboard: write event files for TensorBoard as well.
            accept_changes: go on though the job was changed, where the checkpoints allow it.
            seed: of every random choice.
            exporter: makes files of students; ONNX by default.
            progress: shown nothing by default.

        Raises:
            SpaceError: for an unknown space, or one that can't be built.
            DataError: for images without labels, of other channels, or of other classes than
                ``start``.
            ConfigError: for a scheme that doesn't fit the space.
            StoreError: for a folder of another job or in use, or a checkpoint that doesn't fit.
            TrainingError: when a loss isn't finite.
        """
        architectures = _space(space, resolutions)
        images, chosen, made = for_supernets(data), scheme or DepS(), recipe or SupernetRecipe()
        job = SupernetJob(
            supernet=starting_supernet(
                architectures,
                classes=classes_in(images),
                seed=seed,
                dropout=dropout,
                start=None if start is None else Path(start),
                new_classifier=new_classifier,
            ),
            data=images,
            scheme=chosen,
            recipe=made,
            seed=seed,
            run=Path(run),
            save_steps=save_steps,
            validate_epochs=validate_epochs,
            tensorboard=tensorboard,
            description={
                "space": {
                    "name": architectures.name,
                    "resolutions": list(architectures.space.choices[0].values),
                },
                "data": None,
                "scheme": chosen.record(),
                "recipe": asdict(made),
                "dropout": dropout,
                "seed": seed,
            },
        )
        shown = progress or Silent()
        train_run(
            job,
            accept_changes=accept_changes,
            progress=shown,
            before=partial(tell_training, job, shown.say),
        )
        return Supernet(job.run, images, seed=seed, exporter=exporter, show=shown)

    @staticmethod
    def load(
        checkpoint: str | Path,
        *,
        space: str | Path | ArchitectureSpace,
        data: ImageData,
        run: str | Path,
        resolutions: Sequence[int] | None = None,
        seed: int = 0,
        exporter: Exporter | None = None,
        progress: Progress | None = None,
    ) -> Supernet:
        """Make a run folder of weights that were trained elsewhere.

        Args:
            checkpoint: official once-for-all weights, or a supernet's of this project.
            space: the checkpoint's, as in `train`.
            data: labelled images (n, C, H, W) of the checkpoint's classes; one channel is made
                three.
            run: the run folder, made when missing.
            resolutions: image sizes in pixels; the space's own when ``None``.
            seed: of every random choice.
            exporter: makes files of students; ONNX by default.
            progress: shown nothing by default.

        Raises:
            SpaceError: for an unknown space.
            StoreError: for a checkpoint that can't be read or is of another space, and for a
                folder that holds something else.
            DataError: for images without labels, or with other classes than the checkpoint.
        """
        images = for_supernets(data)
        import_supernet(
            Path(checkpoint), Path(run), space=_space(space, resolutions), data=images, seed=seed
        )
        return Supernet.open(run, data=images, seed=seed, exporter=exporter, progress=progress)

    @staticmethod
    def open(
        run: str | Path,
        *,
        data: ImageData,
        seed: int | None = None,
        exporter: Exporter | None = None,
        progress: Progress | None = None,
    ) -> Supernet:
        """Open a folder that `train`, `load` or a command has made.

        Args:
            run: the run folder.
            data: labelled images (n, C, H, W) of the supernet's classes; one channel is made three.
                The division into training and validation should be that of the training.
            seed: of every random choice; the run's own when ``None``.
            exporter: makes files of students; ONNX by default.
            progress: shown nothing by default.

        Raises:
            StoreError: for a folder without a whole supernet.
            DataError: for images without labels, or with other classes than the supernet.
        """
        path = Path(run)
        check_whole(path)
        own = _seed(path) if seed is None else seed
        shown = progress or Silent()
        found = Supernet(path, for_supernets(data), seed=own, exporter=exporter, show=shown)
        _ = found.run  # read and checked now
        return found

    @cached_property
    def run(self) -> SupernetRun:
        """The network itself with its images, for what this class has no method for."""
        return open_run(self.path, self.data, seed=self.seed)

    def evaluate(
        self,
        *,
        subnets: int = 100,
        images: int | None = None,
        device: Device | None = None,
        seed: int = 0,
    ) -> SupernetEvaluation:
        """Accuracy, MACs and parameters from the smallest to the largest subnet.

        Subnets that were evaluated before are not computed again. The result is in the folder too,
        as ``evaluation.json`` and ``evaluation.png``.

        Args:
            subnets: how many beside the smallest and the largest.
            images: of the validation split; ``None`` for all.
            device: times the best subnets.
            seed: of the choice of subnets.

        Raises:
            ConfigError: for numbers out of range.
            StoreError: for a folder that is in use or can't be written.
            MeasurementError, ExportError: where latencies can't be measured.
        """
        return evaluate_run(
            self.run,
            subnets=subnets,
            seed=seed,
            images=images,
            device=device,
            progress=self.progress,
        )

    def fit(
        self,
        targets: Sequence[Target],
        *,
        subnets: int = 200,
        images: int | None = None,
        candidates: int = 4,
        contenders: int = 1,
        rounds: int = 3,
        sessions: int = MOST,
        fine_tune: float = 0.0,
        checks: int = 12,
        layers_at_most: int = 3000,
        seed: int | None = None,
        export: ExportOptions | None = None,
        strategy: Strategy | None = None,
        evaluate: Evaluate | None = None,
    ) -> list[Student]:
        """One student per target, in order; continues what was begun.

        What becomes of a target that can't be met, or whose device fails, is as in
        `tailorbird.ModelHouse.fit`. The report in the run folder is of these targets.

        Args:
            targets: a device, or a `tailorbird.Place`, and limits each; shares are of the full
                network's figures.
            subnets: evaluated for the accuracy predictor.
            images: of the validation split that each is evaluated on; ``None`` for all.
            candidates: subnets measured and evaluated per target and search.
            contenders: of a target that are fine-tuned, in rounds that leave the better half, until
                one is left.
            rounds: most searches in a row, and most attempts at a target's limits.
            sessions: measurements of a finished student at most, until its limit is clear.
            fine_tune: epochs that the students are fine-tuned; 0 for none.
            checks: whole networks that check and correct each latency table.
            layers_at_most: distinct layers that may be timed on a device.
            seed: of every random choice; the run's own when ``None``.
            export: of the files.
            strategy: how subnets are searched; what suits the space by default.
            evaluate: genomes (n, genes) to accuracies (n,); by the validation images by default.

        Raises:
            ConfigError: for numbers out of range, no targets, tables that don't fit the space, or
                accuracies that nothing can be learned from.
            StoreError: for a folder that is in use or can't be written.
        """
        options = FitOptions(
            subnets=subnets,
            images=images,
            candidates=candidates,
            contenders=contenders,
            rounds=rounds,
            sessions=sessions,
            fine_tune=fine_tune,
            checks=checks,
            layers_at_most=layers_at_most,
            seed=seed,
            export=export or ExportOptions(),
        )
        return fit_run(
            self.run,
            targets,
            options=options,
            evaluate=evaluate,
            strategy=strategy,
            exporter=self.exporter,
            before=partial(
                tell_fit,
                self.run,
                targets,
                options=options,
                exporter=self.exporter,
                say=self.progress.say,
            ),
            progress=self.progress,
        )


def _space(
    space: str | Path | ArchitectureSpace, resolutions: Sequence[int] | None
) -> ArchitectureSpace:
    if not isinstance(space, ArchitectureSpace):
        return load_space(space, resolutions=resolutions)
    if resolutions is not None:
        raise ConfigError(
            "resolutions: the space given has its own; give its name or file, or "
            "load_space(NAME, resolutions=...)"
        )
    return space


def _seed(run: Path) -> int:
    """The seed that a run was trained or imported with."""
    try:
        stored = yaml.safe_load((run / CONFIG).read_bytes())
        return int(stored["seed"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise StoreError(
            f"{run / CONFIG}: the run's seed can't be read ({error}); give seed"
        ) from error
