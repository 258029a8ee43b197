"""The elastic pieces that supernets are composed of: convolution, norm, squeeze-excite, linear.

A piece holds the weights of the largest layer and runs with the leading channels of the active one;
a narrower layer is a slice of a wider one. Which shape is active is told by a :class:`LayerShape`;
a piece is bound to the attributes of it that its widths follow. Names of parameters are those of
the once-for-all code, where a piece ``conv`` holds its layer as ``conv.conv``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailorbird.errors import SpaceError
from tailorbird.supernet.shapes import LayerShape, make_divisible

Layer = TypeVar("Layer", bound=nn.Module)
Width = Literal["in_channels", "mid_channels", "out_channels", "attention", "squeezed"]
"""The attribute of a :class:`LayerShape` that a piece's width follows."""


@dataclass(frozen=True, eq=False)
class Tie:
    """A tensor that has an entry per channel of a width, and follows when channels are permuted.

    Args:
        width: which.
        tensor: or a view of it.
        dimension: along which the channels lie.
        reads: a layer's weight that mixes these channels: the last to know them, and its norm says
            what each is worth.
        group: so many neighbours stay together.
    """

    width: Width
    tensor: Tensor
    dimension: int
    reads: bool = False
    group: int = 1


class Elastic(nn.Module):
    """A piece with an active shape."""

    @abstractmethod
    def activate(self, shape: LayerShape) -> None:
        """Run at ``shape`` from now on."""

    @abstractmethod
    def extract(self, shape: LayerShape) -> nn.Module:
        """A plain layer of ``shape`` with copies of the weights; the active shape isn't used."""

    @abstractmethod
    def ties(self) -> Sequence[Tie]:
        """What follows its channels: what it reads first, then what it makes.

        Pieces inside it that are elastic themselves speak for themselves.
        """

    def initialise(self, generator: torch.Generator, std: float | None) -> None:
        """Draw fresh weights for its own parameters; layers inside it are drawn as such.

        Raises:
            SpaceError: for a piece that has such parameters and no rule for them.
        """
        if next(self.parameters(recurse=False), None) is not None:
            raise SpaceError(f"weights: no rule for how those of {type(self).__name__} start")


class ElasticConv(Elastic):
    """Convolution whose active channels are the leading ones, with an elastic kernel if asked.

    A smaller kernel is the centre of the next larger one times a learned matrix, which all channels
    share (``7to5_matrix`` of shape (25, 25), and so on); the matrices start as the identity.

    Args:
        conv: the largest convolution, without bias; depthwise where it has groups.
        inside: what the number of input channels follows.
        outside: what the number of output channels follows.
        kernels: kernel sizes to choose from, ascending, the convolution's the largest; empty where
            the kernel is always ``conv``'s own.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> shape = load_space("ofa-mbv3-w1.0").slots[2].variants[0, 0, 0]  # kernel 3, expand 3
        >>> full = nn.Conv2d(96, 96, 7, stride=2, groups=96, bias=False)
        >>> conv = ElasticConv(full, inside="mid_channels", outside="mid_channels",
        ...                    kernels=(3, 5, 7))
        >>> conv.activate(shape)
        >>> conv(torch.zeros(1, shape.mid_channels, 8, 8)).shape
        torch.Size([1, 48, 4, 4])
    """

    def __init__(
        self, conv: nn.Conv2d, *, inside: Width, outside: Width, kernels: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.inside: Width = inside
        self.outside: Width = outside
        self.kernels = tuple(kernels)
        for small, large in pairwise(self.kernels):
            matrix = nn.Parameter(torch.eye(small**2))
            self.register_parameter(_matrix_name(large, small), matrix)
        self.conv = conv
        self._active = (conv.in_channels, conv.out_channels, conv.kernel_size[0])

    def activate(self, shape: LayerShape) -> None:
        """Run at ``shape`` from now on."""
        self._active = self._sizes(shape)

    def forward(self, images: Tensor) -> Tensor:
        """(n, active inputs, h, w) to (n, active outputs, h / stride, w / stride)."""
        return self.convolve(images, self.active_weight, None)

    def convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As forward, with these weights (as :attr:`active_weight`) and bias (outputs,)."""
        groups = len(weight) if self.conv.groups > 1 else 1
        half = weight.shape[-1] // 2
        return F.conv2d(images, weight, bias, self.conv.stride, (half, half), groups=groups)

    def ties(self) -> Sequence[Tie]:
        """Its weight; a depthwise one mixes nothing."""
        weight = self.conv.weight
        made = Tie(self.outside, weight, 0)
        return [made] if self.conv.groups > 1 else [Tie(self.inside, weight, 1, reads=True), made]

    def initialise(self, generator: torch.Generator, std: float | None) -> None:
        """Kernel transforms start as the identity."""
        for matrix in self.parameters(recurse=False):
            nn.init.eye_(matrix)

    @property
    def active_weight(self) -> Tensor:
        """Weights (active outputs, active inputs per group, kernel, kernel)."""
        return self._weight(*self._active)

    def extract(self, shape: LayerShape) -> nn.Module:
        """A plain convolution of ``shape``."""
        inside, outside, kernel = self._sizes(shape)
        weight = self._weight(inside, outside, kernel)
        groups = inside if self.conv.groups > 1 else 1
        layer = partial(
            nn.Conv2d,
            *(inside, outside, kernel),
            stride=self.conv.stride[0],
            padding=kernel // 2,
            groups=groups,
            bias=False,
        )
        return filled(layer, {"weight": weight})

    def _sizes(self, shape: LayerShape) -> tuple[int, int, int]:
        kernel = shape.kernel if self.kernels else self.conv.kernel_size[0]
        return getattr(shape, self.inside), getattr(shape, self.outside), kernel

    def _weight(self, inside: int, outside: int, kernel: int) -> Tensor:
        depthwise = self.conv.groups > 1
        weight = leading(self.conv.weight, outside, 1 if depthwise else inside)
        sizes = [size for size in self.kernels if size >= kernel]
        for large, small in pairwise(reversed(sizes)):
            edge = (large - small) // 2
            centre = weight[:, :, edge : edge + small, edge : edge + small]
            matrix = self.get_parameter(_matrix_name(large, small))
            weight = F.linear(centre.reshape(-1, small**2), matrix).view(centre.shape)
        return weight


class ElasticNorm(Elastic):
    """Batch norm of the leading channels.

    The running statistics are shared by all widths, which fits none of them: recalibrate before a
    subnet is evaluated (:mod:`tailorbird.supernet.calibrate`).

    Args:
        bn: the widest norm.
        width: what the number of channels follows.
    """

    def __init__(self, bn: nn.BatchNorm2d, *, width: Width) -> None:
        super().__init__()
        self.width: Width = width
        self.bn = bn
        self._active = bn.num_features

    def activate(self, shape: LayerShape) -> None:
        """Run at ``shape`` from now on."""
        self._active = getattr(shape, self.width)

    def forward(self, images: Tensor) -> Tensor:
        """(n, active channels, h, w) to the same shape."""
        bn, width = self.bn, self._active
        if width == bn.num_features:
            normed: Tensor = bn(images)
            return normed
        share = bn.momentum
        if bn.training and bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
            share = 1.0 / float(bn.num_batches_tracked) if share is None else share
        mean, variance = bn.running_mean, bn.running_var
        return F.batch_norm(
            images,
            None if mean is None else mean[:width],
            None if variance is None else variance[:width],
            bn.weight[:width],
            bn.bias[:width],
            bn.training or mean is None,
            0.0 if share is None else share,
            bn.eps,
        )

    def extract(self, shape: LayerShape) -> nn.Module:
        """A plain norm of ``shape``, with the running statistics as they are."""
        bn, width = self.bn, getattr(shape, self.width)
        values = {n: v[:width] if v.ndim else v for n, v in bn.state_dict().items()}
        layer = partial(nn.BatchNorm2d, width, eps=bn.eps, momentum=bn.momentum)
        return filled(layer, values).train(bn.training)

    def ties(self) -> Sequence[Tie]:
        """Scale, shift and statistics."""
        tensors = self.bn.state_dict(keep_vars=True).values()
        return [Tie(self.width, tensor, 0) for tensor in tensors if tensor.ndim]


class SqueezeExcite(nn.Module):
    """Scales each channel by what two dense layers make of all channels' means.

    Args:
        width: channels; a quarter of them (to a multiple of 8) inside.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = make_divisible(width // 4)
        self.fc = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                reduce=nn.Conv2d(width, inner, 1),
                relu=nn.ReLU(),
                expand=nn.Conv2d(inner, width, 1),
                h_sigmoid=nn.Hardsigmoid(),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        scale: Tensor = self.fc(images)
        return images * scale


class ElasticSqueezeExcite(Elastic):
    """Squeeze-and-excitation of the leading channels; the width inside follows theirs.

    Args:
        width: the largest number of channels; the active one follows the expanded width.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = SqueezeExcite(width).fc
        self._active = width

    def activate(self, shape: LayerShape) -> None:
        """Run at ``shape`` from now on."""
        self._active = shape.mid_channels

    def forward(self, images: Tensor) -> Tensor:
        """(n, active channels, h, w) to the same shape."""
        (reduce, reduce_bias), (expand, expand_bias) = self.active_weights
        means = F.adaptive_avg_pool2d(images, 1)
        inner = F.relu(F.conv2d(means, reduce, reduce_bias))
        return images * F.hardsigmoid(F.conv2d(inner, expand, expand_bias))

    @property
    def active_weights(self) -> list[tuple[Tensor, Tensor]]:
        """Weights (outputs, inputs, 1, 1) and biases of the reducing and the expanding layer."""
        return self._weights(self._active)

    def extract(self, shape: LayerShape) -> nn.Module:
        """A plain squeeze-and-excitation of ``shape``."""
        (into, inner), (out, outer) = self._weights(shape.mid_channels)
        values = {"reduce.weight": into, "reduce.bias": inner}
        values |= {"expand.weight": out, "expand.bias": outer}
        layer = partial(SqueezeExcite, shape.mid_channels)
        return filled(layer, {f"fc.{k}": v for k, v in values.items()}).train(self.training)

    def ties(self) -> Sequence[Tie]:
        """Both layers' outer channels, then those between them."""
        reduce, expand = self.fc.get_submodule("reduce"), self.fc.get_submodule("expand")
        into, out = reduce.get_parameter("weight"), expand.get_parameter("weight")
        return [
            Tie("mid_channels", into, 1),
            Tie("mid_channels", out, 0),
            Tie("mid_channels", expand.get_parameter("bias"), 0),
            Tie("squeezed", into, 0),
            Tie("squeezed", reduce.get_parameter("bias"), 0),
            Tie("squeezed", out, 1, reads=True),
        ]

    def _weights(self, width: int) -> list[tuple[Tensor, Tensor]]:
        inner = make_divisible(width // 4)
        reduce = self.fc.get_submodule("reduce")
        expand = self.fc.get_submodule("expand")
        return [
            (
                leading(layer.get_parameter("weight"), outside, inside),
                leading(layer.get_parameter("bias"), outside),
            )
            for layer, inside, outside in ((reduce, width, inner), (expand, inner, width))
        ]


class ElasticLinear(Elastic):
    """Dense layer of the leading features.

    Args:
        linear: the widest layer.
        inside: what the number of inputs follows.
        outside: what the number of outputs follows; ``None`` where all are always there.
    """

    def __init__(
        self, linear: nn.Linear, *, inside: Width = "in_channels", outside: Width | None = None
    ) -> None:
        super().__init__()
        self.inside: Width = inside
        self.outside: Width | None = outside
        self.linear = linear
        self._active = (linear.in_features, linear.out_features)

    def activate(self, shape: LayerShape) -> None:
        """Run at ``shape`` from now on."""
        self._active = self._sizes(shape)

    def forward(self, features: Tensor) -> Tensor:
        """(..., active features) to (..., active outputs)."""
        return F.linear(features, *self._weights(*self._active))

    def extract(self, shape: LayerShape) -> nn.Linear:
        """A plain dense layer of ``shape``."""
        layer = plain_linear(*self._weights(*self._sizes(shape)))
        return layer.train(self.training)

    def ties(self) -> Sequence[Tie]:
        """Its weight and, where the outputs are elastic, its bias."""
        weight, outside = self.linear.weight, self.outside
        made = (
            () if outside is None else (Tie(outside, weight, 0), Tie(outside, self.linear.bias, 0))
        )
        return [Tie(self.inside, weight, 1, reads=True), *made]

    def _sizes(self, shape: LayerShape) -> tuple[int, int]:
        outputs = self.linear.out_features
        inside: int = getattr(shape, self.inside)
        return inside, outputs if self.outside is None else getattr(shape, self.outside)

    def _weights(self, inside: int, outside: int) -> tuple[Tensor, Tensor]:
        return leading(self.linear.weight, outside, inside), leading(self.linear.bias, outside)


def draw(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill ``weight`` from a normal distribution that is cut off at 2 standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def filled(layer: Callable[[], Layer], values: Mapping[str, Tensor]) -> Layer:
    """What ``layer`` makes, with copies of all its weights and buffers, where the first one is."""
    with torch.device("meta"):  # building there draws nothing from the global generator
        made = layer()
    first = next(iter(values.values()))
    made.to_empty(device=first.device).to(first.dtype)
    made.load_state_dict(values)
    return made


def plain_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A dense layer with copies of the weights (outputs, inputs) and the bias."""
    layer = partial(nn.Linear, weight.shape[1], weight.shape[0])
    return filled(layer, {"weight": weight, "bias": bias})


def leading(tensor: Tensor, *sizes: int) -> Tensor:
    """The first ``sizes`` of the first dimensions; the tensor itself where that is all of it.

    Example:
        >>> leading(torch.zeros(4, 3), 2, 3).shape
        torch.Size([2, 3])
    """
    for dimension, size in enumerate(sizes):
        if tensor.shape[dimension] != size:
            tensor = tensor.narrow(dimension, 0, size)
    return tensor


def _matrix_name(large: int, small: int) -> str:
    return f"{large}to{small}_matrix"
