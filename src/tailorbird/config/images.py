"""Images as jobs name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tailorbird.config.reader import Path_
from tailorbird.config.sections import Faults, Field, fields_of, near_or_own, short
from tailorbird.data.cluttered import cluttered_digits
from tailorbird.data.images import IMAGENET, ImageData, Normalisation
from tailorbird.data.preparation import Preparation, renormalised
from tailorbird.data.sources import cifar, digits, folder, from_datasets, parquet
from tailorbird.errors import ConfigError, DataError
from tailorbird.factories import call_factory, is_factory

DATA: Mapping[str, tuple[Callable[..., ImageData], Mapping[str, object]]] = {
    "digits": (digits, {}),
    "cluttered_digits": (cluttered_digits, {}),
    "cifar10": (cifar, {"kind": "cifar10"}),
    "cifar100": (cifar, {"kind": "cifar100"}),
    "folder": (folder, {}),
    "parquet": (parquet, {}),
}
"""Kind of images -> what reads them, and what the kind fixes. A new source is a line here."""

_EMBEDDED = ("digits", "cluttered_digits")
"""Kinds without files, whose normalisation is their own."""

_LOCATIONS = ("root", "files", "test")
"""Keys that hold paths."""

_NORMALISATION = fields_of(Normalisation)


@dataclass(frozen=True)
class Images:
    """A checked section of images: its values, the ``kind`` among them, paths absolute."""

    values: Mapping[str, object]

    def plain(self) -> Mapping[str, object]:
        """As it would be written in a job file."""
        return self.values

    @property
    def code(self) -> str | None:
        """``package.module:name``, where that is what reads them."""
        kind = str(self.values["kind"])
        return None if kind in DATA else kind

    def read(self, seed: int) -> ImageData:
        """Read them.

        Raises:
            DataError: for images that can't be used.
            ConfigError: for a factory that can't be called or returns something else.
        """
        return self._read(seed)[0]

    def read_as(self, told: Preparation, seed: int) -> tuple[ImageData, Images]:
        """Read them, prepared as ``told`` where the section leaves that open.

        Images that come finished, and those of another number of channels, keep their
        normalisation; those that are not scaled are not cut.

        Args:
            told: how a network's images were prepared.
            seed: of their division.

        Returns:
            The images, and the section with what was taken written out.

        Raises:
            DataError, ConfigError: as in `read`.
        """
        named = {"interpolation": told.interpolation, "crop_share": told.crop_share}
        scaled = self.values.get("image_size") is not None
        taken = {key: value for key, value in named.items() if scaled and self._leaves(key)}
        section = Images({**self.values, **taken})
        data, finished = section._read(seed)
        norm = told.normalisation
        fits = len(norm.mean) == data.input_shape[0]
        if finished or not fits or not self._leaves("normalisation"):
            return data, section
        written = {"mean": list(norm.mean), "std": list(norm.std)}
        return renormalised(data, norm), Images({**section.values, "normalisation": written})

    def _leaves(self, key: str) -> bool:
        """Whether a key that there is was left out, or null."""
        return key in self.values and self.values[key] is None

    def _read(self, seed: int) -> tuple[ImageData, bool]:
        """The images, and whether they came finished from code, so that most keys are idle."""
        given = {k: v for k, v in self.values.items() if k not in ("kind", "normalisation")}
        norm = self.values.get("normalisation")
        if isinstance(norm, dict):
            given["normalisation"] = Normalisation(tuple(norm["mean"]), tuple(norm["std"]))
        if self.code is None:
            source, fixed = DATA[str(self.values["kind"])]
            return source(**given, **fixed, seed=seed), False
        arguments = given.pop("arguments")
        made = call_factory(self.code, arguments if isinstance(arguments, dict) else None)
        data = _own_images(self.code, made, given, seed)
        return data, data is made


def _own_images(source: str, made: object, given: dict[str, object], seed: int) -> ImageData:
    if isinstance(made, ImageData):
        defaults = {key: one.default for key, one in data_fields(source).items()}
        idle = [key for key, value in given.items() if value != defaults[key]]
        if idle:
            raise ConfigError(
                f"{source} returns finished ImageData, on which {', '.join(idle)} have no effect; "
                "remove them, or pass them as arguments"
            )
        return made
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 2:
        raise ConfigError(
            f"{source}: expected a data set, a pair (train, test) or ImageData, "
            f"got {len(parts)} things"
        )
    reader: Callable[..., ImageData] = from_datasets
    return reader(*parts, **given, seed=seed)


def data_fields(kind: str) -> dict[str, Field]:
    """The keys that a kind of images takes; those of `from_datasets` for the user's own."""
    start = {"kind": Field(str)}
    if kind in DATA:
        source, fixed = DATA[kind]
        fields = fields_of(source, without=["seed", *fixed], normalisation=Field(object, None))
        if kind in _EMBEDDED:
            fields.pop("normalisation")
        return start | {name: one for name, one in fields.items() if name != "kind"}
    own = fields_of(
        from_datasets,
        without=["train", "test", "plain", "seed"],
        validation=Field(float, 0.1),
        normalisation=Field(object, None),
    )
    return start | {"arguments": Field(dict[str, object] | None, None)} | own


def images(faults: Faults, path: Path_, raw: object, *, base: Path) -> Images | None:
    """Check where images come from; a text alone is the ``kind``."""
    before = len(faults.found)
    raw = {"kind": raw} if isinstance(raw, str) else raw
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        kinds = f"one of {', '.join(DATA)} or package.module:factory"
        place = (*path, "kind") if isinstance(raw, dict) and "kind" in raw else path
        faults.add(place, f"expected a kind: {kinds}, got {short(kind or raw)}")
        return None
    if kind not in DATA and not is_factory(kind):
        faults.add((*path, "kind"), f"unknown kind {short(kind)}{near_or_own(kind, DATA)}")
        return None
    values = faults.values(path, raw, data_fields(kind))
    share = values.get("validation")
    if isinstance(share, float) and not 0 < share < 1:
        faults.add((*path, "validation"), f"expected a share between 0 and 1, got {share}")
    if values.get("normalisation") is not None:
        place = (*path, "normalisation")
        values["normalisation"] = _normalisation(faults, place, values["normalisation"])
    if kind in DATA and kind not in _EMBEDDED:
        for key in _LOCATIONS:
            values |= {key: _located(base, values[key])} if values.get(key) is not None else {}
    return Images(values) if len(faults.found) == before else None


def _normalisation(faults: Faults, path: Path_, raw: object) -> dict[str, object] | None:
    before = len(faults.found)
    if raw == "imagenet":
        raw = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}
    if isinstance(raw, str):
        faults.add(path, f"expected imagenet, or mean and std, got {short(raw)}")
        return None
    faults.values(path, raw, _NORMALISATION)
    if len(faults.found) > before or not isinstance(raw, dict):
        return None
    try:
        Normalisation(tuple(raw["mean"]), tuple(raw["std"]))
    except DataError as error:
        faults.add(path, str(error))
    return {"mean": list(raw["mean"]), "std": list(raw["std"])}


def _located(base: Path, value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_located(base, one) for one in value]
    return str(base / Path(str(value)).expanduser())
