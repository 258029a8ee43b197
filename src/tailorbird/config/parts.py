"""The parts of a job: networks, images, targets, settings."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from tailorbird.config.reader import Path_
from tailorbird.config.sections import Faults, Field, fields_of, near, short
from tailorbird.data.images import IMAGENET, Normalisation
from tailorbird.data.sources import ImageData, cifar, digits, folder, from_datasets, parquet
from tailorbird.errors import ConfigError, DataError
from tailorbird.measure.onnxruntime import OnnxRuntime
from tailorbird.models import resolve_factory
from tailorbird.targets import METRICS, Device, Limit, Target
from tailorbird.train.recipe import Recipe

Made = TypeVar("Made")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAMING = "letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit"
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_LIMITS = (*METRICS, "latency", "size", "peak_memory")

_NETWORK = {
    "model": Field(str, hint="timm:NAME, torchvision:NAME or package.module:factory"),
    "arguments": Field(dict[str, object] | None, None),
    "checkpoint": Field(str | None, None),
    "num_classes": Field(int | None, None),
    "train": Field(object, None),
}
_TARGET = {
    "name": Field(str, hint="it names the student's folder"),
    "device": Field(object, None),
    "limits": Field(object, hint="such as 'latency: 0.5x'"),
}
_FACTORY_DEVICE = {"kind": Field(str), "arguments": Field(dict[str, object] | None, None)}
_NORMALISATION = {"mean": Field(tuple[float, ...]), "std": Field(tuple[float, ...])}

DATA: Mapping[str, tuple[Callable[..., ImageData], Mapping[str, object]]] = {
    "digits": (digits, {}),
    "cifar10": (cifar, {"kind": "cifar10"}),
    "cifar100": (cifar, {"kind": "cifar100"}),
    "folder": (folder, {}),
    "parquet": (parquet, {}),
}
"""Kind of images -> what reads them, and what the kind fixes. A new source is a line here."""

DEVICES: Mapping[str, Callable[..., Device]] = {"onnxruntime": OnnxRuntime}
"""Kind of device -> its class. A new device is a line here."""

_LOCATIONS = ("root", "files", "test")
"""Keys of image sections that hold paths."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Where a network comes from; ``train`` means that it is trained on the data first."""

    model: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    checkpoint: Path | None = None
    num_classes: int | None = None
    train: Recipe | None = None

    def plain(self) -> dict[str, object]:
        """As it would be written in a job file."""
        return {
            "model": self.model,
            "arguments": dict(self.arguments),
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "num_classes": self.num_classes,
            "train": None if self.train is None else asdict(self.train),
        }


def network(faults: Faults, path: Path_, raw: object, base: Path) -> Network | None:
    """Check where a network comes from; a text alone is its ``model``."""
    before = len(faults.found)
    values = faults.values(path, {"model": raw} if isinstance(raw, str) else raw, _NETWORK)
    model, arguments = str(values["model"] or ""), values["arguments"] or {}
    assert isinstance(arguments, dict)  # the field's type has been checked
    if model and not _FACTORY.fullmatch(model.replace("-", "_")):
        faults.add(
            (*path, "model"),
            f"expected timm:NAME, torchvision:NAME or package.module:factory, got {short(model)}",
        )
    classes = values["num_classes"]
    if isinstance(classes, int) and classes < 1:
        faults.add((*path, "num_classes"), f"expected 1 or more, got {classes}")
    checkpoint = None
    if values["checkpoint"] is not None:
        checkpoint = _from(base, str(values["checkpoint"]))
        if not checkpoint.is_file():
            faults.add((*path, "checkpoint"), f"no file at {checkpoint}")
    train = values["train"]
    recipe = None if train is None else settings(faults, (*path, "train"), train, Recipe, "recipe.")
    if train is not None and checkpoint is not None:
        faults.add(path, "has both checkpoint and train; give the one that is meant")
    zoo = model.startswith(("timm:", "torchvision:"))
    loaded = any(arguments.get(key) for key in ("pretrained", "weights", "checkpoint_path"))
    if zoo and train is None and checkpoint is None and not loaded:
        faults.add(
            path,
            "would have random weights; give a checkpoint, arguments such as "
            + ("{pretrained: true}" if model.startswith("timm:") else "{weights: DEFAULT}")
            + ", or train: {epochs: N}",
        )
    if len(faults.found) > before:
        return None
    return Network(
        model=model,
        arguments=arguments,
        checkpoint=checkpoint,
        num_classes=classes if isinstance(classes, int) else None,
        train=recipe,
    )


def donors(faults: Faults, raw: object, base: Path) -> dict[str, Network]:
    """Check the donors: name -> where it comes from."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        faults.add(("donors",), f"expected a name and a network each, got {short(raw)}")
        return {}
    found = {}
    for name, one in raw.items():
        if not _NAME.fullmatch(name):
            faults.add(("donors", name), f"the name becomes a file name; use {_NAMING}")
        elif name == "teacher":
            faults.add(("donors", name), "the name 'teacher' is taken")
        donor = network(faults, ("donors", name), {} if one is None else one, base)
        if donor is not None:
            found[name] = donor
    return found


def data_fields(kind: str) -> dict[str, Field]:
    """The keys that a kind of images takes; those of `from_datasets` for the user's own."""
    start = {"kind": Field(str)}
    if kind in DATA:
        source, fixed = DATA[kind]
        fields = fields_of(source, without=["seed", *fixed], normalisation=Field(object, None))
        if kind == "digits":
            fields.pop("normalisation")
        return start | {name: one for name, one in fields.items() if name != "kind"}
    own = fields_of(
        from_datasets,
        without=["train", "test", "plain", "seed"],
        validation=Field(float, 0.1),
        normalisation=Field(object, None),
    )
    return start | {"arguments": Field(dict[str, object] | None, None)} | own


def images(faults: Faults, raw: object, base: Path) -> dict[str, object] | None:
    """Check where images come from; a text alone is the ``kind``."""
    path: Path_ = ("data",)
    raw = {"kind": raw} if isinstance(raw, str) else raw
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        kinds = f"one of {', '.join(DATA)} or package.module:factory"
        place = (*path, "kind") if isinstance(raw, dict) and "kind" in raw else path
        faults.add(place, f"expected a kind: {kinds}, got {short(kind or raw)}")
        return None
    if kind not in DATA and not _FACTORY.fullmatch(kind):
        faults.add((*path, "kind"), f"unknown kind {short(kind)}{near(kind, DATA)}")
        return None
    values = faults.check(path, raw, data_fields(kind))
    if values is None:
        return None
    share = values.get("validation")
    if isinstance(share, float) and not 0 < share < 1:
        faults.add((*path, "validation"), f"expected a share between 0 and 1, got {share}")
    if values.get("normalisation") is not None:
        values["normalisation"] = _normalisation(faults, values["normalisation"])
    if kind in DATA and kind != "digits":
        for key in _LOCATIONS:
            values |= {key: _located(base, values[key])} if values.get(key) is not None else {}
    return values


def normalisation_of(values: Mapping[str, object]) -> Normalisation | None:
    """The built normalisation of a checked section of images."""
    plain = values.get("normalisation")
    if not isinstance(plain, dict):
        return None
    return Normalisation(tuple(plain["mean"]), tuple(plain["std"]))


def _normalisation(faults: Faults, raw: object) -> dict[str, object] | None:
    path = ("data", "normalisation")
    if raw == "imagenet":
        raw = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}
    if isinstance(raw, str):
        faults.add(path, f"expected imagenet, or mean and std, got {short(raw)}")
        return None
    values = faults.check(path, raw, _NORMALISATION)
    if values is None or not isinstance(raw, dict):
        return None
    try:
        Normalisation(tuple(raw["mean"]), tuple(raw["std"]))
    except DataError as error:
        faults.add(path, str(error))
    return {"mean": list(raw["mean"]), "std": list(raw["std"])}


def targets(faults: Faults, raw: object, base: Path) -> list[tuple[Target, dict[str, object]]]:
    """Check the targets: each with its device built, and the device as plain data."""
    if not isinstance(raw, list) or not raw:
        expected = "expected a list with a name, a device and limits each"
        faults.add(("targets",), f"{expected}, got {short(raw)}")
        return []
    found, names = [], dict[str, int]()
    for position, one in enumerate(raw):
        path = ("targets", position)
        before = len(faults.found)
        values = faults.values(path, {} if one is None else one, _TARGET)
        name = str(values["name"] or "")
        if name and not _NAME.fullmatch(name):
            faults.add((*path, "name"), f"the name becomes a folder; use {_NAMING}")
        if name and name.lower() in names:
            taken = names[name.lower()]
            faults.add((*path, "name"), f"'{name}' is already the name of targets[{taken}]")
        names.setdefault(name.lower(), position)
        limits: dict[str, float | str] = {}
        if isinstance(one, dict) and "limits" in one:
            limits = _limits(faults, (*path, "limits"), values["limits"])
        made = _device(faults, (*path, "device"), values["device"], base)
        if made is not None and len(faults.found) == before:
            found.append((Target(name, made[0], limits), made[1]))
    return found


def _limits(faults: Faults, path: Path_, raw: object) -> dict[str, float | str]:
    if not isinstance(raw, dict) or not raw:
        faults.add(path, f"expected at least one limit, such as 'latency: 0.5x', got {short(raw)}")
        return {}
    found: dict[str, float | str] = {}
    metrics: dict[str, str] = {}
    for key, value in raw.items():
        if key not in _LIMITS:
            faults.add((*path, key), f"unknown metric{near(key, _LIMITS)}")
            continue
        try:
            metric = Limit.parse(key, value).metric
        except ConfigError as error:
            faults.add((*path, key), str(error).removeprefix(f"limit {key}: "))
            continue
        if metric in metrics:
            faults.add((*path, key), f"'{metrics[metric]}' already limits the same figure")
        metrics[metric] = key
        found[key] = value
    return found


def _device(
    faults: Faults, path: Path_, raw: object, base: Path
) -> tuple[Device, dict[str, object]] | None:
    raw = {"kind": raw} if isinstance(raw, str) else raw
    kind = raw.get("kind", "onnxruntime") if isinstance(raw, dict) else "onnxruntime"
    if not isinstance(kind, str) or (kind not in DEVICES and not _FACTORY.fullmatch(kind)):
        faults.add((*path, "kind"), f"unknown kind {short(kind)}{near(str(kind), DEVICES)}")
        return None
    if kind in DEVICES:
        fields = {"kind": Field(str, kind)} | fields_of(DEVICES[kind], without=["seed"])
    else:
        fields = dict(_FACTORY_DEVICE)
    before = len(faults.found)
    plain = faults.values(path, raw, fields)
    try:
        if kind in DEVICES:
            device = DEVICES[kind](**{key: v for key, v in plain.items() if key != "kind"})
        else:
            device = _own_device(kind, plain["arguments"], base)
    except ConfigError as error:
        faults.adopt(path, error)
        return None
    return (device, plain) if len(faults.found) == before else None


def _own_device(source: str, arguments: object, base: Path) -> Device:
    make_importable(base)
    given = arguments if isinstance(arguments, dict) else {}
    make = resolve_factory(source)
    try:
        device = make(**given)
    except TypeError as error:
        raise ConfigError(f"{source}: {error}; check the arguments") from error
    if not (hasattr(device, "key") and callable(getattr(device, "measure", None))):
        raise ConfigError(
            f"{source}: expected a device with 'key' and 'measure', got {type(device).__name__}"
        )
    return cast(Device, device)


def settings(
    faults: Faults, path: Path_, raw: object, make: Callable[..., Made], prefix: str
) -> Made | None:
    """Build a frozen record of settings; its own range checks are reported at their keys."""
    before = len(faults.found)
    values = faults.values(path, raw, fields_of(make))
    try:
        made = make(**values)
    except ConfigError as error:
        faults.adopt(path, error, prefix=prefix)
        return None
    return made if len(faults.found) == before else None


def make_importable(base: Path) -> None:
    """Let ``package.module:factory`` find modules in ``base``, after all installed ones."""
    if str(base) not in sys.path:
        sys.path.append(str(base))


def _from(base: Path, text: str) -> Path:
    return base / Path(text).expanduser()


def _located(base: Path, value: object) -> object:
    if isinstance(value, str):
        return str(_from(base, value))
    return (
        [str(_from(base, str(one))) for one in value] if isinstance(value, (list, tuple)) else value
    )
