"""The seam between what can be built and what is fitted: a flow's candidates.

A model house and a supernet are both a discrete set of networks that can be estimated, built,
judged and trained further. Whatever implements `Candidates` goes through one path (`fit/`): search,
measure whole, correct the estimate, judge, train further, export, prove, measure the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tailorbird.data.images import Split
from tailorbird.device import Latency
from tailorbird.family import Estimated, Floats
from tailorbird.space import Genomes
from tailorbird.targets import LATENCY, Place

if TYPE_CHECKING:
    from torch import fx, nn

    from tailorbird.measure.latencies import Latencies
    from tailorbird.train.clock import Pause

Key = tuple[int, ...]
"""Names a candidate: its genome. The same in every process that works on one run."""


@dataclass(frozen=True)
class Network:
    """A network and the shape (C, H, W) of what it takes, without the batch."""

    module: nn.Module
    input_shape: tuple[int, ...]


Make = Callable[[], Network]
"""Builds a network when it is needed: most of those asked for have been timed before."""


class Timing(Protocol):
    """Times networks at one place, beside the reference, and remembers."""

    @property
    def base_ms(self) -> float:
        """The reference's latency there in float32: what shares of limits are of."""

    @property
    def reference_ms(self) -> float:
        """The reference's own latency there, in the place's precision."""

    @property
    def known(self) -> Mapping[str, Latency]:
        """What has been measured there before."""

    def measure(
        self, networks: Mapping[str, Make], *, title: str = ..., together: int = ...
    ) -> Mapping[str, Latency]:
        """Latencies by name, as if the reference took `base_ms` now, too.

        Args:
            networks: name -> builds it; the name says whether it is known.
            title: of the task that is shown.
            together: networks timed in one session.

        Raises:
            ExportError: when one can't be exported.
            MeasurementError: when one can't be run.
        """


@dataclass(frozen=True)
class Judgement:
    """How a candidate answers the validation images, before it is trained further.

    Args:
        quality: what candidates are ranked by; higher is better.
        accuracy: share of right answers; of those that agree with the reference's without labels.
    """

    quality: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What became of a candidate that was trained a share of its schedule.

    Args:
        key: its genome.
        share: of the schedule.
        quality: as `Judgement.quality`, of the trained network.
    """

    key: Key
    share: float
    quality: float


@dataclass(frozen=True, kw_only=True)
class Made:
    """A candidate trained further, as it is shipped.

    Args:
        module: on the CPU in eval mode, cut and traced.
        input_shape: (C, H, W).
        before: as it was before that training; ``None`` where there was none.
        seconds: that its training took, shared by those trained with it.
        epochs: that it has been trained for so far.
    """

    module: fx.GraphModule
    input_shape: tuple[int, ...]
    before: nn.Module | None
    seconds: float = 0.0
    epochs: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a flow calls its things in messages.

    Args:
        reference: such as ``"teacher"``.
        candidate: such as ``"candidate of this house"``.
        way_out: what to do where no candidate keeps a limit.
        training: the stage in which students are trained further.
        doing: the same as an activity.
        opening: the stage in which a place is opened, with ``{place}`` for its name.
    """

    reference: str
    candidate: str
    way_out: str
    training: str
    doing: str
    opening: str


class Candidates(Estimated, Protocol):
    """A flow's networks: estimated (space, cost, quality), built, judged, trained further.

    ``cost`` gives what is counted of a network and, for each place that was opened, the latency
    there under `latency_at`. Estimates get better as `learn` is told what was measured.
    """

    @property
    def words(self) -> Words:
        """What things are called."""

    @property
    def reference(self) -> Key:
        """What shares of limits are of: the teacher, or the full network."""

    @property
    def closes(self) -> float:
        """Share of what a candidate's accuracy lacks of the reference's that training it further
        is expected to win, before any has been trained.
        """

    @property
    def kinds(self) -> Mapping[str, Sequence[int]]:
        """Kinds of candidates that quality before training does not compare: name -> indices of
        the alternatives that such a candidate is made of; all else is of no kind. Empty where costs
        don't add up.
        """

    def kind(self, key: Key) -> str:
        """A candidate's kind; empty for none of `kinds`."""

    def prepare(self) -> None:
        """What is needed before the first place is opened; only called where something is open."""

    def latencies(self, place: Place) -> Latencies:
        """Where measurements at a place are kept."""

    def open(self, place: Place, timing: Timing | None) -> float:
        """Begin the estimate of latencies at a place; returns the reference's, in ms.

        Args:
            place: where, and in which precision: each has estimates of its own.
            timing: times parts and networks there; ``None`` where the place only has a table.

        Raises:
            ExportError, MeasurementError: when the device fails.
        """

    def label(self, key: Key) -> str:
        """A short name for stores of latencies, equal for equal networks of one run.

        It may be that of another candidate of the same structure, which is as fast.
        """

    def named(self, label: str) -> Key | None:
        """The candidate that `label` named; ``None`` for the name of anything else."""

    def content(self, key: Key) -> str:
        """Equal for candidates that are one network, weights included, put together in two ways."""

    def checks(self, place: Place, proposed: Sequence[Key]) -> Sequence[Key]:
        """Further networks to measure whole, which tell most about the estimate at a place.

        Args:
            place: where.
            proposed: what a first search proposed; empty before it.
        """

    def learn(self, place: Place, measured_ms: Mapping[Key, float]) -> None:
        """Correct the estimate of latencies at a place by all whole networks measured there."""

    def network(self, key: Key) -> Network:
        """The candidate as it would be exported, but for its training."""

    def judge(self, keys: Sequence[Key]) -> Sequence[Judgement]:
        """How candidates answer the validation images; what is known is not computed again."""

    def weigh(
        self, network: Network, images: int | None = None, *, trained: bool = False
    ) -> Judgement:
        """How any network answers the validation images.

        Args:
            network: such as a file of a candidate.
            images: how many at most; the choice is the same for every network. None for all.
            trained: quality is of `comparing`; else it is as `judge` gives it.
        """

    @property
    def comparing(self) -> Split:
        """Images on which networks compare that were trained apart, with labels."""

    def judged_as(self, key: Key) -> Network:
        """The candidate as `judge` looks at it, on the CPU in eval mode."""

    @property
    def epochs(self) -> float:
        """Of a candidate's whole training; 0 where candidates are not trained further."""

    @property
    def minutes(self) -> float | None:
        """That all that are trained together may take; ``None`` for as long as it takes."""

    def training(self, key: Key) -> str:
        """A short hash of all that a candidate's training comes from, itself included."""

    def train(self, names: Mapping[Key, str], *, pause: Pause | None = None) -> Mapping[Key, Made]:
        """Train candidates further, together.

        What was trained before goes on from there; it ends as if it had never paused.

        Args:
            names: for messages; all different.
            pause: where to stop for now; ``None`` for the end of the training.
        """

    def observe(self, trained: Sequence[Trained]) -> None:
        """Take in what became of candidates that were trained, all that are known: a flow may
        correct its estimate of quality by them.
        """

    def as_they_are(self) -> Mapping[str, Made]:
        """Networks by name that need no training and may be shipped where they are better."""

    def parts(self, key: Key) -> tuple[str, ...]:
        """What a candidate is made of, for the report."""


def latency_at(place: Place) -> str:
    """The metric of a search that is the latency at a place.

    Example:
        >>> latency_at(Place(name="phone"))
        'latency_ms@phone'
    """
    return f"{LATENCY}@{place.name}"


def rows(keys: Sequence[Key]) -> Genomes:
    """Keys as genomes (n, genes)."""
    return np.array(keys, dtype=np.int64)


def estimates(candidates: Candidates, place: Place, keys: Sequence[Key]) -> Floats:
    """Estimated latencies (n,) of candidates at a place that was opened."""
    return candidates.cost(rows(keys))[latency_at(place)]
