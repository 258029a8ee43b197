"""What a training scheme is: which networks a step trains, with what losses and weights, how fast.

A scheme is plain data. `Scheme.plan` turns it into a plan for one space and one number of steps per
epoch; the training loop asks the plan for each step and knows nothing else about the scheme. A step
sums, over its networks a, weighted gradients of losses of the shared weights W::

    W <- W - rate * sum over a of weight_a * grad L_a(S(W, a))

A step is a function of its number and of a generator made from seed and number, so that a run can
be taken up at any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from tailorbird.errors import ConfigError, Fault
from tailorbird.family import Floats
from tailorbird.space import Genome, Genomes
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import (
    RESOLUTION,
    Keeper,
    Observe,
    Region,
    Sampler,
    observer,
)
from tailorbird.train.checkpoint import Json
from tailorbird.train.losses import CrossEntropy, Distillation, Term
from tailorbird.train.recipe import number

Resolution: TypeAlias = Literal["step", "network"]
"""``step``: the networks of a step share one image size; ``network``: each has its own."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of a step.

    Args:
        genome: (genes,) which one, resolution included.
        terms: summands of its loss.
        weight: what its gradient is multiplied by.
        teacher: whose logits the terms see: those of this step's first network (``full``), those of
            the frozen copy that `FreezeTeacher` left (``frozen``), or nobody's.
        dropout: whether its dropout layers drop.
    """

    genome: Genome
    terms: tuple[Term, ...]
    weight: float = 1.0
    teacher: Literal["full", "frozen"] | None = None
    dropout: bool = True


@dataclass(frozen=True)
class FreezeTeacher:
    """Copy the full network as it is; later steps distil from the copy."""


@dataclass(frozen=True)
class FreshOptimizer:
    """Forget momenta, as where a phase was a training run of its own."""


@dataclass(frozen=True)
class ZeroResidualGains:
    """Set the last normalisation's gain of each residual branch to 0: blocks start as identities.

    BigNAS, sec. 3.1; already Goyal et al., Accurate, Large Minibatch SGD, 2017, sec. 5.1.
    """


@dataclass(frozen=True)
class SortChannels:
    """Re-order inner channels of blocks by importance, so that narrow blocks get the best ones.

    The full network computes what it did. Widths that ``region`` already has keep their channels;
    these are sorted among themselves.
    """

    region: Region


Action: TypeAlias = FreezeTeacher | FreshOptimizer | ZeroResidualGains | SortChannels


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of training.

    Args:
        networks: trained at this step, one after the other; gradients are summed. Where others
            learn from the full network, it is the first.
        rate: learning rate.
        phase: what the scheme calls this part of its plan.
        before: what is done to weights or optimiser first.
    """

    networks: tuple[Member, ...]
    rate: float
    phase: str
    before: tuple[Action, ...] = ()


class Plan(Protocol):
    """A scheme laid out over the steps of one run.

    A plan whose samplers learn, or which learns itself, has ``observe`` too: it is told the step
    just made, genomes and losses of its networks in the step's order, and tells its samplers. One
    that learns itself keeps what it learnt as samplers do, in ``state``.
    """

    @property
    def total(self) -> int:
        """Number of steps."""

    @property
    def samplers(self) -> Sequence[Sampler]:
        """All that the plan uses, in a fixed order: their states are part of checkpoints."""

    def step(self, number: int, rng: np.random.Generator) -> Step:
        """Step ``number`` of 0 to ``total - 1``; nothing random but ``rng``."""


def keepers(plan: Plan) -> list[Keeper]:
    """Those whose memory is part of checkpoints: a plan's samplers, and itself if it has one."""
    return [*plan.samplers, *([plan] if isinstance(plan, Keeper) else [])]


def listener(plan: Plan) -> Observe | None:
    """What is told the losses of each step, if anybody listens.

    Raises:
        ConfigError: for a plan that wouldn't pass them on to a sampler that learns.
    """
    tell = observer(plan)
    deaf = [s.name for s in plan.samplers if observer(s) is not None] if tell is None else []
    if deaf:
        raise ConfigError(
            f"sampler {', '.join(deaf)} learns from losses, but the scheme's plan has no observe "
            "to pass them on; give it one"
        )
    return tell


class Scheme(Protocol):
    """A training scheme: settings that can be laid out over a run."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def epochs(self) -> float:
        """Passes over the training images, all phases together."""

    @property
    def decays_largest_only(self) -> bool:
        """Whether weights that the full network doesn't use go without weight decay."""

    def plan(self, architectures: ArchitectureSpace, per_epoch: int) -> Plan:
        """Lay it out over a space, with so many steps per epoch.

        Raises:
            ConfigError: where the scheme doesn't fit the space.
        """

    def record(self) -> dict[str, Json]:
        """All settings, as part of a run's identity."""


def settings(scheme: Scheme) -> dict[str, Json]:
    """A scheme's fields as JSON, less the sampler: the plan knows its name, settings included."""
    kept = {name: value for name, value in vars(scheme).items() if name != "sampler"}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def together(genomes: Genomes, rng: np.random.Generator, region: Region) -> Genomes:
    """Copies of genomes (n, genes) that share one resolution, drawn from what the region has."""
    shared = genomes.copy()
    first = region.floor[RESOLUTION]
    shared[:, RESOLUTION] = rng.integers(first, region.largest[RESOLUTION] + 1)
    return shared


def after_the_full(sampler: Sampler) -> Observe | None:
    """What passes losses on to a sampler whose networks come after the full one in each step."""
    if (observe := observer(sampler)) is None:
        return None

    def tell(genomes: Genomes, losses: Floats) -> None:
        if len(genomes) > 1:
            observe(genomes[1:], losses[1:])

    return tell


class FullFirst:
    """A plan whose steps train the full network first, and then what one sampler draws."""

    sampler: Sampler

    @property
    def samplers(self) -> Sequence[Sampler]:
        """The one."""
        return (self.sampler,)

    @property
    def observe(self) -> Observe | None:
        """Tells the sampler of all but the full network."""
        return after_the_full(self.sampler)


def subnets(drawn: Genomes, full: Genome) -> list[Genome]:
    """The distinct genomes among those drawn that are not the full network (eq. 4 of DepS)."""
    _, first = np.unique(drawn, axis=0, return_index=True)
    return [drawn[row] for row in sorted(first) if (drawn[row] != full).any()]


def labels(smoothing: float) -> tuple[Term, ...]:
    """Cross-entropy with smoothed labels."""
    return (CrossEntropy(smoothing=smoothing),)


def answers(weight: float = 1.0) -> tuple[Term, ...]:
    """Distillation: cross-entropy with the teacher's probabilities, without a temperature.

    Computed as the divergence KL(teacher || student), which differs from it by the teacher's
    entropy: a constant, so the gradient is the same.
    """
    return (Distillation(weight=weight, temperature=1.0),)


def steps_of(epochs: float, per_epoch: int) -> int:
    """Steps in so many epochs, rounded, 1 at least."""
    return max(1, round(epochs * per_epoch))


def too_long(place: str, warmup: float, epochs: float) -> list[str]:
    """A fault where the rate would still be rising at the end.

    Example:
        >>> too_long("deps.lr_warmup_epochs", 5, 4)
        ['deps.lr_warmup_epochs: expected less than the 4 epochs of training, got 5']
    """
    if not number(warmup) >= number(epochs) > 0:
        return []
    what = f"expected less than the {epochs:g} epochs of training, got {warmup:g}"
    return [Fault(place, what)]
