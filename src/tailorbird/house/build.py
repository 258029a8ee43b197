"""The house from nothing to scored: sample, expand, distil, score. Each stage resumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from tailorbird.data.images import ImageData
from tailorbird.data.unfamiliar import scored_on, scoring_split
from tailorbird.errors import GraphError
from tailorbird.graph.blocks import Block
from tailorbird.graph.masks import ChannelMask, cut_masks
from tailorbird.graph.serial import is_storable
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.activations import Activations
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.distil import distil
from tailorbird.house.donors import (
    add_donor_blocks,
    add_donor_stages,
    add_whole_donors,
    largest_block,
)
from tailorbird.house.expand import add_pruned, add_pruned_wholes
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import (
    Collector,
    add_identities,
    add_own_blocks,
    teacher_blocks,
)
from tailorbird.house.score import score_accuracy
from tailorbird.house.store import HouseStore
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
    progress: Progress | None = None,
) -> Sample:
    """Draw blocks and alternatives, then expand them; the same seed gives the same house.

    Raises:
        GraphError: when no alternative at all is found, with the reasons counted.
    """
    rng = np.random.default_rng(seed)
    blocks: Mapping[str, Block] = teacher_blocks(teacher, options, rng, progress)
    whole_networks = (teacher, *donors.values())
    all_storable = all(is_storable(graph.module) for graph in whole_networks)
    collector = Collector(blocks, None if all_storable else is_storable, progress)
    if options.identity:
        add_identities(collector)
    add_own_blocks(collector, teacher, wanted=options.teacher_blocks, rng=rng)
    # In random order: files often come sorted by class.
    order = torch.Generator().manual_seed(seed)
    size = min(CALIBRATION_IMAGES, len(data.train))
    images, _ = next(iter(data.train.batches(size, generator=order)))
    images = images.cpu()
    seen = Activations(images, limit=options.memory_mb * 2**20 // (1 + len(donors)))
    if options.donor_blocks:
        add_whole_donors(collector, teacher, donors, seen=seen, options=options)
    add_donor_blocks(collector, teacher, donors, seen=seen, options=options, rng=rng)
    if options.pruned:
        with torch.random.fork_rng(devices=[]):
            add_pruned(collector, teacher, images, options, rng)
    # After all that is drawn: draws fall on sampled blocks, however many stages the donors have.
    if options.donor_blocks:
        add_donor_stages(collector, teacher, donors, seen=seen, options=options)
    whole = largest_block(teacher, stem=options.stem)
    if options.pruned and whole is not None and whole.key in collector.blocks:
        add_pruned_wholes(collector, teacher, whole, multiple=options.width_multiple)
    sample = collector.sample()
    if not sample.alternatives:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in sample.rejections.most_common(5))
        raise GraphError(
            f"the house stays empty: no alternative fits any of {len(blocks)} blocks; turned "
            f"away: {reasons}; raise house.donor_blocks, house.pruned or house.recall"
        )
    return sample


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
    progress: Progress,
) -> House:
    """Build or continue a house; ``stage`` is opened around each stage to count its time.

    Args:
        task: what outputs mean.
        distilled: seconds that earlier processes spent on distilling, part of ``options.minutes``.
    """
    with stage("sample"):
        sample = store.load_sample()
        if sample is None:
            sample = sample_house(teacher, donors, data, options, seed=seed, progress=progress)
            store.save_sample(sample, progress)
    progress.say(
        f"house: {len(sample.blocks)} blocks, {len(sample.alternatives)} alternatives, "
        f"{sum(sample.rejections.values())} candidates turned away"
    )
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
    progress.say(f"house: alternatives are scored on {scored_on(data)}")
    with stage("score"):
        scores = score_accuracy(
            teacher,
            sample,
            modules,
            scoring_split(data),
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
