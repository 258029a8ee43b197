"""The classifier: dropout and a dense layer."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from tailorbird.supernet.kinds.attributes import OUT_CHANNELS
from tailorbird.supernet.kinds.kind import Kind, to_one
from tailorbird.supernet.shapes import LayerShape

if TYPE_CHECKING:
    from torch import nn

    from tailorbird.supernet.kinds.maker import Maker


def _build(make: Maker) -> nn.Module:
    from torch import nn

    from tailorbird.supernet.elastic import ElasticLinear

    dense = nn.Linear(make.most("in_channels"), make.most("out_channels"))
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(1),
            dropout=nn.Dropout(make.dropout),
            linear=ElasticLinear(dense) if make.elastic else dense,
        )
    )


def _macs(shape: LayerShape) -> int:
    return shape.in_channels * shape.out_channels


def _params(shape: LayerShape) -> int:
    return (shape.in_channels + 1) * shape.out_channels


LINEAR = Kind(
    name="linear",
    attributes=(OUT_CHANNELS,),
    needed=("out_channels",),
    build=_build,
    macs=_macs,
    params=_params,
    out_size=to_one,
    role="classifier",
)
