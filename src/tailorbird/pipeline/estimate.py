"""What a run will take, stage by stage: minutes and disk, by what was timed before it.

What can be counted is counted: images, epochs, bunches, files. How large the alternatives of a
house come out is not known before they are sampled, so shares that were typical of past runs stand
in for it. The figures are meant to be right within a factor of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tailorbird.data.images import ImageData
from tailorbird.data.unfamiliar import MOST, PAIRINGS
from tailorbird.fit.halving import trainings
from tailorbird.fit.places import precisions_for
from tailorbird.graph.blocks import Block
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.build import CALIBRATION_IMAGES
from tailorbird.house.bunches import CPU_OVERHEAD
from tailorbird.house.distil import VALIDATION_IMAGES
from tailorbird.house.donors import largest_block, stage_blocks
from tailorbird.house.merge import mergeable
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import teacher_blocks
from tailorbird.house.wholes import RATIOS, same_outputs
from tailorbird.pipeline.job import Job
from tailorbird.pipeline.trials import Speed
from tailorbird.targets import LATENCY
from tailorbird.train.recipe import Recipe

SMALLER = 0.6
"""Of its block's figures, what an alternative has."""

NARROWED = 0.85
"""Of a whole network's figures, what one has that is pruned a little."""

STAGE = 0.5
"""Of a donor's figures, what a run of its stages has."""

FLOAT, COPIES = 4, 6
"""Bytes of a weight; copies of the weights in the two checkpoints of a training run."""

MB = 1e6

_YEARS_S = 1e8


@dataclass(frozen=True)
class Stage:
    """What one stage will take.

    Args:
        name: as in the run's report.
        seconds: on this machine, as busy as it is now.
        size_bytes: on disk, in the end.
    """

    name: str
    seconds: float
    size_bytes: float = 0.0


def told(stages: Sequence[Stage]) -> list[str]:
    """The estimate in words: all in all, then the stages.

    Example:
        >>> for line in told([Stage("train", 130, 4e6), Stage("export", 5), Stage("report", 0.2)]):
        ...     print(line)
        estimate: about 2 min and 4 MB of disk in all; it may come out as half or twice that
        estimate: train 2 min, export 5 s
        estimate: disk for train 4 MB
    """
    minutes = duration(sum(stage.seconds for stage in stages))
    disk = sum(stage.size_bytes for stage in stages)
    lines = [
        f"estimate: about {minutes} and {size(disk)} of disk in all; it may come out as half or "
        "twice that"
    ]
    if long := [f"{one.name} {duration(one.seconds)}" for one in stages if one.seconds >= 1]:
        lines.append(f"estimate: {', '.join(long)}")
    if large := [f"{one.name} {size(one.size_bytes)}" for one in stages if one.size_bytes >= MB]:
        lines.append(f"estimate: disk for {', '.join(large)}")
    return lines


def duration(seconds: float) -> str:
    """A time in two digits at most: an estimate has no more.

    Example:
        >>> duration(0.2), duration(47), duration(734), duration(4000), duration(3e5)
        ('1 s', '50 s', '12 min', '67 min', '83 h')
        >>> duration(float("inf"))
        'many years'
    """
    if seconds > _YEARS_S:
        return "many years"
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 60:
        return f"{10 * round(seconds / 10):g} s" if seconds < 55 else "1 min"
    if seconds < 2 * 3600:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h"


def size(value: float) -> str:
    """Bytes in two digits at most.

    Example:
        >>> size(4e5), size(1.26e7), size(3.44e8), size(2.2e9)
        ('1 MB', '13 MB', '340 MB', '2.2 GB')
    """
    if value >= 1e9:
        return f"{float(f'{value / 1e9:.2g}'):g} GB"
    return f"{max(1, float(f'{value / MB:.2g}')):g} MB"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was timed before anything is trained.

    Args:
        speeds: of the teacher and the donors, by name.
        trace_s: what reading one network took.
        block_s: what cutting out, storing and rebuilding one block took.
        file_s: device's key -> seconds for a whole network's file.
    """

    speeds: Mapping[str, Speed]
    trace_s: float
    block_s: float
    file_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Alternatives of one kind.

    Args:
        count: how many.
        step_s: of one, for an image.
        forward_s: ditto.
        params: of one.
        as_is: whole networks, which are not distilled.
    """

    count: float
    step_s: float
    forward_s: float
    params: float
    as_is: bool = False


def training_s(recipe: Recipe, speed: Speed, data: ImageData, *, beside_s: float = 0.0) -> float:
    """Seconds of a training run; ``beside_s`` for each image, such as a teacher's pass."""
    images = recipe.epochs * len(data.train)
    judged = (recipe.epochs + 2) * len(data.validation)
    seconds = images * (speed.step_s + speed.read_s + beside_s)
    seconds += judged * (speed.forward_s + speed.read_s)
    seconds += recipe.recalibrate_batches * recipe.batch_size * speed.forward_s
    return seconds if recipe.minutes is None else min(seconds, 60 * recipe.minutes)


def house_stages(
    job: Job, teacher: LayerGraph, donors: Mapping[str, LayerGraph], seen: Seen
) -> list[Stage]:
    """What each stage of a house's run will take."""
    data, options, speed = job.data, job.options, seen.speeds["teacher"]
    blocks = list(teacher_blocks(teacher, options, np.random.default_rng(job.seed)).values())
    kinds = alternatives(teacher, donors, blocks, options, seen.speeds)
    made = sum(kind.count for kind in kinds)
    graphs = {"teacher": teacher, **donors}
    training = Stage(
        "train",
        sum(training_s(r, seen.speeds[name], data) for name, r in job.training.items()),
        sum((COPIES + 1) * FLOAT * _params(graphs[name]) for name in job.training),
    )
    scored = len(data.scoring) * (0.6 * made * speed.forward_s + _forward(kinds))
    weights = FLOAT * sum((2 - kind.as_is) * kind.count * kind.params for kind in kinds)
    return [
        *([training] if job.training else []),
        Stage("trace", len(graphs) * seen.trace_s, FLOAT * _params(teacher)),
        Stage("sample", _sampling_s(kinds, options, seen)),
        Stage("distil", _distilling_s(job, kinds, blocks, speed), weights),
        Stage("score", made * seen.block_s + scored),
        *_fitting(job, teacher, donors, made, seen),
    ]


def alternatives(
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    blocks: Sequence[Block],
    options: HouseOptions,
    speeds: Mapping[str, Speed],
) -> list[Kind]:
    """What a house of these networks will hold, kind by kind."""
    whole = max(1, largest.macs if (largest := largest_block(teacher, stem=options.stem)) else 1)
    share = SMALLER * float(np.mean([block.macs for block in blocks])) / whole
    params = SMALLER * float(np.mean([block.params for block in blocks]))
    own = 0.5 * options.teacher_blocks  # not each has a smaller one of its shapes
    merges = mergeable(teacher, stem=options.stem) if options.merged else []
    merged = sum(merge.share < 1 for merge in merges)
    drawn = (
        *(own, options.donor_blocks if donors else 0, options.pruned),
        *(options.designed, merged),
    )
    found = [_kind(sum(drawn), share, params, speeds["teacher"])]
    narrowed = len(RATIOS) if options.pruned and options.stem else 0
    found.append(_whole(narrowed, NARROWED, teacher, speeds["teacher"]))
    for name, donor in donors.items() if options.donor_blocks else ():
        stages = len(stage_blocks(donor, stem=options.stem))
        found.append(_kind(stages, STAGE, STAGE * _params(donor), speeds[name]))
        if options.stem and same_outputs(teacher, donor):
            found.append(_whole(1 + narrowed, 1.0, donor, speeds[name]))
    return found


def _whole(count: float, share: float, graph: LayerGraph, speed: Speed) -> Kind:
    return replace(_kind(count, share, share * _params(graph), speed), as_is=True)


def _kind(count: float, share: float, params: float, speed: Speed) -> Kind:
    return Kind(
        count=count, step_s=share * speed.step_s, forward_s=share * speed.forward_s, params=params
    )


def _params(graph: LayerGraph) -> int:
    return sum(value.numel() for value in graph.module.parameters())


def _forward(kinds: Iterable[Kind]) -> float:
    return sum(kind.count * kind.forward_s for kind in kinds)


def _sampling_s(kinds: Sequence[Kind], options: HouseOptions, seen: Seen) -> float:
    """Networks are rebuilt for each alternative; half of the pruned ones are scored by images."""
    drawn, *others = kinds
    wholes = sum(kind.count for kind in others if kind.as_is)
    stitched = sum(kind.count for kind in others) - wholes  # with maps that are fitted
    handled = 2 * drawn.count * seen.block_s + (0.5 * wholes + 2 * stitched) * seen.trace_s
    return handled + options.pruned * CALIBRATION_IMAGES * (drawn.step_s + 4 * drawn.forward_s)


def _distilling_s(job: Job, kinds: Sequence[Kind], blocks: Sequence[Block], speed: Speed) -> float:
    """Each bunch passes the teacher; each alternative makes its own steps."""
    data, options = job.data, job.options
    kinds = [kind for kind in kinds if not kind.as_is]
    images = options.epochs * len(data.train)
    judged = (options.epochs + 1) * min(VALIDATION_IMAGES, len(data.validation))
    bunches = _bunches(kinds, blocks, options)
    ask = bunches * (speed.forward_s + speed.read_s)
    steps = sum(kind.count * kind.step_s for kind in kinds)
    seconds = images * (ask + steps) + judged * (ask + _forward(kinds))
    return seconds if options.minutes is None else min(seconds, 60 * options.minutes)


def _bunches(kinds: Sequence[Kind], blocks: Sequence[Block], options: HouseOptions) -> int:
    """How many bunches the memory allows: weights with their momenta, kept activations."""
    state = 24 * sum(kind.count * kind.params for kind in kinds)
    kept = 4 * sum(float(np.prod(b.in_shape) + np.prod(b.out_shape)) for b in blocks)
    needed = CPU_OVERHEAD * (state + options.batch_size * kept)
    return max(1, round(needed / (MB * options.memory_mb) + 0.5))


def _fitting(
    job: Job,
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    made: float,
    seen: Seen,
) -> list[Stage]:
    """From measuring to the report; of searches as many as are usual, not as may be."""
    data, speed = job.data, seen.speeds["teacher"]
    devices = {target.device.key for target in job.targets}
    file_s = sum(seen.file_s.get(key, 0.0) for key in devices)
    asked = [(target.device.key, one) for target in job.targets for one in precisions_for(target)]
    opened_s = sum(seen.file_s.get(key, 0.0) for key, _ in set(asked))
    targets, searched = len(job.targets), len(asked) * job.candidates
    per_target = file_s / max(1, len(devices))
    smaller = [_share(target) for target in job.targets]
    student = Speed(
        forward_s=speed.forward_s * float(np.mean(smaller)),
        step_s=speed.step_s * float(np.mean(smaller)),
        read_s=0.0,
    )
    one = training_s(job.recipe, student, data)
    beside = training_s(
        job.recipe, Speed(forward_s=0.0, step_s=speed.forward_s, read_s=speed.read_s), data
    )
    last = len(data.test or data.choosing)
    judged = len(data.choosing)
    if data.holdout is None:
        judged += min(PAIRINGS * judged, max(MOST, judged))
    file = FLOAT * _params(teacher) * float(np.mean(smaller))
    shown = 1 + len(donors)
    return [
        Stage("measure", 0.3 * made * opened_s),
        Stage(
            "search",
            2 * searched * (per_target + judged * student.forward_s),
        ),
        Stage(
            "retrain",
            targets * trainings(job.contenders) * one + beside,
            targets * job.contenders * COPIES * file,
        ),
        Stage("export", targets * (3 * per_target + last * student.forward_s), 2 * targets * file),
        Stage("report", shown * (file_s + last * (speed.forward_s + speed.read_s))),
    ]


def _share(target: object) -> float:
    """Of the teacher's figures, what a student will have: its tightest share, if it says one."""
    limits = getattr(target, "limits", ())
    shares = [limit.value for limit in limits if limit.share and limit.metric in (LATENCY, "macs")]
    return min([1.0, *shares]) if shares else NARROWED
