"""Files in lower precisions: what they are calibrated on, and how much accuracy they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from torch import Tensor, fx

from tailorbird.data.images import ImageData
from tailorbird.data.resizing import AtSize, resized
from tailorbird.device import ONNX, OPENVINO, Device, Format, Precision, Run
from tailorbird.errors import ExportError, TrainingError
from tailorbird.export.delivered import as_given
from tailorbird.export.exporters import Calibration, Exporter, exporter_for
from tailorbird.export.options import LEAST_CALIBRATION, ExportOptions, QuantiseOptions
from tailorbird.files import digest_of, scratch
from tailorbird.fit.candidates import Candidates, Judgement, Key, Made, Network
from tailorbird.fit.judge import Answering, Judges
from tailorbird.measure.guarded import answering, format_of
from tailorbird.progress import Progress
from tailorbird.runfolder import short_hash
from tailorbird.targets import PLAIN, Place
from tailorbird.task import Task
from tailorbird.train.quantised.onnx_places import read_onnx
from tailorbird.train.quantised.openvino_places import read_openvino
from tailorbird.train.quantised.places import ReadPlaces
from tailorbird.train.quantised.training import RECIPE, train_quantised

JUDGED = 512
"""Validation images that a file is judged on before it is shipped, at most."""


def runs(device: Device | None, exporter: Exporter) -> Run:
    """What tells what files answer: the device, or this machine where it can't."""
    run = answering(device)
    return exporter.run if run is None else run


READERS: Mapping[str, ReadPlaces] = {
    ONNX.name: read_onnx,
    OPENVINO.name: read_openvino,
}
"""Format's name -> what finds the quantised places of such files."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Quantisation-aware training of students: they are trained as their files compute.

    Args:
        reference: whose answers are learned, beside the labels.
        task: what outputs mean.
        seed: of the training.
        folder: for networks in training; made when missing.
        progress: told how it goes.
    """

    reference: Callable[[], Network]
    task: Task
    seed: int
    folder: Path
    progress: Progress


class Quantiser:
    """Makes files in lower precisions lose little, and tells what they lose where they will run.

    Args:
        data: training images calibrate and train, validation images judge.
        judges: of accuracies.
        options: how much may be lost.
        rounding: trains networks whose files lose more; nothing is trained without it.
    """

    def __init__(
        self,
        data: ImageData,
        judges: Judges,
        options: QuantiseOptions,
        rounding: Rounding | None = None,
    ) -> None:
        self.data, self.judges, self.options = data, judges, options
        self._rounding = rounding

    def accuracy(self, network: Network) -> float:
        """Accuracy of a network or a file, on `JUDGED` validation images at most."""
        return self.judges.some(network, JUDGED)

    def lacks(self, precision: Precision) -> ExportError | None:
        """What keeps files from being made in a precision, whatever the network."""
        have = len(self.data.train)
        if precision != "int8" or have >= LEAST_CALIBRATION:
            return None
        return ExportError(
            f"int8 needs {LEAST_CALIBRATION} or more training images to find the ranges of "
            f"activations, got {have}; add images, or ask for precision: float32"
        )

    def calibration(
        self,
        network: Network,
        precision: Precision,
        run: Run,
        export: ExportOptions,
        *,
        like: Path | None = None,
    ) -> Calibration | None:
        """What a file is made by; ``None`` for float32.

        Args:
            network: in float32: what the file is compared to.
            precision: of the file.
            run: runs files where this one will run.
            export: what of the network's surroundings is in the file.
            like: the file that the network was trained for.

        Raises:
            ExportError: where there are too few images.
        """
        if precision == PLAIN:
            return None
        if fault := self.lacks(precision):
            raise fault

        @cache
        def plain() -> float:
            return self.accuracy(network)

        def loss(path: Path) -> float:
            file = Answering(run, path, self.data.normalisation, export)
            return 100 * (plain() - self.accuracy(Network(file, network.input_shape)))

        return Calibration(
            images=self._images(network.input_shape, export),
            loss=loss,
            max_loss=self.options.max_loss,
            like=like,
        )

    def train(
        self,
        student: Made,
        file: Path,
        what: Format,
        *,
        run: Run,
        export: ExportOptions,
        batch: int,
        name: str,
    ) -> Made | None:
        """A student trained on as its file computes; ``None`` where that is not asked for, or
        can't be done, which is said.

        Args:
            student: what the file was made of.
            file: in a lower precision.
            what: the file's format.
            run: runs it.
            export: what of the network's surroundings is in it.
            batch: images per call.
            name: for messages.
        """
        ways, epochs = self._rounding, self.options.train_epochs
        if ways is None or epochs == 0:
            return None
        if what.name not in READERS:
            ways.progress.say(f"{name}: {what.name} files in int8 are not trained for")
            return None
        shape, scale = student.input_shape, self.data.normalisation
        sized = AtSize(student.module, shape)
        plain = shape == self.data.input_shape
        reference = ways.reference()
        weights = [digest_of(file.with_name(one)) for one in what.beside or (file.name,)]
        own = short_hash([*weights, epochs, ways.seed])
        try:
            trained = train_quantised(
                student.module if plain else sized,
                file,
                AtSize(reference.module, reference.input_shape),
                self.data,
                recipe=replace(RECIPE, epochs=epochs),
                seed=ways.seed,
                folder=ways.folder / own,
                task=ways.task,
                read=READERS[what.name],
                run=run,
                batch=max(2, batch),
                given=lambda images: as_given(resized(images, shape), scale, export),
                finished=(lambda outputs: outputs.softmax(1)) if export.softmax else None,
                progress=ways.progress,
                name=name,
            )
        except (TrainingError, ExportError) as error:
            ways.progress.say(str(error))
            return None
        module = trained.module if plain else trained.module.network
        assert isinstance(module, fx.GraphModule)
        seconds = student.seconds + trained.trained.seconds
        return replace(student, module=module, seconds=seconds)

    def _images(self, shape: tuple[int, ...], export: ExportOptions) -> Tensor:
        images = resized(self._sample, shape)
        return as_given(images, self.data.normalisation, export)

    @cached_property
    def _sample(self) -> Tensor:
        """Training images, read once for all files."""
        return self.data.train.sample(self.options.calibration_images)


class JudgedFiles:
    """Judges candidates as files; implements `tailorbird.fit.pools.Files`.

    Cost: for each candidate asked for, one file as it would be shipped, and a walk over `JUDGED`
    validation images on the device.

    Args:
        candidates: whose networks.
        quantiser: calibrates.
        exporter: makes files of its own format and precision; others come from `exporter_for`.
    """

    def __init__(self, candidates: Candidates, quantiser: Quantiser, exporter: Exporter) -> None:
        self.candidates, self.quantiser, self.exporter = candidates, quantiser, exporter

    def judge(
        self, place: Place, key: Key, plain: Judgement, trained: Network | None = None
    ) -> Judgement:
        """As good as its network, less what the file loses on some of the images."""
        assert place.device is not None
        network = trained or self.candidates.judged_as(key)
        exporter = exporter_for(format_of(place.device), place.precision, own=self.exporter)
        run, open_batch = runs(place.device, exporter), ExportOptions(dynamic_batch=True)
        calibration = self.quantiser.calibration(network, place.precision, run, open_batch)
        with scratch() as folder:
            path = folder / exporter.format.file
            write = partial(
                exporter.final,
                network.module,
                network.input_shape,
                path,
                metadata={},
                calibration=calibration,
            )
            try:
                write(options=open_batch)
            except ExportError:  # some networks hold the batch size that they are traced with
                write(options=replace(open_batch, dynamic_batch=False))
            file = Answering(run, path, self.quantiser.data.normalisation, open_batch)
            found, beside = (
                self.candidates.weigh(one, JUDGED, trained=trained is not None)
                for one in (Network(file, network.input_shape), network)
            )
        return Judgement(
            quality=plain.quality + found.quality - beside.quality,
            accuracy=plain.accuracy + found.accuracy - beside.accuracy,
        )
