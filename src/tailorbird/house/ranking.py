"""How well one measure of networks ranks them by another: of the scores on some images by the loss
on others, which tells what images are good to choose by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tailorbird.data.images import Split
from tailorbird.errors import ConfigError
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.evaluate import logits, logits_and_targets


@dataclass(frozen=True)
class Loss:
    """What a network loses against a teacher on some images.

    Args:
        divergence: mean Kullback-Leibler divergence from its answers, nats.
        accuracy: share of right answers that is lost; of answers like the teacher's without labels.
    """

    divergence: float
    accuracy: float


def losses_on(
    split: Split,
    teacher: nn.Module,
    networks: Mapping[str, nn.Module],
    *,
    task: Task = CLASSIFICATION,
    device: torch.device | None = None,
) -> dict[str, Loss]:
    """Network's name -> what it loses on the images of a split.

    Cost: a pass of each network.

    Args:
        split: images; labels are used where there are any.
        teacher: images (n, C, H, W) to outputs, as the others.
        networks: by name.
        task: what outputs mean.
        device: where to run; None is where each network is.
    """
    known = logits(teacher, split, device=device)
    found = {}
    for name, network in networks.items():
        outputs, targets = logits_and_targets(network, split, device=device)
        right = task.answers(known) if targets is None else targets
        lost = _score(task, known, right) - _score(task, outputs, right)
        found[name] = Loss(float(task.distil(outputs, known)), lost)
    return found


def rank_correlation(scores: Mapping[str, float], losses: Mapping[str, float]) -> float:
    """Spearman's rank correlation of two measures of the same networks, -1 to 1.

    Raises:
        ConfigError: for other names in one than in the other, fewer than three, or a measure in
            which all are equal.

    Example:
        >>> rank_correlation({"a": 0.1, "b": 0.2, "c": 9.0}, {"a": 3.0, "b": 4.0, "c": 5.0})
        1.0
    """
    from scipy.stats import spearmanr

    if scores.keys() != losses.keys() or len(scores) < 3:
        raise ConfigError(
            "rank correlation: expected two measures of the same three networks or more, got "
            f"{len(scores)} and {len(losses)}, {len(scores.keys() & losses.keys())} in both"
        )
    pairs = [(scores[name], losses[name]) for name in scores]
    if any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        raise ConfigError("rank correlation: all networks are equal by one measure; give others")
    return float(spearmanr(pairs).statistic)


def _score(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    scorer = task.scorer(outputs.device)
    scorer.add(outputs, targets)
    return scorer.result().value
