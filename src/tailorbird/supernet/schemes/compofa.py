"""CompOFA: depth and width shrink together, so that the phases fall away.

Sahni et al., CompOFA: Compound Once-For-All Networks for Faster Multi-Platform Deployment, ICLR
2021, sec. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import SamplerOf, Uniform
from tailorbird.supernet.schemes.phases import Phase
from tailorbird.supernet.schemes.progressive_shrinking import (
    TEACHER_EPOCHS,
    TEACHER_RATE,
    ProgressiveShrinking,
)
from tailorbird.supernet.schemes.scheme import Resolution

ALL: dict[str, int | None] = {"ks": None, "d": None, "e": None}

PHASES = (
    Phase(name="teacher", epochs=TEACHER_EPOCHS, learning_rate=TEACHER_RATE, opens=None),
    Phase(name="compound-1", epochs=25, learning_rate=0.08, opens=ALL, networks=4, sort=True),
    Phase(
        name="compound-2",
        epochs=125,
        learning_rate=0.24,
        warmup_epochs=5,
        opens=ALL,
        networks=4,
    ),
)
"""Teacher, then all subnets at once, with a gentle start; on ImageNet, 2,048 images per step."""


def phases_for(architectures: ArchitectureSpace) -> tuple[Phase, ...]:
    """`PHASES` over a space: whatever kinds of genes it has, all are opened at once.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> sorted(phases_for(load_space("cifar-vit-tiny"))[1].opens)
        ['d', 'e', 'h', 'w']
    """
    entries = architectures.official.keys.items()
    chosen = [key for key, listed in entries if any(entry.chooses for entry in listed)]
    opens: dict[str, int | None] = {key: None for key in chosen if key != "r"}
    return tuple(phase if phase.opens is None else replace(phase, opens=opens) for phase in PHASES)


def comp_ofa(
    *,
    phases: Sequence[Phase] = PHASES,
    sampler: SamplerOf = Uniform,
    resolution: Resolution = "step",
    label_smoothing: float = 0.1,
    distil: float = 1.0,
) -> ProgressiveShrinking:
    """The scheme: progressive shrinking of a space small enough to be opened at once.

    In a coupled space (``compofa-mbv3-w1.0`` and its like) a stage's depth sets its expand ratio.
    With 243 subnets in place of 10^19, training goes from the teacher straight to all of them.
    The first 25 epochs have a lower learning rate; they are not a phase of their own, since
    they train the same subnets. In other spaces this is progressive shrinking without its
    order.

    Args:
        phases: `PHASES`, or scaled ones. Other args are those of `ProgressiveShrinking`.

    Example:
        >>> import numpy as np
        >>> from tailorbird.supernet.architecture import load_space
        >>> plan = comp_ofa().plan(load_space("compofa-mbv3-w1.0"), 1)
        >>> plan.total, len(plan.step(180, np.random.default_rng(0)).networks)
        (330, 4)
    """
    return ProgressiveShrinking(
        phases=phases,
        sampler=sampler,
        resolution=resolution,
        label_smoothing=label_smoothing,
        distil=distil,
        name="compofa",
    )
