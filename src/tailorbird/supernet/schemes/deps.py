"""DepS: shrinking starts late, softly, and learns in place from the warmed-up full network.

Annavajjala, Khare et al., D-epsilon-pS: Delayed Epsilon-Shrinking for Faster Once-For-All Training,
ECCV 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tailorbird.errors import Fault
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import Region, SamplerOf, Sandwich
from tailorbird.supernet.schemes.scheme import (
    Action,
    FullFirst,
    Member,
    Resolution,
    SortChannels,
    Step,
    answers,
    labels,
    settings,
    steps_of,
    subnets,
    together,
    too_long,
)
from tailorbird.train.checkpoint import Json
from tailorbird.train.optimisers import cosine
from tailorbird.train.recipe import check_numbers, number

FIRST_EPSILON = 1e-4
"""The ramp's first value (sec. 4.2)."""


@dataclass(frozen=True, kw_only=True)
class DepS:
    """Delayed epsilon-shrinking. Its parts can be switched off one by one, for ablations.

    The full network is trained alone until ``delay * epochs - ramp_epochs`` epochs. From then on
    each step trains it with a few subnets; their summed gradients are multiplied by epsilon
    (eq. 4)::

        G = grad L(full) + epsilon_t * sum over subnets a of grad L(a)

    and epsilon rises by a constant amount per step from 1e-4 to 1, over ``ramp_epochs``, and stays
    there. The full network learns from smoothed labels, the subnets only from its present logits
    (sec. 4.3). One cosine spans the run.

    Args:
        epochs: passes over the training images. CIFAR 200, ImageNet 270 in the paper.
        learning_rate: peak. CIFAR 0.1 in the paper.
        delay: share of the epochs after which subnets have full weight (0.5; ImageNet 150 of 270).
        ramp_epochs: length of epsilon's ramp.
        warm_up_full: off: subnets from the first step on.
        ramp: off: epsilon is 1 as soon as subnets are trained.
        distil: off: subnets learn from the labels, as the full network does.
        reorder: sort the channels inside blocks by importance when shrinking starts.
        networks: trained at a step while shrinking, the full one included.
        sampler: of the others: the smallest and random ones.
        fixed: kinds of genes that stay at their largest value, such as ``("ks",)``.
        resolution: whether the networks of a step share an image size.
        label_smoothing: of the full network's labels.
        lr_warmup_epochs: in which the learning rate rises from near 0.

    Raises:
        ConfigError: listing every value that is out of range.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> plan = DepS(epochs=20, ramp_epochs=5).plan(load_space("compofa-mbv3-w1.0"), 10)
        >>> [len(plan.step(n, np.random.default_rng(n)).networks) for n in (49, 50, 199)]
        [1, 4, 4]
    """

    epochs: float = 200.0
    learning_rate: float = 0.1
    delay: float = 0.5
    ramp_epochs: float = 5.0
    warm_up_full: bool = True
    ramp: bool = True
    distil: bool = True
    reorder: bool = True
    networks: int = 4
    sampler: SamplerOf = Sandwich
    fixed: tuple[str, ...] = ()
    resolution: Resolution = "step"
    label_smoothing: float = 0.1
    lr_warmup_epochs: float = 0.0
    name: str = "deps"

    def __post_init__(self) -> None:
        others = too_long("deps.lr_warmup_epochs", self.lr_warmup_epochs, self.epochs)
        delay, epochs, ramp = number(self.delay), number(self.epochs), number(self.ramp_epochs)
        if self.warm_up_full and epochs > 0 and 0 <= delay < 1 and delay * epochs < ramp:
            most = f"expected at most the {delay * epochs:g} epochs of the delay, got {ramp:g}"
            others.append(Fault("deps.ramp_epochs", most))
        check_numbers(
            "deps",
            vars(self),
            positive=("epochs", "learning_rate"),
            not_negative=("ramp_epochs", "lr_warmup_epochs"),
            shares=("delay", "label_smoothing"),
            counts={"networks": 2},
            others=others,
        )

    @property
    def decays_largest_only(self) -> bool:
        """No: weight decay is on all weights but norms and biases."""
        return False

    def plan(self, architectures: ArchitectureSpace, per_epoch: int) -> DepSPlan:
        """Lay it out over a space."""
        return DepSPlan(self, Region.whole(architectures, fixed=self.fixed), per_epoch)

    def record(self) -> dict[str, Json]:
        """All settings but the sampler, whose name the plan knows."""
        return settings(self)


class DepSPlan(FullFirst):
    """DepS over the steps of one run."""

    def __init__(self, scheme: DepS, region: Region, per_epoch: int) -> None:
        self.scheme, self.region = scheme, region
        self.total = steps_of(scheme.epochs, per_epoch)
        start = scheme.delay * scheme.epochs - scheme.ramp_epochs if scheme.warm_up_full else 0.0
        self.start = round(start * per_epoch)
        self.ramp = round(scheme.ramp_epochs * per_epoch) if scheme.ramp else 0
        self.lr_warmup = round(scheme.lr_warmup_epochs * per_epoch)
        self.sampler = scheme.sampler(region, scheme.networks - 1)

    def epsilon(self, number: int) -> float:
        """Weight of the subnets' gradients at a step; 0 while the full network is alone."""
        since = number - self.start
        if since < 0:
            return 0.0
        if since >= self.ramp:
            return 1.0
        return FIRST_EPSILON + (1.0 - FIRST_EPSILON) * since / self.ramp

    def step(self, number: int, rng: np.random.Generator) -> Step:
        """The full network, and others once shrinking has started."""
        scheme, epsilon = self.scheme, self.epsilon(number)
        drawn = self.region.largest[None]
        if epsilon > 0:
            drawn = np.concatenate([drawn, self.sampler.sample(number, rng)])
        if scheme.resolution == "step":
            drawn = together(drawn, rng, self.region)
        full, *others = drawn[0], *subnets(drawn[1:], drawn[0])
        smoothed = labels(scheme.label_smoothing)
        networks = [Member(genome=full, terms=smoothed)]
        networks += [
            Member(
                genome=genome,
                terms=answers() if scheme.distil else smoothed,
                weight=epsilon,
                teacher="full" if scheme.distil else None,
            )
            for genome in others
        ]
        before: tuple[Action, ...] = ()
        if scheme.reorder and number == self.start:
            # Nothing but the full network has been trained, so any order is free to be chosen.
            full_only = Region(self.region.architectures, self.region.largest)
            before = (SortChannels(full_only),)
        return Step(
            networks=tuple(networks),
            rate=cosine(number, self.total, peak=scheme.learning_rate, warmup=self.lr_warmup),
            phase="full" if epsilon == 0 else "ramp" if epsilon < 1 else "shrink",
            before=before,
        )
