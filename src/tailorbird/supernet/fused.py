"""Layers as they run fastest where no gradient is needed: convolution, norm and activation as one.

With fixed statistics a norm is a scale and a shift of each channel, which go into the weights of
the convolution in front of it. So they do with a batch's own statistics where those follow from
the convolution's inputs; elsewhere the norm scales in place what the convolution made. Activation,
squeeze-and-excitation and shortcut work in place too. A layer then writes one tensor instead of
three, and on a CPU it is memory that the cheap layers of mobile networks wait for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailorbird.supernet.elastic import ElasticConv, ElasticNorm, ElasticSqueezeExcite
from tailorbird.supernet.shortcuts import Residual


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
            if parts and isinstance(excite := parts[0][1], ElasticSqueezeExcite):
                replaced[parts.pop(0)[0]] = FusedSqueezeExcite(excite)
        else:
            replaced[name] = fused(part)
    if all(part is replaced.get(name) for name, part in module.named_children()):
        return module
    if isinstance(module, Residual):
        return FusedResidual(replaced["conv"])
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
        width = len(weight)
        if bn.training and not self._widens(weight):
            outputs = self._convolve(images, weight, None)
            mean, variance = _note(bn, outputs)
            scale, shift = _affine(bn, mean, variance)
            torch.addcmul(shift[:, None, None], outputs, scale[:, None, None], out=outputs)
        else:
            if bn.training:
                mean, variance = _foresee(bn, images, weight)
            else:
                assert bn.running_mean is not None
                assert bn.running_var is not None
                mean, variance = bn.running_mean[:width], bn.running_var[:width]
            scale, shift = _affine(bn, mean, variance)
            outputs = self._convolve(images, weight * scale[:, None, None, None], shift)
        return outputs if self.activation is None else self.activation(outputs)

    def _widens(self, weight: Tensor) -> bool:
        """Whether the moments of the inputs are cheaper to take than those of the outputs."""
        return self._pointwise and weight.shape[0] > weight.shape[1]

    def _convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        small = images[:, 0].numel() * len(weight) < _CACHED
        if self._pointwise and channels_last and (small or bias is None):
            # A matrix product as it lies in memory; it starts sooner than a convolution does, but
            # with a bias it writes the outputs twice.
            pixels = F.linear(images.permute(0, 2, 3, 1), weight.flatten(1), bias)
            return pixels.permute(0, 3, 1, 2)
        if isinstance(self.conv, ElasticConv):
            return self.conv.convolve(images, weight, bias)
        outputs: Tensor = self.conv._conv_forward(images, weight, bias)
        return outputs


class FusedSqueezeExcite(nn.Module):
    """Squeeze-and-excitation that scales its input **in place**, its dense layers run as such."""

    def __init__(self, layer: ElasticSqueezeExcite) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """(n, active channels, h, w) to the same tensor."""
        (reduce, reduce_bias), (expand, expand_bias) = self.layer.active_weights
        inner = F.linear(images.mean((2, 3)), reduce.flatten(1), reduce_bias).relu_()
        gates = F.hardsigmoid(F.linear(inner, expand.flatten(1), expand_bias))
        return images.mul_(gates[:, :, None, None])


class FusedResidual(Residual):
    """Adds its input to what ``conv`` makes of it, in place there: a tensor of its own."""

    def forward(self, images: Tensor) -> Tensor:
        """(n, ...) to the same shape."""
        change: Tensor = self.conv(images)
        return change.add_(images)


def _affine(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (channels,) that the norm of the leading channels amounts to."""
    width = len(mean)
    scale = bn.weight[:width] * (variance + bn.eps).rsqrt()
    return scale, bn.bias[:width] - mean * scale


def _note(bn: nn.BatchNorm2d, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """A batch's mean and biased variance (channels,), taken into the running statistics."""
    running_mean, running_var, share = _running(bn, outputs.shape[1])
    mean, variance = torch.batch_norm_update_stats(outputs, running_mean, running_var, share)
    return mean, variance


def _foresee(bn: nn.BatchNorm2d, images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_note`, of what a pointwise convolution will make of ``images``.

    Its outputs are linear in the inputs of the same pixel, and so are the moments: mean W m and
    covariance W C W^T, for m and C those of the inputs.
    """
    pixels, matrix = images.permute(0, 2, 3, 1).flatten(0, 2), weight.flatten(1).double()
    mean = matrix @ pixels.mean(0).double()
    covariance = torch.cov(pixels.T, correction=0).view(2 * (len(matrix[0]),)).double()
    variance = (matrix @ covariance).mul_(matrix).sum(1).clamp_min_(0.0)
    running_mean, running_var, share = _running(bn, len(matrix))
    running_mean.lerp_(mean.to(running_mean), share)
    unbiased = variance * (len(pixels) / (len(pixels) - 1))
    running_var.lerp_(unbiased.to(running_var), share)
    return mean.to(weight), variance.to(weight)


def _running(bn: nn.BatchNorm2d, width: int) -> tuple[Tensor, Tensor, float]:
    """Running mean and variance of the leading channels, and a batch's share in them from now."""
    assert bn.num_batches_tracked is not None
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.num_batches_tracked.add_(1)
    share = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
    return bn.running_mean[:width], bn.running_var[:width], share


_CACHED = 2**19
"""Numbers that a processor's caches hold about: 2 MB of float32."""

_IN_PLACE: Mapping[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: lambda images: images.relu_(),
    nn.ReLU6: lambda images: F.hardtanh_(images, 0.0, 6.0),
    nn.Hardswish: lambda images: F.hardswish(images, inplace=True),
}
