"""The house from nothing to scored: sample, expand, distil, score. Each stage resumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from tailorbird.data.images import ImageData
from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block
from tailorbird.graph.masks import ChannelMask, cut_masks
from tailorbird.graph.serial import is_storable
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.activations import Activations
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.depth import add_depth
from tailorbird.house.designs import add_designed
from tailorbird.house.distil import distil
from tailorbird.house.donors import add_donor_blocks, add_donor_stages
from tailorbird.house.expand import add_pruned
from tailorbird.house.faster import Timings, keep_faster
from tailorbird.house.merge import add_merged
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import (
    Collector,
    Rule,
    add_identities,
    add_own_blocks,
    fewer_macs,
    teacher_blocks,
    to_be_timed,
)
from tailorbird.house.score import score_accuracy
from tailorbird.house.store import HouseStore
from tailorbird.house.wholes import add_wholes
from tailorbird.progress import Progress
from tailorbird.task import CLASSIFICATION, Task

CALIBRATION_IMAGES = 64
"""Training images that fit linear maps and feed the discrepancy scores of pruning."""


@dataclass(frozen=True, kw_only=True)
class House:
    """A scored house: what can be chosen, and what each choice costs and loses.

    Args:
        multiple: widths are multiples of this when masks are cut.
        rank_by: the score that a search adds up, see `HouseOptions`.
        task: what outputs mean.
    """

    teacher: LayerGraph
    sample: Sample
    modules: Mapping[str, fx.GraphModule]
    scores: Mapping[str, Mapping[str, float]]
    store: HouseStore
    multiple: int = 8
    rank_by: str = "divergence"
    task: Task = CLASSIFICATION

    def cut(self, network: fx.GraphModule) -> fx.GraphModule:
        """An induced network with its channel masks turned into narrower layers, on the CPU."""
        network = network.cpu().eval()
        if not any(isinstance(module, ChannelMask) for module in network.modules()):
            return network
        with torch.no_grad():
            return cut_masks(network, self.teacher.input_shape, multiple=self.multiple)

    @property
    def choices(self) -> tuple[Alternative, ...]:
        """Alternatives that came through training and have been scored."""
        return tuple(a for a in self.sample.alternatives if a.name in self.scores)

    @property
    def rejections(self) -> Counter[str]:
        """Reason -> count, of sampling and of training."""
        lost = len(self.sample.alternatives) - len(self.choices)
        return self.sample.rejections + Counter({"stopped in distillation": lost})


def sample_house(
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    data: ImageData,
    options: HouseOptions,
    *,
    seed: int,
    rule: Rule = fewer_macs,
    progress: Progress | None = None,
) -> Sample:
    """Draw blocks and alternatives, then expand them; the same seed gives the same house.

    Args:
        rule: which candidates are too heavy for their block.

    Raises:
        GraphError: when no alternative at all is found, with the reasons counted.
    """
    rng = np.random.default_rng(seed)
    blocks: Mapping[str, Block] = teacher_blocks(teacher, options, rng, progress)
    whole_networks = (teacher, *donors.values())
    all_storable = all(is_storable(graph.module) for graph in whole_networks)
    collector = Collector(blocks, None if all_storable else is_storable, progress, rule)
    if options.identity:
        add_identities(collector, teacher)
    add_own_blocks(collector, teacher, wanted=options.teacher_blocks, rng=rng)
    # In random order: files often come sorted by class.
    order = torch.Generator().manual_seed(seed)
    size = min(CALIBRATION_IMAGES, len(data.train))
    images, _ = next(iter(data.train.batches(size, generator=order)))
    images = images.cpu()
    seen = Activations(images, limit=options.memory_mb * 2**20 // (1 + len(donors)))
    add_donor_blocks(collector, teacher, donors, seen=seen, options=options, rng=rng)
    if options.designed:
        add_designed(
            collector, teacher, wanted=options.designed, multiple=options.width_multiple, rng=rng
        )
    if options.pruned:
        with torch.random.fork_rng(devices=[]):
            add_pruned(collector, teacher, images, options, rng)
    # After all that is drawn: draws fall on sampled blocks, however many stages the donors have.
    if options.donor_blocks:
        add_donor_stages(collector, teacher, donors, seen=seen, options=options)
    if options.depth:
        add_depth(collector, teacher, donors, seen=seen, options=options)
    if options.merged:
        add_merged(collector, teacher, seen=seen, stem=options.stem)
    add_wholes(collector, teacher, donors, seen=seen, options=options)
    return _not_empty(collector.sample())


def _not_empty(sample: Sample) -> Sample:
    if sample.alternatives:
        return sample
    reasons = ", ".join(f"{reason} ({n})" for reason, n in sample.rejections.most_common(5))
    raise GraphError(
        f"the house stays empty: no alternative fits any of {len(sample.blocks)} blocks; turned "
        f"away: {reasons}; raise house.donor_blocks, house.pruned or house.recall"
    )


def build_house(
    teacher: LayerGraph,
    donors: Mapping[str, LayerGraph],
    data: ImageData,
    options: HouseOptions,
    *,
    seed: int,
    store: HouseStore,
    stage: Callable[[str], AbstractContextManager[None]],
    distilled: float = 0.0,
    task: Task = CLASSIFICATION,
    timings: Timings | None = None,
    progress: Progress,
) -> House:
    """Build or continue a house; ``stage`` is opened around each stage to count its time.

    Args:
        timings: what times networks on the devices that decide which alternatives are smaller than
            their blocks, by the keys of their places; MACs decide where there are none. A house
            that has been sampled keeps its alternatives, whatever is given.
        task: what outputs mean.
        distilled: seconds that earlier processes spent on distilling, part of ``options.minutes``.
    """
    with stage("sample"):
        sample = store.load_sample()
        if sample is None:
            sample = sample_house(
                teacher,
                donors,
                data,
                options,
                seed=seed,
                rule=to_be_timed if timings else fewer_macs,
                progress=progress,
            )
            store.save_sample(replace(sample, pending=bool(timings)), progress)
            # From the disk, as a run that goes on has them: the order of submodules may differ.
            sample = store.load_sample()
            assert sample is not None
    if sample.pending:
        with stage("measure"):
            sample = _not_empty(keep_faster(teacher, sample, timings or {}, progress))
            store.settle_sample(sample)
    progress.say(
        f"house: {len(sample.blocks)} blocks, {len(sample.alternatives)} alternatives, "
        f"{sum(sample.rejections.values())} candidates turned away"
    )
    if sample.devices:
        progress.say(f"house: each is faster than its block on {' or '.join(sample.devices)}")
    with stage("distil"):
        modules = distil(
            teacher,
            sample,
            data,
            options,
            seed=seed,
            store=store,
            spent=distilled,
            progress=progress,
        )
    stopped = len(sample.alternatives) - len(modules)
    if stopped:
        progress.say(f"house: {stopped} alternatives were stopped in distillation, see the report")
    with stage("score"):
        scores = score_accuracy(
            teacher,
            sample,
            modules,
            data.scoring,
            store=store,
            precision=options.precision,
            task=task,
            progress=progress,
        )
    return House(
        teacher=teacher,
        sample=sample,
        modules=modules,
        scores=scores,
        store=store,
        multiple=options.width_multiple,
        rank_by=options.rank_by,
        task=task,
    )
