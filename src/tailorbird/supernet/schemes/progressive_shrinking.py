"""Progressive shrinking: the full network to the end, then smaller ones kind by kind.

Cai et al., Once-for-All: Train One Network and Specialize It for Efficient Deployment, ICLR 2020,
sec. 3.3; lengths and learning rates of the phases are those of its appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import RESOLUTION, Region, SamplerOf, Uniform
from tailorbird.supernet.schemes.phases import Phase, PhasedPlan, phase_problems
from tailorbird.supernet.schemes.scheme import Resolution, settings
from tailorbird.train.checkpoint import Json
from tailorbird.train.recipe import check_numbers

TEACHER_EPOCHS, TEACHER_RATE = 180.0, 2.6
"""The full network's own training on ImageNet, 2,048 images per step."""

PHASES = (
    Phase(name="teacher", epochs=TEACHER_EPOCHS, learning_rate=TEACHER_RATE, opens=None),
    Phase(
        name="kernel",
        epochs=125,
        learning_rate=0.96,
        warmup_epochs=5,
        opens={"ks": None},
    ),
    Phase(
        name="depth-1",
        epochs=25,
        learning_rate=0.08,
        opens={"ks": None, "d": 2},
        networks=2,
    ),
    Phase(
        name="depth-2",
        epochs=125,
        learning_rate=0.24,
        warmup_epochs=5,
        opens={"ks": None, "d": None},
        networks=2,
    ),
    Phase(
        name="expand-1",
        epochs=25,
        learning_rate=0.08,
        opens={"ks": None, "d": None, "e": 2},
        networks=4,
        sort=True,
    ),
    Phase(
        name="expand-2",
        epochs=125,
        learning_rate=0.24,
        warmup_epochs=5,
        opens={"ks": None, "d": None, "e": None},
        networks=4,
        sort=True,
    ),
)
"""The phases on ImageNet, 2,048 images per step."""

WIDTH_PHASES = (
    Phase(
        name="width-1",
        epochs=25,
        learning_rate=0.08,
        opens={"ks": None, "d": None, "e": None, "w": 2},
        networks=4,
    ),
    Phase(
        name="width-2",
        epochs=125,
        learning_rate=0.24,
        warmup_epochs=5,
        opens={"ks": None, "d": None, "e": None, "w": None},
        networks=4,
    ),
)
"""What follows in spaces whose stages have elastic widths, with the rates of the phases before.

Channels between blocks are not sorted.
"""


ALONGSIDE = {"h": "e"}
"""A transformer's heads open as its MLP ratios do: both are widths inside a block."""


def phases_for(architectures: ArchitectureSpace) -> tuple[Phase, ...]:
    """`PHASES` and `WIDTH_PHASES`, less what a space doesn't have.

    Kinds of genes that it lacks are left out, and so are phases that then open nothing new.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> [phase.name for phase in phases_for(load_space("ofa-resnet50d"))]
        ['teacher', 'depth-1', 'depth-2', 'expand-1', 'expand-2', 'width-1', 'width-2']
        >>> phases_for(load_space("cifar-vit-tiny"))[-1].opens
        {'d': None, 'e': None, 'w': None, 'h': None}
    """
    kept: list[Phase] = []
    floor = architectures.space.sizes - 1
    for phase in (*PHASES, *WIDTH_PHASES):
        if phase.opens is None:
            kept.append(phase)
            continue
        known = architectures.official.keys
        opens = {key: count for key, count in phase.opens.items() if key in known}
        opens |= {k: opens[e] for k, e in ALONGSIDE.items() if k in known and e in opens}
        opened = Region.opened(architectures, opens).floor
        if (opened[RESOLUTION + 1 :] != floor[RESOLUTION + 1 :]).any():
            kept.append(replace(phase, opens=opens))
            floor = opened
    return tuple(kept)


def scaled(phases: Sequence[Phase], *, epochs: float, learning_rate: float) -> tuple[Phase, ...]:
    """The same phases within another number of epochs and with another peak learning rate.

    Args:
        phases: their epochs and rates keep their proportions.
        epochs: of all together.
        learning_rate: the highest of all.

    Example:
        >>> short = scaled(PHASES, epochs=60.5, learning_rate=0.1)
        >>> [(phase.name, phase.epochs) for phase in short][:2]
        [('teacher', 18.0), ('kernel', 12.5)]
        >>> max(phase.learning_rate for phase in short)
        0.1
    """
    given = {"epochs": epochs, "learning_rate": learning_rate}
    check_numbers("scaled", given, positive=tuple(given))
    longer = epochs / sum(phase.epochs for phase in phases)
    faster = learning_rate / max(phase.learning_rate for phase in phases)
    return tuple(
        replace(
            phase,
            epochs=phase.epochs * longer,
            learning_rate=phase.learning_rate * faster,
            warmup_epochs=phase.warmup_epochs * longer,
        )
        for phase in phases
    )


@dataclass(frozen=True, kw_only=True)
class ProgressiveShrinking:
    """Teacher, elastic kernel, depth (twice), expand (twice): each phase opens more of the space.

    A subnet a learns from smoothed labels and from the frozen, fully trained network (sec. 3.3,
    eq. 1; the ratio is 1)::

        L_a = CE(a, labels) + distil * CE(a, softmax(teacher))

    As in the original, the teacher normalises by the statistics of its batch; channels are sorted
    before each expand phase, by the L1 norm of the weights that read them.

    Args:
        phases: `PHASES`, or `scaled` ones, or those of `phases_for` another space.
        sampler: of a step's subnets.
        resolution: one image size for all networks of a step, as in the original, or one for each.
        label_smoothing: of the labels.
        distil: weight of the teacher's answer; 0 for none.

    Raises:
        ConfigError: listing every value that is out of range, such as a phase of 0 epochs.

    Example:
        >>> import numpy as np
        >>> from tailorbird.supernet.architecture import load_space
        >>> scheme = ProgressiveShrinking(phases=scaled(PHASES, epochs=60.5, learning_rate=0.1))
        >>> plan = scheme.plan(load_space("ofa-mbv3-w1.0"), 2)
        >>> plan.total, plan.step(120, np.random.default_rng(0)).phase
        (121, 'expand-2')
    """

    phases: Sequence[Phase] = PHASES
    sampler: SamplerOf = Uniform
    resolution: Resolution = "step"
    label_smoothing: float = 0.1
    distil: float = 1.0
    name: str = "progressive-shrinking"

    def __post_init__(self) -> None:
        check_numbers(
            self.name,
            vars(self),
            not_negative=("distil",),
            shares=("label_smoothing",),
            others=phase_problems(self.name, self.phases),
        )

    @property
    def epochs(self) -> float:
        """All phases together."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def decays_largest_only(self) -> bool:
        """No: weight decay is on all weights but norms and biases."""
        return False

    def plan(self, architectures: ArchitectureSpace, per_epoch: int) -> PhasedPlan:
        """Lay it out over a space.

        Raises:
            ConfigError: where a phase opens what the space doesn't have.
        """
        return PhasedPlan(
            architectures,
            self.phases,
            per_epoch,
            sampler=self.sampler,
            resolution=self.resolution,
            label_smoothing=self.label_smoothing,
            distil=self.distil,
        )

    def record(self) -> dict[str, Json]:
        """All settings but the sampler, whose name the plan knows."""
        return settings(self) | {"phases": [asdict(phase) for phase in self.phases]}
