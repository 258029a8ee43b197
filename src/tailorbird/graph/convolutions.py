"""The arithmetic of convolutions: one after the other, beside each other, with a norm behind.

A convolution is linear, so two of them with nothing non-linear between are one. With weights U
(m, i, h, w) of stride s first and V (o, m, p, q) behind, the one has the weights

    W[o, i, y, x] = sum over m, a, b of V[o, m, a, b] U[m, i, y - s a, x - s b]

and a kernel of h + s (p - 1) rows. Two that read the same tensor and are added are one as well,
their kernels laid over each other; a shortcut is the kernel that is 1 at the centre of each channel
(Ding et al. 2021, "RepVGG"). Output sizes come out the same for any stride and padding.

At borders one thing differs. The second convolution pads the first one's *outputs* with zeros,
where the one convolution pads the image, and a padded image gives the first one's bias. So the two
agree up to the border only if the second pads nothing, or the first has no bias and pads so much
that beyond its outputs it would see nothing but padding (a 1x1 convolution always does).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from tailorbird.errors import GraphError

TOLERANCE = 1e-4
"""Of a comparison in float32, as a share of the largest value."""


@dataclass(frozen=True)
class Window:
    """What a convolution does along one axis.

    Args:
        kernel: from the first position that an output is made of to the last.
        stride: positions from one output to the next.
        before: zeros in front of the image.
        after: zeros behind it.
        dilation: weights are at multiples of this from the first; 0 for a kernel of one.
    """

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 0

    def then(self, other: Window) -> Window:
        """The window of ``other`` behind this one.

        Example:
            >>> Window(kernel=3, stride=2, before=1, dilation=1).then(Window(kernel=2, dilation=1))
            Window(kernel=5, stride=2, before=1, after=0, dilation=1)
        """
        return Window(
            self.kernel + self.stride * (other.kernel - 1),
            self.stride * other.stride,
            self.before + self.stride * other.before,
            self.after + self.stride * other.after,
            gcd(self.dilation, self.stride * other.dilation),
        )

    def beside(self, other: Window) -> Window:
        """The smallest window that holds both; of equal stride and as many outputs."""
        before = max(self.before, other.before)
        behind = max(self.kernel - self.before, other.kernel - other.before)
        after = max(one.after - (one.kernel - one.before) for one in (self, other)) + behind
        dilation = gcd(self.dilation, other.dilation, self.before - other.before)
        return Window(before + behind, self.stride, before, after, dilation)

    @property
    def taps(self) -> int:
        """How many of the kernel's positions have weights."""
        return 1 + (self.kernel - 1) // max(1, self.dilation)

    @property
    def closed(self) -> bool:
        """Whether beyond its outputs it would see padding only."""
        return self.before >= self.kernel - self.stride and self.after >= self.kernel - 1


@dataclass(frozen=True)
class Convolution:
    """A convolution of images (n, I, H, W) as a value.

    Args:
        weight: (O, I / groups, h, w), with zeros where it is dilated.
        bias: (O,).
        rows: along H.
        columns: along W.
        groups: of channels that are convolved apart.
        borders: whether it equals what it was merged from at the image's borders, too.
    """

    weight: Tensor
    bias: Tensor
    rows: Window = Window()
    columns: Window = Window()
    groups: int = 1
    borders: bool = True

    @property
    def cost(self) -> int:
        """Multiply-accumulates for one position of the output."""
        outputs, inputs = self.weight.shape[:2]
        return outputs * inputs * self.rows.taps * self.columns.taps

    def then(self, other: Convolution) -> Convolution:
        """``other`` behind this one as one convolution, of as many groups as both leave.

        Example:
            >>> first = read_convolution(nn.Conv2d(2, 3, 3, padding=1, bias=False), (7, 7))
            >>> both = first.then(read_convolution(nn.Conv2d(3, 4, 3, padding=1), (7, 7)))
            >>> both.weight.shape, both.borders
            (torch.Size([4, 2, 5, 5]), False)
        """
        rows, columns = self.rows.then(other.rows), self.columns.then(other.columns)
        groups = gcd(self.groups, other.groups)
        first = self._in_groups(groups)
        height, width = first.shape[2:]
        outer = other.weight.reshape(other.groups, -1, *other.weight.shape[1:])
        inner = first.reshape(other.groups, -1, *first.shape[1:])
        biases = self.bias.reshape(other.groups, -1)
        size = len(other.weight), first.shape[1], rows.kernel, columns.kernel
        weight = first.new_zeros(size)
        taps = product(range(other.rows.kernel), range(other.columns.kernel))
        for a, b in () if weight.is_meta else taps:
            top, left = a * self.rows.stride, b * self.columns.stride
            tap = torch.einsum("gom,gmihw->goihw", outer[..., a, b], inner).flatten(0, 1)
            weight[:, :, top : top + height, left : left + width] += tap
        bias = other.bias + torch.einsum("gomab,gm->go", outer, biases).flatten()
        borders = self.borders and other.borders and self._borders_before(other)
        return Convolution(weight, bias, rows, columns, groups, borders)

    def plus(self, other: Convolution) -> Convolution:
        """The sum of both, which read the same image and give as many outputs.

        Raises:
            GraphError: when they have other strides.
        """
        strides = [(one.rows.stride, one.columns.stride) for one in (self, other)]
        if strides[0] != strides[1]:
            raise GraphError("branches of other strides")
        rows, columns = self.rows.beside(other.rows), self.columns.beside(other.columns)
        groups = gcd(self.groups, other.groups)
        left, right = (
            _laid_into(replace(one, weight=one._in_groups(groups)), rows, columns)
            for one in (self, other)
        )
        borders = self.borders and other.borders
        return Convolution(left + right, self.bias + other.bias, rows, columns, groups, borders)

    def scaled(self, scale: Tensor, shift: Tensor) -> Convolution:
        """With its outputs times ``scale`` (O,) plus ``shift`` (O,)."""
        weight = self.weight * scale[:, None, None, None]
        return replace(self, weight=weight, bias=self.bias * scale + shift)

    def module(self) -> fx.GraphModule:
        """A network of this one convolution, in float32, with the placeholder ``x``.

        Padding that differs in front and behind is an operation of its own.
        """
        dilation = max(1, self.rows.dilation), max(1, self.columns.dilation)
        weight = self.weight[..., :: dilation[0], :: dilation[1]]
        even = self.rows.before == self.rows.after and self.columns.before == self.columns.after
        layer: nn.Module = skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d,
            weight.shape[1] * self.groups,
            len(weight),
            tuple(weight.shape[2:]),
            stride=(self.rows.stride, self.columns.stride),
            padding=(self.rows.before, self.columns.before) if even else 0,
            dilation=dilation,
            groups=self.groups,
        )
        layer.load_state_dict({"weight": weight.float(), "bias": self.bias.float()})
        home = nn.Module()
        home.add_module("conv", layer)
        graph = fx.Graph()
        value = graph.placeholder("x")
        if not even:
            value = graph.call_function(F.pad, (value, _padding(self.rows, self.columns)))
        graph.output(graph.call_module("conv", (value,)))
        return fx.GraphModule(home, graph).eval()

    def _in_groups(self, groups: int) -> Tensor:
        """The weights with so many groups, a divisor of its own, and zeros between those."""
        ratio = self.groups // groups
        if ratio == 1 or self.weight.is_meta:
            outputs, inputs, *kernel = self.weight.shape
            return (
                self.weight
                if ratio == 1
                else self.weight.new_empty((outputs, inputs * ratio, *kernel))
            )
        parts = self.weight.reshape(groups, ratio, -1, *self.weight.shape[1:])
        eye = torch.eye(ratio, dtype=parts.dtype, device=parts.device)
        wider = torch.einsum("groihw,rs->grosihw", parts, eye)
        return wider.flatten(3, 4).flatten(0, 2)

    def _borders_before(self, other: Convolution) -> bool:
        """Whether nothing changes at borders when ``other`` behind this one becomes one with it."""
        axes = ((self.rows, other.rows), (self.columns, other.columns))
        padded = [own for own, behind in axes if behind.before or behind.after]
        if not padded or self.bias.is_meta:
            return not padded
        return not bool(self.bias.any()) and all(own.closed for own in padded)


def shortcut(channels: int, device: torch.device | str = "cpu") -> Convolution:
    """The convolution that hands its image on: 1 at the centre of each channel.

    Example:
        >>> images = torch.rand(1, 3, 4, 4)
        >>> bool(torch.equal(shortcut(3).module()(images), images))
        True
    """
    weight = torch.ones(channels, 1, 1, 1, dtype=torch.float64, device=device)
    return Convolution(weight, weight.new_zeros(channels), groups=channels)


def read_convolution(
    layer: nn.Module, size: tuple[int, int], device: torch.device | str = "cpu"
) -> Convolution:
    """A layer as a value.

    A class with a forward of its own, such as one that pads as TensorFlow does, is run and
    compared.

    Args:
        layer: a two-dimensional convolution, in eval mode.
        size: height and width of its images.
        device: where the value's tensors are; on ``"meta"`` they have shapes only.

    Raises:
        GraphError: when it is no convolution that pads with zeros.
    """
    if not isinstance(layer, nn.Conv2d):
        raise GraphError(f"a {type(layer).__name__}")
    if layer.padding_mode != "zeros":
        raise GraphError(f"padding of kind {layer.padding_mode}")
    plain = type(layer).forward is nn.Conv2d.forward
    windows = _stated(layer) if plain else _found_out(layer, size)
    if windows is None:
        raise GraphError(f"a {type(layer).__name__} that does more than to pad and convolve")
    (rows, columns), own = windows, layer.weight.detach()
    weight = own.new_zeros((*own.shape[:2], rows.kernel, columns.kernel), dtype=torch.float64)
    weight[..., :: layer.dilation[0], :: layer.dilation[1]] = own.double()
    bias = own.new_zeros(len(own)) if layer.bias is None else layer.bias.detach()
    return Convolution(
        weight.to(device), bias.double().to(device), rows, columns, groups=layer.groups
    )


def _spread(layer: nn.Conv2d, axis: int) -> int:
    return layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1


def _dilation(layer: nn.Conv2d, axis: int) -> int:
    return layer.dilation[axis] if layer.kernel_size[axis] > 1 else 0


def _stated(layer: nn.Conv2d) -> tuple[Window, Window]:
    """Its windows by its own attributes."""
    windows = []
    for axis in (0, 1):
        kernel = _spread(layer, axis)
        if isinstance(layer.padding, str):
            total = kernel - 1 if layer.padding == "same" else 0
            before = total // 2
        else:
            before = layer.padding[axis]
            total = 2 * before
        windows.append(
            Window(kernel, layer.stride[axis], before, total - before, _dilation(layer, axis))
        )
    return windows[0], windows[1]


@torch.no_grad()
def _found_out(layer: nn.Conv2d, size: tuple[int, int]) -> tuple[Window, Window] | None:
    """The windows with which its weights and bias, convolved, give what it gives on an image."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, layer.in_channels, *size, generator=generator).to(layer.weight)
    wanted: Tensor = layer(image)
    scale = float(wanted.abs().max())
    for windows in (_stated(layer), *_padded(layer, size, wanted.shape[2:])):
        image_there = F.pad(image, _padding(*windows))
        if any(s < w.kernel for s, w in zip(image_there.shape[2:], windows, strict=True)):
            continue
        given = F.conv2d(
            image_there, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups
        )
        if given.shape == wanted.shape and torch.allclose(given, wanted, atol=TOLERANCE * scale):
            return windows
    return None


def _padded(
    layer: nn.Conv2d, size: tuple[int, int], outputs: Sequence[int]
) -> Iterator[tuple[Window, Window]]:
    """Windows with as many outputs: the odd zero behind, as TensorFlow has it, then all others."""
    kernels = _spread(layer, 0), _spread(layer, 1)
    totals = [
        max((n - 1) * layer.stride[axis] + kernels[axis] - size[axis], 0)
        for axis, n in enumerate(outputs)
    ]
    halves = totals[0] // 2, totals[1] // 2
    for first in (halves, *((b, b) for b in range(max(kernels)))):
        rows, columns = (
            Window(
                kernels[axis],
                layer.stride[axis],
                first[axis],
                max(totals[axis] - first[axis], 0),
                _dilation(layer, axis),
            )
            for axis in (0, 1)
        )
        yield rows, columns


def _padding(rows: Window, columns: Window) -> tuple[int, int, int, int]:
    return columns.before, columns.after, rows.before, rows.after


def _laid_into(one: Convolution, rows: Window, columns: Window) -> Tensor:
    """Its weights within a wider window."""
    top, left = rows.before - one.rows.before, columns.before - one.columns.before
    bottom = rows.kernel - one.rows.kernel - top
    right = columns.kernel - one.columns.kernel - left
    return F.pad(one.weight, (left, right, top, bottom))
