"""Image folders: one folder per class, perhaps inside train, validation and test folders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tailorbird.data.assemble import HOLDOUT, Part, Reading, assemble, settle_test
from tailorbird.data.decode import Interpolation, fail
from tailorbird.data.encoded import Files
from tailorbird.data.images import ImageData, Normalisation

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
)
"""File names that count as images; other files are not looked at."""

_ROLES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    HOLDOUT: ("holdout",),
}


def folder(
    root: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    labels: bool = True,
    interpolation: Interpolation | None = None,
    crop_share: float | None = None,
    normalisation: Normalisation | None = None,
    validation: float = 0.1,
    holdout: str | Path | None = None,
    seed: int = 0,
    crop_padding: int = 0,
    flip: bool = False,
    crop_scale: float | None = None,
    memory_mb: int = 2048,
    workers: int = 0,
    skip_corrupt: bool = False,
) -> ImageData:
    """Read images from ``root/CLASS/*``, ``root/train/CLASS/*`` or, unlabelled, ``root/*``.

    With ``train`` and one of ``validation`` and ``test`` beside it, that one is the test split and
    validation images are taken from train; with both beside it, each is what it says. A folder
    ``holdout`` beside train is as that argument.

    Args:
        root: the folder.
        image_size: side, or (height, width), to scale and cut to; None keeps images as they are,
            which then have to be of one size.
        channels: 1 or 3 to convert; None takes what the images have.
        labels: False uses the images without labels, whatever the folders are.
        interpolation: how images are scaled to ``image_size``; None means bilinear.
        crop_share: of each side what is kept where images are scaled and cut; None means 1. An
            image of ``image_size`` stays as it is.
        normalisation: None means ImageNet's for colour, 0.5 and 0.5 for grey.
        validation: share of the training images held out for choices.
        holdout: a folder of images that no network was trained on, in class folders or without
            labels; choices are made on them.
        seed: seeds the division.
        crop_padding: augmentation, see `TensorSplit`.
        flip: augmentation, see `TensorSplit`; off, since digits and words must not be mirrored.
        crop_scale: augmentation: random part of at least this share of the area, scaled to size.
        memory_mb: images that fit are decoded once; others are read for each batch.
        workers: processes that read for batches, threads that decode; 0 reads in this process and
            decodes on all cores.
        skip_corrupt: leave out images that can't be read, and count them.

    Raises:
        DataError: listing every fault found.
    """
    reading = Reading(
        image_size=image_size,
        channels=channels,
        interpolation=interpolation,
        crop_share=crop_share,
        normalisation=normalisation,
        validation=validation,
        seed=seed,
        crop_padding=crop_padding,
        flip=flip,
        crop_scale=crop_scale,
        memory_mb=memory_mb,
        workers=workers,
        skip_corrupt=skip_corrupt,
    )
    base = Path(root)
    if problems := reading.problems():
        fail(problems)
    apart = None if holdout is None else Path(holdout)
    if problems := [_no_folder(one) for one in (base, apart) if one and not one.is_dir()]:
        fail(problems)
    roles = _roles(base) | ({} if apart is None else {HOLDOUT: apart})
    scans = {role: _scan(path) for role, path in roles.items()}
    problems = [line for scan in scans.values() for line in scan.problems]
    train = scans["train"]
    labelled = labels and train.classes is not None
    parts = []
    for role, scan in scans.items():
        strange = sorted(set(scan.classes or ()) - set(train.classes or ()))
        if labelled and strange:
            problems.append(f"{role}: classes that train lacks: {', '.join(strange[:5])}")
        numbers = None
        if labelled and scan.classes is not None and not strange:
            known = {name: number for number, name in enumerate(train.classes or ())}
            numbers = np.array([known[name] for name in scan.owners], np.int64)
        parts.append(Part(role, Files(scan.paths), numbers))
    if problems:
        fail(problems)
    data = assemble(base.name or str(base), parts, train.classes if labelled else None, reading)
    test = roles.get("test")
    if test is None or test.name in _ROLES["test"]:
        return data
    note = (
        f"the folder '{test.name}' serves as test split, which is read once, at the end; what "
        f"decides is a share ({validation:g}) of '{roles['train'].name}'"
    )
    return replace(data, notes=(*data.notes, note))


def _no_folder(path: Path) -> str:
    found = "this is a file" if path.exists() else "none exists"
    return f"{path}: expected a folder of images, {found}; give a path to an existing folder"


def _roles(base: Path) -> dict[str, Path]:
    """Which folder plays which role; the base itself is train where no train folder exists."""
    found: dict[str, Path] = {}
    for role, names in _ROLES.items():
        for name in names:
            if (base / name).is_dir() and role not in found:
                found[role] = base / name
    if "train" not in found:
        return {"train": base}
    return settle_test(found)


@dataclass(frozen=True)
class _Scan:
    """What a folder holds: files, each file's class folder, all class folders, and faults."""

    paths: tuple[Path, ...]
    owners: tuple[str, ...]
    classes: tuple[str, ...] | None
    problems: tuple[str, ...]


def _images(path: Path, *, deep: bool) -> list[Path]:
    walk = path.rglob("*") if deep else path.glob("*")
    return sorted(
        file
        for file in walk
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _scan(path: Path) -> _Scan:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = _images(path, deep=False)
    groups = {one.name: _images(one, deep=True) for one in folders}
    if not loose and not any(groups.values()):
        known = " ".join(sorted(SUFFIXES))
        return _Scan((), (), None, (f"{path}: no images (looked for {known})",))
    if not folders:
        return _Scan(tuple(loose), (), None, ())
    problems = []
    if loose:
        problems.append(
            f"{path}: {len(loose)} images lie beside {len(folders)} folders, such as "
            f"{loose[0].name}; put every image into a class folder, or none"
        )
    hollow = [name for name, files in groups.items() if not files]
    if hollow:
        problems.append(
            f"{path}: class folders without images: {', '.join(hollow[:5])}; fill or remove them"
        )
    paths = tuple(file for files in groups.values() for file in files)
    owners = tuple(name for name, files in groups.items() for _ in files)
    return _Scan(paths, owners, tuple(groups), tuple(problems))
