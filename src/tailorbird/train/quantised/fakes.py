"""Rounding as a quantised file rounds, with gradients that pass straight through."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from tailorbird.train.quantised.places import Constant, Grid


class FakeActivation(nn.Module):
    """Rounds an activation to a fixed grid.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (https://arxiv.org/abs/1712.05877), section 3.

    Example:
        >>> fake = FakeActivation(Grid(scale=0.5, zero_point=0, low=0, high=3))
        >>> fake(torch.tensor([-1.0, 0.6, 9.0]))
        tensor([0.0000, 0.5000, 1.5000])
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.low, self.high = grid.low, grid.high
        self.register_buffer("scale", torch.tensor(grid.scale))
        self.register_buffer("zero_point", torch.tensor(grid.zero_point, dtype=torch.int32))

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape to the nearest of the grid; gradients are 0 outside of it."""
        return torch.fake_quantize_per_tensor_affine(
            values, self.scale, self.zero_point, self.low, self.high
        )


class FakeConstant(nn.Module):
    """Rounds weights to the grid that follows from them, as the file's tool would find it.

    Args:
        constant: the file's; says what grids look like, not what they are.
        transposed: whether the file holds these weights, a matrix, transposed.

    Example:
        >>> held = torch.tensor([[-2.0, 2.0]])
        >>> constant = Constant(name="w", values=held, steps=torch.ones(1, 1), axis=0,
        ...     zero_points=torch.zeros(1, 1), low=-2, high=2, symmetric=True)
        >>> FakeConstant(constant)(torch.tensor([[0.9, 4.0]]))
        tensor([[0., 4.]])
    """

    def __init__(self, constant: Constant, *, transposed: bool = False) -> None:
        super().__init__()
        self.low, self.high = constant.low, constant.high
        self.symmetric = constant.symmetric
        self.largest = constant.largest or max(constant.high, 1)
        self.share, self.least = constant.share, constant.least
        axis = constant.axis
        if axis is not None and transposed:
            axis = 1 - axis
        self.axis = axis

    def forward(self, weights: Tensor) -> Tensor:
        """Weights to weights of the same shape; all gradients pass."""
        return self.rounded(weights)[0]

    def rounded(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded weights, and the scale of each channel, or of all: (channels,) or (1,)."""
        scale, zero_point = self.grid(weights.detach())
        if self.axis is None:
            whole = torch.fake_quantize_per_tensor_affine(
                weights, scale[0], zero_point[0], self.low, self.high
            )
        else:
            whole = torch.fake_quantize_per_channel_affine(
                weights, scale, zero_point, self.axis, self.low, self.high
            )
        return whole, scale

    def grid(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each channel, or of all: (channels,) or (1,)."""
        rows = weights.reshape(1, -1) if self.axis is None else weights.transpose(0, self.axis)
        rows = rows.reshape(len(rows), -1).float()
        if self.symmetric:
            ends = rows.abs().amax(1)
            ends = ends.maximum((ends.amax() * self.share).clamp(min=self.least))
            scale = ends / self.largest
            zero_point = torch.zeros_like(scale)
        else:
            least, most = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
            scale = (most - least) / (self.high - self.low)
            zero_point = self.low - least / scale
        tiny = torch.finfo(torch.float32).tiny
        empty = scale < tiny
        scale = torch.where(empty, torch.ones_like(scale), scale)
        zero_point = torch.where(empty, torch.zeros_like(scale), zero_point)
        return scale, zero_point.round().clamp(self.low, self.high).to(torch.int32)


class FakeLayer(nn.Module):
    """A layer whose weights are rounded, with the BatchNorm behind it folded into them first.

    BatchNorm's running statistics are used, never changed.

    Args:
        layer: such as a convolution.
        fakes: of its parameters, by name.
        norm: what is folded into ``weight`` and bias; ``None`` for nothing.
        input_scale: that of the layer's input, where its bias is rounded to products of it and
            the weights' scales.
    """

    def __init__(
        self,
        layer: nn.Module,
        fakes: Mapping[str, FakeConstant],
        *,
        norm: _BatchNorm | None = None,
        input_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.input_scale = layer, norm, input_scale
        self.fakes = nn.ModuleDict(dict(fakes))

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the layer gives, and the BatchNorm behind it."""
        own: dict[str, Tensor] = dict(self.layer.named_parameters(recurse=False))
        bias = own.get("bias")
        if self.norm is not None:
            factor, shift = fold(self.norm)
            own["weight"] = scaled(own["weight"], factor)
            bias = shift if bias is None else shift + bias * factor
        rounded: dict[str, Tensor] = {}
        steps = None
        for name, fake in self.fakes.items():
            assert isinstance(fake, FakeConstant)
            rounded[name], scale = fake.rounded(own[name])
            if name == "weight" and self.input_scale is not None:
                steps = scale * self.input_scale
        if bias is not None and steps is not None:
            bias = bias + (bias / steps).round().mul(steps).sub(bias).detach()
        if bias is None or "bias" in rounded:
            result: Tensor = functional_call(self.layer, rounded, inputs)
        elif "bias" in own:
            result = functional_call(self.layer, rounded | {"bias": bias}, inputs)
        else:
            result = functional_call(self.layer, rounded, inputs)
            result = result + bias.reshape(-1, *[1] * (result.ndim - 2))
        return result


def fold(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Factor and shift of each channel that a BatchNorm is in eval mode.

    Example:
        >>> factor, shift = fold(nn.BatchNorm1d(1, eps=0.0))
        >>> factor.item(), shift.item()
        (1.0, 0.0)
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # norms without are not folded
    factor = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias


def scaled(weight: Tensor, factor: Tensor) -> Tensor:
    """Weights (out, ...) with each output channel times its factor (out,)."""
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
