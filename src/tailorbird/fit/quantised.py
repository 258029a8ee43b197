"""Files in lower precisions: what they are calibrated on, and how much accuracy they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tailorbird.data.images import ImageData
from tailorbird.data.resizing import resized
from tailorbird.device import Device, Precision, Run
from tailorbird.errors import ExportError
from tailorbird.export.delivered import as_given
from tailorbird.export.exporters import Calibration, Exporter, exporter_for
from tailorbird.export.options import LEAST_CALIBRATION, ExportOptions, QuantiseOptions
from tailorbird.files import scratch
from tailorbird.fit.candidates import Candidates, Judgement, Key, Network
from tailorbird.fit.judge import Answering, Judges
from tailorbird.measure.guarded import answering, format_of
from tailorbird.targets import PLAIN, Place

JUDGED = 512
"""Validation images that a file is judged on before it is shipped, at most."""


def runs(device: Device | None, exporter: Exporter) -> Run:
    """What tells what files answer: the device, or this machine where it can't."""
    run = answering(device)
    return exporter.run if run is None else run


class Quantiser:
    """Calibrates files in lower precisions, and tells what they lose where they will run.

    Args:
        data: training images calibrate, validation images judge.
        judges: of accuracies.
        options: how much may be lost.
    """

    def __init__(self, data: ImageData, judges: Judges, options: QuantiseOptions) -> None:
        self.data, self.judges, self.options = data, judges, options

    def calibration(
        self, network: Network, precision: Precision, run: Run, export: ExportOptions
    ) -> Calibration | None:
        """What a file is made by; ``None`` for float32.

        Args:
            network: in float32.
            precision: of the file.
            run: runs files where this one will run.
            export: what of the network's surroundings is in the file.

        Raises:
            ExportError: where there are too few images.
        """
        if precision == PLAIN:
            return None

        def loss(path: Path) -> float:
            file = Answering(run, path, self.data.normalisation, export)
            return self.judges.lost(network, Network(file, network.input_shape), images=JUDGED)

        return Calibration(
            images=self._images(network.input_shape, export),
            loss=loss,
            max_loss=self.options.max_loss,
        )

    def _images(self, shape: tuple[int, ...], export: ExportOptions) -> Tensor:
        have = len(self.data.train)
        if have < LEAST_CALIBRATION:
            raise ExportError(
                f"int8 needs {LEAST_CALIBRATION} or more training images to find the ranges of "
                f"activations, got {have}; add images, or ask for precision: float32"
            )
        images = self.data.train.sample(self.options.calibration_images)
        return as_given(resized(images, shape), self.data.normalisation, export)


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

    def judge(self, place: Place, key: Key, plain: Judgement) -> Judgement:
        """As good as its network, less what the file loses on some of the images."""
        assert place.device is not None
        network = self.candidates.judged_as(key)
        exporter = exporter_for(format_of(place.device), place.precision, own=self.exporter)
        run, open_batch = runs(place.device, exporter), ExportOptions(dynamic_batch=True)
        calibration = self.quantiser.calibration(network, place.precision, run, open_batch)
        with scratch() as folder:
            path = folder / exporter.format.file
            try:
                exporter.final(
                    network.module,
                    network.input_shape,
                    path,
                    options=open_batch,
                    metadata={},
                    calibration=calibration,
                )
            except ExportError:  # some networks hold the batch size that they are traced with
                exporter.final(
                    network.module,
                    network.input_shape,
                    path,
                    options=replace(open_batch, dynamic_batch=False),
                    metadata={},
                    calibration=calibration,
                )
            file = Answering(run, path, self.quantiser.data.normalisation, open_batch)
            found = self.candidates.weigh(Network(file, network.input_shape), JUDGED)
        beside = self.candidates.weigh(network, JUDGED)
        return Judgement(
            quality=plain.quality + found.quality - beside.quality,
            accuracy=plain.accuracy + found.accuracy - beside.accuracy,
        )
