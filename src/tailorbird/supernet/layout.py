"""From a space's description to its genes, its official form and its slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from tailorbird.errors import Fault, SpaceError
from tailorbird.space import Choice, Condition, Genomes, Space
from tailorbird.supernet.kinds.kind import Kind
from tailorbird.supernet.kinds.table import KINDS, Kinds, kind_called
from tailorbird.supernet.official import Entry, OfficialForm
from tailorbird.supernet.shapes import LayerShape, Slot


@dataclass(frozen=True)
class ArchitectureSpace:
    """A supernet's space: genomes, official form and layers.

    Attributes:
        name: one of :data:`tailorbird.supernet.architecture.SPACES`, or that of a user's own.
        space: the genes, and what can be done with genomes.
        slots: the layers in the order in which they run.
        official: how genomes are read from and written in the official form.
        remade: loads the space anew with other ``resolutions``.
        norm_epsilon: what norms add to the variance.
        initial_std: standard deviation of fresh weights; ``None`` where it follows each layer's
            connections.
        definition: of a user's own space, as its file has it; ``None`` for the package's.
        kinds: the kinds of layers that its shapes name.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
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
    remade: Callable[..., ArchitectureSpace] = field(repr=False, compare=False)
    norm_epsilon: float = 1e-5
    initial_std: float | None = None
    definition: Mapping[str, Any] | None = None
    kinds: Kinds = field(default_factory=lambda: KINDS, repr=False, compare=False)

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
        return self.remade(resolutions=resolutions)

    def kind_of(self, shape: LayerShape) -> Kind:
        """The kind of a layer's shape.

        Raises:
            SpaceError: for a name that isn't among the space's kinds.
        """
        return kind_called(shape.kind, self.kinds)

    def layers(self, genome: npt.NDArray[np.int64]) -> list[tuple[str, LayerShape]]:
        """Names and shapes of the layers of one genome (genes,), in the order they run.

        Example:
            >>> from tailorbird.supernet.architecture import load_space
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


def compile_space(
    name: str,
    data: Mapping[str, Any],
    resolutions: tuple[int, ...] | None,
    kinds: Kinds,
    remade: Callable[..., ArchitectureSpace],
) -> ArchitectureSpace:
    """The space that checked data describe.

    Args:
        name: of the space.
        data: as in a file of ``spaces/``.
        resolutions: image sizes in ascending order; those of the data when ``None``.
        kinds: what layers may be.
        remade: given ``resolutions``, makes the space with these.

    Raises:
        SpaceError: for a layer of an unknown kind, or resolutions that aren't whole patches.
    """
    genes = _Genes()
    chosen = tuple(data["resolutions"]) if resolutions is None else resolutions
    resolution = genes.add("r", chosen)
    for gene, values in data["genes"].items():
        genes.add(gene, values)
    layers = list(_layers(data["layers"], genes, kinds))
    _check_patches(name, layers, chosen)
    slots = []
    channels, sizes = _Attribute(None, (3,)), list(chosen)
    for layer in layers:
        slots.append(layer.slot(resolution, channels, sizes, genes))
        channels = layer.attributes.get("out_channels", channels)
        sizes = [layer.kind.out_size(size, layer.stride) for size in sizes]
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
        remade=remade,
        norm_epsilon=data.get("norm_epsilon", 1e-5),
        initial_std=data.get("initial_std"),
        kinds=kinds,
    )


def _check_patches(name: str, layers: Sequence[_Layer], resolutions: Sequence[int]) -> None:
    for layer in layers:
        wrong = [r for r in resolutions if layer.kind.patches and r % layer.stride]
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


@dataclass(frozen=True)
class _Layer:
    """One layer as described, with its attributes bound to genes."""

    name: str
    kind: Kind
    attributes: Mapping[str, _Attribute]
    stride: int
    stage: int | None = None
    condition: Condition | None = None
    elastic: frozenset[str] = frozenset()

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
            given = {name: attribute.at(at) for name, attribute in self.attributes.items()}
            width, size = channels.at(at), sizes[at[resolution]]
            variants[index] = (
                None
                if absent
                else self.kind.shape(given, in_channels=width, in_size=size, stride=self.stride)
            )
        return Slot(self.name, numbers, variants)


_PLAIN = {"name", "first", "kind", "stride", "stage", "blocks", "depth"}


def _layers(
    described: Sequence[Mapping[str, Any]], genes: _Genes, kinds: Kinds
) -> Iterator[_Layer]:
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
                kind=kind_called(entry["kind"], kinds),
                attributes=attributes,
                stride=entry.get("stride", 1) if position == 0 else 1,
                stage=entry.get("stage"),
                condition=condition,
                elastic=frozenset(elastic),
            )
