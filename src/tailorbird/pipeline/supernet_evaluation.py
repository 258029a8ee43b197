"""How good a supernet is from its smallest to its largest subnet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tailorbird.device import Device, key_of
from tailorbird.errors import ConfigError
from tailorbird.export.exporters import OnnxExporter
from tailorbird.files import write_json
from tailorbird.fit.bench import time_networks
from tailorbird.fit.candidates import Network
from tailorbird.pipeline.supernet_run import Floats, SupernetRun, evaluate_subnets
from tailorbird.progress import Progress, Silent
from tailorbird.report.supernet_evaluation import EvaluatedSubnet, SupernetEvaluation
from tailorbird.report.supernet_plot import picture
from tailorbird.runfolder import RunFolder
from tailorbird.space import Genomes
from tailorbird.supernet.calibrate import recalibrate
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.extract import extract
from tailorbird.supernet.pareto import bucket_front, mean_pareto_accuracy
from tailorbird.supernet.predictor import sampled

RANGES = 6
"""Of MACs, for the front and the mean Pareto accuracy."""


def evaluate_run(
    run: SupernetRun,
    *,
    subnets: int = 100,
    seed: int = 0,
    images: int | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
) -> SupernetEvaluation:
    """Evaluate the smallest, the largest and ``subnets`` others, balanced over MACs.

    Writes ``evaluation.json`` and ``evaluation.png`` into the run folder, and each subnet as it
    becomes known.

    Args:
        run: the supernet.
        subnets: how many beside the smallest and the largest; small spaces have fewer.
        seed: of the choice of subnets.
        images: of the validation split; ``None`` for all.
        device: times the front's subnets, the smallest and the largest, exported to ONNX.
        progress: told what is going on.

    Raises:
        ConfigError: for numbers out of range.
        StoreError: for a run folder that is in use or can't be written.
        MeasurementError, ExportError: where latencies can't be measured.
    """
    wrong = [
        f"{name}: expected {least} or more, got {value}"
        for name, value, least in (
            ("subnets", subnets, 1),
            ("seed", seed, 0),
            ("images", images, 1),
        )
        if value is not None and value < least
    ]
    if wrong:
        raise ConfigError(wrong)
    folder = RunFolder(run.path)
    with folder.open(None), folder.stage("evaluate"):
        genomes = sampled(run.architectures, subnets + 2, seed=seed)
        found = _judged(run, genomes, seed=seed, images=images, progress=progress)
        if device is not None:
            found = timed(run, found, device, progress=progress or Silent())
        write_json(run.path / "evaluation.json", found.plain())
        picture(found, run.path / "evaluation.png")
    return found


def timed(
    run: SupernetRun, found: SupernetEvaluation, device: Device, *, progress: Progress
) -> SupernetEvaluation:
    """The same with latencies of the front's subnets, the smallest and the largest, at batch 1."""
    wanted = list(
        {
            subnet.genome: subnet
            for subnet in (found.smallest, *found.front, found.largest)
            if subnet is not None
        }.values()
    )
    genomes = np.array([subnet.genome for subnet in wanted], dtype=np.int64)
    statistics = recalibrate(run.supernet, genomes, run.calibration())
    networks = [
        Network(
            extract(run.supernet, genome, statistics=own).eval(),
            (3, one.resolution, one.resolution),
        )
        for genome, own, one in zip(genomes, statistics, wanted, strict=True)
    ]
    with progress.task("measure latency", 1) as task:
        latencies = time_networks(networks, device, OnnxExporter())
        task.advance()
    known = {one.genome: own.median_ms for one, own in zip(wanted, latencies, strict=True)}

    def with_latency(subnet: EvaluatedSubnet) -> EvaluatedSubnet:
        return replace(subnet, latency_ms=known.get(subnet.genome))

    return replace(
        found,
        smallest=with_latency(found.smallest),
        largest=with_latency(found.largest),
        front=tuple(one and with_latency(one) for one in found.front),
        subnets=tuple(map(with_latency, found.subnets)),
        device=key_of(device),
    )


def _judged(
    run: SupernetRun,
    genomes: Genomes,
    *,
    seed: int,
    images: int | None,
    progress: Progress | None,
) -> SupernetEvaluation:
    accuracies = evaluate_subnets(run, genomes, images=images, progress=progress)
    costs = macs(run.architectures).sum(genomes)
    subnets = _subnets(run, genomes, costs, accuracies)
    edges = np.linspace(costs.min(), costs.max(), RANGES + 1)
    front: list[EvaluatedSubnet | None] = [None] * RANGES
    for row in bucket_front(costs, accuracies, buckets=RANGES):
        front[int(np.searchsorted(edges[1:-1], costs[row], side="right"))] = subnets[row]
    return SupernetEvaluation(
        run=str(run.path),
        space=run.architectures.name,
        seed=seed,
        images=min(images or len(run.data.validation), len(run.data.validation)),
        mean_pareto_accuracy=mean_pareto_accuracy(costs, accuracies, buckets=RANGES),
        ranges=tuple(edges.tolist()),
        smallest=subnets[0],
        largest=subnets[1],
        front=tuple(front),
        subnets=tuple(subnets),
    )


def _subnets(
    run: SupernetRun,
    genomes: Genomes,
    costs: Floats,
    accuracies: Floats,
) -> Sequence[EvaluatedSubnet]:
    weights = params(run.architectures).sum(genomes)
    described = run.architectures.architectures(genomes)
    return [
        EvaluatedSubnet(
            architecture=architecture,
            genome=tuple(genome.tolist()),
            resolution=run.supernet.resolution(genome),
            macs=float(cost),
            params=float(weight),
            accuracy=float(accuracy),
        )
        for architecture, genome, cost, weight, accuracy in zip(
            described, genomes, costs, weights, accuracies, strict=True
        )
    ]
