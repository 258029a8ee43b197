"""One supernet for all spaces: built from the data of an :class:`ArchitectureSpace`.

Every slot of the space becomes a module under the slot's name, large enough for all of the slot's
shapes. Slots whose shape depends on more than the resolution are made of elastic pieces, the others
of plain layers; those of transformers are always elastic. Parameters have the names and shapes of
the once-for-all code, where that has such layers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tailorbird.data.resizing import resized
from tailorbird.errors import DataError, SpaceError
from tailorbird.supernet.architecture import ArchitectureSpace, LayerShape, Slot
from tailorbird.supernet.elastic import (
    Elastic,
    ElasticConv,
    ElasticLinear,
    ElasticNorm,
    ElasticSqueezeExcite,
    SqueezeExcite,
    Width,
)
from tailorbird.supernet.tokens import (
    ElasticAttention,
    ElasticLayerNorm,
    ElasticPatches,
    Patches,
    TokenMean,
)

Genome = npt.NDArray[np.int64]

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "h_swish": nn.Hardswish,
    "gelu": nn.GELU,
}


class Residual(nn.Module):
    """Adds its input to what ``conv`` makes of it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, images: Tensor) -> Tensor:
        """(n, ...) to the same shape."""
        change: Tensor = self.conv(images)
        return change + images


class Bottleneck(nn.Module):
    """The block of ResNet-D: three convolutions, a projected shortcut where the shape changes.

    Args:
        conv1: to the middle width.
        conv2: with the stride.
        conv3: to the outgoing width, without activation.
        downsample: the shortcut; the input itself when ``None``.
    """

    def __init__(
        self, conv1: nn.Module, conv2: nn.Module, conv3: nn.Module, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.conv3 = conv3
        self.downsample = nn.Identity() if downsample is None else downsample
        self.final_act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        change: Tensor = self.conv3(self.conv2(self.conv1(images)))
        summed: Tensor = self.final_act(change + self.downsample(images))
        return summed


class Supernet(nn.Module):
    """All networks of a space in one set of shared weights; one of them is active.

    Use :func:`build_supernet`, which also initialises the weights.

    Args:
        architectures: the space.
        dropout: probability before the classifier, in train mode.

    Attributes:
        architectures: the space, its classifier with as many classes as this network.
        active: genome (genes,) of the network that ``forward`` runs; the largest at first.

    Raises:
        SpaceError: for a space whose slots no module can serve.
    """

    def __init__(self, architectures: ArchitectureSpace, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.architectures = architectures
        self._modules_of: list[nn.Module] = []
        for slot in architectures.slots:
            module = _build(slot, dropout)
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
                    part.eps = architectures.norm_epsilon
            self._modules_of.append(module)
            parent: nn.Module = self
            *folders, last = slot.name.split(".")
            for folder in folders:
                if folder not in dict(parent.named_children()):
                    parent.add_module(folder, nn.ModuleDict())
                parent = parent.get_submodule(folder)
            parent.add_module(last, module)
        self._pieces = [
            [part for part in module.modules() if isinstance(part, Elastic)]
            for module in self._modules_of
        ]
        self._path: list[nn.Module] = []
        self.active = self.largest()
        self.activate(self.active)

    def activate(self, genome: Genome) -> None:
        """Make the network of ``genome`` (genes,) the one that runs.

        Raises:
            SpaceError: when the genome lies outside the space.
        """
        self.architectures.space.validate(genome[None])
        self._path = [
            module
            for number, module in enumerate(self._modules_of)
            if self.activate_slot(number, self.shape(number, genome))
        ]
        self.active = genome.copy()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of the active network for images (n, 3, h, w).

        The resolution gene is the caller's to apply (:func:`resize`).
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(
                f"images: expected shape (n, 3, height, width), got {tuple(images.shape)}; grey "
                "images are loaded in colour with channels: 3"
            )
        for module in self._path:
            images = module(images)
        return images

    @property
    def dropout(self) -> float:
        """Probability before the classifier, in train mode."""
        return max((m.p for m in self.modules() if isinstance(m, nn.Dropout)), default=0.0)

    def largest(self) -> Genome:
        """Genome (genes,) with every gene at its last value."""
        last = self.architectures.space.sizes - 1
        genome: Genome = self.architectures.space.canonical(last[None])[0]
        return genome

    def smallest(self) -> Genome:
        """Genome (genes,) with every gene at its first value."""
        return np.zeros(len(self.architectures.space.choices), dtype=np.int64)

    def resolution(self, genome: Genome) -> int:
        """Image size in pixels that the genome asks for."""
        return cast("int", self.architectures.space.choices[0].values[int(genome[0])])

    def slots(self) -> list[tuple[Slot, nn.Module]]:
        """Each slot of the space and its module, in the order in which they run."""
        return list(zip(self.architectures.slots, self._modules_of, strict=True))

    def shape(self, slot: int, genome: Genome) -> LayerShape | None:
        """Shape that a valid genome gives slot number ``slot``; ``None`` where it is absent."""
        described = self.architectures.slots[slot]
        return described.variants[tuple(genome[list(described.genes)].tolist())]

    def activate_slot(self, slot: int, shape: LayerShape | None) -> bool:
        """Give one slot's pieces their shape; False where the slot is absent."""
        if shape is None:
            return False
        for piece in self._pieces[slot]:
            piece.activate(shape)
        return True


def build_supernet(
    space: ArchitectureSpace,
    *,
    classes: int | None = None,
    dropout: float = 0.0,
    generator: torch.Generator,
) -> Supernet:
    """A supernet with fresh weights, on the CPU, in train mode.

    Convolutions: normal, variance 2 / outgoing connections (He et al. 2015). Norms: scale 1, shift
    0. Kernel transforms: identity. Where the space says a standard deviation (transformers): normal
    with that one, cut off at 2, positions included. The global generators are neither read nor
    advanced.

    Args:
        space: any space.
        classes: outputs of the classifier; as in the space's data when ``None``.
        dropout: probability before the classifier, in train mode.
        generator: what the weights are drawn from.

    Raises:
        SpaceError: for a space that can't be built, or classes or dropout out of range.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[32])
        >>> net = build_supernet(space, classes=10, generator=torch.Generator().manual_seed(0))
        >>> net.activate(net.smallest())
        >>> net.eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if classes is not None and classes < 1:
        raise SpaceError(f"classes: expected 1 or more, got {classes}")
    if not 0.0 <= dropout < 1.0:
        raise SpaceError(f"dropout: expected a probability from 0 to below 1, got {dropout}")
    sized = space if classes is None else with_classes(space, classes)
    with torch.device("meta"):  # building there draws nothing
        net = Supernet(sized, dropout=dropout)
    net.to_empty(device="cpu")
    initialise(net, generator, std=space.initial_std)
    return net


def with_classes(space: ArchitectureSpace, classes: int) -> ArchitectureSpace:
    """The same space with another number of outputs of its dense layers, counted as such."""
    slots = tuple(
        replace(
            slot,
            variants={
                index: replace(shape, out_channels=classes)
                if shape is not None and shape.kind == "linear"
                else shape
                for index, shape in slot.variants.items()
            },
        )
        for slot in space.slots
    )
    return replace(space, slots=slots)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator, *, std: float | None = None) -> None:
    """Draw fresh weights for all layers of ``module``, **in place** (see build_supernet)."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, ElasticConv):
            for matrix in part.parameters(recurse=False):
                nn.init.eye_(matrix)
        elif isinstance(part, ElasticPatches):
            _draw(part.positions, std or 0.02, generator)
        elif isinstance(part, nn.Conv2d | nn.Linear):
            if std is not None:
                _draw(part.weight, std, generator)
            elif isinstance(part, nn.Conv2d):
                outgoing = part.weight[0, 0].numel() * part.out_channels // part.groups
                part.weight.normal_(0.0, math.sqrt(2.0 / outgoing), generator=generator)
            else:
                bound = 1.0 / math.sqrt(part.in_features)
                part.weight.uniform_(-bound, bound, generator=generator)
            if part.bias is not None:
                part.bias.zero_()


def _draw(weight: Tensor, std: float, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def resize(images: Tensor, size: int) -> Tensor:
    """Images (n, c, h, w) at ``size`` x ``size`` pixels, bilinear; the same where they are.

    Example:
        >>> resize(torch.zeros(1, 3, 32, 32), 24).shape
        torch.Size([1, 3, 24, 24])
    """
    return resized(images, (size, size))


_FIXED = ("kind", "stride", "se", "activation", "residual", "norm", "head_channels")


def _build(slot: Slot, dropout: float) -> nn.Module:
    """The module of a slot, at its largest."""
    shapes = [shape for shape in slot.variants.values() if shape is not None]
    mixed = [name for name in _FIXED if len({getattr(shape, name) for shape in shapes}) > 1]
    if len({shape.expand == 1 for shape in shapes}) > 1:
        mixed.append("expand (1 beside others)")
    if mixed or not shapes:
        raise SpaceError(
            f"slot {slot.name}: expected one value in all of its shapes of "
            f"{', '.join(mixed) or 'anything'}; describe it as two layers"
        )
    maker = _Maker(slot, shapes, dropout)
    if maker.shape.kind not in _KINDS:
        raise SpaceError(
            f"slot {slot.name}: no module for kind {maker.shape.kind!r}; "
            f"expected one of {', '.join(_KINDS)}"
        )
    return _KINDS[maker.shape.kind](maker)


class _Maker:
    """Makes the modules of one slot, elastic or plain as the slot asks."""

    def __init__(self, slot: Slot, shapes: Sequence[LayerShape], dropout: float) -> None:
        self.name = slot.name
        self.shapes = shapes
        self.elastic = len(slot.genes) > 1
        self.kernels = sorted({shape.kernel for shape in shapes})
        self.shape = shapes[0]
        self.dropout = dropout

    def most(self, width: Width) -> int:
        widest: int = max(getattr(shape, width) for shape in self.shapes)
        return widest

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
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv"] = conv
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
        return nn.Sequential(parts)

    def conv(self) -> nn.Module:
        unit = self.unit(
            "in_channels",
            "out_channels",
            kernels=self.kernels,
            stride=self.shape.stride,
            activation=self.shape.activation,
        )
        return Residual(unit) if self.shape.residual else unit

    def mbconv(self) -> nn.Module:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        activation = self.shape.activation
        if self.shape.expand != 1:
            parts["inverted_bottleneck"] = self.unit(
                "in_channels", "mid_channels", activation=activation
            )
        parts["depth_conv"] = self.unit(
            "mid_channels",
            "mid_channels",
            kernels=self.kernels,
            stride=self.shape.stride,
            depthwise=True,
            activation=activation,
            se=self.shape.se,
        )
        parts["point_linear"] = self.unit("mid_channels", "out_channels")
        body = nn.Sequential(parts)
        return Residual(body) if self.shape.residual else nn.Sequential(OrderedDict(conv=body))

    def bottleneck(self) -> nn.Module:
        stride, activation = self.shape.stride, self.shape.activation
        projects = {s.in_channels != s.out_channels or s.stride != 1 for s in self.shapes}
        if len(projects) > 1:
            raise SpaceError(
                f"slot {self.name}: its shortcut is projected in some shapes and not in others; "
                "expected widths that always change or never do"
            )
        downsample = None
        if projects == {True}:
            downsample = self.unit("in_channels", "out_channels")
            if stride != 1:
                pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
                children = OrderedDict(downsample.named_children())
                downsample = nn.Sequential(OrderedDict(avg_pool=pool, **children))
        return Bottleneck(
            self.unit("in_channels", "mid_channels", activation=activation),
            self.unit(
                "mid_channels",
                "mid_channels",
                kernels=self.kernels,
                stride=stride,
                activation=activation,
            ),
            self.unit("mid_channels", "out_channels"),
            downsample,
        )

    def max_pool(self) -> nn.Module:
        kernel = self.shape.kernel
        return nn.MaxPool2d(kernel, stride=self.shape.stride, padding=kernel // 2)

    def global_avg_pool(self) -> nn.Module:
        return nn.AdaptiveAvgPool2d(1)

    def dense(self, inside: Width, outside: Width) -> ElasticLinear:
        full = nn.Linear(self.most(inside), self.most(outside))
        return ElasticLinear(full, inside=inside, outside=outside)

    def layer_norm(self) -> ElasticLayerNorm:
        return ElasticLayerNorm(nn.LayerNorm(self.most("in_channels")))

    def patch_embed(self) -> nn.Module:
        width, patch = self.most("out_channels"), self.shape.stride
        side = max(shape.out_size for shape in self.shapes)
        conv = nn.Conv2d(self.shape.in_channels, width, patch, stride=patch)
        return ElasticPatches(Patches(conv, torch.empty(1, width, side, side)))

    def transformer_block(self) -> nn.Module:
        width, attended = self.most("in_channels"), self.most("attention")
        attention: OrderedDict[str, nn.Module] = OrderedDict(
            norm=self.layer_norm(),
            attention=ElasticAttention(
                nn.Linear(width, 3 * attended),
                nn.Linear(attended, width),
                self.shape.head_channels,
            ),
        )
        mlp: OrderedDict[str, nn.Module] = OrderedDict(
            norm=self.layer_norm(),
            expand=self.dense("in_channels", "mid_channels"),
            act=ACTIVATIONS[self.shape.activation](),
            project=self.dense("mid_channels", "out_channels"),
        )
        parts = {"attention": attention, "mlp": mlp}
        return nn.Sequential(
            OrderedDict((name, Residual(nn.Sequential(part))) for name, part in parts.items())
        )

    def token_mean(self) -> nn.Module:
        return nn.Sequential(OrderedDict(norm=self.layer_norm(), pool=TokenMean()))

    def linear(self) -> nn.Module:
        dense = nn.Linear(self.most("in_channels"), self.most("out_channels"))
        return nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(1),
                dropout=nn.Dropout(self.dropout),
                linear=ElasticLinear(dense) if self.elastic else dense,
            )
        )


_KINDS: Mapping[str, Callable[[_Maker], nn.Module]] = {
    "conv": _Maker.conv,
    "mbconv": _Maker.mbconv,
    "bottleneck": _Maker.bottleneck,
    "max_pool": _Maker.max_pool,
    "global_avg_pool": _Maker.global_avg_pool,
    "patch_embed": _Maker.patch_embed,
    "transformer_block": _Maker.transformer_block,
    "token_mean": _Maker.token_mean,
    "linear": _Maker.linear,
}
