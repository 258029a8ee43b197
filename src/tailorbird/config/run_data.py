"""The images of a supernet's run: as its job names them, or a file beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tailorbird.config.images import Images, images
from tailorbird.config.reader import read_file
from tailorbird.config.sections import Faults, Field, read_fields
from tailorbird.data.colour import for_supernets
from tailorbird.data.images import ImageData
from tailorbird.errors import ConfigError, StoreError, TailorbirdError
from tailorbird.factories import make_importable
from tailorbird.files import read_json
from tailorbird.runfolder import CONFIG, ORIGIN

_DATA_FILE = {"data": Field(object, hint="such as 'data: {kind: cifar10, root: FOLDER}'")}


@dataclass(frozen=True, kw_only=True)
class StoredImages:
    """What a run folder says of its images.

    Args:
        images: ``None`` where the run has none of its own.
        seed: of their division.
        folder: modules in it can be imported.
    """

    images: Images | None
    seed: int
    folder: Path


def read_data(section: Images, *, seed: int, folder: Path) -> ImageData:
    """The images of a checked section, in three channels, labels included.

    Where a module reads them, those in ``folder`` can be imported, here and for the rest of the
    process.

    Raises:
        TailorbirdError: for images that can't be used.
    """
    if section.code is not None:
        make_importable(folder)
    try:
        return for_supernets(section.read(seed))
    except TailorbirdError as error:
        raise type(error)(f"data: {error}") from error


def load_data_file(path: Path) -> Images:
    """The checked ``data`` section of a YAML file that holds nothing else.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    document = read_file(path, hint="it holds 'data:' with the keys of a job's data section")
    faults = Faults(document.lines)
    readers = {"data": partial(images, base=path.resolve().parent)}
    found = read_fields(faults, (), document.data, _DATA_FILE, readers)["data"]
    if faults.found or not isinstance(found, Images):
        raise ConfigError([f"{path}: {fault}" for fault in faults.found])
    return found


def stored_images(run: Path) -> StoredImages:
    """What the folder of a supernet that was trained or imported says of its images.

    Raises:
        StoreError: for a folder that says nothing readable.
    """
    document = read_file(run / CONFIG, hint="train or import the supernet again")
    origin = read_json(run / ORIGIN)
    base = Path(str(origin.get("folder"))) if isinstance(origin, dict) else run
    seed = document.data.get("seed")
    faults = Faults(document.lines)
    values = None
    if document.data.get("data") is not None:
        values = images(faults, ("data",), document.data["data"], base=base)
    if faults.found or not isinstance(seed, int):
        raise StoreError(
            f"{run / CONFIG} is damaged: {'; '.join(faults.found) or 'it has no seed'}; train "
            "or import the supernet again"
        )
    return StoredImages(images=values, seed=seed, folder=base)
