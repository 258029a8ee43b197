"""What a kind of layer is: one record of all that the rest of the package asks of it.

Counting and searching need no torch, so kinds are read without it: what a kind builds is imported
where it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tailorbird.supernet.kinds.attributes import Attribute
from tailorbird.supernet.shapes import LayerShape, make_divisible

if TYPE_CHECKING:
    from tailorbird.supernet.kinds.maker import Maker, Module

Count = Callable[[LayerShape], int]
Role = Literal["layer", "block", "pool", "classifier"]


def nothing(_: LayerShape) -> int:
    """No layer's figure: 0."""
    return 0


def strided(size: int, stride: int) -> int:
    """The size of a map behind a layer that is padded to keep it, but for its stride."""
    return -(-size // stride)


def to_one(_size: int, _stride: int) -> int:
    """The size behind a layer that makes one vector of a map."""
    return 1


def ends(shape: LayerShape) -> int:
    """Numbers in a layer's input and output together."""
    before, after = shape.in_size**2, shape.out_size**2
    return before * shape.in_channels + after * shape.out_channels


def conv_macs(shape: LayerShape) -> int:
    """Multiply-accumulates of one dense convolution."""
    return shape.out_size**2 * shape.in_channels * shape.out_channels * shape.kernel**2


def norm_params(shape: LayerShape) -> int:
    """Parameters of batch norm, per channel: scale and shift."""
    return 2 if shape.norm else 0


def _as_given(_: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, eq=False, kw_only=True)
class Kind:
    """A kind of layer: what a file may say of it, its sizes, its costs, its modules.

    How channels are tied is said by the elastic pieces that ``build`` uses
    (:meth:`tailorbird.supernet.elastic.Elastic.ties`).

    Args:
        name: as files and :class:`LayerShape` have it.
        attributes: keys that a space's file may give such a layer, beside name and place.
        needed: those that it has to give; ``stride`` may be among them.
        build: makes the module of a slot, large enough for all of its shapes.
        macs: multiply-accumulates of one image; see :mod:`tailorbird.supernet.counts`.
        params: trained parameters.
        depthwise_macs: those of ``macs`` that are of depthwise convolutions.
        moved: numbers that its convolutions read and write; what latency models look at.
        out_size: size of a map in pixels and stride -> size behind the layer.
        defaults: values of attributes that a file doesn't give, where they aren't 0, 1 or none.
        derived: fields of a shape -> those of them that follow from the others in this kind.
        role: ``block`` (stages consist of them), ``pool`` (makes one vector of a map),
            ``classifier`` (the last layer; its outputs are the classes), or any other ``layer``.
        tokens: its maps are tokens, and from the first such layer on all share their channels.
        patches: image sizes have to be multiples of its stride.
    """

    name: str
    attributes: tuple[Attribute, ...]
    build: Callable[[Maker], Module]
    needed: tuple[str, ...] = ()
    macs: Count = nothing
    params: Count = nothing
    depthwise_macs: Count = nothing
    moved: Count = ends
    out_size: Callable[[int, int], int] = strided
    defaults: Mapping[str, Any] = field(default_factory=dict)
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_given
    role: Role = "layer"
    tokens: bool = False
    patches: bool = False

    def shape(
        self, given: Mapping[str, Any], *, in_channels: int, in_size: int, stride: int
    ) -> LayerShape:
        """The shape of a layer with the attributes ``given``, for a map of this width and size."""
        fields: dict[str, Any] = {"kind": self.name, "out_channels": in_channels, "expand": 1}
        fields |= {**self.defaults, **given, "in_channels": in_channels, "in_size": in_size}
        fields |= {"stride": stride, "out_size": self.out_size(in_size, stride)}
        wide = make_divisible(round(in_channels * fields["expand"]))
        fields["mid_channels"] = in_channels if fields["expand"] == 1 else wide
        return LayerShape(**{**fields, **self.derived(fields)})
