"""What every source of images keeps to."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tailorbird.data.images import ImageData, Split
from tailorbird.errors import DataError
from tailorbird.testing.raising import refused


def check_images(data: ImageData) -> None:
    """Splits keep to `check_split`, and agree with what is said of them.

    Args:
        data: a few dozen images are enough; validation or test images may be a handful.

    Raises:
        AssertionError: naming what it does not keep to.
    """
    channels = data.input_shape[0]
    assert data.name, "name: expected text for reports"
    assert len(data.normalisation.mean) == channels, "normalisation: expected one mean per channel"
    assert re.fullmatch("[0-9a-f]{16}", data.fingerprint), "fingerprint: expected 16 hex digits"
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    for name, split in {**splits, "holdout": data.holdout}.items():
        if split is None:
            continue
        wrong = (
            split.labelled > data.labelled if name == "holdout" else split.labelled != data.labelled
        )
        assert not wrong, f"{name}: labelled differs from the data's"
        assert split.sample(1).shape[1:] == data.input_shape, f"{name}: another shape than said"
        if data.classes is not None and split.labels is not None:
            assert int(split.labels.min()) >= 0 and int(split.labels.max()) < len(data.classes)
        check_split(split)


def check_split(split: Split) -> None:
    """Walks are whole, ordered, repeatable, and their parts make up the whole.

    Args:
        split: two images or more.

    Raises:
        AssertionError: naming what it does not keep to.
    """
    count = len(split)
    assert count > 1, "give a split of two images or more"
    labels = split.labels
    assert (labels is not None) == split.labelled, "labels: expected where labelled says so"
    images, walked = _joined(split, 2)
    assert images.dtype == torch.float32 and len(images) == count, "a walk: expected all images"
    assert torch.isfinite(images).all(), "expected finite pixels"
    if labels is not None and walked is not None:
        assert labels.dtype == torch.int64 and labels.shape == (count,)
        assert torch.equal(walked.cpu(), labels.cpu()), "expected labels in the split's order"
    again, _ = _joined(split, count)
    assert torch.equal(images, again), "expected equal images in order, whatever the batch size"
    _check_shuffled(split, images)
    _check_parts(split)
    size = count // 2 + 1
    sizes = [len(x) for x, _ in split.batches(size, drop_last=True)]
    assert set(sizes) <= {size}, f"drop_last: expected batches of {size} only, got {sizes}"
    some = split.sample(count + 1)
    assert len(some) == count, f"sample: expected at most all {count} images, got {len(some)}"
    assert torch.equal(some, split.sample(count + 1)), "sample: expected the same each time"
    refused(DataError, lambda: next(split.batches(0)))
    refused(DataError, lambda: next(split.batches(1, augment=True)))


def _check_shuffled(split: Split, images: Tensor) -> None:
    """A generator decides the order; a walk given up leaves it as a whole one does."""
    first, _ = _joined(split, 2, seed=1)
    second, _ = _joined(split, 2, seed=1)
    assert torch.equal(first, second), "expected equal walks for equal generators"
    assert torch.equal(_rows(first), _rows(images)), "a shuffled walk: expected every image once"
    whole, given_up = (torch.Generator().manual_seed(2) for _ in range(2))
    for _ in split.batches(2, generator=whole, augment=True):
        pass
    next(split.batches(2, generator=given_up, augment=True))
    assert torch.equal(whole.get_state(), given_up.get_state()), (
        "a walk given up early: expected to leave the generator as a whole one does"
    )


def _check_parts(split: Split) -> None:
    """Two processes that walk together get what one alone would."""
    walks = [
        list(split.batches(4, generator=torch.Generator().manual_seed(3), share=share))
        for share in ((0, 1), (0, 2), (1, 2))
    ]
    for (whole, _), (left, _), (right, _) in zip(*walks, strict=True):
        assert torch.equal(whole, torch.cat([left, right])), "share: expected parts of one batch"


def _joined(split: Split, size: int, *, seed: int | None = None) -> tuple[Tensor, Tensor | None]:
    """One walk's images and labels."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = list(split.batches(size, generator=generator))
    labels = [y for _, y in batches if y is not None]
    return torch.cat([x for x, _ in batches]), torch.cat(labels) if labels else None


def _rows(images: Tensor) -> Tensor:
    """Images as rows in an order that depends on nothing but their pixels."""
    flat = images.flatten(1)
    return flat[sorted(range(len(flat)), key=lambda row: flat[row].tolist())]
