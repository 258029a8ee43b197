"""Layers as they run fastest where no gradient is needed: convolution, norm and activation as one.

With fixed statistics a norm is a scale and a shift of each channel, which go into the weights of
the convolution in front of it. With a batch's own statistics it scales in place what the
convolution made; the activation works in place too. A layer then writes one tensor instead of
three, and on a CPU it is memory that the cheap layers of mobile networks wait for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailorbird.supernet.elastic import ElasticConv, ElasticNorm


def fused(module: nn.Module) -> nn.Module:
    """A twin of ``module`` that shares its pieces and runs each convolution with what follows it.

    The same up to rounding; for use without gradients. ``module`` stays as it is, and the twin
    follows its weights, its active shape, and the mode and the buffers of its norms.

    Example:
        >>> unit = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> images = torch.rand(2, 3, 8, 8)
        >>> with torch.no_grad():
        ...     bool(torch.allclose(fused(unit.eval())(images), unit(images), atol=1e-6))
        True
    """
    parts = list(module.named_children())
    replaced: dict[str, nn.Module] = {}
    while parts:
        name, part = parts.pop(0)
        if isinstance(module, nn.Sequential) and _is_unit(part, parts):
            assert isinstance(part, ElasticConv | nn.Conv2d)
            norm = parts.pop(0)[1]
            assert isinstance(norm, ElasticNorm | nn.BatchNorm2d)
            acts = bool(parts) and type(parts[0][1]) in _IN_PLACE
            replaced[name] = FusedConv(part, norm, parts.pop(0)[1] if acts else None)
        else:
            replaced[name] = fused(part)
    if all(part is replaced.get(name) for name, part in module.named_children()):
        return module
    # A shallow copy shares the tables of parameters, buffers and hooks.
    twin = copy.copy(module)
    twin._modules = dict(replaced)
    return twin


def _is_unit(first: nn.Module, others: list[tuple[str, nn.Module]]) -> bool:
    """Whether ``first`` is a convolution without bias, and a norm the next of ``others``."""
    if not others or not isinstance(others[0][1], ElasticNorm | nn.BatchNorm2d):
        return False
    return isinstance(first, ElasticConv) or (isinstance(first, nn.Conv2d) and first.bias is None)


class FusedConv(nn.Module):
    """A convolution with the norm and the activation behind it.

    Args:
        conv: without bias.
        norm: in train mode it takes the batch's statistics and notes them, as alone.
        activation: ``None`` for none.
    """

    def __init__(
        self,
        conv: ElasticConv | nn.Conv2d,
        norm: ElasticNorm | nn.BatchNorm2d,
        activation: nn.Module | None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        plain = conv.conv if isinstance(conv, ElasticConv) else conv
        small = max(*plain.kernel_size, *plain.stride, plain.groups) == 1
        self._pointwise = small and plain.padding == (0, 0)
        self.activation = None if activation is None else _IN_PLACE[type(activation)]

    def forward(self, images: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        bn = self.norm.bn if isinstance(self.norm, ElasticNorm) else self.norm
        weight = self.conv.active_weight if isinstance(self.conv, ElasticConv) else self.conv.weight
        if bn.training:
            outputs = self._convolve(images, weight, None)
            mean, variance = _note(bn, outputs)
            scale, shift = _affine(bn, mean, variance)
            torch.addcmul(shift[:, None, None], outputs, scale[:, None, None], out=outputs)
        else:
            assert bn.running_mean is not None
            assert bn.running_var is not None
            width = len(weight)
            scale, shift = _affine(bn, bn.running_mean[:width], bn.running_var[:width])
            outputs = self._convolve(images, weight * scale[:, None, None, None], shift)
        return outputs if self.activation is None else self.activation(outputs)

    def _convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._pointwise and images.is_contiguous(memory_format=torch.channels_last):
            # A matrix product as it lies in memory; it starts sooner than a convolution does.
            pixels = F.linear(images.permute(0, 2, 3, 1), weight.flatten(1), bias)
            return pixels.permute(0, 3, 1, 2)
        if isinstance(self.conv, ElasticConv):
            return self.conv.convolve(images, weight, bias)
        outputs: Tensor = self.conv._conv_forward(images, weight, bias)
        return outputs


def _affine(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (channels,) that the norm of the leading channels amounts to."""
    width = len(mean)
    scale = bn.weight[:width] * (variance + bn.eps).rsqrt()
    return scale, bn.bias[:width] - mean * scale


def _note(bn: nn.BatchNorm2d, images: Tensor) -> tuple[Tensor, Tensor]:
    """A batch's mean and biased variance (channels,), taken into the running statistics."""
    assert bn.num_batches_tracked is not None
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.num_batches_tracked.add_(1)
    share = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
    width = images.shape[1]
    mean, variance = torch.batch_norm_update_stats(
        images, bn.running_mean[:width], bn.running_var[:width], share
    )
    return mean, variance


_IN_PLACE: Mapping[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: lambda images: images.relu_(),
    nn.ReLU6: lambda images: F.hardtanh_(images, 0.0, 6.0),
    nn.Hardswish: lambda images: F.hardswish(images, inplace=True),
}
