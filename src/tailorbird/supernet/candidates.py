"""The candidates of a trained supernet: its subnets.

Accuracy is predicted by what was learned from evaluated subnets; MACs and parameters are counted;
latencies are sums over layers that were timed alone, or a table's, corrected by whole networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.data.images import ImageData, Split
from tailorbird.data.resizing import AtSize
from tailorbird.errors import ConfigError, SpaceError, StoreError
from tailorbird.estimate.latency_files import UNCOVERED_MS, read_costs
from tailorbird.estimate.measured_table import (
    LEAST_NETWORKS,
    MeasuredTable,
    TableCheck,
    compile_measured,
    counted_layers,
    measure_layers,
)
from tailorbird.family import Floats
from tailorbird.fit.candidates import (
    Judgement,
    Key,
    Made,
    Network,
    Timing,
    Trained,
    Words,
    latency_at,
    rows,
)
from tailorbird.graph.trace import trace
from tailorbird.measure.counts import count
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Progress
from tailorbird.runfolder import short_hash
from tailorbird.space import Genome, Genomes, Space
from tailorbird.supernet.build import build_all
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.extract import extract
from tailorbird.supernet.layers import distinct_layers, single_layers
from tailorbird.supernet.network import Supernet
from tailorbird.supernet.predictor import Learned, learn, sampled
from tailorbird.targets import Place
from tailorbird.train.clock import Pause
from tailorbird.train.evaluate import accuracy
from tailorbird.train.precision import compute_device
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain_all
from tailorbird.train.students import Trained as Outcome

LEARNING_RATE = 0.01
"""Of the fine-tuning: the subnets have been trained already."""

PREDICTOR = "predictor.safetensors"
WHOLE = "net:"
"""Begins the names of whole networks in the store of latencies; others are keys of layers."""

WORDS = Words(
    reference="full network",
    candidate="subnet found",
    way_out="relax the limit, or train a supernet with smaller subnets",
    training="fine-tune",
    doing="fine-tuning",
    opening="latency of {place}",
)


@dataclass(frozen=True, kw_only=True)
class SubnetOptions:
    """How subnets are estimated and trained further.

    Args:
        subnets: evaluated for the accuracy predictor.
        checks: whole networks that check and correct each latency table.
        fine_tune: epochs that students are fine-tuned after the full network; 0 for none.
        seed: of every random choice.
    """

    subnets: int = 200
    checks: int = 12
    fine_tune: float = 0.0
    seed: int = 0


class SupernetCandidates:
    """Subnets of a trained supernet; implements `tailorbird.fit.candidates.Candidates`.

    Args:
        supernet: whose subnets; left as it is.
        data: training images fine-tune.
        weights: hash of the supernet's weights.
        evaluate: genomes (n, genes) -> accuracies (n,) on validation images, statistics
            re-estimated; what is known is not computed again.
        calibration: opens a walk over training images on a device, batches (m, 3, h, w), that a
            subnet's norm statistics are re-estimated from.
        folder: for latencies, the predictor and networks in training; made when missing.
        options: sizes of the steps.
        stage: opened around each stage to count its time.
        progress: told how it goes.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        *,
        weights: str,
        evaluate: Callable[[Genomes], Floats],
        calibration: Callable[[torch.device], Iterator[Tensor]],
        folder: Path,
        options: SubnetOptions,
        stage: Callable[[str], AbstractContextManager[None]],
        progress: Progress,
    ) -> None:
        self.supernet, self.data, self.weights = supernet, data, weights
        self.evaluate, self.calibration, self.folder = evaluate, calibration, folder
        self.options, self.stage, self.progress = options, stage, progress
        self.words, self.closes = WORDS, 0.3 if options.fine_tune > 0 else 0.0
        self.architectures = supernet.architectures
        self.reference: Key = _key(supernet.largest())
        self.learned: Learned | None = None
        self._tables: dict[str, MeasuredTable] = {}
        self._checks: dict[str, TableCheck] = {}
        self._macs, self._params = macs(self.architectures).sum, params(self.architectures).sum

    # estimated ----------------------------------------------------------------------------------

    @property
    def space(self) -> Space:
        """The genomes that name the subnets."""
        return self.architectures.space

    def cost(self, genomes: Genomes) -> dict[str, Floats]:
        """Figures (n,) of ``genomes`` (n, genes): MACs and parameters counted, the rest estimated.

        Size follows the parameters, and what else memory holds at its peak the images' area, both
        as in the full network; figures of candidates that are measured are exact.
        """
        parameters = self._params(genomes)
        size = parameters * self._full["size_mb"] / self._full["params"]
        side = np.array([int(str(value)) for value in self.space.choices[0].values])
        area = (side[genomes[:, 0]] / side.max()) ** 2
        found = {
            "macs": self._macs(genomes),
            "params": parameters,
            "size_mb": size,
            "peak_memory_mb": size + area * (self._full["peak_memory_mb"] - self._full["size_mb"]),
        }
        latencies = {metric: table.latency_ms(genomes) for metric, table in self._tables.items()}
        return found | latencies

    def quality(self, genomes: Genomes) -> Floats:
        """Predicted accuracy (n,) of ``genomes`` (n, genes).

        Raises:
            SpaceError: before `prepare` has learned it.
        """
        if self.learned is None:
            raise SpaceError("accuracy predictor: nothing has been learned yet; call prepare()")
        return self.learned.predict(genomes)

    @property
    def kinds(self) -> Mapping[str, Sequence[int]]:
        """None: all subnets share their weights."""
        return {}

    def kind(self, key: Key) -> str:
        """None."""
        return ""

    def prepare(self) -> None:
        """Evaluate some subnets, and learn a predictor of accuracy from them."""
        options, architectures = self.options, self.architectures
        if self.learned is not None:
            return
        genomes = sampled(architectures, options.subnets, seed=options.seed)
        with self.stage("evaluate subnets"):
            accuracies = self.evaluate(genomes)
        with self.stage("predict accuracy"):
            self.learned = learn(architectures, genomes, accuracies, seed=options.seed)
        self.learned.predictor.save(self.folder / PREDICTOR)
        self.progress.say(f"accuracy predictor: {self.learned}")

    # measured -----------------------------------------------------------------------------------

    def latencies(self, place: Place) -> Latencies:
        """Measured layers and networks."""
        return Latencies(self.folder / "latency", place.key)

    def open(self, place: Place, timing: Timing | None) -> float:
        """Read the place's latency table, or measure one layer by layer."""
        metric = latency_at(place)
        if place.table is not None:
            sums = read_costs(place.table, self.architectures)
            self._tables[metric] = MeasuredTable(sums, counted_layers(self.architectures))
        elif timing is None:
            raise ConfigError(f"{place.name}: expected a device or a latency table, got neither")
        else:
            ms = measure_layers(
                self.architectures,
                lambda shapes: single_layers(self.supernet, shapes),
                timing,
                progress=self.progress,
            )
            self._tables[metric] = compile_measured(self.architectures, ms)
        return self._full_ms(metric) if timing is None else timing.reference_ms

    def label(self, key: Key) -> str:
        """The genome in digits."""
        return WHOLE + ",".join(map(str, key))

    def named(self, label: str) -> Key | None:
        """The genome of a label; ``None`` for a layer, or the full network."""
        if not label.startswith(WHOLE):
            return None
        key = tuple(map(int, label.removeprefix(WHOLE).split(",")))
        return None if key == self.reference else key

    def content(self, key: Key) -> str:
        """Its label: no two genomes name one subnet."""
        return self.label(key)

    def checks(self, place: Place, proposed: Sequence[Key]) -> Sequence[Key]:
        """Some of the evaluated subnets, spread over their sizes, before the first search."""
        if proposed or self.learned is None:
            return ()
        every, count = self.learned.genomes, self.options.checks
        return [_key(g) for g in every[:: max(1, len(every) // count)][:count]]

    def learn(self, place: Place, measured_ms: Mapping[Key, float]) -> None:
        """Correct the table by whole networks; the first ones check it."""
        metric = latency_at(place)
        table, whole = self._tables[metric], rows(sorted(measured_ms))
        whole = whole[table.sums(whole) < UNCOVERED_MS]  # others say nothing of the table
        if len(whole) < LEAST_NETWORKS:
            return
        corrected = table.corrected(whole, [measured_ms[_key(genome)] for genome in whole])
        self._tables[metric] = corrected.table
        if place.name not in self._checks:
            self._checks[place.name] = corrected.check
            self.progress.say(f"{place.name}: latency table {corrected.check}")

    def note(self, place: Place) -> str:
        """How a place's table agreed with the first whole networks; empty for one not opened."""
        check = self._checks.get(place.name)
        if check is not None:
            return str(check)
        return "from its table" if latency_at(place) in self._tables else ""

    # built and judged ---------------------------------------------------------------------------

    def network(self, key: Key) -> Network:
        """The subnet on its own, statistics as in the supernet."""
        genome = np.array(key, dtype=np.int64)
        return Network(extract(self.supernet, genome).eval(), self._shape(key))

    def judge(self, keys: Sequence[Key]) -> Sequence[Judgement]:
        """By accuracy on validation images, several subnets in one pass."""
        return [Judgement(float(a), float(a)) for a in self.evaluate(rows(keys))]

    @property
    def comparing(self) -> Split:
        """The validation images: a supernet is trained without them."""
        return self.data.choosing

    def weigh(
        self, network: Network, images: int | None = None, *, trained: bool = False
    ) -> Judgement:
        """By accuracy on some of the validation images or all."""
        module = AtSize(network.module, network.input_shape)
        found = accuracy(module, self.data.validation, device=compute_device(), limit=images)
        return Judgement(found, found)

    def judged_as(self, key: Key) -> Network:
        """The subnet on its own, recalibrated."""
        [module] = self._recalibrated([key])
        return Network(module.eval(), self._shape(key))

    def as_they_are(self) -> Mapping[str, Made]:
        """None: the full network is a candidate like others."""
        return {}

    def parts(self, key: Key) -> tuple[str, ...]:
        """Nothing: a subnet is one piece."""
        return ()

    @cached_property
    def full_network(self) -> Network:
        """The full network as it is exported: recalibrated, traced, at its own resolution."""
        [module] = self._recalibrated([self.reference])
        shape = self._shape(self.reference)
        return Network(trace(module, shape).module, shape)

    # trained further ----------------------------------------------------------------------------

    @property
    def epochs(self) -> float:
        """Of the fine-tuning."""
        return self.options.fine_tune

    @property
    def minutes(self) -> None:
        """Fine-tuning takes its epochs."""

    def training(self, key: Key) -> str:
        """A short hash of what a fine-tuned subnet comes from, whatever its targets."""
        options = self.options
        made_from = [key, options.fine_tune, options.seed, self.weights, self.data.fingerprint]
        return short_hash(made_from)

    def observe(self, trained: Sequence[Trained]) -> None:
        """Accuracies are predicted by what was learned from subnets as they are."""

    def train(self, names: Mapping[Key, str], *, pause: Pause | None = None) -> Mapping[Key, Made]:
        """Recalibrate subnets in one walk over the images; fine-tune them together if asked to."""
        plain = dict(zip(names, self._recalibrated(list(names)), strict=True))
        tuned = self._fine_tuned(plain, names, pause) if self.options.fine_tune > 0 else {}
        made = {}
        for key, module in plain.items():
            shape, outcome = self._shape(key), tuned.get(key)
            after = module if outcome is None else _network_of(outcome)
            made[key] = Made(
                module=trace(after, shape).module,
                input_shape=shape,
                before=module if tuned else None,
                seconds=0.0 if outcome is None else outcome.seconds,
                epochs=0.0 if outcome is None else outcome.epochs,
            )
        return made

    def _fine_tuned(
        self, modules: Mapping[Key, nn.Module], names: Mapping[Key, str], pause: Pause | None
    ) -> dict[Key, Outcome]:
        """Train them on after the full network, in one pass of it per batch."""
        options, full = self.options, self.full_network
        outcomes = retrain_all(
            [
                Assignment(
                    name=names[key],
                    student=AtSize(module, self._shape(key)),
                    checkpoint=self.folder / "fine-tune" / self.training(key),
                )
                for key, module in modules.items()
            ],
            AtSize(full.module, full.input_shape),
            self.data,
            recipe=Recipe.named(
                "standard", epochs=options.fine_tune, learning_rate=LEARNING_RATE, mse_weight=0.0
            ),
            seed=options.seed,
            progress=self.progress,
            pause=pause,
        )
        for outcome in outcomes:
            outcome.tell(self.progress, doing=WORDS.doing)
        return dict(zip(modules, outcomes, strict=True))

    def _recalibrated(self, keys: Sequence[Key]) -> list[nn.Sequential]:
        """Subnets on their own, recalibrated in one walk, on the CPU in eval mode."""
        device = compute_device()
        net = copy.deepcopy(self.supernet).to(device) if device.type != "cpu" else self.supernet
        return [m.cpu() for m in build_all(net, rows(keys), self.calibration(device))]

    # figures ------------------------------------------------------------------------------------

    @cached_property
    def _full(self) -> dict[str, float]:
        """What is counted of the full network."""
        network = self.network(self.reference)
        return count(network.module, network.input_shape).as_metrics()

    def _full_ms(self, metric: str) -> float:
        """The full network's latency by a table, at the largest resolution that it covers."""
        sizes = np.stack([self.supernet.largest()] * len(self.space.choices[0].values))
        sizes[:, 0] = np.arange(len(sizes))
        found = self._tables[metric].latency_ms(sizes)
        return float(found[found < UNCOVERED_MS].max())

    def _shape(self, key: Key) -> tuple[int, int, int]:
        size = self.supernet.resolution(np.array(key, dtype=np.int64))
        return (3, size, size)


def check_places(places: Sequence[Place], supernet: Supernet, *, layers_at_most: int) -> None:
    """See to it that tables fit the space and layers can be timed, before time is spent.

    Raises:
        ConfigError: all faults at once.
    """
    problems = []
    space = supernet.architectures
    layers = len(distinct_layers(space))
    for place in places:
        if place.table is not None:
            try:
                read_costs(place.table, space)
            except ConfigError as error:
                problems += [f"{place.name}: {problem}" for problem in error.problems]
            except (SpaceError, StoreError) as error:
                problems.append(f"{place.name}: {error}")
        elif layers > layers_at_most:
            problems.append(
                f"{place.name}: {space.name} has {layers} distinct layers to time, expected at "
                f"most {layers_at_most}; raise layers_at_most, name a latency table, or train the "
                "supernet with fewer resolutions"
            )
    if problems:
        raise ConfigError(problems)


def _network_of(outcome: Outcome) -> nn.Module:
    """What was trained, without what scaled its images."""
    assert isinstance(outcome.module, AtSize)
    return outcome.module.network


def _key(genome: Genome) -> Key:
    return tuple(genome.tolist())
