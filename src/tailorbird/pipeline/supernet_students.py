"""From chosen subnets to files: recalibrate, fine-tune, trace, export, compare, measure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor, fx, nn

from tailorbird.config.fleet import LATENCY
from tailorbird.data.images import Split
from tailorbird.export.options import ExportOptions
from tailorbird.graph.trace import LayerGraph, trace
from tailorbird.measure.counts import count
from tailorbird.pipeline.finish import deliver, export_teacher, figures, keep, prove
from tailorbird.pipeline.supernet_choice import Choice, Request
from tailorbird.pipeline.supernet_run import SupernetRun
from tailorbird.progress import Progress
from tailorbird.report.record import Point, TargetResult
from tailorbird.search.selection import within
from tailorbird.supernet.family import build_all
from tailorbird.supernet.network import resize
from tailorbird.targets import Target
from tailorbird.train.evaluate import accuracy
from tailorbird.train.precision import compute_device
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain_all

LEARNING_RATE = 0.01
"""Of the fine-tuning: the subnets have been trained already."""


class AtResolution(nn.Module):
    """A subnet that takes images of any size and resizes them to its own.

    Args:
        network: of images (n, 3, size, size).
        size: in pixels.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, 3, h, w)."""
        logits: Tensor = self.network(resize(images, self.size))
        return logits


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What was found of an exported student.

    Args:
        limits: metric -> bound; shares of latency are of the full network in the same session.
        measured: metric -> figure; without a latency where the device has only a table.
        full_ms: the full network's latency, measured in the same session; ``None`` without one.
        met: every limit is kept, as measured or counted.
    """

    limits: Mapping[str, float]
    measured: Mapping[str, float]
    full_ms: float | None
    met: bool


class Students:
    """Makes and ships the students of one supernet.

    Args:
        run: the supernet, left as it is, and its images: training ones calibrate and fine-tune, the
            last split reports.
        epochs: of the fine-tuning; 0 for none.
        export: of the ONNX files.
        seed: of the fine-tuning.
        progress: told about the fine-tuning.
    """

    def __init__(
        self,
        run: SupernetRun,
        *,
        epochs: float,
        export: ExportOptions,
        seed: int,
        progress: Progress,
    ) -> None:
        self.run = run
        self.supernet, self.data, self.folder = run.supernet, run.data, run.path
        self.epochs, self.export, self.seed = epochs, export, seed
        self.progress = progress
        self._made: dict[str, nn.Module] = {}
        self._before: dict[str, nn.Module] = {}

    @cached_property
    def full(self) -> LayerGraph:
        """The full network, recalibrated and traced at its own resolution."""
        [module] = self._built([self.supernet.largest()])
        size = self.supernet.resolution(self.supernet.largest())
        return trace(module, (3, size, size))

    @cached_property
    def full_accuracy(self) -> float:
        """The full network's accuracy on the last split."""
        return self._judge(self.full.module, self.full.input_shape[-1])

    def make(self, chosen: Sequence[tuple[Request, Choice]]) -> None:
        """Build the chosen subnets in one walk over the images; fine-tune them together."""
        if not chosen:
            return
        genomes = np.array([choice.genome for _, choice in chosen], dtype=np.int64)
        modules = self._built(list(genomes))
        for (request, _), module in zip(chosen, modules, strict=True):
            self._made[request.name] = self._before[request.name] = module
        if self.epochs <= 0:
            return
        assignments = [
            Assignment(
                name=request.name,
                student=AtResolution(module, self.supernet.resolution(genome)),
                checkpoint=request.home / "fine-tune" / f"{request.key}-{_code(choice)}",
            )
            for (request, choice), module, genome in zip(chosen, modules, genomes, strict=True)
        ]
        outcomes = retrain_all(
            assignments,
            AtResolution(self.full.module, self.full.input_shape[-1]),
            self.data,
            recipe=Recipe(epochs=self.epochs, learning_rate=LEARNING_RATE, mse_weight=0.0),
            seed=self.seed,
            progress=self.progress,
        )
        for outcome in outcomes:
            if outcome.stopped is not None:
                self.progress.say(
                    f"{outcome.name}: fine-tuning stopped: {outcome.stopped}; going on with the "
                    f"best weights, of epoch {outcome.best_epoch:g}"
                )
            assert isinstance(outcome.module, AtResolution)
            self._made[outcome.name] = outcome.module.network

    def ship(self, request: Request, choice: Choice, *, base: Mapping[str, float]) -> Shipped:
        """Export a made student, compare it to PyTorch, measure it where its device is at hand.

        Raises:
            ExportError: when the file can't be written or disagrees with the network.
            MeasurementError: when the device can't run it.
        """
        size = self.supernet.resolution(np.array(choice.genome))
        shape = (3, size, size)
        module = trace(self._made[request.name], shape).module
        device = request.entry.device
        if device is None:
            return self._predicted(request, module, shape, base)
        limits = {one.metric: _text(one.value, share=one.share) for one in request.wanted.limits}
        proof = prove(
            module,
            Target(request.name, device, limits),
            teacher=self.full,
            base=base,
            data=self.data,
            folder=self.folder,
            options=self.export,
            input_shape=shape,
            beside=self._full_file,
        )
        return Shipped(
            limits=proof.limits,
            measured=proof.measured,
            full_ms=proof.teacher_ms,
            met=proof.met,
        )

    @property
    def judged_on(self) -> str:
        """What the accuracies that are reported stand for."""
        which = (
            "validation images, also used to choose" if self.data.test is None else "test images"
        )
        return f"top-1 ({which})"

    def accuracies(self, request: Request, choice: Choice) -> tuple[float | None, float]:
        """Accuracy of a made student on the last split, before any fine-tuning and as it is.

        The test split is read here and for the full network alone: no choice depends on it.
        """
        size = self.supernet.resolution(np.array(choice.genome))
        after = self._judge(self._made[request.name], size)
        before = self._before[request.name]
        same = before is self._made[request.name]
        return None if same else self._judge(before, size), after

    def points(self, results: Sequence[TargetResult]) -> dict[str, Point]:
        """The full network's figures for each device that has a student."""
        found: dict[str, Point] = {}
        for result in results:
            if result.teacher_accuracy is None or result.device in found:
                continue
            counts = count(self.full.module, self.full.input_shape)
            found[result.device] = Point(
                name="full network",
                latency_ms=result.measured.get("teacher_latency_ms"),
                accuracy=result.teacher_accuracy,
                params=counts.params,
                macs=counts.macs,
                size_mb=counts.size_mb,
                device=result.device,
            )
        return found

    def _predicted(
        self,
        request: Request,
        module: fx.GraphModule,
        shape: tuple[int, int, int],
        base: Mapping[str, float],
    ) -> Shipped:
        """Export without measuring: what a table says of the latency is no measurement."""
        name, data = request.name, self.data
        deliver(module, name, input_shape=shape, data=data, folder=self.folder, options=self.export)
        counted = figures(module, shape)
        keep(module, name, input_shape=shape, data=data, folder=self.folder, metrics=counted)
        limits = {limit.metric: limit.absolute(base) for limit in request.wanted.limits}
        return Shipped(
            limits=limits,
            measured=counted,
            full_ms=None,
            met=LATENCY not in limits and within(counted, limits),
        )

    @cached_property
    def _full_file(self) -> Path:
        """The full network's exported and proven file."""
        return export_teacher(self.full, self.data, self.folder / "fit" / self.run.weights)

    def _built(self, genomes: Sequence[np.ndarray]) -> list[nn.Sequential]:
        """Subnets on their own, recalibrated in one walk, on the CPU in eval mode."""
        device = compute_device()
        net = copy.deepcopy(self.supernet).to(device) if device.type != "cpu" else self.supernet
        whole = np.stack(list(genomes))
        return [module.cpu() for module in build_all(net, whole, self.run.calibration(device))]

    def _judge(self, network: nn.Module, size: int) -> float:
        split: Split = self.data.test or self.data.validation
        return accuracy(AtResolution(network, size), split, device=compute_device())


def _code(choice: Choice) -> str:
    return "".join(map(str, choice.genome))


def _text(value: float, *, share: bool) -> float | str:
    return f"{value:.12f}x" if share else value
