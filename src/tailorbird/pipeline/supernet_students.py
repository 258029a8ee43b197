"""From chosen subnets to files: recalibrate, fine-tune, trace, export, compare, measure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor, fx, nn

from tailorbird.data.images import Split
from tailorbird.export.options import ExportOptions
from tailorbird.graph.trace import LayerGraph, trace
from tailorbird.measure.counts import count
from tailorbird.pipeline.finish import Shipping, export_teacher, figures
from tailorbird.pipeline.supernet_choice import Choice, Genome, Request
from tailorbird.pipeline.supernet_run import SupernetRun
from tailorbird.progress import Progress
from tailorbird.report.record import Point, TargetResult
from tailorbird.runfolder import short_hash
from tailorbird.search.selection import within
from tailorbird.supernet.family import build_all
from tailorbird.supernet.network import resize
from tailorbird.targets import LATENCY, Target
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


@dataclass
class _Student:
    """A subnet on its own, made once for all targets that it is chosen for."""

    genome: Genome
    before: nn.Module
    module: nn.Module
    input_shape: tuple[int, int, int]
    judged: tuple[float | None, float] | None = None

    @cached_property
    def traced(self) -> fx.GraphModule:
        """As it is exported."""
        return trace(self.module, self.input_shape).module


class Students:
    """Makes and ships the students of one supernet; equal subnets are one.

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
        self.epochs, self.seed, self.progress = epochs, seed, progress
        self._shipping = Shipping(run.data, run.path, export)
        self._made: dict[Genome, _Student] = {}

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
        owners: dict[Genome, list[str]] = {}
        for request, choice in chosen:
            if choice.genome not in self._made:
                owners.setdefault(choice.genome, []).append(request.name)
        if not owners:
            return
        genomes = np.array(list(owners), dtype=np.int64)
        fresh: list[_Student] = []
        for genome, row, module in zip(owners, genomes, self._built(list(genomes)), strict=True):
            size = self.supernet.resolution(row)
            fresh.append(_Student(genome, module, module, (3, size, size)))
        if self.epochs > 0:
            self._fine_tune(fresh, [", ".join(names) for names in owners.values()])
        self._made |= {student.genome: student for student in fresh}

    def ship(self, request: Request, choice: Choice, *, base: Mapping[str, float]) -> Shipped:
        """Export a made student, compare it to PyTorch, measure it where its device is at hand.

        Raises:
            ExportError: when the file can't be written or disagrees with the network.
            MeasurementError: when the device can't run it.
        """
        student, device = self._made[choice.genome], request.entry.device
        if device is None:
            return self._predicted(request, student, base)
        proof = self._shipping.prove(
            student.traced,
            Target(request.name, device, request.wanted.limits),
            network=student.genome,
            teacher=self.full,
            base=base,
            input_shape=student.input_shape,
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

    def accuracies(self, choice: Choice) -> tuple[float | None, float]:
        """Accuracy of a made student on the last split, before any fine-tuning and as it is.

        The test split is read here and for the full network alone: no choice depends on it.
        """
        student = self._made[choice.genome]
        if student.judged is None:
            size = student.input_shape[-1]
            same = student.before is student.module
            before = None if same else self._judge(student.before, size)
            student.judged = before, self._judge(student.module, size)
        return student.judged

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

    def _fine_tune(self, students: Sequence[_Student], names: Sequence[str]) -> None:
        """Train them on after the full network, in one pass of it per batch."""
        assignments = [
            Assignment(
                name=name,
                student=AtResolution(student.module, student.input_shape[-1]),
                checkpoint=self.folder / "fit" / "fine-tune" / self._training(student.genome),
            )
            for name, student in zip(names, students, strict=True)
        ]
        outcomes = retrain_all(
            assignments,
            AtResolution(self.full.module, self.full.input_shape[-1]),
            self.data,
            recipe=Recipe(epochs=self.epochs, learning_rate=LEARNING_RATE, mse_weight=0.0),
            seed=self.seed,
            progress=self.progress,
        )
        for student, outcome in zip(students, outcomes, strict=True):
            if outcome.stopped is not None:
                self.progress.say(
                    f"{outcome.name}: fine-tuning stopped: {outcome.stopped}; going on with the "
                    f"best weights, of epoch {outcome.best_epoch:g}"
                )
            assert isinstance(outcome.module, AtResolution)
            student.module = outcome.module.network

    def _training(self, genome: Genome) -> str:
        """A short hash of what a fine-tuned subnet comes from, whatever its targets."""
        made_from = [genome, self.epochs, self.seed, self.run.weights, self.data.fingerprint]
        return short_hash(made_from)

    def _predicted(self, request: Request, student: _Student, base: Mapping[str, float]) -> Shipped:
        """Export without measuring: what a table says of the latency is no measurement."""
        name, module, shape = request.name, student.traced, student.input_shape
        self._shipping.deliver(module, name, network=student.genome, input_shape=shape)
        counted = figures(module, shape)
        self._shipping.keep(module, name, input_shape=shape, metrics=counted)
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
