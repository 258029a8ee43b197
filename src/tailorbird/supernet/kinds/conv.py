"""Convolution, norm, activation; with a shortcut where the file asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailorbird.supernet.kinds.attributes import ACTIVATION, KERNEL, NORM, OUT_CHANNELS, RESIDUAL
from tailorbird.supernet.kinds.kind import Kind, conv_macs, norm_params
from tailorbird.supernet.shapes import LayerShape

if TYPE_CHECKING:
    from torch import nn

    from tailorbird.supernet.kinds.maker import Maker


def _build(make: Maker) -> nn.Module:
    from tailorbird.supernet.shortcuts import Residual

    unit = make.unit(
        "in_channels",
        "out_channels",
        kernels=make.kernels,
        stride=make.shape.stride,
        activation=make.shape.activation,
    )
    return Residual(unit) if make.shape.residual else unit


def _params(shape: LayerShape) -> int:
    return (shape.in_channels * shape.kernel**2 + norm_params(shape)) * shape.out_channels


CONV = Kind(
    name="conv",
    attributes=(OUT_CHANNELS, KERNEL, ACTIVATION, RESIDUAL, NORM),
    needed=("out_channels",),
    build=_build,
    macs=conv_macs,
    params=_params,
    defaults={"norm": True},
)
