"""Any torch Dataset as image data, and CIFAR through torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from tailorbird.data.assemble import HOLDOUT, default_normalisation
from tailorbird.data.decode import Fault, as_pixels, corrupt, fail, shape_problems
from tailorbird.data.division import divide
from tailorbird.data.images import ImageData, Normalisation, TensorSplit
from tailorbird.data.loader import Indexed, LoaderSplit, Named, seeded
from tailorbird.errors import DataError

_CIFAR = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}
CIFAR_NORMALISATION = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and deviation of CIFAR-10's training pixels."""


def cifar(
    root: str | Path,
    kind: Literal["cifar10", "cifar100"] = "cifar10",
    *,
    validation: float = 0.1,
    holdout: float = 0.0,
    seed: int = 0,
    normalisation: Normalisation = CIFAR_NORMALISATION,
    crop_padding: int = 4,
    flip: bool = True,
    download: bool = False,
) -> ImageData:
    """CIFAR-10 or CIFAR-100 through torchvision, which checks every file's digest before reading.

    Args:
        root: the folder that holds torchvision's ``cifar-10-batches-py`` or ``cifar-100-python``.
        kind: which of the two.
        validation: share of the 50,000 training images held out for choices.
        holdout: share of them that no network was trained on, as where a teacher was trained on
            ``train`` of the same arguments; choices are made on these.
        seed: seeds the division.
        normalisation: CIFAR's own; some published weights want ImageNet's.
        crop_padding: augmentation, see `TensorSplit`.
        flip: augmentation, see `TensorSplit`.
        download: fetch the files when they are missing; without it nothing touches the network.

    Raises:
        DataError: saying what is expected where.
    """
    import torchvision.datasets

    if kind not in _CIFAR:
        raise DataError(f"cifar: expected {' or '.join(_CIFAR)}, got {kind!r}")
    reader, folder = _CIFAR[kind]
    try:
        loaded = [
            getattr(torchvision.datasets, reader)(root=str(root), train=train, download=download)
            for train in (True, False)
        ]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{kind}: expected torchvision's folder '{folder}' (complete) in {root}: "
            f"{str(error).splitlines()[0]}; set download: true to fetch it, or read parquet files "
            "with kind: parquet"
        ) from error
    train, test = (
        TensorSplit(
            torch.from_numpy(np.asarray(one.data)).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(one.targets),
            normalisation,
            crop_padding=crop_padding,
            flip=flip,
        )
        for one in loaded
    )
    apart = None
    if holdout:
        train, apart = _divided(train, holdout, seed=seed + 1, what="holdout")
    shape = (3, *train.images.shape[2:])
    train, held = _divided(train, validation, seed=seed)
    return ImageData(
        train=train,
        validation=held,
        test=test,
        classes=tuple(loaded[0].classes),
        normalisation=normalisation,
        input_shape=shape,
        labelled=True,
        name=kind,
        holdout=apart,
    )


def from_datasets(
    train: Indexed,
    test: Indexed | None = None,
    *,
    validation: float | Indexed = 0.1,
    holdout: Indexed | None = None,
    plain: Indexed | None = None,
    classes: Sequence[str] | None = None,
    labels: bool = True,
    image_key: str | None = None,
    label_key: str | None = None,
    normalisation: Normalisation | None = None,
    crop_padding: int = 0,
    flip: bool = False,
    in_memory: bool | None = None,
    workers: int = 0,
    seed: int = 0,
    skip_corrupt: bool = False,
    name: str = "custom",
) -> ImageData:
    """Any map-style torch Dataset of images, of images and labels, or of dictionaries with these.

    Images are Pillow images, uint8 arrays (H, W[, C]), or (C, H, W) tensors of uint8 or of float32
    in [0, 1]. Labels come from ``targets`` or ``labels`` where the dataset has them, else from one
    walk over its items.

    Args:
        train: training images; may augment them.
        test: read once, at the end.
        validation: a dataset, or the share to take out of ``train``.
        holdout: images that no network was trained on, with labels or without; choices are made on
            them. A dataset as ``validation`` is taken for such images where this is None.
        plain: ``train``'s images in the same order without augmentation, for validation; None
            means ``train`` itself.
        classes: names; None takes the dataset's ``classes`` where it has them.
        labels: False uses the images without labels.
        image_key: where items are dictionaries, the image's key.
        label_key: the label's key in them; None uses the images without labels.
        normalisation: None means ImageNet's for colour, 0.5 and 0.5 otherwise; give
            `Normalisation.identity` for images that come normalised.
        crop_padding: augmentation on top of the dataset's own, see `TensorSplit`.
        flip: the same.
        in_memory: read everything once, which freezes the dataset's own augmentation; None does
            it for a `TensorDataset`.
        workers: processes that read.
        seed: seeds the division.
        skip_corrupt: leave out images that can't be read.
        name: for reports.

    Raises:
        DataError: listing every fault found.

    Example:
        >>> images = torch.zeros(20, 1, 8, 8)
        >>> data = from_datasets(TensorDataset(images, torch.arange(20) % 2))
        >>> data.size, data.classes, data.labelled
        ({'train': 18, 'validation': 2, 'test': 0}, None, True)
    """
    apart = None if isinstance(validation, int | float) else validation
    roles = {"train": train, "validation": apart, "test": test, HOLDOUT: holdout}
    given = {role: one for role, one in roles.items() if one is not None}
    problems = [line for role, one in given.items() for line in _usable(role, one)]
    if label_key is not None and image_key is None:
        problems.append("label_key: expected image_key beside it; set both")
    if plain is not None and not problems and len(plain) != len(train):
        problems.append(f"plain: expected train's {len(train)} images, got {len(plain)}")
    if problems:
        fail(problems)
    if image_key is not None:
        given = {role: Named(one, image_key, label_key) for role, one in given.items()}
        plain = None if plain is None else Named(plain, image_key)
    train = given["train"]
    numbers = _numbers(given, labels)
    labelled = numbers["train"] is not None
    shape, first = _first(plain or train)
    names = tuple(classes or _names(train) or ()) or None
    problems = _label_problems(numbers, names if labelled else None)
    normalisation = normalisation or default_normalisation(shape[0])
    if len(normalisation.mean) != shape[0]:
        problems.append(
            f"normalisation is for {len(normalisation.mean)} channels, the images have {shape[0]}"
        )
    elif first.is_floating_point() and normalisation.mean != (0.0,) * shape[0]:
        low, high = float(first.min()), float(first.max())
        if low < 0 or high > 1:
            problems.append(
                f"float images range from {low:.2f} to {high:.2f}, expected 0 to 1; if they come "
                "normalised, give normalisation=Normalisation.identity(channels)"
            )
    if problems:
        fail(problems)
    splits = {
        role: LoaderSplit(
            plain or one if role == "train" else one,
            numbers[role],
            normalisation,
            augmented=one if role == "train" else None,
            crop_padding=crop_padding,
            flip=flip,
            workers=workers,
            skip_corrupt=skip_corrupt,
        )
        for role, one in given.items()
    }
    memory = isinstance(train, TensorDataset) if in_memory is None else in_memory
    held: dict[str, TensorSplit | LoaderSplit] = {**splits}
    skipped = 0
    if memory:
        held, skipped = _held(splits, skip_corrupt)
    unseen = held.get(HOLDOUT, held.get("validation"))
    if isinstance(validation, int | float):
        held["train"], held["validation"] = _divided(held["train"], float(validation), seed=seed)
    return ImageData(
        train=held["train"],
        validation=held["validation"],
        test=held.get("test"),
        classes=names if labelled else None,
        normalisation=normalisation,
        input_shape=shape,
        labelled=labelled,
        name=name,
        skipped=skipped,
        holdout=unseen,
    )


Splits = TypeVar("Splits", TensorSplit, LoaderSplit, TensorSplit | LoaderSplit)


def _divided(
    whole: Splits, share: float, *, seed: int, what: str = "validation"
) -> tuple[Splits, Splits]:
    """What stays of a split, and a share of it."""
    labels = None if whole.labels is None else whole.labels.numpy()
    stay, apart = divide(labels, len(whole), share, seed=seed, what=what)
    return whole.take(torch.from_numpy(stay)), whole.take(torch.from_numpy(apart))


def _usable(role: str, dataset: Indexed) -> list[str]:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return [
            f"{role}: expected a map-style dataset with __len__ and __getitem__, got "
            f"{type(dataset).__name__}; collect an iterable one into a list first"
        ]
    try:
        return [] if len(dataset) else [f"{role}: no images"]
    except Exception as error:  # the user's code may raise anything
        return [f"{role}: its len() raises {type(error).__name__}: {error}"]


def _numbers(given: Mapping[str, Indexed], labels: bool) -> dict[str, Tensor | None]:
    """Each data set's labels (n,); those of a holdout only where there are others."""
    found = {role: _labels(one) if labels else None for role, one in given.items()}
    return found if found["train"] is not None else found | dict.fromkeys({HOLDOUT} & found.keys())


def _labels(dataset: object) -> Tensor | None:
    """All labels (n,), or None where items carry none."""
    if isinstance(dataset, Subset):
        whole = _labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].to(torch.int64) if len(dataset.tensors) > 1 else None
    assert isinstance(dataset, Indexed)
    for attribute in ("targets", "labels"):
        values = getattr(dataset, attribute, None)
        if isinstance(values, Sequence | np.ndarray | Tensor) and len(values) == len(dataset):
            return torch.as_tensor(values).to(torch.int64)
    found = []
    for index in range(len(dataset)):
        try:
            with seeded(0):
                item = dataset[index]
        except Exception as error:  # the user's code may raise anything; the cause stays attached
            raise DataError(
                f"image {index} can't be read: {type(error).__name__}: {error}; repair or remove "
                "it, or give the dataset an attribute 'targets' with all labels, so that they can "
                "be read without the images"
            ) from error
        if not isinstance(item, tuple | list) or len(item) < 2:
            return None
        try:
            found.append(int(item[1]))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"image {index}: expected a whole number as label, got "
                f"{type(item[1]).__name__}; set labels=False to use the images without labels"
            ) from error
    return torch.tensor(found, dtype=torch.int64)


def _names(dataset: object) -> Sequence[str] | None:
    while isinstance(dataset, Named | Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return [str(name) for name in names] if isinstance(names, Sequence) else None


def _first(dataset: Indexed) -> tuple[tuple[int, int, int], Tensor]:
    """The first image that can be read, and its (C, H, W)."""
    reason = ""
    for index in range(min(len(dataset), 100)):
        try:
            with seeded(0):
                item = dataset[index]
            image = as_pixels(item[0] if isinstance(item, tuple | list) else item)
            return (image.shape[0], image.shape[1], image.shape[2]), image
        except Exception as error:  # the user's code may raise anything; it is reported
            reason = reason or f"image {index}: {type(error).__name__}: {error}"
    raise DataError(f"no readable image among the first {min(len(dataset), 100)}: {reason}")


def _label_problems(
    numbers: dict[str, Tensor | None], classes: tuple[str, ...] | None
) -> list[str]:
    even = {role: values for role, values in numbers.items() if role != HOLDOUT}
    lacking = [role for role, values in even.items() if values is None]
    if 0 < len(lacking) < len(even):
        return [f"labels in some splits only: {', '.join(lacking)} lack them; set labels=False"]
    problems = []
    for role, values in numbers.items():
        if values is None:
            continue
        wrong = values < 0
        if classes is not None:
            wrong |= values >= len(classes)
        if bool(wrong.any()):
            where = torch.nonzero(wrong).flatten()[:5].tolist()
            named = ", ".join(f"image {index}: {int(values[index])}" for index in where)
            top = "0 or more" if classes is None else f"0 to {len(classes) - 1}"
            problems.append(
                f"{role}: {int(wrong.sum())} labels out of range (expected {top}): {named}"
            )
        elif role == "train" and bool((values == values[0]).all()):
            problems.append(
                f"train: all {len(values)} images are of one class; give two classes or more, or "
                "set labels=False to distil without labels"
            )
    return problems


def _held(
    splits: dict[str, LoaderSplit], skip_corrupt: bool
) -> tuple[dict[str, TensorSplit | LoaderSplit], int]:
    """The splits read into memory, and how many images could not be read."""
    held: dict[str, TensorSplit | LoaderSplit] = {}
    faults: list[Fault] = []
    problems: list[str] = []
    for role, split in splits.items():
        images: dict[int, Tensor] = {}
        for index in range(len(split)):
            try:
                with seeded(0):
                    item = split.dataset[index]
                images[index] = as_pixels(item[0] if isinstance(item, tuple | list) else item)
            except Exception as error:  # the user's code may raise anything; it is reported
                faults.append(Fault(f"{role} image {index}", f"{type(error).__name__}: {error}"))
        problems += [
            f"{role}: {line}" for line in shape_problems([tuple(x.shape) for x in images.values()])
        ]
        if not images:
            problems.append(f"{role}: not one whole image")
        if problems:
            continue
        kept = torch.tensor(list(images))
        held[role] = TensorSplit(
            torch.stack(list(images.values())),
            None if split.labels is None else split.labels[kept],
            split.normalisation,
            crop_padding=split.crop_padding,
            flip=split.flip,
        )
    if faults and not skip_corrupt:
        problems.insert(0, corrupt(faults))
    if problems:
        fail(problems)
    return held, len(faults)
