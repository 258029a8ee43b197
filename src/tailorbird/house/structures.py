"""The distinct structures of a house: what is timed, each under one name, once per device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

from tailorbird.fit.candidates import Network
from tailorbird.graph.blocks import whole_network
from tailorbird.graph.structure import structure_key
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative, Sample

TEACHER, WHOLE = "teacher", "net:"
"""Names of whole networks in the store of latencies; others are keys of structures."""

TOGETHER = 48
"""Structures exported and timed in one session."""


@dataclass(frozen=True)
class Structures:
    """Alternatives and their blocks by the names that their latencies are stored under.

    An alternative of the whole teacher is a network, and named as the candidate is that consists
    of it; the whole teacher is the teacher. So no network is timed under two names.

    Args:
        networks: name -> a network of that structure.
        own: alternative's name -> name of its own structure.
        replaced: alternative's name -> name of what the teacher has in its place.
    """

    networks: Mapping[str, Network]
    own: Mapping[str, str]
    replaced: Mapping[str, str]

    def saved(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Alternative's name -> what it saves, given figures of structures by name."""
        return {name: figures[self.replaced[name]] - figures[own] for name, own in self.own.items()}


def structures_of(
    teacher: LayerGraph, sample: Sample, modules: Mapping[str, fx.GraphModule]
) -> Structures:
    """The structures of those alternatives that ``modules`` holds, and of their blocks.

    Args:
        teacher: the traced teacher.
        sample: the house.
        modules: alternative's name -> its module.
    """
    labels = whole_labels(teacher, sample.alternatives)
    alternatives = [a for a in sample.alternatives if a.name in modules]
    networks: dict[str, Network] = {}
    blocks: dict[str, str] = {}
    for key in dict.fromkeys(a.block for a in alternatives):
        block = sample.blocks[key]
        whole = block == whole_network(teacher)
        module = teacher.module if whole else extract(teacher, block)
        blocks[key] = TEACHER if whole else structure_key(module, block.in_shape)
        networks[blocks[key]] = Network(module, block.in_shape)
    own = {a.name: labels.get(a.name, a.structure) for a in alternatives}
    for a in alternatives:
        network = Network(modules[a.name], sample.blocks[a.block].in_shape)
        networks.setdefault(own[a.name], network)
    return Structures(networks, own, {a.name: blocks[a.block] for a in alternatives})


def whole_labels(teacher: LayerGraph, alternatives: Collection[Alternative]) -> dict[str, str]:
    """Name of each alternative of the whole teacher -> label of a network of its structure.

    It is the label of the first alternative that has it; the teacher's where it has the teacher's.
    """
    whole = whole_network(teacher).key
    first = {structure_key(teacher.module, teacher.input_shape): TEACHER}
    own = [a for a in alternatives if a.block == whole]
    for a in own:
        first.setdefault(a.structure, WHOLE + a.name)
    return {a.name: first[a.structure] for a in own}


def donor_labels(teacher: LayerGraph, alternatives: Collection[Alternative]) -> dict[str, str]:
    """Name of each donor that is an alternative as it is -> label of a network of its structure."""
    labels = whole_labels(teacher, alternatives)
    whole = [a for a in alternatives if a.name in labels and a.variant == "whole"]
    return {a.origin: labels[a.name] for a in whole}
