"""Re-estimating BatchNorm statistics: after cutting, stitching or averaging they are stale."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tailorbird.errors import DataError


def norm_layers(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics, timm's and synchronised ones too."""
    return [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    ]


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by plain averages over ``batches``, **in place**.

    Only BatchNorm layers run in train mode meanwhile, so dropout stays off; every layer's mode
    and momentum are put back. Each batch counts the same. Networks without BatchNorm are left
    alone, and an error leaves the old statistics in place.

    Args:
        module: the network whose statistics change.
        batches: images, each (n, C, H, W) with n >= 2, on the module's device.

    Raises:
        DataError: when there is no batch.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(1))
        >>> recalibrate(net, [torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 5.0)])
        >>> net[0].running_mean.tolist()
        [4.0]
    """
    layers = norm_layers(module)
    if not layers:
        return
    modes = {part: part.training for part in module.modules()}
    momenta = [layer.momentum for layer in layers]
    before = [{k: v.clone() for k, v in layer.named_buffers()} for layer in layers]
    seen = 0
    try:
        module.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.training = True
        for images in batches:
            module(images)
            seen += 1
        if not seen:
            raise DataError(
                "BatchNorm statistics: no batch to estimate them from; give at least one"
            )
    except BaseException:
        for layer, buffers in zip(layers, before, strict=True):
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for part, training in modes.items():
            part.training = training
