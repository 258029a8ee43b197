"""What is tried and told before a supernet is trained, and before one is fitted to targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.data.images import ImageData
from tailorbird.data.resizing import AtSize
from tailorbird.errors import ConfigError
from tailorbird.export.exporters import Exporter, OnnxExporter
from tailorbird.files import scratch
from tailorbird.fit.candidates import Network
from tailorbird.fit.ship import export_reference
from tailorbird.graph.trace import trace
from tailorbird.pipeline.estimate import COPIES, FLOAT, Stage, told, training_s
from tailorbird.pipeline.supernet_fit import FitOptions
from tailorbird.pipeline.supernet_run import STATISTICS_IMAGES, SupernetRun
from tailorbird.pipeline.supernet_training import SupernetJob
from tailorbird.pipeline.trials import Say, Speed, speed_of, tell_images, try_devices
from tailorbird.progress import Progress, Silent
from tailorbird.report.words import figure
from tailorbird.space import Genomes
from tailorbird.supernet.candidates import check_places
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.extract import extract
from tailorbird.supernet.layers import distinct_layers
from tailorbird.supernet.network import Supernet
from tailorbird.supernet.predictor import sampled
from tailorbird.targets import Target, places_of
from tailorbird.train.recipe import Recipe

FULL, SMALLEST = "full network", "smallest subnet"

SHARED = 0.7
"""Of their passes, what subnets take that are judged together: they share their first layers."""

LAYER = 0.1
"""Of a whole network's file, what the file of one layer takes to be made and timed."""

_STEPS = 40
"""Steps of a plan that are looked at."""


def try_training(
    job: SupernetJob,
    *,
    exporter: Exporter | None = None,
    progress: Progress | None = None,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Try what training and what comes after it will need; trains and writes nothing.

    The full network and the smallest subnet are taken out, read, exported, compared and timed.

    Raises:
        TailorbirdError: for images or a supernet that can't be used.
    """
    say = (progress or Silent()).say
    for note in job.notes:
        say(f"note: {note}")
    _prove(job.supernet, job.data, exporter or OnnxExporter())
    tell_training(job, say, now=now)


def tell_training(job: SupernetJob, say: Say, *, now: Callable[[], float] = time.monotonic) -> None:
    """Say what the images are, what the subnets have, and what the training will take."""
    tell_images(job.data, say)
    _tell_sizes(job.supernet, say)
    rates = _rates(job.supernet, job.data, most=job.recipe.batch_size, now=now)
    for line in told([_training(job, rates)]):
        say(line)


def try_fit(
    run: SupernetRun,
    targets: Sequence[Target],
    *,
    options: FitOptions,
    exporter: Exporter | None = None,
    progress: Progress | None = None,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Try what fitting will need; trains nothing, and leaves the run folder as it is.

    Every device times the full network and the smallest subnet, which tells what limits are out of
    reach.

    Raises:
        ConfigError: for no targets, tables that don't fit the space, too many layers to time, or no
            device that answers.
        GraphError, ExportError: for a network that can't be read or exported.
    """
    if not targets:
        raise ConfigError("targets: none are given; give each device limits such as [15, 0.5x]")
    say = (progress or Silent()).say
    made = exporter or OnnxExporter()
    check_places(
        list(places_of(targets).values()), run.supernet, layers_at_most=options.layers_at_most
    )
    _prove(run.supernet, run.data, made)
    tell_fit(run, targets, options=options, exporter=made, say=say, now=now)


def tell_fit(
    run: SupernetRun,
    targets: Sequence[Target],
    *,
    options: FitOptions,
    exporter: Exporter | None = None,
    say: Say,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Try the devices, and say what targets allow and what fitting will take.

    Raises:
        ConfigError: where no device answers.
    """
    tell_images(run.data, say)
    trial = try_devices(targets, _ends(run.supernet), exporter or OnnxExporter(), say, now=now)
    if trial.problems:
        raise ConfigError(list(trial.problems))
    rates = _rates(run.supernet, run.data, most=128, now=now)
    for line in told(_fitting(run, targets, options, rates, trial.file_s)):
        say(line)


def _ends(supernet: Supernet) -> dict[str, Network]:
    """The full network and the smallest subnet on their own."""
    found = {}
    for name, genome in ((FULL, supernet.largest()), (SMALLEST, supernet.smallest())):
        side = supernet.resolution(genome)
        shape = (3, side, side)
        module = extract(supernet, genome).eval()
        found[name] = Network(trace(module, shape).module, shape)
    return found


def _prove(supernet: Supernet, data: ImageData, exporter: Exporter) -> None:
    """Export both ends and compare the files with the networks."""
    with scratch() as place:
        for name, network in _ends(supernet).items():
            (place / name).mkdir()
            export_reference(network, data, place / name, exporter, name=name)


def _tell_sizes(supernet: Supernet, say: Say) -> None:
    space = supernet.architectures
    genomes = np.stack([supernet.smallest(), supernet.largest()])
    figures = zip(params(space).sum(genomes), macs(space).sum(genomes), strict=True)
    least, most = (f"{figure('params', p)} and {figure('macs', m)}" for p, m in figures)
    say(f"space {space.name}: subnets have {least} to {most}")


@dataclass(frozen=True)
class _Rates:
    """Speeds by MACs: a line through the smallest and the largest subnet."""

    supernet: Supernet
    ends: Mapping[str, Speed]

    def at(self, genomes: Genomes) -> Speed:
        """The mean speed of subnets (n, genes)."""
        count = macs(self.supernet.architectures).sum
        low, high = count(np.stack([self.supernet.smallest(), self.supernet.largest()]))
        share = float(np.mean((count(genomes) - low) / max(high - low, 1.0)))
        small, full = self.ends[SMALLEST], self.ends[FULL]
        return Speed(
            forward_s=small.forward_s + share * (full.forward_s - small.forward_s),
            step_s=small.step_s + share * (full.step_s - small.step_s),
            read_s=full.read_s,
        )


def _rates(supernet: Supernet, data: ImageData, *, most: int, now: Callable[[], float]) -> _Rates:
    ends = {
        name: speed_of(AtSize(one.module, one.input_shape), data, most=most, now=now)
        for name, one in _ends(supernet).items()
    }
    return _Rates(supernet, ends)


def _training(job: SupernetJob, rates: _Rates) -> Stage:
    """All steps as the scheme plans them, and the validations between."""
    images, size = len(job.data.train), job.recipe.batch_size
    plan = job.scheme.plan(job.supernet.architectures, max(1, images // size))
    full = rates.ends[FULL]
    per_image = 0.0
    looked_at = np.unique(np.linspace(0, plan.total - 1, _STEPS).astype(int)).tolist()
    for number in looked_at:
        step = plan.step(number, np.random.default_rng([job.seed, number]))
        genomes = np.stack([member.genome for member in step.networks])
        frozen = any(member.teacher == "frozen" for member in step.networks)
        per_image += len(genomes) * rates.at(genomes).step_s + frozen * full.forward_s
    per_image = per_image / len(looked_at) + full.read_s
    validations = job.scheme.epochs / job.validate_epochs if job.validate_epochs else 0
    both = sum(speed.forward_s for speed in rates.ends.values())
    judged = validations * (len(job.data.validation) + min(STATISTICS_IMAGES, images)) * both
    weights = FLOAT * sum(value.numel() for value in job.supernet.parameters())
    return Stage("train", plan.total * size * per_image + judged, (COPIES + 1) * weights)


def _fitting(
    run: SupernetRun,
    targets: Sequence[Target],
    options: FitOptions,
    rates: _Rates,
    file_s: Mapping[str, float],
) -> list[Stage]:
    """From the subnets that are evaluated to the files."""
    data, space, many = run.data, run.architectures, len(targets)
    usual = rates.at(sampled(space, 64, seed=0))
    statistics = min(STATISTICS_IMAGES, len(data.train))
    judged_s = (min(options.images or len(data.validation), len(data.validation)) + statistics) * (
        SHARED * usual.forward_s + usual.read_s
    )
    files = sum(file_s.values())
    each = files / max(1, len(file_s))
    timed = files * (LAYER * len(distinct_layers(space)) + options.checks)
    weights = FLOAT * float(np.mean(params(space).sum(sampled(space, 64, seed=0))))
    stages = [
        Stage("evaluate subnets", options.subnets * judged_s),
        Stage("latency", timed),
        Stage("search", many * options.candidates * 2 * (each + judged_s)),
    ]
    if options.fine_tune > 0:
        recipe = Recipe.named("standard", epochs=options.fine_tune)
        ask = rates.ends[FULL].forward_s
        seconds = many * training_s(recipe, usual, data, beside_s=ask / many)
        stages.append(Stage("fine-tune", seconds, many * COPIES * weights))
    last = len(data.test or data.validation)
    exported = many * (3 * each + (last + statistics) * usual.forward_s)
    return [*stages, Stage("export", exported, 2 * many * weights)]
