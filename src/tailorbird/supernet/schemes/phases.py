"""Training in phases: each opens a part of the space, with a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tailorbird.errors import ConfigError, Fault
from tailorbird.family import Floats
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import Observe, Region, Sampler, SamplerOf, observer
from tailorbird.supernet.schemes.scheme import (
    Action,
    FreezeTeacher,
    FreshOptimizer,
    Member,
    Resolution,
    SortChannels,
    Step,
    answers,
    labels,
    steps_of,
    together,
    too_long,
)
from tailorbird.train.optimisers import cosine
from tailorbird.train.recipe import check_numbers


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training.

    Args:
        name: shown in progress and history.
        epochs: passes over the training images.
        learning_rate: peak; a cosine takes it to near 0 within the phase.
        warmup_epochs: of ``epochs``, in which the rate rises from near 0.
        opens: key of the official form -> how many of its largest values are allowed, ``None`` for
            all; what isn't named stays at its largest value. ``None`` in place of the whole: the
            full network alone, and no distillation.
        networks: subnets per step.
        sort: sort the channels inside blocks by importance first.
    """

    name: str
    epochs: float
    learning_rate: float
    warmup_epochs: float = 0.0
    opens: Mapping[str, int | None] | None = field(default_factory=dict)
    networks: int = 1
    sort: bool = False


def phase_problems(scheme: str, phases: Sequence[Phase]) -> list[str]:
    """What is wrong with phases, such as one of 0 epochs: every value that is out of range."""
    problems: list[str] = []
    if not phases:
        problems.append(Fault(f"{scheme}.phases", "expected 1 or more, got none"))
    for phase in phases:
        place = f"{scheme}.{phase.name}"
        try:
            check_numbers(
                place,
                vars(phase),
                positive=("epochs", "learning_rate"),
                not_negative=("warmup_epochs",),
                counts={"networks": 1},
                others=too_long(f"{place}.warmup_epochs", phase.warmup_epochs, phase.epochs),
            )
        except ConfigError as error:
            problems.extend(error.problems)
    return problems


class PhasedPlan:
    """Phases over the steps of one run.

    Every phase begins with an optimiser that knows no momenta, as the original's separate runs do.
    After the phases of the full network alone, it is frozen as the teacher; where there are none,
    the network that training starts with is.
    """

    def __init__(
        self,
        architectures: ArchitectureSpace,
        phases: Sequence[Phase],
        per_epoch: int,
        *,
        sampler: SamplerOf,
        resolution: Resolution,
        label_smoothing: float,
        distil: float,
    ) -> None:
        self.phases = tuple(phases)
        self.resolution = resolution
        self.per_epoch = per_epoch
        self.smoothed = labels(label_smoothing)
        self.taught = (*self.smoothed, *answers(distil)) if distil else self.smoothed
        self.distil = distil
        lengths = [steps_of(phase.epochs, per_epoch) for phase in self.phases]
        self.ends = np.cumsum(lengths)
        self.total = int(self.ends[-1])
        self.at = 0
        self.regions = [Region.opened(architectures, phase.opens or {}) for phase in self.phases]
        self.per_phase = [
            None if phase.opens is None else sampler(region, phase.networks)
            for phase, region in zip(self.phases, self.regions, strict=True)
        ]

    @property
    def samplers(self) -> Sequence[Sampler]:
        """One per phase that samples."""
        return [sampler for sampler in self.per_phase if sampler is not None]

    @property
    def observe(self) -> Observe | None:
        """Tells the sampler of the phase at hand."""
        learns = any(observer(sampler) is not None for sampler in self.samplers)
        return self._tell if learns else None

    def _tell(self, genomes: Genomes, losses: Floats) -> None:
        if (observe := observer(self.per_phase[self.at])) is not None:
            observe(genomes, losses)

    def step(self, number: int, rng: np.random.Generator) -> Step:
        """What the phase says that the step lies in."""
        self.at = at = int(np.searchsorted(self.ends, number, side="right"))
        phase, region, sampler = self.phases[at], self.regions[at], self.per_phase[at]
        start = int(self.ends[at - 1]) if at else 0
        drawn = region.largest[None] if sampler is None else sampler.sample(number, rng)
        if self.resolution == "step":
            drawn = together(drawn, rng, region)
        learns = sampler is not None and self.distil > 0
        networks = tuple(
            Member(
                genome=genome,
                terms=self.taught if learns else self.smoothed,
                teacher="frozen" if learns else None,
            )
            for genome in drawn
        )
        return Step(
            networks=networks,
            rate=cosine(
                number - start,
                int(self.ends[at]) - start,
                peak=phase.learning_rate,
                warmup=round(phase.warmup_epochs * self.per_epoch),
            ),
            phase=phase.name,
            before=self._before(at) if number == start else (),
        )

    def _before(self, at: int) -> tuple[Action, ...]:
        """What is done when a phase begins."""
        phase = self.phases[at]
        alone = at == 0 or self.phases[at - 1].opens is None
        actions: list[Action] = []
        if phase.opens is not None and alone and self.distil > 0:
            actions.append(FreezeTeacher())
        if phase.sort:
            architectures = self.regions[at].architectures
            known = self.regions[at - 1] if at else Region.opened(architectures, {})
            actions.append(SortChannels(known))
        if at:
            actions.append(FreshOptimizer())
        return tuple(actions)
