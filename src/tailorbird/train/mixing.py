"""Mixup and CutMix by timm, made repeatable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Mix: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Mixer:
    """Mixes each batch with its own reverse, driven by a seed per batch.

    timm draws from numpy's global generator; it is seeded around each call and put back.

    Args:
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; with both, each batch gets one of them.
        classes: the number of logits, for the mixed labels.

    Example:
        >>> images, labels = torch.arange(4.0).view(4, 1, 1, 1), torch.arange(4)
        >>> mixed, target = Mixer(mixup=1.0, cutmix=0.0, classes=4)(images, labels, seed=1)
        >>> tuple(mixed.shape), target.sum(1).tolist()
        ((4, 1, 1, 1), [1.0, 1.0, 1.0, 1.0])
    """

    def __init__(self, *, mixup: float, cutmix: float, classes: int) -> None:
        from timm.data.mixup import Mixup

        make: Callable[..., Mix] = Mixup
        self._mix = make(
            mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=classes
        )

    def __call__(
        self, images: Tensor, labels: Tensor | None, *, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Mixed copies of images (n, C, H, W) and label probabilities (n, classes).

        An odd last image is left out, since the batch is folded onto itself.
        """
        even = len(images) - len(images) % 2
        if not even:
            return images, labels
        target = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
        before = np.random.get_state()
        try:
            np.random.seed(seed % 2**32)
            mixed, soft = self._mix(images[:even].clone(), target[:even])
        finally:
            np.random.set_state(before)
        return mixed, None if labels is None else soft
