"""What kinds of layers are built of: the usual units, elastic or plain as a slot asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn import Module

from tailorbird.supernet.elastic import (
    ElasticConv,
    ElasticLinear,
    ElasticNorm,
    ElasticSqueezeExcite,
    SqueezeExcite,
    Width,
)
from tailorbird.supernet.shapes import Slot
from tailorbird.supernet.shortcuts import Residual
from tailorbird.supernet.tokens import ElasticLayerNorm

__all__ = ["ACTIVATIONS", "Maker", "Module"]

ACTIVATIONS: Mapping[str, type[Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "h_swish": nn.Hardswish,
    "gelu": nn.GELU,
}


class Maker:
    """Makes the parts of one slot, large enough for all of its shapes.

    Args:
        slot: with at least one shape.
        dropout: probability before a classifier, in train mode.

    Attributes:
        name: of the slot.
        shapes: all of the slot's.
        shape: one of them, for what all have in common.
        kernels: their kernel sizes, ascending.
        elastic: whether anything but the resolution changes the shape.
    """

    def __init__(self, slot: Slot, dropout: float) -> None:
        self.name = slot.name
        self.shapes = slot.shapes()
        self.elastic = len(slot.genes) > 1
        self.kernels = sorted({shape.kernel for shape in self.shapes})
        self.shape = self.shapes[0]
        self.dropout = dropout

    def most(self, width: Width) -> int:
        """The largest of a width."""
        widest: int = max(getattr(shape, width) for shape in self.shapes)
        return widest

    def chain(self, **parts: Module) -> nn.Sequential:
        """Named parts one after the other."""
        return nn.Sequential(OrderedDict(parts))

    def residual(self, body: Module) -> Module:
        """The body with its input added."""
        return Residual(body)

    def activation(self) -> Module:
        """The activation that the shapes have; there has to be one."""
        return ACTIVATIONS[self.shape.activation]()

    def unit(
        self,
        inside: Width,
        outside: Width,
        *,
        kernels: Sequence[int] = (1,),
        stride: int = 1,
        depthwise: bool = False,
        activation: str = "none",
        se: bool = False,
    ) -> nn.Sequential:
        """Convolution, then whichever there are of norm, activation, squeeze-and-excitation."""
        kernel, width = max(kernels), self.most(outside)
        conv = nn.Conv2d(
            self.most(inside),
            width,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=width if depthwise else 1,
            bias=False,
        )
        parts: dict[str, Module] = {"conv": conv}
        if self.elastic:
            choice = tuple(kernels) if len(kernels) > 1 else ()
            parts["conv"] = ElasticConv(conv, inside=inside, outside=outside, kernels=choice)
        if self.shape.norm:
            norm = nn.BatchNorm2d(width)
            parts["bn"] = ElasticNorm(norm, width=outside) if self.elastic else norm
        if activation != "none":
            parts["act"] = ACTIVATIONS[activation]()
        if se:
            parts["se"] = ElasticSqueezeExcite(width) if self.elastic else SqueezeExcite(width)
        return self.chain(**parts)

    def dense(self, inside: Width, outside: Width) -> ElasticLinear:
        """A dense layer, elastic whatever the slot."""
        full = nn.Linear(self.most(inside), self.most(outside))
        return ElasticLinear(full, inside=inside, outside=outside)

    def layer_norm(self) -> ElasticLayerNorm:
        """Layer norm of what comes in, elastic whatever the slot."""
        return ElasticLayerNorm(nn.LayerNorm(self.most("in_channels")))
