"""A supernet's job file, read and checked, and the components that it names."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tailorbird.config.images import Images, images
from tailorbird.config.reader import SUPERNET_JOB_HINT, Document, Path_, read_file
from tailorbird.config.run_data import read_data
from tailorbird.config.schemes import NamedSampler, NamedScheme, sampler, scheme
from tailorbird.config.sections import (
    Faults,
    Reader,
    as_written,
    fields_of,
    near,
    read_fields,
    short,
)
from tailorbird.data.images import classes_in
from tailorbird.errors import ConfigError, Fault, SpaceError
from tailorbird.supernet.architecture import SPACES, ArchitectureSpace, load_space
from tailorbird.supernet.start import starting_supernet
from tailorbird.supernet.train_state import SupernetRecipe


@dataclass(frozen=True, kw_only=True)
class NamedSpace:
    """A space, by its name or the path of its file.

    Args:
        name: one of [these](supernet.md#spaces), or the path of
            [a JSON file](howto.md#your-own-sampler-scheme-or-space).
        resolutions: image sizes in pixels, 32 to 4,096; None for the space's own.
    """

    name: str
    resolutions: tuple[int, ...] | None = None

    @cached_property
    def architectures(self) -> ArchitectureSpace:
        """The space itself.

        Raises:
            SpaceError: for an unknown one, a file that describes none, or impossible resolutions.
        """
        return load_space(self.name, resolutions=self.resolutions)

    def plain(self) -> dict[str, object]:
        """With the resolutions that there are."""
        sizes = self.architectures.space.choices[0].values
        return {"name": self.name, "resolutions": list(sizes)}


@dataclass(frozen=True, kw_only=True)
class SupernetPlan:
    """A checked job; `build_job` makes the components. The fields are the keys of a job file.

    Args:
        space: which subnets there are: a name, or the keys below.
        data: images with labels; keys as in [job.md](job.md#data).
        scheme: how it is trained: a name, or ``kind`` and the scheme's keys below.
        sampler: which subnets a step trains, see [samplers](supernet.md#samplers); None for the
            scheme's.
        recipe: how steps are made, keys below.
        dropout: probability of dropout before the classifier.
        start: weights to begin with: an official checkpoint, or a supernet's
            ``weights.safetensors``.
        new_classifier: of ``start``, take all but the classifier: for images of other classes.
        save_steps: steps between checkpoints; None for an epoch.
        validate_epochs: epochs between validations of the largest and the smallest subnet; None
            for never.
        tensorboard: write event files too; needs ``pip install '.[tensorboard]'``.
        seed: of every random choice.
        run: the run folder; None means ``runs/`` and the job file's name.
    """

    space: NamedSpace = field(metadata={"hint": "such as 'space: ofa-mbv3-w1.0'"})
    data: Images = field(metadata={"hint": "such as 'kind: folder'"})
    scheme: NamedScheme = field(default="deps")  # type: ignore[assignment]  # as it is written
    sampler: NamedSampler | None = None
    recipe: SupernetRecipe = field(default_factory=SupernetRecipe)
    dropout: float = 0.0
    start: Path | None = None
    new_classifier: bool = False
    save_steps: int | None = None
    validate_epochs: int | None = 1
    tensorboard: bool = False
    seed: int = 0
    run: Path | None = None

    def plain(self) -> dict[str, object]:
        """The whole job with every default written out: itself a valid job file."""
        written = as_written({key: getattr(self, key) for key in FIELDS})
        assert isinstance(written, dict)  # as what it is given
        return written


FIELDS = fields_of(SupernetPlan)
"""The keys of a job file."""


def load_job(path: Path) -> SupernetPlan:
    """Read and check a job file.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    return check_job(
        read_file(path, hint=SUPERNET_JOB_HINT), folder=path.resolve().parent, stem=path.stem
    )


def check_job(document: Document, *, folder: Path, stem: str = "supernet") -> SupernetPlan:
    """Check a document; ``stem`` names the default run folder ``runs/STEM``.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    faults = Faults(document.lines)
    readers: dict[str, Reader] = {
        "space": partial(space, base=folder),
        "data": partial(images, base=folder),
        "scheme": lambda *_: None,  # read below: it has to fit the space
        "sampler": partial(sampler, base=folder),
    }
    values: dict[str, Any] = read_fields(faults, (), document.data, FIELDS, readers)
    given = document.data if isinstance(document.data, dict) else {}
    faults.least(values, seed=0, save_steps=1, validate_epochs=1)
    if not 0 <= values["dropout"] < 1:
        what = f"expected a probability from 0 to below 1, got {values['dropout']:g}"
        faults.add(("dropout",), what)
    named = values["space"]
    values["scheme"] = scheme(
        faults,
        given.get("scheme", "deps"),
        values["sampler"],
        named.architectures if isinstance(named, NamedSpace) else None,
        base=folder,
    )
    if values["start"] is not None:
        values["start"] = folder / Path(values["start"]).expanduser()
        if not values["start"].is_file():
            faults.add(("start",), f"no file at {values['start']}")
    elif values["new_classifier"]:
        faults.add(("new_classifier",), "has no effect without start, a checkpoint to begin with")
    if faults.found:
        raise ConfigError(faults.found)
    values["run"] = folder / Path(values["run"] or Path("runs", stem)).expanduser()
    return SupernetPlan(**values)


def build_job(plan: SupernetPlan, *, folder: Path) -> dict[str, Any]:
    """Read the images, build the supernet for their classes, load the checkpoint it starts from.

    Args:
        plan: the checked job.
        folder: the job file's; modules in it can be imported.

    Returns:
        Keyword arguments of `tailorbird.pipeline.supernet_training.SupernetJob`.

    Raises:
        TailorbirdError: for images or a checkpoint that can't be used.
    """
    data = read_data(plan.data, seed=plan.seed, folder=folder)
    supernet = starting_supernet(
        plan.space.architectures,
        classes=classes_in(data),
        seed=plan.seed,
        dropout=plan.dropout,
        start=plan.start,
        new_classifier=plan.new_classifier,
    )
    return {
        "supernet": supernet,
        "data": data,
        "scheme": plan.scheme.scheme,
        "recipe": plan.recipe,
        "seed": plan.seed,
        "run": plan.run,
        "save_steps": plan.save_steps,
        "validate_epochs": plan.validate_epochs,
        "tensorboard": plan.tensorboard,
        "description": plan.plain(),
        "folder": folder,
        "notes": plan.scheme.notes,
    }


def space(faults: Faults, path: Path_, raw: object, *, base: Path) -> NamedSpace | None:
    """Check a space: a name or path, or that and resolutions."""
    before = len(faults.found)
    place = path
    values: dict[str, Any] = {"name": raw, "resolutions": None}
    if not isinstance(raw, str):
        place, values = (*path, "name"), faults.values(path, raw, fields_of(NamedSpace))
    if len(faults.found) > before:
        return None
    source = space_called(values["name"], base)
    if source is None:
        hint = near(values["name"], SPACES)
        faults.add(place, f"unknown space {short(values['name'])}{hint}")
        return None
    found = NamedSpace(name=source, resolutions=values["resolutions"])
    try:
        assert found.architectures is not None  # loads it
    except SpaceError as error:
        fault = error.args[0]
        if isinstance(fault, Fault):
            faults.add((*path, *fault.place), fault.what)
        else:
            faults.add(place, str(error))
        return None
    return found


def space_called(name: str, base: Path) -> str | None:
    """A space's name, or the absolute path of its file; ``None`` where there is no such space."""
    if name in SPACES:
        return name
    return str((base / Path(name).expanduser()).resolve()) if name.endswith(".json") else None
