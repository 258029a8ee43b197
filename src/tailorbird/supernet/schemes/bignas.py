"""BigNAS: one stage, subnets from the first step on.

Yu et al., BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models, ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tailorbird.errors import Fault
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import Region, SamplerOf, Sandwich
from tailorbird.supernet.schemes.scheme import (
    FullFirst,
    Member,
    Resolution,
    Step,
    ZeroResidualGains,
    answers,
    labels,
    settings,
    steps_of,
    subnets,
    together,
    too_long,
)
from tailorbird.train.checkpoint import Json
from tailorbird.train.recipe import check_numbers, number


@dataclass(frozen=True, kw_only=True)
class BigNAS:
    """The sandwich rule with in-place distillation, and its rules that keep the two stable.

    Each step trains the full network on the labels, and the smallest and random subnets on the full
    network's logits alone; gradients are summed with equal weights (sec. 3.1). Residual branches
    start with a gain of 0. Dropout and weight decay regularise the full network only: subnets run
    without dropout, and weights that the full network doesn't use (kernel transforms) aren't
    decayed. The learning rate decays exponentially and ends in a constant tail::

        rate = peak * max(tail, tail ** (t / (tail_from * T)))

    The paper's 0.97 every 2.4 epochs reaches its tail of 5 % after 236 epochs; given as a share of
    all epochs here, so that short runs have the same shape: 0.66 is 236 of the 360 epochs that
    public re-implementations train for. Two of the paper's choices aren't here:
    RMSProp (SGD did better on CIFAR, DepS, sec. 5), and shortcuts where a stage changes shape,
    which the once-for-all spaces don't have.

    Args:
        epochs: passes over the training images.
        learning_rate: peak.
        tail: the rate's last value, relative to the peak.
        tail_from: share of all steps after which the rate stays there.
        networks: trained at a step, the full one included.
        sampler: of the others: the smallest and random ones.
        fixed: kinds of genes that stay at their largest value.
        resolution: whether the networks of a step share an image size; each has its own in the
            paper.
        zero_gains: off: leave the initial weights as they are, such as when training goes on from
            weights that were trained before.
        label_smoothing: of the full network's labels.
        lr_warmup_epochs: in which the learning rate rises from near 0.

    Raises:
        ConfigError: listing every value that is out of range.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> plan = BigNAS(epochs=10).plan(load_space("compofa-mbv3-w1.0"), 10)
        >>> step = plan.step(0, np.random.default_rng(0))
        >>> len(step.networks), [network.dropout for network in step.networks]
        (4, [True, False, False, False])
    """

    epochs: float = 200.0
    learning_rate: float = 0.1
    tail: float = 0.05
    tail_from: float = 0.66
    networks: int = 4
    sampler: SamplerOf = Sandwich
    fixed: tuple[str, ...] = ()
    resolution: Resolution = "network"
    zero_gains: bool = True
    label_smoothing: float = 0.1
    lr_warmup_epochs: float = 0.0
    name: str = "bignas"

    def __post_init__(self) -> None:
        others = too_long("bignas.lr_warmup_epochs", self.lr_warmup_epochs, self.epochs)
        if number(self.tail) > 1:
            most = f"expected at most 1, the peak itself, got {self.tail!r}"
            others.append(Fault("bignas.tail", most))
        check_numbers(
            "bignas",
            vars(self),
            positive=("epochs", "learning_rate", "tail", "tail_from"),
            not_negative=("lr_warmup_epochs",),
            shares=("label_smoothing",),
            counts={"networks": 2},
            others=others,
        )

    @property
    def decays_largest_only(self) -> bool:
        """Yes: only the full network is regularised."""
        return True

    def plan(self, architectures: ArchitectureSpace, per_epoch: int) -> BigNASPlan:
        """Lay it out over a space."""
        return BigNASPlan(self, Region.whole(architectures, fixed=self.fixed), per_epoch)

    def record(self) -> dict[str, Json]:
        """All settings but the sampler, whose name the plan knows."""
        return settings(self)


class BigNASPlan(FullFirst):
    """BigNAS over the steps of one run."""

    def __init__(self, scheme: BigNAS, region: Region, per_epoch: int) -> None:
        self.scheme, self.region = scheme, region
        self.total = steps_of(scheme.epochs, per_epoch)
        self.lr_warmup = round(scheme.lr_warmup_epochs * per_epoch)
        self.sampler = scheme.sampler(region, scheme.networks - 1)

    def rate(self, number: int) -> float:
        """Linear warm-up, exponential decay, constant tail."""
        peak, tail = self.scheme.learning_rate, self.scheme.tail
        if number < self.lr_warmup:
            return peak * (number + 1) / self.lr_warmup
        decayed: float = tail ** (number / (self.scheme.tail_from * self.total))
        return peak * max(tail, decayed)

    def step(self, number: int, rng: np.random.Generator) -> Step:
        """The full network, the smallest and others."""
        drawn = np.concatenate([self.region.largest[None], self.sampler.sample(number, rng)])
        if self.scheme.resolution == "step":
            drawn = together(drawn, rng, self.region)
        full = Member(genome=drawn[0], terms=labels(self.scheme.label_smoothing))
        others = [
            Member(genome=genome, terms=answers(), teacher="full", dropout=False)
            for genome in subnets(drawn[1:], drawn[0])
        ]
        starts = number == 0 and self.scheme.zero_gains
        return Step(
            networks=(full, *others),
            rate=self.rate(number),
            phase="sandwich",
            before=(ZeroResidualGains(),) if starts else (),
        )
