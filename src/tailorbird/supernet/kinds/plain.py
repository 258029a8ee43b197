"""Plain layers: convolution with norm and activation, pooling, the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailorbird.supernet.kinds.attributes import ACTIVATION, KERNEL, NORM, OUT_CHANNELS, RESIDUAL
from tailorbird.supernet.kinds.kind import Kind, conv_macs, norm_params, to_one
from tailorbird.supernet.shapes import LayerShape

if TYPE_CHECKING:
    from tailorbird.supernet.kinds.maker import Maker, Module


def _conv(make: Maker) -> Module:
    shape = make.shape
    unit = make.unit(
        "in_channels",
        "out_channels",
        kernels=make.kernels,
        stride=shape.stride,
        activation=shape.activation,
    )
    return make.residual(unit) if shape.residual else unit


def _conv_params(shape: LayerShape) -> int:
    return (shape.in_channels * shape.kernel**2 + norm_params(shape)) * shape.out_channels


def _max_pool(make: Maker) -> Module:
    from torch import nn

    kernel = make.shape.kernel
    return nn.MaxPool2d(kernel, stride=make.shape.stride, padding=kernel // 2)


def _global_avg_pool(_: Maker) -> Module:
    from torch import nn

    return nn.AdaptiveAvgPool2d(1)


def _whole_map(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"kernel": given["in_size"]}


def _linear(make: Maker) -> Module:
    from torch import nn

    from tailorbird.supernet.elastic import ElasticLinear

    dense = nn.Linear(make.most("in_channels"), make.most("out_channels"))
    return make.chain(
        flatten=nn.Flatten(1),
        dropout=nn.Dropout(make.dropout),
        linear=ElasticLinear(dense) if make.elastic else dense,
    )


def _linear_macs(shape: LayerShape) -> int:
    return shape.in_channels * shape.out_channels


def _linear_params(shape: LayerShape) -> int:
    return (shape.in_channels + 1) * shape.out_channels


CONV = Kind(
    name="conv",
    attributes=(OUT_CHANNELS, KERNEL, ACTIVATION, RESIDUAL, NORM),
    needed=("out_channels",),
    build=_conv,
    macs=conv_macs,
    params=_conv_params,
    defaults={"norm": True},
)
MAX_POOL = Kind(name="max_pool", attributes=(KERNEL,), needed=("stride",), build=_max_pool)
GLOBAL_AVG_POOL = Kind(
    name="global_avg_pool",
    attributes=(),
    build=_global_avg_pool,
    out_size=to_one,
    derived=_whole_map,
    role="pool",
)
LINEAR = Kind(
    name="linear",
    attributes=(OUT_CHANNELS,),
    needed=("out_channels",),
    build=_linear,
    macs=_linear_macs,
    params=_linear_params,
    out_size=to_one,
    role="classifier",
)
