"""Inverted residual block of MobileNets: 1x1 expansion, depthwise convolution, 1x1 projection.

There is no expansion where ``expand`` is 1, and a shortcut where the shape stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailorbird.supernet.kinds.attributes import ACTIVATION, EXPAND, KERNEL, OUT_CHANNELS, SE
from tailorbird.supernet.kinds.kind import Kind, ends, norm_params
from tailorbird.supernet.shapes import LayerShape

if TYPE_CHECKING:
    from tailorbird.supernet.kinds.maker import Maker, Module


def _build(make: Maker) -> Module:
    shape = make.shape
    parts: dict[str, Module] = {}
    if shape.expand != 1:
        parts["inverted_bottleneck"] = make.unit(
            "in_channels", "mid_channels", activation=shape.activation
        )
    parts["depth_conv"] = make.unit(
        "mid_channels",
        "mid_channels",
        kernels=make.kernels,
        stride=shape.stride,
        depthwise=True,
        activation=shape.activation,
        se=shape.se,
    )
    parts["point_linear"] = make.unit("mid_channels", "out_channels")
    body = make.chain(**parts)
    return make.residual(body) if shape.residual else make.chain(conv=body)


def _depthwise_macs(shape: LayerShape) -> int:
    return shape.out_size**2 * shape.mid_channels * shape.kernel**2


def _macs(shape: LayerShape) -> int:
    mid = shape.mid_channels
    expansion = shape.in_size**2 * shape.in_channels * mid if shape.expand != 1 else 0
    squeeze = 2 * mid * shape.squeezed if shape.se else 0
    projection = shape.out_size**2 * mid * shape.out_channels
    return expansion + _depthwise_macs(shape) + squeeze + projection


def _params(shape: LayerShape) -> int:
    inside, mid, out = shape.in_channels, shape.mid_channels, shape.out_channels
    norm = norm_params(shape)
    expansion = inside * mid + norm * mid if shape.expand != 1 else 0
    squeeze = 2 * mid * shape.squeezed + shape.squeezed + mid if shape.se else 0
    return expansion + mid * shape.kernel**2 + norm * mid + squeeze + mid * out + norm * out


def _moved(shape: LayerShape) -> int:
    again = 4 if shape.se else 2
    inner = 2 * shape.in_size**2 + again * shape.out_size**2
    return ends(shape) + shape.mid_channels * inner


def _derived(given: Mapping[str, Any]) -> Mapping[str, Any]:
    same = given["in_channels"] == given["out_channels"] and given["stride"] == 1
    return {"residual": same}


MBCONV = Kind(
    name="mbconv",
    attributes=(OUT_CHANNELS, KERNEL, EXPAND, SE, ACTIVATION),
    needed=("out_channels",),
    build=_build,
    macs=_macs,
    params=_params,
    depthwise_macs=_depthwise_macs,
    moved=_moved,
    defaults={"norm": True},
    derived=_derived,
    role="block",
)
