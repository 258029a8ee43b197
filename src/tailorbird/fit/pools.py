"""What is known at a place in one precision, and what is chosen from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from tailorbird.device import Precision
from tailorbird.errors import ExportError, MeasurementError
from tailorbird.fit.candidates import (
    Candidates,
    Judgement,
    Key,
    Network,
    Timing,
    estimates,
    rows,
)
from tailorbird.measure.counts import count, in_precision
from tailorbird.report.record import TrainingRound
from tailorbird.targets import LATENCY, PLAIN, Place, Target

EXACT = 1e-6
"""Estimates that are off by less are taken as exact."""

Option = tuple[str, Key]
"""A place's name, which says the precision, and a candidate."""


class Files(Protocol):
    """Judges candidates as files of a precision, where they will run."""

    def judge(
        self, place: Place, key: Key, plain: Judgement, trained: Network | None = None
    ) -> Judgement:
        """How a candidate's file answers validation images.

        Args:
            place: a device in some precision.
            key: of the candidate.
            plain: how the network in float32 answers all of them.
            trained: the network, where it has been trained further.

        Raises:
            ExportError: when the file can't be made or run.
            MeasurementError: when the device does not answer.
        """


def own_place(target: Target) -> Sequence[Place]:
    """The target's place as it is: float32 only."""
    return (target.place,)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate chosen for a target.

    Args:
        key: its genome.
        name: the same as a short text.
        limits: metric -> bound in its unit, margin not taken off.
        figures: metric -> figure of the whole network; latency measured where it can be.
        accuracy: on the validation split, before it is trained further.
        place: the name of the place in the precision that was chosen.
        precision: that its file computes in.
    """

    key: Key
    name: str
    limits: Mapping[str, float]
    figures: Mapping[str, float]
    accuracy: float
    place: str = ""
    precision: Precision = PLAIN


@dataclass
class Pool:
    """What is known at one place, in one precision.

    Args:
        place: where.
        timing: times networks there; ``None`` where the place has only a table.
        base: the reference's figures, in float32: what shares of limits are of.
        candidates: those proposed, each with its latency in ms, and the reference.
        checks: networks that only correct the estimate.
    """

    place: Place
    timing: Timing | None
    base: Mapping[str, float]
    candidates: dict[Key, float]
    checks: dict[Key, float] = field(default_factory=dict)

    @property
    def searched(self) -> bool:
        """Whether candidates have been proposed for this place: the reference is there anyway."""
        return len(self.candidates) > 1

    @property
    def informed(self) -> bool:
        """Whether the estimate has been corrected by whole networks."""
        return self.timing is not None and (self.searched or bool(self.checks))


@dataclass(frozen=True)
class Past:
    """The networks of a pool when it was left; their figures are in the place's store."""

    candidates: tuple[Key, ...] = ()
    checks: tuple[Key, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a contender of a target was trained, and how it answers since.

    Args:
        place: the name of a place, which says the precision, and
        key: the candidate there.
        share: of its training.
        quality: as it was judged then, and
        accuracy: ditto.
    """

    place: str
    key: Key
    share: float
    quality: float
    accuracy: float


@dataclass
class Aim:
    """How a target is chosen for: tighter after a miss, and without what missed.

    Args:
        scale: share of the limit that is asked for.
        missed: candidates that came out over it, or too near to tell, each with its place.
        undecided: the last of those that were too near: taken where nothing tighter is found.
        without: names of places whose precision does not do, and why.
        standings: of the candidates that have been trained for it.
        rounds: in which that was done, for the report.
    """

    scale: float = 1.0
    missed: list[Option] = field(default_factory=list)
    undecided: Option | None = None
    without: dict[str, str] = field(default_factory=dict)
    standings: tuple[Standing, ...] = ()
    rounds: tuple[TrainingRound, ...] = ()


class Pools(Mapping[str, Pool]):
    """The pools of all places, by the places' names.

    Args:
        candidates: what is measured.

    Attributes:
        failed: place's name -> why its device failed; that costs its own targets only.
        slow: place's name -> that its precision makes the reference no faster than float32 does.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.failed: dict[str, MeasurementError | ExportError] = {}
        self.slow: dict[str, str] = {}
        self._pools: dict[str, Pool] = {}
        self._counted: dict[Key, dict[str, float]] = {}

    def __getitem__(self, name: str) -> Pool:
        return self._pools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def open(self, place: Place, timing: Timing | None, past: Past | None = None) -> None:
        """Begin a place's pool, or take it up; a device that fails is noted in ``failed``."""
        reference, past = self.candidates.reference, past or Past()
        try:
            latency = self.candidates.open(place, timing)
            plain = latency if timing is None else timing.base_ms
            base = {**self.counted(reference), LATENCY: plain}
            self._pools[place.name] = Pool(place, timing, base, {reference: latency})
            if place.precision != PLAIN and latency >= plain:
                self.slow[place.name] = (
                    f"{place.precision} is no faster than float32 here: the "
                    f"{self.candidates.words.reference} takes {latency:.4g} ms, {plain:.4g} in "
                    "float32"
                )
            first = self.candidates.checks(place, ())
            self.measure(place.name, past.candidates, [*past.checks, *first])
        except (MeasurementError, ExportError) as error:
            self.failed[place.name] = error

    def past(self, name: str) -> Past:
        """What `open` needs to take up the pool of the place of that name."""
        pool = self._pools[name]
        return Past(tuple(pool.candidates), tuple(pool.checks))

    def new(self, name: str, keys: Iterable[Key]) -> list[Key]:
        """Those that are no network of a pool, each network once."""
        content = self.candidates.content
        known, found = {content(key) for key in self._pools[name].candidates}, []
        for key in sorted(set(keys)):
            if content(key) not in known:
                known.add(content(key))
                found.append(key)
        return found

    def measure(self, name: str, fresh: Sequence[Key], checks: Sequence[Key] = ()) -> None:
        """Take candidates and checks into a pool, and correct the estimate by them.

        Raises:
            ExportError, MeasurementError: when the device fails.
        """
        pool, candidates = self._pools[name], self.candidates
        if pool.timing is None:
            keys = list(fresh)
            if keys:
                latencies = estimates(candidates, pool.place, keys).tolist()
                pool.candidates |= dict(zip(keys, latencies, strict=True))
            return
        labels = {key: candidates.label(key) for key in (*fresh, *checks)}
        timed = pool.timing.measure(
            {label: partial(candidates.network, key) for key, label in labels.items()}
        )
        found = {key: timed[label].median_ms for key, label in labels.items()}
        pool.candidates |= {key: found[key] for key in fresh}
        pool.checks |= {key: found[key] for key in checks}
        proposed = {k: ms for k, ms in pool.candidates.items() if k != candidates.reference}
        if whole := {**pool.checks, **proposed}:
            candidates.learn(pool.place, whole)

    def counted(self, key: Key) -> dict[str, float]:
        """What is counted of a candidate: metric -> figure, latency left out."""
        if key not in self._counted:
            network = self.candidates.network(key)
            self._counted[key] = count(network.module, network.input_shape).as_metrics()
        return self._counted[key]

    def figures(self, option: Option) -> dict[str, float]:
        """What is counted of a candidate in a place's precision, and its latency there."""
        name, key = option
        pool = self._pools[name]
        counted = in_precision(self.counted(key), pool.place.precision)
        return {**counted, LATENCY: pool.candidates[key]}

    def bias(self, name: str) -> dict[str, float]:
        """Metric -> what is counted of a place's candidates, as a multiple of its estimate.

        Sizes and memory are estimated roughly; what is counted is exact.
        """
        reference, precision = self.candidates.reference, self._pools[name].place.precision
        keys = [key for key in self._pools[name].candidates if key != reference] or [reference]
        estimated = self.candidates.cost(rows(keys))
        found = {}
        for metric in self.counted(keys[0]).keys() & estimated.keys():
            exact = np.array([in_precision(self.counted(k), precision)[metric] for k in keys])
            ratio = float(np.median(exact / estimated[metric]))
            if abs(ratio - 1.0) > EXACT:
                found[metric] = ratio
        return found
