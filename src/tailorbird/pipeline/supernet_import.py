"""A run folder made of weights that were trained elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from tailorbird.checkpoints import read_tensors
from tailorbird.data.images import ImageData
from tailorbird.errors import StoreError
from tailorbird.pipeline.supernet_run import SUPERNET, check_classes
from tailorbird.pipeline.supernet_training import describe_run
from tailorbird.runfolder import RunFolder
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.network import build_supernet
from tailorbird.supernet.ofa_checkpoint import load_official
from tailorbird.supernet.store import outputs_of, save_supernet


def import_supernet(
    checkpoint: Path,
    run: Path,
    *,
    space: ArchitectureSpace,
    data: ImageData | None = None,
    seed: int = 0,
    description: Mapping[str, object] | None = None,
    origin: Path | None = None,
) -> int:
    """Write the run folder that evaluation and fitting open; returns the classes of a checkpoint.

    Importing the same again changes nothing.

    Args:
        checkpoint: official once-for-all weights, or a supernet's of this project.
        run: the folder.
        space: the checkpoint's space.
        data: images of the checkpoint's classes; only looked at.
        seed: of the division of the images.
        description: ``space`` and ``data`` as a job would hold them, written to ``config.yaml``.
        origin: the folder that paths in ``description`` start from; this one when ``None``.

    Raises:
        StoreError: for a checkpoint that can't be read or is of another space, and for a folder
            that holds something else.
        DataError: for images with other classes than the checkpoint.
    """
    tensors = read_tensors(checkpoint)
    classes = outputs_of(space, tensors)
    supernet = build_supernet(space, classes=classes, generator=torch.Generator().manual_seed(0))
    try:
        load_official(supernet, tensors)
    except StoreError as error:
        raise StoreError(f"{checkpoint}: {error}") from error
    if data is not None and classes is not None:
        check_classes(data, classes)
    sizes = list(space.space.choices[0].values)
    identity = {
        "kind": "supernet",
        "imported": hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16],
        "space": space.name,
        "resolutions": sizes,
    }
    described: dict[str, object] = {
        "space": {"name": space.name, "resolutions": sizes},
        "data": None,
    }
    described |= dict(description or {})
    with RunFolder(run).open(identity) as folder:
        folder.event("imported", checkpoint=str(checkpoint))
        described |= {"imported": str(checkpoint.resolve()), "seed": seed}
        describe_run(run, described, origin or Path())
        save_supernet(supernet.eval(), run / SUPERNET)
    return classes or 0
