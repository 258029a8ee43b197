"""Spaces that users describe: JSON files in the form of the package's own, checked before use."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tailorbird.errors import SpaceError
from tailorbird.supernet.counts import params
from tailorbird.supernet.kinds.attributes import Attribute, is_number, is_whole
from tailorbird.supernet.kinds.table import KINDS, Kinds
from tailorbird.supernet.layout import ArchitectureSpace

LEAST_RESOLUTION, MOST_RESOLUTION = 32, 4096
_MOST_BYTES, _MOST_FAULTS = 2**20, 30
_MOST_GENES, _MOST_VALUES, _MOST_LAYERS, _MOST_SHAPES = 512, 64, 512, 200_000
_MOST_PARAMETERS = 10**9
"""Bounds on what a file may ask for; the package's largest space has 48 genes, 9,350 shapes."""

_PLACE = ("name", "kind", "stride", "stage", "first", "blocks", "depth")
_ALWAYS = ("resolutions", "genes", "official", "layers")
_MAY = ("description", "source", "norm_epsilon", "initial_std")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}(\.[a-z0-9][a-z0-9_]{0,40}){0,3}", re.ASCII)


def is_resolution(value: object) -> bool:
    """Whether ``value`` can be an image size: a whole number of pixels, 32 to 4,096."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and LEAST_RESOLUTION <= int(value) <= MOST_RESOLUTION  # type: ignore[call-overload]  # whole says so


def read_definition(path: Path) -> dict[str, Any]:
    """The JSON object in a space's file; what it says isn't looked at (`check_definition`).

    Raises:
        SpaceError: for a file that is missing, damaged, larger than 1 MiB, or no object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise SpaceError(f"{path}: expected a space's description of 1 MiB or less")
        data = json.loads(content)
    except OSError as error:
        raise SpaceError(f"{path}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SpaceError(f"{path}: expected JSON: {error}") from error
    if not isinstance(data, dict):
        raise SpaceError(f"{path}: expected a JSON object, got {data!r:.40}")
    return data


def check_definition(name: str, data: Mapping[str, Any], kinds: Kinds = KINDS) -> None:
    """Refuse a description that can't be compiled.

    Args:
        name: of the space, for the message.
        data: as in a file of ``spaces/``.
        kinds: what layers may be.

    Raises:
        SpaceError: listing every fault, the first 30 and the count.

    Example:
        >>> check_definition("mine", {"resolution": [32], "genes": {}, "official": {}})
        Traceback (most recent call last):
        ...
        tailorbird.errors.SpaceError: space 'mine': 3 faults:
          - resolution: unknown; did you mean resolutions?
          - resolutions: missing
          - layers: missing
    """
    _refuse(name, _Check(data, kinds).faults)


def check_network(space: ArchitectureSpace) -> None:
    """Refuse a compiled space whose networks can't be built or run.

    Nothing is allocated: the networks are built and run on torch's ``meta`` device.

    Raises:
        SpaceError: saying which layer, where that is known.
    """
    faults = [
        f"layers: {slot.name} may be absent, so it has to keep width and size; a depth of 0, or a "
        "width that differs from the one before, doesn't"
        for slot in space.slots
        if any(shape is None for shape in slot.variants.values())
        and any(
            shape.in_channels != shape.out_channels or shape.in_size != shape.out_size
            for shape in slot.shapes()
        )
    ]
    [parameters] = params(space).sum((space.space.sizes - 1)[None])
    if parameters > _MOST_PARAMETERS:
        faults.append(
            f"layers: expected at most {_MOST_PARAMETERS:,} parameters in the largest network, "
            f"got {parameters:,.0f}"
        )
    _refuse(space.name, faults or _run_problems(space))


def _run_problems(space: ArchitectureSpace) -> list[str]:
    import torch

    from tailorbird.supernet.network import Supernet

    taken = {*dir(Supernet), "architectures", "active"}
    if problems := [
        f"layers: {slot.name!r} can't be a layer's name, it is taken; choose another"
        for slot in space.slots
        if slot.name.split(".")[0] in taken
    ]:
        return problems
    try:
        with torch.device("meta"), torch.no_grad():
            net = Supernet(space).eval()
            for genome in (net.smallest(), net.largest()):
                net.activate(genome)
                size = net.resolution(genome)
                logits = net(torch.empty(2, 3, size, size))
    except (RuntimeError, KeyError, SpaceError) as error:
        return [f"layers: no network can be built and run: {str(error).splitlines()[0]}"]
    return [] if logits.ndim == 2 else ["layers: a pooling layer is missing before the classifier"]


def _refuse(name: str, faults: Sequence[str]) -> None:
    if not faults:
        return
    if len(faults) == 1:
        raise SpaceError(f"space '{name}': {faults[0]}")
    more = len(faults) - _MOST_FAULTS
    shown = [*faults[:_MOST_FAULTS], *([f"and {more} more"] if more > 0 else [])]
    lines = "".join(f"\n  - {line}" for line in shown)
    raise SpaceError(f"space '{name}': {len(faults)} faults:{lines}")


class _Check:
    """Looks at all of a description; ``faults`` are what it found, in the file's order."""

    def __init__(self, data: Mapping[str, Any], kinds: Kinds) -> None:
        self.kinds = kinds
        self.faults: list[str] = []
        self.genes: dict[str, int] = {}
        self.covered: set[str] = set()
        self.shapes = 0
        self.names: set[str] = set()
        self._keys("", data, (*_ALWAYS, *_MAY), _ALWAYS)
        self.resolutions = 1
        if "resolutions" in data and self._values("resolutions", data["resolutions"], strict=True):
            self.resolutions = len(data["resolutions"])
            if wrong := [r for r in data["resolutions"] if not is_resolution(r)]:
                self._fault("resolutions", "whole numbers of pixels from 32 to 4,096", wrong)
        for key in ("norm_epsilon", "initial_std"):
            if key in data and not (is_number(data[key]) and 0 < data[key] <= 1):
                self._fault(key, "a number above 0, at most 1", data[key])
        if self._is("genes", data.get("genes", {}), dict):
            for gene, values in data.get("genes", {}).items():
                if self._values(f"genes.{gene}", values, strict=True):
                    self.genes[gene] = len(values)
        layers = data.get("layers", [])
        staged: list[Mapping[str, Any]] = []
        if "layers" in data and self._is("layers", layers, list):
            staged = self._layers(layers)
        if "official" in data and self._is("official", data["official"], dict):
            self._official(data["official"], staged)

    def _layers(self, layers: Sequence[Any]) -> list[Mapping[str, Any]]:
        """Check layers in their order; returns the stages."""
        known = [layer for layer in layers if isinstance(layer, dict)]
        names = [str(layer.get("kind")) for layer in known]
        roles = [self.kinds[name].role if name in self.kinds else "" for name in names]
        if roles.count("classifier") != 1 or roles[-1:] != ["classifier"]:
            wanted = " or ".join(k.name for k in self.kinds.values() if k.role == "classifier")
            self.faults.append(
                f"layers: expected one of kind {wanted}, the classifier, as the last"
            )
        if "pool" not in roles:
            pools = [kind for kind in self.kinds.values() if kind.role == "pool"]
            told = [f"{kind.name} of tokens" if kind.tokens else kind.name for kind in pools]
            self.faults.append(f"layers: {', or '.join(told)}, is missing")
        into: set[str] = set()
        for number, layer in enumerate(layers):
            if self._is(f"layers[{number}]", layer, dict):
                into = self._layer(f"layers[{number}]", layer, into)
        if len(self.names) > _MOST_LAYERS or len(self.genes) > _MOST_GENES:
            self.faults.append(
                f"layers: expected at most {_MOST_LAYERS} layers and {_MOST_GENES} genes, got "
                f"{len(self.names)} and {len(self.genes)}"
            )
        elif self.shapes > _MOST_SHAPES:
            self.faults.append(
                f"layers: expected at most {_MOST_SHAPES:,} shapes of layers in all, got "
                f"{self.shapes:,}; let fewer genes meet in one layer"
            )
        return [layer for layer in known if "stage" in layer]

    def _layer(self, place: str, layer: Mapping[str, Any], into: set[str]) -> set[str]:
        """Check one layer; the genes that its outgoing width follows, given the incoming's."""
        called = layer.get("kind")
        if not isinstance(called, str) or called not in self.kinds:
            self._fault(f"{place}.kind", f"one of {', '.join(self.kinds)}", called)
            return into
        kind = self.kinds[called]
        own = [attribute.name for attribute in kind.attributes]
        self._keys(f"{place}.", layer, (*_PLACE, *own), ("name", "kind", *kind.needed))
        for key, most in (("stride", 64), ("blocks", 64), ("stage", 10**6), ("first", 10**6)):
            least = 0 if key in ("first", "stage") else 1
            if key in layer and not is_whole(layer[key], least, most):
                self._fault(f"{place}.{key}", f"a whole number of {least} to {most}", layer[key])
        blocks = layer.get("blocks", 1)
        if not is_whole(blocks, 1, 64):
            return into
        self._named(place, layer, blocks)
        bound = self._depth(place, layer, blocks)
        widths: set[str] = set()
        for attribute in kind.attributes:
            if (key := attribute.name) in layer:
                genes = self._attribute(f"{place}.{key}", attribute, layer, blocks)
                bound |= genes
                widths = genes if key == "out_channels" else widths
        both = bound | into
        sizes = [self.genes[gene] for gene in both if gene in self.genes]
        self.shapes += blocks * self.resolutions * math.prod(sizes)
        return widths if "out_channels" in layer else into

    def _named(self, place: str, layer: Mapping[str, Any], blocks: int) -> None:
        name = layer.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            if "name" in layer:
                self._fault(f"{place}.name", "lower-case words such as 'blocks.0'", name)
            return
        if blocks > 1 and not ("stage" in layer and "first" in layer):
            self.faults.append(f"{place}: several blocks need stage and first, their numbers")
            return
        first = layer.get("first")
        if first is not None and not is_whole(first, 0, 10**6):
            return
        made = [name if first is None else f"{name}.{first + n}" for n in range(blocks)]
        if again := sorted(self.names.intersection(made)):
            self.faults.append(f"{place}: the name {', '.join(again)} is there twice")
        self.names.update(made)

    def _depth(self, place: str, layer: Mapping[str, Any], blocks: int) -> set[str]:
        """Genes that a stage's depth follows."""
        if "depth" not in layer:
            return set()
        depth = layer["depth"]
        genes = self._follows(f"{place}.depth", depth)
        if genes and not (
            all(is_whole(v, 0, blocks) for v in depth["values"]) and depth["values"][-1] == blocks
        ):
            self._fault(
                f"{place}.depth", f"numbers of blocks up to all {blocks} of them", depth["values"]
            )
        elif not isinstance(depth, dict) and depth != blocks:
            self._fault(f"{place}.depth", f"{blocks}, its blocks, or values of a gene", depth)
        return genes

    def _attribute(
        self, place: str, attribute: Attribute, layer: Mapping[str, Any], blocks: int
    ) -> set[str]:
        """Check a constant, or one value per index of a gene; the genes that it follows."""
        value = layer[attribute.name]
        if not isinstance(value, dict):
            self._constant(place, attribute, [value])
            return set()
        if "each" not in value:
            genes = self._follows(place, value)
            if genes:
                self._constant(place, attribute, value["values"])
            return genes
        prefix, stage = value["each"], layer.get("stage")
        self._keys(f"{place}.", value, ("each", "values"), ("values",))
        if not isinstance(prefix, str) or not prefix.isidentifier() or stage is None:
            self._fault(place, "a word as 'each', in a layer with a stage", prefix)
            return set()
        if not self._values(place, value.get("values"), strict=True):
            return set()
        self._constant(place, attribute, value["values"])
        made = [f"{prefix}{stage}_{n + 1}" for n in range(blocks)]
        if again := [gene for gene in made if gene in self.genes]:
            self.faults.append(f"{place}: there are genes called {', '.join(again[:3])} already")
        self.genes |= dict.fromkeys(made, len(value["values"]))
        return set(made[:1])

    def _constant(self, place: str, attribute: Attribute, values: Sequence[Any]) -> None:
        """Check the values that an attribute takes."""
        if not all(map(attribute.fits, values)):
            self._fault(place, attribute.wanted, values if len(values) > 1 else values[0])

    def _follows(self, place: str, value: Any) -> set[str]:  # noqa: ANN401  # from JSON
        """The gene of ``{"gene": ..., "values": ...}``; nothing for a constant or where faulty."""
        if not isinstance(value, dict):
            return set()
        self._keys(f"{place}.", value, ("gene", "values"), ("gene", "values"))
        gene, values = value.get("gene"), value.get("values")
        if not isinstance(gene, str) or gene not in self.genes:
            if "gene" in value:
                self._fault(f"{place}.gene", f"one of {', '.join(self.genes) or 'no genes'}", gene)
            return set()
        if "values" not in value or not self._values(place, values):
            return set()
        if len(value["values"]) != self.genes[gene]:
            self._fault(place, f"{self.genes[gene]} values, as many as {gene} has", values)
            return set()
        return {gene}

    def _official(self, official: Mapping[str, Any], staged: Sequence[Mapping[str, Any]]) -> None:
        """Check that genomes can be written down: each gene under one key."""
        covered: set[str] = set()
        for key, meaning in official.items():
            if key == "r":
                self.faults.append("official.r: the resolution is always there; leave it out")
            elif isinstance(meaning, str):
                for layer in staged:
                    if meaning not in layer:
                        wanted = "an attribute that all stages have"
                        self._fault(f"official.{key}", wanted, meaning)
                        break
                    value, stage = layer[meaning], layer.get("stage")
                    if isinstance(value, dict) and "each" in value:
                        prefix = f"{value['each']}{stage}_"
                        covered |= {gene for gene in self.genes if gene.startswith(prefix)}
            elif self._is(f"official.{key}", meaning, list):
                for item in meaning:
                    if isinstance(item, str) and item in self.genes:
                        covered.add(item)
                    elif not is_whole(item, 0, 64):
                        self._fault(f"official.{key}", "genes and whole numbers", item)
        if missing := [gene for gene in self.genes if gene not in covered]:
            told = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            self.faults.append(f"official: {told} missing, every gene has to be under some key")

    def _keys(
        self, place: str, given: Mapping[str, Any], known: Collection[str], needed: Sequence[str]
    ) -> None:
        from difflib import get_close_matches

        for key in given:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}"
                self.faults.append(f"{place}{key:.60}: unknown; {hint}")
        self.faults += [f"{place}{key}: missing" for key in needed if key not in given]

    def _values(self, place: str, values: Any, *, strict: bool = False) -> bool:  # noqa: ANN401
        """Whether it is a short list of ascending numbers, or of equal things where allowed."""
        wanted = f"a list of 1 to {_MOST_VALUES} numbers in ascending order"
        if not isinstance(values, list) or not 1 <= len(values) <= _MOST_VALUES:
            self._fault(place, wanted, values)
            return False
        fine = all(is_number(v) for v in values) and all(
            a < b or (a == b and not strict) for a, b in pairwise(values)
        )
        if not fine:
            self._fault(place, wanted, values)
        return fine

    def _is(self, place: str, value: object, kind: type) -> bool:
        if isinstance(value, kind):
            return True
        self._fault(place, "an object" if kind is dict else "a list", value)
        return False

    def _fault(self, place: str, wanted: str, got: object) -> None:
        self.faults.append(f"{place}: expected {wanted}, got {got!r:.80}")
