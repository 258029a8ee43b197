"""What each alternative costs in accuracy.

Accuracy: the teacher's top-1 minus that of the teacher with this one block replaced; agreement with
the teacher instead where there are no labels. The images are the holdout's, or else validation
images as they are, which networks may have memorised: in `bench/unseen_scores.py` strongly cropped
or mixed ones ranked what is not trained yet no better. They pass the teacher once per group of
alternatives; what each block's input and the paths around it carry is kept, so only the alternative
and what follows it run again. Cost per image: one teacher pass per group, plus the alternative and
the suffix behind it for each alternative.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tailorbird.data.images import Split
from tailorbird.graph.blocks import Block
from tailorbird.graph.surgery import capture, split
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.store import HouseStore
from tailorbird.progress import Progress, Silent
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.losses import relative_error
from tailorbird.train.precision import autocast, compute_device, lay_out, resolve

GROUP = 16
"""Alternatives scored per teacher pass; what a kill can lose of the scoring."""


@dataclass(frozen=True)
class Suffix:
    """The network behind a block, and the teacher's tensors that feed it."""

    module: fx.GraphModule
    inputs: tuple[str, ...]  # teacher's nodes: the block's input first, then the paths around it


class _Tally:
    """Running figures of one network against the teacher."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task, self.scorer = task, task.scorer(device)
        self.images, self.divergence, self.error = 0, 0.0, 0.0

    def add(self, outputs: Tensor, reference: Tensor, labels: Tensor | None) -> None:
        targets = self.task.answers(reference) if labels is None else labels
        self.images += len(outputs)
        self.scorer.add(outputs.float(), targets)
        self.divergence += float(self.task.distil(outputs, reference, reduction="sum"))

    def add_block(self, output: Tensor, reference: Tensor) -> None:
        self.error += len(output) * float(relative_error(output, reference))


def score_accuracy(
    teacher: LayerGraph,
    sample: Sample,
    modules: Mapping[str, fx.GraphModule],
    images: Split,
    *,
    store: HouseStore,
    batch_size: int = 256,
    precision: str = "auto",
    group: int = GROUP,
    task: Task = CLASSIFICATION,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """What each alternative loses, by three measures, continuing from what is stored.

    Args:
        modules: distilled alternatives by name; those absent are not scored.
        images: that say what is lost, see `tailorbird.data.images.ImageData.scoring`.
        group: alternatives scored per teacher pass.
        task: what outputs mean.

    Returns:
        name -> ``accuracy_loss`` (fraction; of agreement where there are no labels),
        ``divergence`` (mean Kullback-Leibler divergence from the teacher, nats) and
        ``distillation`` (squared error of the block's output, relative to the teacher's mean
        square there; DNA's rating of blocks, Li et al., CVPR 2020).
    """
    scores = store.load_scores()
    order = teacher.index
    todo = sorted(
        (a for a in sample.alternatives if a.name in modules and a.name not in scores),
        key=lambda a: (order[sample.blocks[a.block].output], a.block),
    )
    with (progress or Silent()).task("score", len(todo)) as shown:
        for start in range(0, len(todo), group):
            part = todo[start : start + group]
            scores |= _score_group(
                teacher,
                sample,
                modules,
                images,
                part,
                batch_size=batch_size,
                precision=precision,
                task=task,
            )
            store.save_scores(scores)
            shown.advance(len(part))
    return scores


@torch.inference_mode()
def _score_group(
    teacher: LayerGraph,
    sample: Sample,
    modules: Mapping[str, fx.GraphModule],
    split: Split,
    group: Sequence[Alternative],
    *,
    batch_size: int,
    precision: str,
    task: Task,
) -> dict[str, dict[str, float]]:
    device = compute_device()
    suffixes = {a.block: suffix(teacher, sample.blocks[a.block], device) for a in group}
    ends = {sample.blocks[a.block].output for a in group}
    names = sorted(ends.union(*(s.inputs for s in suffixes.values())))
    probe = capture(teacher, names).to(device)
    ready = {a.name: copy.deepcopy(modules[a.name]).to(device).eval() for a in group}
    lay_out(probe, torch.zeros(2, *teacher.input_shape, device=device))
    for a in group:
        shape = sample.blocks[a.block].in_shape
        lay_out(ready[a.name], torch.zeros(2, *shape, device=device))
    tallies = {a.name: _Tally(task, device) for a in group}
    base = _Tally(task, device)
    network_format = resolve(precision, device, teacher.module)
    formats = {
        name: resolve(precision, device, module) if network_format != "float32" else "float32"
        for name, module in ready.items()
    }
    for images, labels in split.batches(batch_size, device=device):
        with autocast(device, network_format):
            seen = probe(images)
        base.add(seen["output"], seen["output"], labels)
        for a in group:
            tail = suffixes[a.block]
            entering = seen[tail.inputs[0]]
            with autocast(device, formats[a.name]):
                narrow = formats[a.name] == "float32"
                replaced = ready[a.name](entering.float() if narrow else entering)
            with autocast(device, network_format):
                logits = tail.module(replaced, *(seen[name] for name in tail.inputs[1:]))
            tallies[a.name].add(logits, seen["output"], labels)
            tallies[a.name].add_block(replaced, seen[sample.blocks[a.block].output])
    reference = base.scorer.result().value
    return {
        name: {
            "accuracy_loss": reference - t.scorer.result().value,
            "divergence": t.divergence / t.images,
            "distillation": t.error / t.images,
        }
        for name, t in tallies.items()
    }


def suffix(teacher: LayerGraph, block: Block, device: torch.device) -> Suffix:
    """What runs behind ``block``, and the names of the teacher's tensors that it needs."""
    module = split(teacher, block).suffix
    _, *others = (str(node.target) for node in module.graph.nodes if node.op == "placeholder")
    return Suffix(module.to(device).eval(), (block.input, *others))
