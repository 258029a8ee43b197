"""The architectures of a supernet as genomes, and the layers that each of them consists of.

A space is data: one JSON file in ``spaces/`` names the genes and describes the layers. An attribute
of a layer is a constant, or follows one gene, or (``"each"``) is a gene of every block of a stage:

    {"stage": 1, "name": "blocks", "blocks": 4, "depth": {"gene": "d1", "values": [2, 3, 4]},
     "kind": "mbconv", "kernel": {"each": "k", "values": [3, 5, 7]}, ...}

Gene order: the resolution ``r``, the file's own genes (depths, widths), then the blocks' kernels
and expand ratios (``k1_1``, ``e1_1``, ``k1_2`` ...: stage, block).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailorbird.errors import Fault, SpaceError
from tailorbird.space import Choice, Condition, Genomes, Space
from tailorbird.supernet.official import Entry, OfficialForm
from tailorbird.supernet.slot_table import SlotTable, SlotValue
from tailorbird.supernet.space_file import (
    LEAST_RESOLUTION,
    MOST_RESOLUTION,
    check_definition,
    check_network,
    is_resolution,
    read_definition,
)

__all__ = [
    "SPACES",
    "ArchitectureSpace",
    "LayerShape",
    "Slot",
    "SlotTable",
    "SlotValue",
    "define_space",
    "load_space",
    "make_divisible",
]

_FOLDER = resources.files("tailorbird.supernet") / "spaces"
SPACES: tuple[str, ...] = tuple(
    sorted(f.name.removesuffix(".json") for f in _FOLDER.iterdir() if f.name.endswith(".json"))
)


def make_divisible(value: float, divisor: int = 8) -> int:
    """Nearest multiple of ``divisor`` that isn't more than 10 % below ``value``.

    The rounding of all widths in MobileNet and its descendants.

    Example:
        >>> [make_divisible(v) for v in (18, 36, 89.6, 332.8)]
        [24, 40, 88, 336]
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class LayerShape:
    """One layer or block at one concrete shape. Maps are square, sizes in pixels.

    Attributes:
        kind: ``conv`` (convolution, norm, activation), ``mbconv`` (inverted residual block: 1x1
            expansion unless ``expand`` is 1, depthwise, 1x1 projection), ``bottleneck`` (1x1,
            ``kernel`` with the stride, 1x1; the shortcut of ResNet-D: average pool and 1x1
            convolution where the shape changes), ``max_pool``, ``global_avg_pool``, ``linear``.
            Of vision transformers, whose maps are tokens from the first of these to the last:
            ``patch_embed`` (convolution whose kernel is its stride, positions added),
            ``transformer_block`` (attention, then two dense layers, each after a layer norm and
            with a residual), ``token_mean`` (layer norm, then the mean of all tokens).
        mid_channels: expanded width of a block; ``in_channels`` where nothing is expanded.
        expand: expand ratio that ``mid_channels`` came from; 1 where nothing is expanded.
        se: squeeze-and-excitation after the depthwise convolution.
        activation: ``relu``, ``relu6``, ``h_swish`` or, where there is none, ``none``.
        residual: the input is added to the output (projected, in a bottleneck that changes shape).
        norm: batch normalisation follows the convolutions; a conv without it has no bias either.
        heads: of a transformer block's attention; 0 elsewhere.
        head_channels: width of each head.
    """

    kind: str
    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    kernel: int
    stride: int
    mid_channels: int
    expand: float
    se: bool
    activation: str
    residual: bool
    norm: bool
    heads: int = 0
    head_channels: int = 0

    @property
    def attention(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_channels


@dataclass(frozen=True)
class Slot:
    """A place in the network and the shapes that it takes.

    Attributes:
        name: the supernet's own module name (``first_conv``, ``blocks.7``).
        genes: ascending numbers of the genes that the shape depends on; the resolution's, 0, is
            always the first.
        variants: index values of these genes -> shape; ``None`` where the layer is absent.
    """

    name: str
    genes: tuple[int, ...]
    variants: Mapping[tuple[int, ...], LayerShape | None]


@dataclass(frozen=True)
class ArchitectureSpace:
    """A supernet's space: genomes, official form and layers.

    Attributes:
        name: one of :data:`SPACES`, or that of a user's own.
        space: the genes, and what can be done with genomes.
        slots: the layers in the order in which they run.
        official: how genomes are read from and written in the official form.
        norm_epsilon: what norms add to the variance.
        initial_std: standard deviation of fresh weights; ``None`` where it follows each layer's
            connections.
        definition: of a user's own space, as its file has it; ``None`` for the package's.

    Example:
        >>> mbv3 = load_space("ofa-mbv3-w1.2")
        >>> smallest = mbv3.architectures(np.zeros((1, len(mbv3.space.choices)), dtype=np.int64))
        >>> smallest[0]["d"], smallest[0]["r"]
        ([2, 2, 2, 2, 2], 128)
        >>> int(mbv3.genomes(smallest).sum())
        0
    """

    name: str
    space: Space
    slots: tuple[Slot, ...]
    official: OfficialForm
    norm_epsilon: float = 1e-5
    initial_std: float | None = None
    definition: Mapping[str, Any] | None = None

    def genomes(self, architectures: Sequence[Mapping[str, object]]) -> Genomes:
        """Genomes (n, genes) of architectures in the official form.

        Lists are full-length: positions beyond a stage's depth are not read. ``image_size`` is
        read as ``r``; a single number stands for a list of equal ones. A key that the space fixes
        may be missing or ``None``, but where it is given it has to agree. Other keys of a record
        (measurements, notes) aren't looked at.

        Raises:
            SpaceError: naming row, key and value of every fault (the first 20, and the count).
        """
        return self.official.read(self.space, architectures)

    def architectures(self, genomes: Genomes) -> list[dict[str, object]]:
        """Official form of genomes (n, genes); inactive positions hold their smallest value.

        Raises:
            SpaceError: when a genome lies outside the space.
        """
        return self.official.write(self.space, genomes)

    def with_resolutions(self, resolutions: Sequence[int] | None) -> ArchitectureSpace:
        """The space with other image sizes, as `load_space` takes them; classes as in its data."""
        if self.definition is None:
            return load_space(self.name, resolutions=resolutions)
        return define_space(self.name, self.definition, resolutions=resolutions)

    def layers(self, genome: npt.NDArray[np.int64]) -> list[tuple[str, LayerShape]]:
        """Names and shapes of the layers of one genome (genes,), in the order they run.

        Example:
            >>> space = load_space("ofa-mbv3-w1.0")
            >>> name, shape = space.layers(space.space.sample(1, np.random.default_rng(0))[0])[0]
            >>> name, shape.kind, shape.out_channels
            ('first_conv', 'conv', 16)
        """
        self.space.validate(genome[None])
        found = (
            (slot.name, slot.variants[tuple(genome[list(slot.genes)].tolist())])
            for slot in self.slots
        )
        return [(name, shape) for name, shape in found if shape is not None]


def load_space(name: str | Path, *, resolutions: Sequence[int] | None = None) -> ArchitectureSpace:
    """The space called ``name``, or the one that a file describes.

    Args:
        name: one of :data:`SPACES`; or the path of a JSON file in the form of the package's own
            (``supernet/spaces/``), which gives a user's space the file's name.
        resolutions: image sizes in pixels to choose from (in ascending order whatever the order
            given); the space's own when ``None``.

    Raises:
        SpaceError: unknown name, or resolutions that are no whole numbers of 32 to 4,096, or no
            multiples of a transformer's patches; for a file, see `define_space`.

    Example:
        >>> load_space("compofa-mbv3-w1.2", resolutions=[160]).space.size
        243
    """
    if isinstance(name, Path) or (name not in SPACES and name.endswith(".json")):
        path = Path(name)
        return define_space(path.stem, read_definition(path), resolutions=resolutions)
    if name not in SPACES:
        raise SpaceError(
            f"space: expected one of {', '.join(SPACES)}, or the path of a .json file; got {name!r}"
        )
    return _compiled(name, _sizes(resolutions))


def define_space(
    name: str, definition: Mapping[str, Any], *, resolutions: Sequence[int] | None = None
) -> ArchitectureSpace:
    """A user's own space.

    Args:
        name: none of :data:`SPACES`.
        definition: as in a file of ``supernet/spaces/``, of bounded size.
        resolutions: as `load_space` takes them.

    Raises:
        SpaceError: listing all faults of the definition; or saying why no network of it can run.
    """
    if name in SPACES:
        raise SpaceError(f"space '{name}': the package has one of this name; choose another")
    check_definition(name, definition)
    space = _compile(name, definition, _sizes(resolutions))
    check_network(space)
    return replace(space, definition=definition)


def _sizes(resolutions: Sequence[int] | None) -> tuple[int, ...] | None:
    """Checked, in ascending order."""
    if resolutions is None:
        return None
    wrong = [r for r in resolutions if not is_resolution(r)]
    if wrong or not len(resolutions):
        what = (
            f"expected whole numbers of pixels from {LEAST_RESOLUTION} to {MOST_RESOLUTION}, got "
            f"{wrong or 'none'}"
        )
        raise SpaceError(Fault("resolutions", what))
    return tuple(sorted({int(r) for r in resolutions}))


@dataclass(frozen=True)
class _Attribute:
    """A constant (``gene`` is ``None``) or a value per index of a gene."""

    gene: int | None
    values: tuple[Any, ...]

    def at(self, index: Mapping[int, int]) -> Any:  # noqa: ANN401  # numbers of any kind
        return self.values[0 if self.gene is None else index[self.gene]]


class _Genes:
    """The genes in their order, and their numbers by name."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []
        self.conditions: dict[int, Condition] = {}

    def add(self, name: str, values: Sequence[object], condition: Condition | None = None) -> int:
        self.choices.append(Choice(name, tuple(values)))
        number = len(self.choices) - 1
        if condition is not None:
            self.conditions[number] = condition
        return number

    def attribute(self, described: object) -> _Attribute:
        if not isinstance(described, Mapping):
            return _Attribute(None, (described,))
        gene = [choice.name for choice in self.choices].index(described["gene"])
        return _Attribute(gene, tuple(described["values"]))


@lru_cache(maxsize=32)
def _compiled(name: str, resolutions: tuple[int, ...] | None) -> ArchitectureSpace:
    data = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return _compile(name, data, resolutions)


def _compile(
    name: str, data: Mapping[str, Any], resolutions: tuple[int, ...] | None
) -> ArchitectureSpace:
    """The space that checked data describe."""
    genes = _Genes()
    chosen = tuple(data["resolutions"]) if resolutions is None else resolutions
    resolution = genes.add("r", chosen)
    for gene, values in data["genes"].items():
        genes.add(gene, values)
    layers = list(_layers(data["layers"], genes))
    _check_patches(name, layers, chosen)
    slots = []
    channels, sizes = _Attribute(None, (3,)), list(chosen)
    for layer in layers:
        slots.append(layer.slot(resolution, channels, sizes, genes))
        channels = layer.attributes.get("out_channels", channels)
        sizes = [layer.out_size(size) for size in sizes]
    entries: dict[str, tuple[Entry, ...]] = {}
    for key, meaning in data["official"].items():
        if isinstance(meaning, str):
            entries[key] = tuple(
                layer.entry(meaning) for layer in layers if layer.stage is not None
            )
        else:
            entries[key] = tuple(_entry(item, genes) for item in meaning)
    entries["r"] = (Entry(resolution, chosen, chooses=True),)
    return ArchitectureSpace(
        name=name,
        space=Space(tuple(genes.choices), conditions=genes.conditions),
        slots=tuple(slots),
        official=OfficialForm(entries),
        norm_epsilon=data.get("norm_epsilon", 1e-5),
        initial_std=data.get("initial_std"),
    )


def _check_patches(name: str, layers: Sequence[_Layer], resolutions: Sequence[int]) -> None:
    for layer in layers:
        wrong = [r for r in resolutions if layer.kind == "patch_embed" and r % layer.stride]
        if wrong:
            what = (
                f"'{name}' cuts images into patches of {layer.stride} pixels; expected multiples "
                f"of that, got {wrong}"
            )
            raise SpaceError(Fault("resolutions", what))


def _entry(item: object, genes: _Genes) -> Entry:
    """A list item of the official form: a gene's name, or a constant depth."""
    for number, choice in enumerate(genes.choices):
        if choice.name == item:
            values = tuple(float(v) if isinstance(v, float) else int(v) for v in choice.values)  # type: ignore[call-overload]  # the files hold numbers
            return Entry(number, values, chooses=True)
    return Entry(None, (int(item),), chooses=False, at_least=True)  # type: ignore[call-overload]  # as above


_TO_ONE = ("global_avg_pool", "token_mean", "linear")
_NORMED = ("conv", "mbconv", "bottleneck")


@dataclass(frozen=True)
class _Layer:
    """One layer as described, with its attributes bound to genes."""

    name: str
    kind: str
    attributes: Mapping[str, _Attribute]
    stride: int
    stage: int | None = None
    condition: Condition | None = None
    elastic: frozenset[str] = frozenset()

    def out_size(self, size: int) -> int:
        return 1 if self.kind in _TO_ONE else -(-size // self.stride)

    def entry(self, attribute: str) -> Entry:
        bound = self.attributes[attribute]
        return Entry(bound.gene, bound.values, attribute in self.elastic, self.condition)

    def slot(
        self, resolution: int, channels: _Attribute, sizes: Sequence[int], genes: _Genes
    ) -> Slot:
        """All shapes, given the incoming channels and the size at each resolution."""
        used = {a.gene for a in (*self.attributes.values(), channels) if a.gene is not None}
        used |= {resolution} | ({self.condition.gene} if self.condition else set())
        numbers = tuple(sorted(used))
        variants: dict[tuple[int, ...], LayerShape | None] = {}
        for index in product(*(range(len(genes.choices[g].values)) for g in numbers)):
            at = dict(zip(numbers, index, strict=True))
            absent = self.condition is not None and at[self.condition.gene] < self.condition.least
            shape = None if absent else self.shape(at, channels.at(at), sizes[at[resolution]])
            variants[index] = shape
        return Slot(self.name, numbers, variants)

    def shape(self, at: Mapping[int, int], in_channels: int, in_size: int) -> LayerShape:
        value = {name: attribute.at(at) for name, attribute in self.attributes.items()}
        out_channels = value.get("out_channels", in_channels)
        expand = value.get("expand", 1)
        # A bottleneck's ratio is of what goes out, an inverted residual's of what comes in.
        widened = (out_channels if self.kind == "bottleneck" else in_channels) * expand
        same = in_channels == out_channels and self.stride == 1
        always = self.kind in ("bottleneck", "transformer_block")
        blocks = always or (self.kind == "mbconv" and same)
        whole = {"global_avg_pool": in_size, "patch_embed": self.stride}
        return LayerShape(
            kind=self.kind,
            in_channels=in_channels,
            out_channels=out_channels,
            in_size=in_size,
            out_size=self.out_size(in_size),
            kernel=whole.get(self.kind) or value.get("kernel", 1),
            stride=self.stride,
            mid_channels=in_channels if expand == 1 else make_divisible(round(widened)),
            expand=expand,
            se=value.get("se", False),
            activation=value.get("activation", "none"),
            residual=value.get("residual", blocks),
            norm=value.get("norm", self.kind in _NORMED),
            heads=value.get("heads", 0),
            head_channels=value.get("head_channels", 0),
        )


_PLAIN = {"name", "first", "kind", "stride", "stage", "blocks", "depth"}


def _layers(described: Sequence[Mapping[str, Any]], genes: _Genes) -> Iterator[_Layer]:
    """Single layers and the blocks of stages, in order; blocks' own genes are added."""
    for entry in described:
        blocks = entry.get("blocks", 1)
        depth = genes.attribute(entry.get("depth", blocks))
        for position in range(blocks):
            least = next(i for i, count in enumerate(depth.values) if count > position)
            condition = Condition(depth.gene, least) if depth.gene is not None and least else None
            attributes, elastic = {}, set()
            for key, value in entry.items():
                if key in _PLAIN:
                    continue
                if isinstance(value, Mapping) and "each" in value:
                    label = f"{value['each']}{entry['stage']}_{position + 1}"
                    gene = genes.add(label, value["values"], condition)
                    attributes[key] = _Attribute(gene, tuple(value["values"]))
                    elastic.add(key)
                else:
                    attributes[key] = genes.attribute(value)
            numbered = f"{entry['name']}.{entry.get('first', 0) + position}"
            yield _Layer(
                name=numbered if "first" in entry else entry["name"],
                kind=entry["kind"],
                attributes=attributes,
                stride=entry.get("stride", 1) if position == 0 else 1,
                stage=entry.get("stage"),
                condition=condition,
                elastic=frozenset(elastic),
            )
