"""Choosing a subnet per target: one search for all, the best few measured and evaluated, again.

All subnets measured on a device form one pool, whichever target they were found for, so that a
target profits from its neighbours' candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tailorbird.errors import ExportError, InfeasibleError, MeasurementError
from tailorbird.estimate.predicted import Predictor
from tailorbird.family import Estimated, Floats
from tailorbird.pipeline.choose import MARGIN
from tailorbird.pipeline.search import COUNTED
from tailorbird.pipeline.supernet_pricing import SupernetPricing
from tailorbird.pipeline.supernet_run import SupernetRun
from tailorbird.progress import Progress
from tailorbird.report.words import figure
from tailorbird.search.baselines import Exhaustive
from tailorbird.search.many_targets import AllAtOnce
from tailorbird.search.reach import reachable
from tailorbird.search.selection import within
from tailorbird.search.strategy import Limits, Strategy
from tailorbird.space import Genomes
from tailorbird.supernet.family import SupernetFamily
from tailorbird.targets import LATENCY, Place, Target

FEW = 20_000
"""Up to this many members a space is searched exhaustively."""

TIGHTEST = 0.85
"""Candidates of a target are searched for between this share of its limits and all of them."""

NEAR = 0.95
"""A choice that takes this share of its latency limit leaves little to search for."""

SLACK = 1.001
"""What is asked for where the lowest figure is wanted, as a share of it."""

Genome = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One target: what is wanted, its device, its folder, and a hash of all that it answers to."""

    wanted: Target
    entry: Place
    home: Path
    key: str

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.wanted.name

    @property
    def device(self) -> str:
        """Name of the device."""
        return self.wanted.place.name


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A subnet chosen for a target.

    Args:
        genome: the subnet.
        accuracy: on validation images, statistics re-estimated, before fine-tuning.
        figures: metric -> figure; the latency is measured where it can be.
        limits: metric -> bound in its unit.
    """

    genome: Genome
    accuracy: float
    figures: Mapping[str, float]
    limits: Mapping[str, float]


@dataclass
class _State:
    """What was learned about a target: how much tighter to choose, and what missed."""

    scale: float = 1.0
    missed: set[Genome] = field(default_factory=set)


class Chooser:
    """Searches for targets, and holds the pools of measured candidates.

    Args:
        run: the supernet whose subnets are searched.
        pricings: device name -> latencies there.
        predictor: predicted accuracy of genomes.
        evaluate: accuracies of genomes on validation images.
        candidates: limits per target that are searched for.
        rounds: searches at most in one call of `settle`.
        seed: of the search.
        progress: told how it goes.
    """

    def __init__(
        self,
        run: SupernetRun,
        pricings: Mapping[str, SupernetPricing],
        predictor: Predictor,
        evaluate: Callable[[Genomes], Floats],
        *,
        candidates: int,
        rounds: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self.pricings, self.evaluate = pricings, evaluate
        self.candidates, self.rounds, self.seed = candidates, rounds, seed
        self.progress = progress
        self.family = SupernetFamily(
            run.supernet,
            predictor=predictor,
            costs={f"{LATENCY}@{name}": pricing.latency_ms for name, pricing in pricings.items()},
            calibration=run.calibration,
        )
        self.counted = {metric: self.family.costs[metric] for metric in COUNTED}
        full = run.supernet.largest()[None]
        self.full = {metric: float(of(full)[0]) for metric, of in self.counted.items()}
        self.failed: dict[str, MeasurementError | ExportError] = {}
        self._pools: dict[str, dict[Genome, float]] = {name: {} for name in pricings}
        self._states: dict[str, _State] = {}

    def base(self, device: str) -> dict[str, float]:
        """The full network's own figures."""
        return {**self.full, LATENCY: self.pricings[device].full_ms}

    def limits(self, request: Request) -> dict[str, float]:
        """The target's bounds in their units."""
        base = self.base(request.device)
        return {limit.metric: limit.absolute(base) for limit in request.wanted.limits}

    def settle(self, requests: Sequence[Request]) -> None:
        """Search until the choices come near their limits, nothing new is found, or enough."""
        left = list(requests)
        for _ in range(self.rounds):
            if not left or not self._search(left):
                return
            left = [r for r in left if r.device not in self.failed and not self._settled(r)]

    def choose(self, request: Request) -> Choice:
        """The most accurate of the device's pool within the limits, as measured.

        Raises:
            InfeasibleError: when none is, with the lowest figures that were measured.
            MeasurementError, ExportError: when the device failed.
        """
        if request.device in self.failed:
            raise self.failed[request.device]
        limits, state = self.limits(request), self._state(request)
        known = [one for one in self._known(request.device) if one.genome not in state.missed]
        tight = self._bounds(request)
        # The margin is given up before the target is; the student's own measurement decides then.
        for allowed in (tight, limits if state.scale == 1.0 else tight):
            met = [one for one in known if within(one.figures, allowed)]
            if met:
                best = max(met, key=lambda one: (one.accuracy, -one.figures[LATENCY]))
                return Choice(
                    genome=best.genome,
                    accuracy=best.accuracy,
                    figures=best.figures,
                    limits=limits,
                )
        lowest = {m: min(one.figures[m] for one in known) for m in limits} if known else {}
        asked = ", ".join(f"{m} <= {bound:.4g}" for m, bound in limits.items())
        reached = ", ".join(figure(m, value) for m, value in lowest.items())
        how = "measured" if self.pricings[request.device].measured else "predicted"
        slower = (
            f" (a student came out slower than it had been measured, so {tight[LATENCY]:.4g} ms "
            "were asked for)"
            if state.scale < 1.0 and LATENCY in tight
            else ""
        )
        raise InfeasibleError(
            f"target '{request.name}': no subnet found meets {asked}{slower}; lowest {how}: "
            f"{reached}; relax the limit, or train a supernet with smaller subnets",
            target=request.name,
            limits=limits,
            lowest=lowest,
        )

    def miss(self, request: Request, choice: Choice, slower: float) -> None:
        """Note that the choice came out over its limit, ``slower`` times what was measured."""
        state = self._state(request)
        state.missed.add(choice.genome)
        state.scale = min(state.scale, 0.99 / max(slower, 1.0))

    def missed(self, request: Request) -> bool:
        """Whether a choice for this target has come out over its limit."""
        return bool(self._state(request).missed)

    def _search(self, requests: Sequence[Request]) -> int:
        """One search for all; the number of candidates that are new."""
        owners, limits = self._wanted(requests)
        strategy: Strategy = Exhaustive() if self.family.space.size <= FEW else AllAtOnce()
        found = strategy.search(self.family, limits, seed=self.seed, progress=self.progress)
        if found.stopped:
            raise KeyboardInterrupt
        by_device: dict[str, list[np.ndarray]] = {}
        for owner, winner in zip(owners, found.winners, strict=True):
            by_device.setdefault(owner.device, []).append(winner.genome)
        return self._add({name: np.stack(rows) for name, rows in by_device.items()})

    def _add(self, genomes: Mapping[str, Genomes]) -> int:
        fresh = {
            name: np.array(
                sorted({tuple(row) for row in rows.tolist()} - self._pools[name].keys()),
                dtype=np.int64,
            )
            for name, rows in genomes.items()
        }
        fresh = {name: rows for name, rows in fresh.items() if len(rows)}
        if not fresh:
            return 0
        every = np.unique(np.concatenate(list(fresh.values())), axis=0)
        accuracies = dict(zip(map(tuple, every.tolist()), self.evaluate(every), strict=True))
        for name, rows in fresh.items():
            try:
                self.pricings[name].measure(rows)
            except (MeasurementError, ExportError) as error:
                self.failed[name] = error  # costs this device's targets only
                continue
            self.pricings[name].correct()
            for row in map(tuple, rows.tolist()):
                self._pools[name][row] = float(accuracies[row])
        return sum(map(len, fresh.values()))

    def _wanted(self, requests: Sequence[Request]) -> tuple[list[Request], list[Limits]]:
        """Limits to search for, those of one target from its own down to tighter ones."""
        owners: list[Request] = []
        limits: list[Limits] = []
        for request in requests:
            bounds = self._bounds(request)
            for share in np.linspace(1.0, TIGHTEST, self.candidates):
                owners.append(request)
                limits.append(
                    {self._metric(m, request): bound * share for m, bound in bounds.items()}
                )
        lowest = _unreachable(self.family, limits, seed=self.seed)
        kept: list[tuple[Request, Limits]] = []
        for row, (owner, bounds_) in enumerate(zip(owners, limits, strict=True)):
            if row not in lowest:
                kept.append((owner, bounds_))
            elif row % self.candidates == 0:
                # Its lowest subnet is measured: it may do, and the lowest figure is told if not.
                hardest = max(bounds_, key=lambda m: lowest[row][m] / bounds_[m])
                kept.append((owner, {hardest: lowest[row][hardest] * SLACK}))
        return [owner for owner, _ in kept], [bounds_ for _, bounds_ in kept]

    def _metric(self, metric: str, request: Request) -> str:
        return f"{metric}@{request.device}" if metric == LATENCY else metric

    def _bounds(self, request: Request) -> dict[str, float]:
        """What to choose by: the latency with a margin, tighter where a student missed it."""
        margin = MARGIN if self.pricings[request.device].measured else 0.0
        scale = self._state(request).scale * (1 - margin)
        return {
            metric: bound * (scale if metric == LATENCY else 1.0)
            for metric, bound in self.limits(request).items()
        }

    def _settled(self, request: Request) -> bool:
        try:
            choice = self.choose(request)
        except InfeasibleError:
            return False
        bound = self._bounds(request).get(LATENCY)
        return bound is None or choice.figures[LATENCY] >= NEAR * bound

    def _known(self, device: str) -> list[Choice]:
        pool = self._pools[device]
        if not pool:
            return []
        genomes = np.array(list(pool), dtype=np.int64)
        figures = {metric: of(genomes) for metric, of in self.counted.items()}
        figures[LATENCY] = self.pricings[device].measure(genomes)
        return [
            Choice(
                genome=genome,
                accuracy=accuracy,
                figures={metric: float(values[row]) for metric, values in figures.items()},
                limits={},
            )
            for row, (genome, accuracy) in enumerate(pool.items())
        ]

    def _state(self, request: Request) -> _State:
        return self._states.setdefault(request.name, _State())


def _unreachable(
    family: Estimated, limits: Sequence[Limits], *, seed: int
) -> dict[int, Mapping[str, float]]:
    """Row -> lowest figures, of the limits that nothing keeps; found by halving."""
    found: dict[int, Mapping[str, float]] = {}
    waiting = [range(len(limits))]
    while waiting:
        rows = waiting.pop()
        try:
            reachable(family, [limits[row] for row in rows], np.random.default_rng(seed))
        except InfeasibleError as error:
            if len(rows) == 1:
                found[rows[0]] = error.lowest
            else:
                middle = len(rows) // 2
                waiting += [rows[:middle], rows[middle:]]
    return found
