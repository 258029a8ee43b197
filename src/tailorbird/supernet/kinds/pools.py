"""Pooling of maps: the largest in a window, or the mean of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailorbird.supernet.kinds.attributes import KERNEL
from tailorbird.supernet.kinds.kind import Kind, to_one

if TYPE_CHECKING:
    from torch import nn

    from tailorbird.supernet.kinds.maker import Maker


def _max_pool(make: Maker) -> nn.Module:
    from torch import nn

    kernel = make.shape.kernel
    return nn.MaxPool2d(kernel, stride=make.shape.stride, padding=kernel // 2)


def _global_avg_pool(_: Maker) -> nn.Module:
    from torch import nn

    return nn.AdaptiveAvgPool2d(1)


def _whole_map(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"kernel": given["in_size"]}


MAX_POOL = Kind(name="max_pool", attributes=(KERNEL,), needed=("stride",), build=_max_pool)
GLOBAL_AVG_POOL = Kind(
    name="global_avg_pool",
    attributes=(),
    build=_global_avg_pool,
    out_size=to_one,
    derived=_whole_map,
    role="pool",
)
