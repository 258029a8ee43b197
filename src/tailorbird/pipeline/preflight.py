"""What is tried and told before anything is trained: images, networks, devices, the teacher.

Everything that a run will need later is done once on a small scale: every network is read, one of
its blocks cut out, stored and rebuilt, the teacher exported, compared and timed on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tailorbird.data.images import ImageData, Normalisation, classes_in
from tailorbird.errors import (
    ConfigError,
    ExportError,
    GraphError,
    MeasurementError,
    TailorbirdError,
)
from tailorbird.export.exporters import Exporter
from tailorbird.files import scratch
from tailorbird.fit.bench import time_networks
from tailorbird.fit.candidates import Network
from tailorbird.fit.judge import judged_on
from tailorbird.fit.ship import export_reference
from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.serial import code_of, is_storable, load_module, save_module
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.measure.counts import count
from tailorbird.pipeline.house import trace_all
from tailorbird.pipeline.job import Job
from tailorbird.report.words import figure
from tailorbird.targets import LATENCY, too_many_threads
from tailorbird.train.evaluate import logits
from tailorbird.train.precision import compute_device

IMAGES = 500
"""Validation images, at most, that the teacher is tried on."""

_PER_CLASS = 5
"""Images per class, at least, that tell an order of classes from luck."""

_CLEARLY = 0.3
"""How much better another order of classes has to be to be the right one."""

_BETTER = 0.02
"""How much better another normalisation has to be to be the right one."""


def preflight(
    job: Job, exporter: Exporter, folder: Path, say: Callable[[str], None]
) -> tuple[LayerGraph, dict[str, LayerGraph]]:
    """Try everything once; nothing is trained.

    Costs a few seconds: reading and exporting the networks, one session on each device, and the
    teacher's pass over some hundred images.

    Args:
        job: what is to be done.
        exporter: makes files of networks.
        folder: where the teacher's file goes.
        say: told what was found.

    Returns:
        The teacher's graph and the donors'.

    Raises:
        ConfigError: listing all faults: networks that can't be used, a teacher that is no good on
            the images, no device that answers.
        DataError: when the classes in the data and the teacher's head differ.
        GraphError, ExportError: for the teacher.
    """
    for line in _images(job.data):
        say(line)
    teacher, donors = trace_all(job.teacher, job.donors, job.data, job.options, job.task)
    problems = [
        line
        for name, graph in {"teacher": teacher, **donors}.items()
        for line in _rebuilt(name, graph)
    ]
    network = Network(teacher.module, teacher.input_shape)
    if "teacher" not in job.training:
        export_reference(network, job.data, folder, exporter, name="teacher")
        problems += _worth(job) if job.check_teacher else []
    problems += _devices(job, network, exporter, say)
    if problems:
        raise ConfigError(problems)
    return teacher, donors


def _images(data: ImageData) -> list[str]:
    size = data.size
    classes = f", {classes_in(data)} classes" if data.labelled else ", no labels"
    counts = ", ".join(f"{number} {name}" for name, number in size.items() if number)
    lines = [f"data: {counts} images{classes}; students are chosen on the validation images"]
    lines.append(f"data: accuracies in the report are of the {judged_on(data)}")
    return [*lines, *(f"data: {note}" for note in data.told)]


def _rebuilt(name: str, graph: LayerGraph) -> list[str]:
    """Cut a block out of a network, store it, rebuild it; what differs, if something does."""
    blocks = sorted(enumerate_blocks(graph), key=lambda block: (len(block.nodes), block.key))
    if not blocks:
        return []
    block = blocks[len(blocks) // 2]
    module = extract(graph, block)
    if not is_storable(module):
        return []  # it is exported, and that is told
    images = torch.rand(2, *block.in_shape, generator=torch.Generator().manual_seed(0))
    with scratch() as place, torch.no_grad():
        try:
            save_module(module, place, "block", {})
            again, _ = load_module(place, "block", trust=code_of(module))
            same = torch.allclose(module(images), again(images), atol=1e-5, rtol=1e-4)
        except GraphError as error:
            return [f"{name}: a block of it can't be stored and rebuilt: {error}"]
    if same:
        return []
    return [f"{name}: a block of it computes something else once it is stored and rebuilt"]


# the teacher's worth --------------------------------------------------------------------------


def _worth(job: Job) -> list[str]:
    """Why the teacher is no good on these images, if it isn't."""
    data, split = job.data, job.data.validation
    if not split.labelled or job.task.name != "classification":
        return []
    outputs, labels = _answers(job.teacher, data, data.normalisation)
    right = float((outputs.argmax(1) == labels).double().mean())
    way_out = "; if it is as you want it, set check_teacher: false"
    own = _normalisation_of(job.teacher)
    if own is not None and _differ(own, data.normalisation):
        others, _ = _answers(job.teacher, data, own)
        better = float((others.argmax(1) == labels).double().mean())
        if better > right + _BETTER:
            return [
                f"teacher: {_share(right)} of validation images are right with the job's "
                f"normalisation, {_share(better)} with the one that timm names for it: mean "
                f"{list(own.mean)}, std {list(own.std)}; give that as data.normalisation{way_out}"
            ]
    classes, images = outputs.shape[1], len(labels)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (outputs.argmax(1).numpy(), labels.numpy()), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    possible = counts[rows, columns].sum() / images
    if images >= _PER_CLASS * classes and possible > right + _CLEARLY:
        names = data.classes or tuple(map(str, range(classes)))
        moved = [
            f"output {row} answers '{names[column]}'"
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
            if row != column and counts[row, column]
        ]
        return [
            f"teacher: {_share(right)} of validation images are right as the classes are ordered, "
            f"{_share(float(possible))} in another order: {', '.join(moved[:4])}; give the classes "
            f"in the order that it was trained with{way_out}"
        ]
    chance = float(torch.bincount(labels).max()) / images
    if right <= chance + 2 * (chance * (1 - chance) / images) ** 0.5 and right < 0.9:
        return [
            f"teacher: {_share(right)} of {images} validation images are right, and always "
            f"answering the commonest class would give {_share(chance)}; check its checkpoint, "
            f"its classes and data.normalisation{way_out}"
        ]
    return []


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _answers(
    teacher: nn.Module, data: ImageData, normalisation: Normalisation
) -> tuple[Tensor, Tensor]:
    """Outputs (n, classes) and labels (n,) of some validation images, normalised so."""
    split = data.validation
    limit = min(IMAGES, len(split))
    scale = torch.tensor(data.normalisation.std) / torch.tensor(normalisation.std)
    shift = (torch.tensor(data.normalisation.mean) - torch.tensor(normalisation.mean)) / (
        torch.tensor(normalisation.std)
    )
    network = _Renormalised(teacher, scale, shift)
    picked = torch.arange(limit) * len(split) // limit
    take: Callable[[Tensor], object] | None = getattr(split, "take", None)
    part = split if take is None else take(picked)
    labels = part.labels  # type: ignore[attr-defined]  # it is labelled
    return logits(network, part, device=compute_device()), labels.cpu()  # type: ignore[arg-type]


class _Renormalised(nn.Module):
    """A network on images that were normalised otherwise."""

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.scale, self.shift = (value.view(1, -1, 1, 1) for value in (scale, shift))

    def forward(self, images: Tensor) -> Tensor:
        moved = images * self.scale.to(images) + self.shift.to(images)
        answer: Tensor = self.network(moved)
        return answer


def _normalisation_of(teacher: nn.Module) -> Normalisation | None:
    """What timm says that a network's images are normalised by."""
    told = getattr(teacher, "pretrained_cfg", None)
    if not isinstance(told, Mapping):
        return None
    try:
        return Normalisation(tuple(map(float, told["mean"])), tuple(map(float, told["std"])))
    except (KeyError, TypeError, ValueError, TailorbirdError):
        return None


def _differ(one: Normalisation, other: Normalisation) -> bool:
    if len(one.mean) != len(other.mean):
        return False  # it was changed for other channels
    pairs = [*zip(one.mean, other.mean, strict=True), *zip(one.std, other.std, strict=True)]
    return any(abs(a - b) > 0.01 for a, b in pairs)


# devices --------------------------------------------------------------------------------------


def _devices(
    job: Job, network: Network, exporter: Exporter, say: Callable[[str], None]
) -> list[str]:
    """Time the teacher on every device; a problem where none of them answers."""
    devices = {target.device.key: target.device for target in job.targets}
    base = count(network.module, network.input_shape).as_metrics()
    silent = 0
    for key, device in devices.items():
        if waiting := too_many_threads(device):
            say(waiting)
        try:
            [latency] = time_networks([network], device, exporter)
        except (MeasurementError, ExportError) as error:
            silent += 1
            say(f"device {key} does not answer, so that its targets can't be met: {error}")
            continue
        figures = {**base, LATENCY: latency.median_ms}
        say(f"device {key}: the teacher takes {figure(LATENCY, latency.median_ms)}")
        for target in job.targets:
            if target.device.key == key:
                bounds = ", ".join(
                    f"{figure(limit.metric, limit.absolute(figures))} of "
                    f"{figure(limit.metric, figures[limit.metric])}"
                    for limit in target.limits
                    if limit.metric in figures
                )
                say(f"target {target.name}: allowed are {bounds}")
    if silent == len(devices):
        return ["none of the targets' devices answers; see above"]
    return []
