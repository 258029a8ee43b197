"""A supernet's job file, read and checked, and the components that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tailorbird.config.parts import images, settings
from tailorbird.config.reader import Document, Path_, read_file
from tailorbird.config.sections import Faults, Field, near, short
from tailorbird.config.supernet_data import classes_in, read_data
from tailorbird.config.supernet_schemes import Named, scheme
from tailorbird.errors import ConfigError, DataError, SpaceError, StoreError
from tailorbird.models import read_tensors
from tailorbird.pipeline.supernet_training import SupernetJob
from tailorbird.supernet.architecture import SPACES, ArchitectureSpace, load_space
from tailorbird.supernet.network import Supernet, build_supernet
from tailorbird.supernet.ofa_checkpoint import load_official
from tailorbird.supernet.store import classes_of, head_of, outputs_of
from tailorbird.supernet.train_state import SupernetRecipe

HINT = "`tailorbird supernet init > job.yaml` writes a job to start from"

_JOB = {
    "space": Field(object, hint="such as 'space: ofa-mbv3-w1.0'"),
    "data": Field(object, hint="such as 'kind: folder'"),
    "scheme": Field(object, "deps"),
    "sampler": Field(str | None, None),
    "recipe": Field(object, None),
    "dropout": Field(float, 0.0),
    "start": Field(str | None, None),
    "new_classifier": Field(bool, False),
    "save_steps": Field(int | None, None),
    "validate_epochs": Field(int | None, 1),
    "tensorboard": Field(bool, False),
    "seed": Field(int, 0),
    "run": Field(str | None, None),
}
_SPACE = {"name": Field(str), "resolutions": Field(tuple[int, ...] | None, None)}


@dataclass(frozen=True, kw_only=True)
class SupernetPlan:
    """A checked job; `build_job` makes the components.

    Args:
        architectures: the space, with the resolutions asked for.
        space: its name, or the absolute path of its file.
        data: the section's values, its ``kind`` among them, paths absolute.
        scheme: with the sampler in it, and as plain data.
        start: a checkpoint that training begins with, instead of fresh weights.
        new_classifier: the classifier is fresh all the same.
        folder: the job file's folder, which relative paths start from.
    """

    architectures: ArchitectureSpace
    space: str
    data: Mapping[str, object]
    scheme: Named
    recipe: SupernetRecipe
    dropout: float
    start: Path | None
    new_classifier: bool
    save_steps: int | None
    validate_epochs: int | None
    tensorboard: bool
    seed: int
    run: Path
    folder: Path

    def plain(self) -> dict[str, object]:
        """The whole job with every default written out: itself a valid job file."""
        return {
            "space": {
                "name": self.space,
                "resolutions": list(self.architectures.space.choices[0].values),
            },
            "data": {k: list(v) if isinstance(v, tuple) else v for k, v in self.data.items()},
            "scheme": dict(self.scheme.plain),
            "sampler": self.scheme.sampler,
            "recipe": asdict(self.recipe),
            "dropout": self.dropout,
            "start": None if self.start is None else str(self.start),
            "new_classifier": self.new_classifier,
            "save_steps": self.save_steps,
            "validate_epochs": self.validate_epochs,
            "tensorboard": self.tensorboard,
            "seed": self.seed,
            "run": str(self.run),
        }


def load_job(path: Path) -> SupernetPlan:
    """Read and check a job file.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    return check_job(read_file(path, hint=HINT), folder=path.resolve().parent, stem=path.stem)


def check_job(document: Document, *, folder: Path, stem: str = "supernet") -> SupernetPlan:
    """Check a document; ``stem`` names the default run folder ``runs/STEM``.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    faults = Faults(document.lines)
    job = faults.values((), document.data, _JOB)
    given = document.data if isinstance(document.data, dict) else {}
    for key, least in (("seed", 0), ("save_steps", 1), ("validate_epochs", 1)):
        value = job[key]
        if isinstance(value, int) and value < least:
            faults.add((key,), f"expected {least} or more, got {value}")
        elif isinstance(value, int) and value >= 2**63:
            faults.add((key,), f"expected less than 2^63, got {value}")
    dropout = job["dropout"]
    assert isinstance(dropout, float)  # the field's type has been checked
    if not 0 <= dropout < 1:
        faults.add(("dropout",), f"expected a probability from 0 to below 1, got {dropout:g}")
    found = _space(faults, job["space"], folder) if "space" in given else None
    space, source = (None, "") if found is None else found
    data = images(faults, job["data"], folder) if "data" in given else None
    named = scheme(faults, job["scheme"], job["sampler"], space)
    recipe = settings(faults, ("recipe",), job["recipe"], SupernetRecipe, "recipe.")
    start = None if job["start"] is None else folder / Path(str(job["start"])).expanduser()
    if start is not None and not start.is_file():
        faults.add(("start",), f"no file at {start}")
    if start is None and job["new_classifier"]:
        faults.add(("new_classifier",), "has no effect without start, a checkpoint to begin with")
    if faults.found or space is None or data is None or named is None or recipe is None:
        raise ConfigError(faults.found)
    return SupernetPlan(
        architectures=space,
        space=source,
        data=data,
        scheme=named,
        recipe=recipe,
        dropout=dropout,
        start=start,
        new_classifier=bool(job["new_classifier"]),
        save_steps=_whole(job["save_steps"]),
        validate_epochs=_whole(job["validate_epochs"]),
        tensorboard=bool(job["tensorboard"]),
        seed=_whole(job["seed"]) or 0,
        run=folder / Path(str(job["run"] or Path("runs", stem))).expanduser(),
        folder=folder,
    )


def build_job(plan: SupernetPlan) -> SupernetJob:
    """Read the images, build the supernet for their classes, load the checkpoint it starts from.

    Raises:
        TailorbirdError: for images or a checkpoint that can't be used.
    """
    data = read_data(plan.data, seed=plan.seed, folder=plan.folder)
    supernet = build_supernet(
        plan.architectures,
        classes=classes_in(data),
        dropout=plan.dropout,
        generator=torch.Generator().manual_seed(plan.seed),
    )
    if plan.start is not None:
        _begin_with(supernet, plan.start, fresh=plan.new_classifier)
    return SupernetJob(
        supernet=supernet,
        data=data,
        scheme=plan.scheme.scheme,
        recipe=plan.recipe,
        seed=plan.seed,
        run=plan.run,
        save_steps=plan.save_steps,
        validate_epochs=plan.validate_epochs,
        tensorboard=plan.tensorboard,
        description=plan.plain(),
        folder=plan.folder,
        notes=plan.scheme.notes,
    )


def space_called(name: str, folder: Path) -> str | Path:
    """What `load_space` takes for a name in a file of ``folder``: the name, or a file's path."""
    own = name.endswith(".json") and name not in SPACES
    return (folder / Path(name).expanduser()).resolve() if own else name


def _space(faults: Faults, raw: object, folder: Path) -> tuple[ArchitectureSpace, str] | None:
    """The space and its source, from a name or path, or from that and resolutions."""
    path: Path_ = ("space",)
    values: Mapping[str, object] | None = {"name": raw, "resolutions": None}
    if not isinstance(raw, str):
        path, values = ("space", "name"), faults.check(("space",), raw, _SPACE)
    if values is None:
        return None
    name, sizes = str(values["name"]), values["resolutions"]
    source = space_called(name, folder)
    if source == name and name not in SPACES:
        faults.add(path, f"unknown space {short(name)}{near(name, SPACES)}")
        return None
    try:
        resolutions = list(sizes) if isinstance(sizes, tuple) else None
        return load_space(source, resolutions=resolutions), str(source)
    except SpaceError as error:
        text = str(error)
        about = text.startswith("resolutions: ")
        faults.add(("space", "resolutions") if about else path, text.removeprefix("resolutions: "))
        return None


def _begin_with(supernet: Supernet, checkpoint: Path, *, fresh: bool) -> None:
    """Load the checkpoint, but for its classifier where a fresh one is wanted.

    Raises:
        StoreError: for a checkpoint that can't be read or doesn't fit.
        DataError: for one of other classes.
    """
    space, classes = supernet.architectures, classes_of(supernet)
    try:
        weights = read_tensors(checkpoint)
        if fresh:
            own = supernet.state_dict()
            kept = weights.keys() - set(head_of(space, weights))
            weights = {name: weights[name] for name in kept}
            weights |= {name: own[name] for name in head_of(space, own)}
        outputs = outputs_of(space, weights)
        if outputs not in (None, classes):
            raise DataError(
                f"start: {checkpoint} was trained for {outputs} classes, and the data have "
                f"{classes}; give images of its classes, or new_classifier: true"
            )
        load_official(supernet, weights)
    except StoreError as error:
        raise StoreError(f"start: {error}") from error


def _whole(value: object) -> int | None:
    assert value is None or isinstance(value, int)  # the field's type has been checked
    return value
