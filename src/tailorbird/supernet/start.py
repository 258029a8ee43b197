"""Where training starts: fresh weights, or those of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from tailorbird.checkpoints import read_tensors
from tailorbird.errors import DataError, StoreError
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.network import Supernet, build_supernet
from tailorbird.supernet.ofa_checkpoint import load_official
from tailorbird.supernet.store import classes_of, head_of, outputs_of


def starting_supernet(
    space: ArchitectureSpace,
    *,
    classes: int,
    seed: int,
    dropout: float = 0.0,
    start: Path | None = None,
    new_classifier: bool = False,
) -> Supernet:
    """A supernet to be trained, with weights from ``seed`` or a checkpoint.

    Args:
        space: any space.
        classes: outputs of the classifier.
        seed: of fresh weights.
        dropout: probability before the classifier, in train mode.
        start: official once-for-all weights, or a supernet's of this project.
        new_classifier: take all of ``start`` but its classifier: for images of other classes.

    Raises:
        SpaceError: for classes or dropout out of range.
        StoreError: for a checkpoint that can't be read or doesn't fit.
        DataError: for a checkpoint of other classes.
    """
    generator = torch.Generator().manual_seed(seed)
    supernet = build_supernet(space, classes=classes, dropout=dropout, generator=generator)
    if start is not None:
        _begin_with(supernet, start, fresh=new_classifier)
    return supernet


def _begin_with(supernet: Supernet, checkpoint: Path, *, fresh: bool) -> None:
    """Load the checkpoint, but for its classifier where a fresh one is wanted.

    Raises:
        StoreError: for a checkpoint that can't be read or doesn't fit.
        DataError: for one of other classes.
    """
    architectures, classes = supernet.architectures, classes_of(supernet)
    try:
        weights = read_tensors(checkpoint)
        if fresh:
            own = supernet.state_dict()
            kept = weights.keys() - set(head_of(architectures, weights))
            weights = {name: weights[name] for name in kept}
            weights |= {name: own[name] for name in head_of(architectures, own)}
        outputs = outputs_of(architectures, weights)
        if outputs not in (None, classes):
            raise DataError(
                f"start: {checkpoint} was trained for {outputs} classes, and the data have "
                f"{classes}; give images of its classes, or new_classifier: true"
            )
        load_official(supernet, weights)
    except StoreError as error:
        raise StoreError(f"start: {error}") from error
