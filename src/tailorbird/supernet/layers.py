"""Single layers of a supernet as modules of their own, to be timed one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from tailorbird.space import Genome
from tailorbird.supernet.architecture import ArchitectureSpace, LayerShape, Slot
from tailorbird.supernet.extract import extract
from tailorbird.supernet.network import Supernet


@dataclass(frozen=True, eq=False)
class SingleLayer:
    """One layer at one shape.

    Args:
        shape: what the space calls it.
        module: a plain network of this layer alone, in eval mode.
        input_shape: what it takes, without the batch dimension.
    """

    shape: LayerShape
    module: nn.Module
    input_shape: tuple[int, ...]


def layer_key(shape: LayerShape) -> str:
    """A short name of a shape that is the same in every process.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> layer_key(distinct_layers(load_space("ofa-mbv3-w1.0", resolutions=[32]))[0])
        'conv-...'
    """
    text = json.dumps(asdict(shape), sort_keys=True)
    return f"{shape.kind}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def distinct_layers(space: ArchitectureSpace) -> list[LayerShape]:
    """All shapes that layers of the space's networks take, each once, in the slots' order.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> len(distinct_layers(load_space("ofa-mbv3-w1.0")))
        1257
    """
    return list(dict.fromkeys(shape for slot in space.slots for shape in slot.shapes()))


def single_layers(supernet: Supernet, wanted: Collection[LayerShape]) -> Iterator[SingleLayer]:
    """Each of the ``wanted`` shapes once, taken out of the supernet as :func:`extract` makes it.

    Networks are extracted one after the other, each for as many shapes as it has; only one is
    held. What a layer takes is read off a pass through its network.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> from tailorbird.supernet.network import build_supernet
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[32])
        >>> net = build_supernet(space, generator=torch.Generator().manual_seed(0))
        >>> [layer.input_shape for layer in single_layers(net, distinct_layers(space)[:2])]
        [(3, 32, 32), (16, 16, 16)]
    """
    space = supernet.architectures
    left = dict.fromkeys(wanted)
    for slot in space.slots:
        for index, shape in slot.variants.items():
            if shape is None or shape not in left:
                continue
            genome = _genome_of(space, slot, index)
            for layer in _layers_of(supernet, genome):
                if layer.shape in left:
                    del left[layer.shape]
                    yield layer


def _genome_of(space: ArchitectureSpace, slot: Slot, index: tuple[int, ...]) -> Genome:
    """The largest network (genes,) that has the slot at this index."""
    genome = space.space.sizes - 1
    genome[list(slot.genes)] = index
    whole: Genome = space.space.canonical(genome[None])[0]
    return whole


def _layers_of(supernet: Supernet, genome: Genome) -> list[SingleLayer]:
    network = extract(supernet, genome).eval()
    taken: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken[module] = tuple(inputs[0].shape[1:])

    layers = supernet.architectures.layers(genome)
    modules = [network.get_submodule(name) for name, _ in layers]
    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        with torch.no_grad():
            parameter = next(network.parameters())
            size = supernet.resolution(genome)
            network(torch.zeros(1, 3, size, size, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return [
        SingleLayer(shape, module, taken[module])
        for (_, shape), module in zip(layers, modules, strict=True)
    ]
