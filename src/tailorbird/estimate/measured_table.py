"""A latency table of a supernet's space, measured layer by layer on a device that is at hand.

Every distinct layer is timed once, alone; a network's estimate is the sum over its layers. The sum
is off by what a call of the runtime costs (counted once per layer instead of once), and by caches
and fused operators. A few whole networks tell how far:

    latency = a * sum + b * layers + c

with a near 1, b near minus the cost of a call, c near its cost: ridge regression of the relative
errors, so that a dozen networks are enough. How good it is, is told on networks left out of the
fit, each in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from tailorbird.errors import SpaceError
from tailorbird.family import Floats
from tailorbird.fit.candidates import Network, Timing
from tailorbird.progress import Progress, Silent
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace, LayerShape, SlotTable
from tailorbird.supernet.layers import SingleLayer, distinct_layers, layer_key
from tailorbird.threads import one_thread

BATCH = 32
"""Layers exported and timed together; what a kill can lose."""

LEAST_NETWORKS = 3
"""Whole networks that a correction needs."""

NOISE = 0.01
"""Standard error of a whole network's latency, as a share of it."""

SPREADS = (0.3, 0.3, 0.1)
"""How far a, b and c may be from 1, 0 and 0: of a; of what b and c add, as shares of a latency."""

_SILENT = Silent()


def measure_layers(
    space: ArchitectureSpace,
    take: Callable[[Sequence[LayerShape]], Iterable[SingleLayer]],
    timing: Timing,
    *,
    progress: Progress = _SILENT,
) -> dict[LayerShape, float]:
    """Median latency in ms of each distinct layer of the space, alone; continues what is known.

    Layers of a batch take turns. Time grows with the distinct layers, not with targets or networks:
    some 30 ms each for the export, and the device's runs.

    Args:
        space: whose layers.
        take: shapes to layers, such as `tailorbird.supernet.layers.single_layers` of a supernet.
        timing: what times them, and knows what it has timed before.
        progress: told the time that the first batch promises.

    Raises:
        MeasurementError: when the device can't run or time a layer.
    """
    shapes = distinct_layers(space)
    todo = [shape for shape in shapes if layer_key(shape) not in timing.known]
    begun = time.perf_counter()
    layers = iter(take(todo) if todo else ())
    for number, batch in enumerate(iter(lambda: list(islice(layers, BATCH)), [])):
        networks = {
            layer_key(one.shape): partial(Network, one.module, one.input_shape) for one in batch
        }
        timing.measure(networks, title="time layers", together=BATCH)
        if number == 0 and len(todo) > len(batch):
            each = (time.perf_counter() - begun) / len(batch)
            progress.say(
                f"latency table: {len(todo)} layers to time, about "
                f"{each * len(todo) / 60:.1f} minutes"
            )
    return {shape: timing.known[layer_key(shape)].median_ms for shape in shapes}


@dataclass(frozen=True, eq=False)
class MeasuredTable:
    """Sums of layers' latencies, and the correction by whole networks.

    Args:
        sums: genomes (n, genes) -> summed latencies of their layers (n,), ms.
        counts: genomes (n, genes) -> numbers of their layers (n,).
        correction: (3,) factors a, b, c of the module's formula.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("compofa-mbv3-w1.0")
        >>> table = compile_measured(space, dict.fromkeys(distinct_layers(space), 0.5))
        >>> table.latency_ms(np.zeros((1, 6), dtype=np.int64))
        array([8.])
        >>> whole = space.space.sample(9, np.random.default_rng(0))
        >>> table.corrected(whole, table.latency_ms(whole) - 2.0).check.after.mape < 0.01
        True
    """

    sums: Callable[[Genomes], Floats]
    counts: Callable[[Genomes], Floats]
    correction: tuple[float, float, float] = (1.0, 0.0, 0.0)

    def latency_ms(self, genomes: Genomes) -> Floats:
        """Estimates (n,) for canonical genomes (n, genes)."""
        return np.asarray(self._inputs(genomes) @ np.array(self.correction))

    @one_thread()
    def corrected(self, genomes: Genomes, measured_ms: npt.ArrayLike) -> Corrected:
        """This table after whole networks (n, genes) were measured, and how good it is.

        Raises:
            SpaceError: for fewer than three networks, or latencies that aren't positive.
        """
        measured = np.asarray(measured_ms, dtype=np.float64)
        if len(measured) < LEAST_NETWORKS or len(measured) != len(genomes):
            raise SpaceError(
                f"whole networks: expected {LEAST_NETWORKS} or more with a latency each, got "
                f"{len(genomes)} and {len(measured)}"
            )
        if not (np.isfinite(measured).all() and (measured > 0).all()):
            raise SpaceError(f"whole networks: expected latencies above 0, got {measured}")
        inputs = self._inputs(genomes)
        rows = np.arange(len(measured))
        left_out = np.array(
            [inputs[row] @ _fit(inputs[rows != row], measured[rows != row]) for row in rows]
        )
        a, b, c = _fit(inputs, measured)
        check = TableCheck(
            networks=len(measured),
            before=_agreement(inputs[:, 0], measured),
            after=_agreement(left_out, measured),
        )
        return Corrected(MeasuredTable(self.sums, self.counts, (a, b, c)), check)

    def _inputs(self, genomes: Genomes) -> Floats:
        sums = self.sums(genomes)
        return np.stack([sums, self.counts(genomes), np.ones(len(sums))], axis=1)


@dataclass(frozen=True)
class Agreement:
    """How estimates agree with measurements.

    Attributes:
        mape: mean absolute error as a share of the measurement.
        kendall_tau: rank correlation; 0 where all are equal.
    """

    mape: float
    kendall_tau: float


@dataclass(frozen=True)
class TableCheck:
    """A table against whole networks.

    Attributes:
        networks: their number.
        before: of the plain sums.
        after: of the corrected sums, each network estimated from the others.
    """

    networks: int
    before: Agreement
    after: Agreement

    def __str__(self) -> str:
        def words(one: Agreement) -> str:
            return f"{100 * one.mape:.1f} % off, Kendall tau {one.kendall_tau:.2f}"

        return (
            f"against {self.networks} whole networks: sums {words(self.before)}; corrected (each "
            f"network left out) {words(self.after)}"
        )


@dataclass(frozen=True, eq=False)
class Corrected:
    """A corrected table and its check."""

    table: MeasuredTable
    check: TableCheck


def compile_measured(space: ArchitectureSpace, ms: Mapping[LayerShape, float]) -> MeasuredTable:
    """The table of layers timed on one device, not corrected yet.

    Raises:
        SpaceError: where a layer has no latency, with the count.
    """
    missing = [shape for shape in distinct_layers(space) if shape not in ms]
    if missing:
        raise SpaceError(
            f"latency table: {len(missing)} layers of {space.name} were not timed, the first is "
            f"{missing[0]}"
        )
    return MeasuredTable(SlotTable(space, lambda s: ms[s]).sum, counted_layers(space))


def counted_layers(space: ArchitectureSpace) -> Callable[[Genomes], Floats]:
    """Numbers (n,) of the layers of genomes (n, genes)."""
    return SlotTable(space, lambda _: 1.0).sum


def _fit(inputs: Floats, measured: Floats) -> Floats:
    """Factors (3,) of least squared relative errors, held near (1, 0, 0) as SPREADS says."""
    typical = inputs.mean(axis=0) / measured.mean()
    scales = np.array(SPREADS) / np.array([1.0, *typical[1:]])
    weighted = inputs / measured[:, None] * scales / NOISE
    gap = (1.0 - inputs[:, 0] / measured) / NOISE
    moved = np.linalg.solve(weighted.T @ weighted + np.eye(3), weighted.T @ gap)
    return np.asarray(np.array([1.0, 0.0, 0.0]) + moved * scales)


def _agreement(estimated: Floats, measured: Floats) -> Agreement:
    tau = float(kendalltau(estimated, measured).statistic)
    return Agreement(
        mape=float((np.abs(estimated - measured) / measured).mean()),
        kendall_tau=tau if np.isfinite(tau) else 0.0,
    )
