"""The images of supernets: as jobs name them, or a file beside a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tailorbird.config.build import images as build_images
from tailorbird.config.parts import images, make_importable
from tailorbird.config.reader import read_file
from tailorbird.config.sections import Faults, Field
from tailorbird.data.images import ImageData, Normalisation, Split, TensorSplit
from tailorbird.errors import ConfigError, DataError, TailorbirdError

_DATA_FILE = {"data": Field(object, hint="such as 'data: {kind: cifar10, root: FOLDER}'")}


def read_data(values: Mapping[str, object], *, seed: int, folder: Path) -> ImageData:
    """The images of a checked section, in three channels, labels included.

    Modules in ``folder`` can be imported, here and for the rest of the process.

    Raises:
        TailorbirdError: for images that can't be used.
    """
    make_importable(folder)
    try:
        data = in_colour(build_images(values, seed))
        if not data.labelled:
            raise DataError(
                f"'{data.name}' has no labels, and training and judging supernets needs them; "
                "give labelled images"
            )
    except TailorbirdError as error:
        raise type(error)(f"data: {error}") from error
    return data


def load_data_file(path: Path) -> dict[str, object]:
    """The checked ``data`` section of a YAML file that holds nothing else.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    document = read_file(path, hint="it holds 'data:' with the keys of a job's data section")
    faults = Faults(document.lines)
    content = faults.values((), document.data, _DATA_FILE)
    given = "data" in document.data
    found = images(faults, content["data"], path.resolve().parent) if given else None
    if found is None or faults.found:
        raise ConfigError([f"{path}: {fault}" for fault in faults.found])
    return found


def in_colour(data: ImageData) -> ImageData:
    """The same images in three channels, as the spaces take them: grey ones three times.

    Raises:
        DataError: for another number of channels.
    """
    channels = data.input_shape[0]
    if channels == 3:
        return data
    splits = [data.train, data.validation, data.test]
    if channels != 1 or not all(one is None or isinstance(one, TensorSplit) for one in splits):
        raise DataError(
            f"'{data.name}' has images of {channels} channels, and the spaces take 3; convert them"
        )
    norm = Normalisation(data.normalisation.mean * 3, data.normalisation.std * 3)
    train, validation, test = (_tripled(one, norm) for one in splits)
    assert train is not None and validation is not None  # they were given
    shape = (3, *data.input_shape[1:])
    return replace(
        data,
        train=train,
        validation=validation,
        test=test,
        normalisation=norm,
        input_shape=shape,
    )


def check_classes(data: ImageData, outputs: int) -> None:
    """Make sure that a supernet with so many outputs answers in the classes of the images.

    Raises:
        DataError: naming both numbers and the way out.
    """
    have = classes_in(data)
    if have > outputs or (data.classes is not None and have != outputs):
        raise DataError(
            f"data: '{data.name}' has {have} classes, and the supernet {outputs} outputs; give "
            "images of its classes, or train on these: a job whose start is the supernet's "
            "weights, with new_classifier: true"
        )


def classes_in(data: ImageData) -> int:
    """How many classes labelled images have: those named, else the largest label and one more."""
    if data.classes is not None:
        return len(data.classes)
    splits = (data.train, data.validation, data.test)
    labels = [one.labels for one in splits if one is not None and one.labels is not None]
    return 1 + max(int(one.max()) for one in labels if len(one))


def _tripled(split: Split | None, norm: Normalisation) -> Split | None:
    if not isinstance(split, TensorSplit):
        return split
    return replace(split, images=split.images.repeat(1, 3, 1, 1), normalisation=norm)
