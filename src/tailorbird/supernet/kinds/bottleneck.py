"""Block of ResNet-D: 1x1, ``kernel`` with the stride, 1x1.

Where the shape changes, its shortcut is an average pool and a 1x1 convolution. Its expand ratio is
of what goes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailorbird.errors import SpaceError
from tailorbird.supernet.kinds.attributes import ACTIVATION, EXPAND, KERNEL, OUT_CHANNELS
from tailorbird.supernet.kinds.kind import Kind, ends, norm_params
from tailorbird.supernet.shapes import LayerShape, make_divisible

if TYPE_CHECKING:
    from tailorbird.supernet.kinds.maker import Maker, Module


def _projects(shape: LayerShape) -> bool:
    return shape.in_channels != shape.out_channels or shape.stride != 1


def _build(make: Maker) -> Module:
    from tailorbird.supernet.shortcuts import Bottleneck

    activation = make.shape.activation
    return Bottleneck(
        make.unit("in_channels", "mid_channels", activation=activation),
        make.unit(
            "mid_channels",
            "mid_channels",
            kernels=make.kernels,
            stride=make.shape.stride,
            activation=activation,
        ),
        make.unit("mid_channels", "out_channels"),
        _downsample(make),
    )


def _downsample(make: Maker) -> Module | None:
    from torch import nn

    projects = {_projects(shape) for shape in make.shapes}
    if len(projects) > 1:
        raise SpaceError(
            f"slot {make.name}: its shortcut is projected in some shapes and not in others; "
            "expected widths that always change or never do"
        )
    if projects == {False}:
        return None
    unit, stride = make.unit("in_channels", "out_channels"), make.shape.stride
    if stride == 1:
        return unit
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
    return make.chain(avg_pool=pool, **dict(unit.named_children()))


def _macs(shape: LayerShape) -> int:
    before, after = shape.in_size**2, shape.out_size**2
    inside, mid, out = shape.in_channels, shape.mid_channels, shape.out_channels
    shortcut = after * inside * out if _projects(shape) else 0
    middle = before * inside * mid + after * mid * mid * shape.kernel**2
    return middle + after * mid * out + shortcut


def _params(shape: LayerShape) -> int:
    inside, mid, out = shape.in_channels, shape.mid_channels, shape.out_channels
    norm = norm_params(shape)
    shortcut = inside * out + norm * out if _projects(shape) else 0
    middle = inside * mid + mid * mid * shape.kernel**2 + 2 * norm * mid
    return middle + mid * out + norm * out + shortcut


def _moved(shape: LayerShape) -> int:
    return ends(shape) + shape.mid_channels * 2 * (shape.in_size**2 + shape.out_size**2)


def _derived(given: Mapping[str, Any]) -> Mapping[str, Any]:
    if given["expand"] == 1:
        return {}
    return {"mid_channels": make_divisible(round(given["out_channels"] * given["expand"]))}


BOTTLENECK = Kind(
    name="bottleneck",
    attributes=(OUT_CHANNELS, KERNEL, EXPAND, ACTIVATION),
    needed=("out_channels",),
    build=_build,
    macs=_macs,
    params=_params,
    moved=_moved,
    defaults={"norm": True, "residual": True},
    derived=_derived,
    role="block",
)
