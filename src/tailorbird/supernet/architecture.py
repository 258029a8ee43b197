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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from tailorbird.errors import Fault, SpaceError
from tailorbird.supernet.kinds.table import KINDS, Kinds
from tailorbird.supernet.layout import ArchitectureSpace, compile_space
from tailorbird.supernet.shapes import LayerShape, Slot, make_divisible
from tailorbird.supernet.slot_table import SlotTable
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
    "define_space",
    "load_space",
    "make_divisible",
]

_FOLDER = resources.files("tailorbird.supernet") / "spaces"
SPACES: tuple[str, ...] = tuple(
    sorted(f.name.removesuffix(".json") for f in _FOLDER.iterdir() if f.name.endswith(".json"))
)


def load_space(
    name: str | Path, *, resolutions: Sequence[int] | None = None, kinds: Kinds | None = None
) -> ArchitectureSpace:
    """The space called ``name``, or the one that a file describes.

    Args:
        name: one of :data:`SPACES`; or the path of a JSON file in the form of the package's own
            (``supernet/spaces/``), which gives a user's space the file's name.
        resolutions: image sizes in pixels to choose from (in ascending order whatever the order
            given); the space's own when ``None``.
        kinds: what the layers of a file may be; the package's when ``None``.

    Raises:
        SpaceError: unknown name, or resolutions that are no whole numbers of 32 to 4,096, or no
            multiples of a transformer's patches; for a file, see `define_space`.

    Example:
        >>> load_space("compofa-mbv3-w1.2", resolutions=[160]).space.size
        243
    """
    if isinstance(name, Path) or (name not in SPACES and name.endswith(".json")):
        path = Path(name)
        definition = read_definition(path)
        return define_space(path.stem, definition, resolutions=resolutions, kinds=kinds)
    if name not in SPACES:
        raise SpaceError(
            f"space: expected one of {', '.join(SPACES)}, or the path of a .json file; got {name!r}"
        )
    return _compiled(name, _sizes(resolutions))


def define_space(
    name: str,
    definition: Mapping[str, Any],
    *,
    resolutions: Sequence[int] | None = None,
    kinds: Kinds | None = None,
) -> ArchitectureSpace:
    """A user's own space.

    Args:
        name: none of :data:`SPACES`.
        definition: as in a file of ``supernet/spaces/``, of bounded size.
        resolutions: as `load_space` takes them.
        kinds: what its layers may be; the package's when ``None``.

    Raises:
        SpaceError: listing all faults of the definition; or saying why no network of it can run.
    """
    if name in SPACES:
        raise SpaceError(f"space '{name}': the package has one of this name; choose another")
    known = KINDS if kinds is None else kinds
    check_definition(name, definition, known)
    remade = partial(define_space, name, definition, kinds=kinds)
    space = compile_space(name, definition, _sizes(resolutions), known, remade)
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


@lru_cache(maxsize=32)
def _compiled(name: str, resolutions: tuple[int, ...] | None) -> ArchitectureSpace:
    data = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return compile_space(name, data, resolutions, KINDS, partial(load_space, name))
