"""A supernet on disk: its space as JSON, its weights as safetensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from tailorbird.errors import SpaceError, StoreError
from tailorbird.files import read_json, write_bytes, write_json
from tailorbird.supernet.architecture import ArchitectureSpace, define_space, load_space
from tailorbird.supernet.counts import params
from tailorbird.supernet.network import Supernet, build_supernet

SPACE, WEIGHTS = "space.json", "weights.safetensors"
_SHOWN = 10
_HARMLESS = 100_000_000
"""Weights that are made without asking."""


def save_supernet(supernet: Supernet, folder: Path) -> None:
    """Write ``space.json`` and ``weights.safetensors`` into ``folder``, each whole or not at all.

    Raises:
        StoreError: when the folder can't be written.
    """
    weights = {k: v.detach().cpu().contiguous() for k, v in supernet.state_dict().items()}
    write_bytes(folder / WEIGHTS, dump_tensors(weights))
    own = supernet.architectures.definition
    write_json(
        folder / SPACE,
        {
            "space": supernet.architectures.name,
            "resolutions": list(supernet.architectures.space.choices[0].values),
            "classes": classes_of(supernet),
            "dropout": supernet.dropout,
        }
        | ({} if own is None else {"definition": own}),
    )


def load_supernet(folder: Path) -> Supernet:
    """The supernet that `save_supernet` wrote: on the CPU, in eval mode, the full network active.

    Raises:
        StoreError: for files that are missing, damaged, or don't fit each other.

    Example:
        >>> import tempfile
        >>> net = build_supernet(
        ...     load_space("cifar-compofa-mbv3-w0.25"), generator=torch.Generator().manual_seed(0)
        ... )
        >>> with tempfile.TemporaryDirectory() as name:
        ...     save_supernet(net, Path(name))
        ...     again = load_supernet(Path(name))
        >>> bool((again.first_conv.conv.weight == net.first_conv.conv.weight).all())
        True
    """
    name, resolutions, classes, dropout, own = _read_space(folder / SPACE)
    try:
        space = (
            load_space(name, resolutions=resolutions)
            if own is None
            else define_space(name, own, resolutions=resolutions)
        )
    except SpaceError as error:
        raise StoreError(f"{folder / SPACE}: {error}") from error
    path = folder / WEIGHTS
    weights = _read_weights(path)
    needed, given = _least_weights(space, classes), sum(map(torch.numel, weights.values()))
    if needed > given:  # nothing of that size is made only to be compared
        raise StoreError(
            f"{path}: doesn't fit {SPACE} beside it, a supernet of {name} with {classes} classes, "
            f"which has {needed:,} weights or more: found {given:,}; train or import the supernet "
            "again"
        )
    try:
        supernet = build_supernet(
            space, classes=classes, dropout=dropout, generator=torch.Generator().manual_seed(0)
        )
    except SpaceError as error:
        raise StoreError(f"{folder / SPACE}: {error}") from error
    expected = supernet.state_dict()
    wrong = sorted(
        key
        for key in expected.keys() | weights.keys()
        if key not in weights
        or key not in expected
        or weights[key].shape != expected[key].shape
        or not bool(weights[key].isfinite().all())
    )
    if wrong:
        raise StoreError(
            f"{path}: doesn't fit {SPACE} beside it, a supernet of {name} with {classes} classes; "
            f"{len(wrong)} weights are missing, unexpected, misshaped or not finite: "
            f"{listed(wrong)}; train or import the supernet again"
        )
    supernet.load_state_dict(weights)
    return supernet.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path.read_bytes())
    except OSError as error:
        raise StoreError(
            f"{path}: can't be read: {error.strerror or error}; train or import the supernet again"
        ) from error
    except SafetensorError as error:
        raise StoreError(
            f"{path}: not a whole safetensors file: {error}; train or import the supernet again"
        ) from error


def _least_weights(space: ArchitectureSpace, classes: int) -> int:
    """Fewer than a supernet has: spaces count their own number of classes."""
    largest = (space.space.sizes - 1)[None]
    return max(int(params(space).sum(largest)[0]) - _HARMLESS, classes)


def listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def classes_of(supernet: Supernet) -> int:
    """Outputs of the supernet's classifier."""
    shape = supernet.shape(len(supernet.slots()) - 1, supernet.largest())
    return 0 if shape is None else shape.out_channels


def head_of(space: ArchitectureSpace, names: Iterable[str]) -> list[str]:
    """Those of ``names``, of weights in a supernet or a checkpoint, that are the classifier's.

    Example:
        >>> head_of(load_space("compofa-mbv3-w1.0"), ["module.classifier.linear.bias", "x.conv"])
        ['module.classifier.linear.bias']
    """
    return [name for name in names if f".{space.slots[-1].name}." in f".{name}"]


def outputs_of(space: ArchitectureSpace, weights: Mapping[str, Tensor]) -> int | None:
    """Classes of a checkpoint's classifier; ``None`` where that can't be told."""
    matrices = [weights[n] for n in head_of(space, weights) if weights[n].ndim == 2]
    return len(matrices[0]) or None if len(matrices) == 1 else None


def _read_space(path: Path) -> tuple[str, list[int], int, float, dict[str, object] | None]:
    """Name, resolutions, classes, dropout, definition of a user's own space.

    Their ranges are checked by what builds from them.
    """
    content = read_json(path)
    record = cast("dict[str, object]", content) if isinstance(content, dict) else {}
    name, sizes = record.get("space"), record.get("resolutions")
    classes, dropout = record.get("classes"), record.get("dropout")
    own = record.get("definition")
    if not (
        record.keys() - {"definition"} == {"space", "resolutions", "classes", "dropout"}
        and isinstance(name, str)
        and isinstance(sizes, list)
        and all(type(size) is int for size in sizes)
        and type(classes) is int
        and isinstance(dropout, int | float)
        and isinstance(own, dict | None)
    ):
        raise StoreError(
            f"{path}: expected a space's name, its resolutions, classes and dropout; the file is "
            "damaged: train or import the supernet again"
        )
    return name, sizes, classes, float(dropout), own
