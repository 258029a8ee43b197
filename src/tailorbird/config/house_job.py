"""The job file of a model house: read, checked, and what it names built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tailorbird.config.images import Images, images
from tailorbird.config.named import Named
from tailorbird.config.networks import Network, donors, network
from tailorbird.config.reader import Document, read_file
from tailorbird.config.recipes import recipe
from tailorbird.config.sections import Faults, Field, Reader, as_written, fields_of, read_fields
from tailorbird.config.strategies import strategy as named_strategy
from tailorbird.config.targets import KEYS, Targets, quantise, read_targets
from tailorbird.config.tasks import task as named_task
from tailorbird.data.images import ImageData
from tailorbird.data.preparation import Preparation, preparation_of
from tailorbird.errors import ConfigError, DataError, TailorbirdError
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.factories import make_importable
from tailorbird.fit.sessions import MOST
from tailorbird.house.options import HouseOptions
from tailorbird.search.strategy import Strategy
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.recipe import Recipe

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class HousePlan:
    """A checked job: all is known to be well-formed, neither networks nor images are built yet.

    The fields are the keys of a job file; ``targets`` are those of two keys.

    Args:
        teacher: the trained network that students are made from.
        donors: name -> network that blocks are taken from; may be left out.
        data: images.
        targets: list of targets, one student each.
        house: sizes and budgets of the model house.
        retrain: how students are retrained.
        rounds: searches and retrainings per target, at most.
        candidates: selections measured whole for each target and precision in a search.
        contenders: selections of a target that are retrained, in rounds that leave the better half,
            until one is left.
        sessions: measurements of a finished student at most, until its latency is clear of its
            limit; else the target is undecided.
        task: what the networks' outputs mean: classification, or package.module:name.
        strategy: how selections are searched: exact, annealing, random-selection, one of those of
            ``tailorbird search`` or package.module:name; what suits the house where null.
        export: what the ONNX files look like.
        quantise: how files in int8 are made, for devices that run them.
        check_teacher: stop before anything is trained where the teacher is no good on the
            validation images: near chance, or far better with its classes in another order or
            with timm's normalisation.
        seed: of every random choice.
        run: the run folder; None means ``runs/`` and the job file's name.
    """

    teacher: Network = field(metadata={"hint": "such as 'model: timm:resnet18'"})
    donors: Mapping[str, Network] = field(default_factory=dict)
    data: Images = field(metadata={"hint": "such as 'kind: folder'"})
    targets: Targets
    house: HouseOptions = field(default_factory=HouseOptions)
    retrain: Recipe = field(default_factory=Recipe)
    rounds: int = 3
    candidates: int = 4
    contenders: int = 4
    sessions: int = MOST
    task: Named[Task] = field(default=Named("classification", CLASSIFICATION))
    strategy: Named[Strategy] | None = None
    export: ExportOptions = field(default_factory=ExportOptions)
    quantise: QuantiseOptions = field(default_factory=QuantiseOptions)
    check_teacher: bool = True
    seed: int = 0
    run: Path | None = None

    def plain(self) -> dict[str, object]:
        """The whole job with every default written out: itself a valid job file."""
        values = {key: getattr(self, key) for key in FIELDS if key not in KEYS}
        written = as_written({**values, **self.targets.written})
        assert isinstance(written, dict)  # as values are
        return {key: written[key] for key in FIELDS}


def _fields() -> dict[str, Field]:
    found: dict[str, Field] = {}
    names = {"task": Field(str, "classification"), "strategy": Field(str | None, None)}
    for key, one in (fields_of(HousePlan) | names).items():
        found |= KEYS if key == "targets" else {key: one}
    return found


FIELDS: Mapping[str, Field] = _fields()
"""The keys of a job file."""


def load(path: Path) -> HousePlan:
    """Read and check a job file.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    return check(read_file(path), folder=path.resolve().parent, stem=path.stem)


def check(document: Document, *, folder: Path, stem: str = "job") -> HousePlan:
    """Check a document in ``folder``; ``stem`` names the default run folder ``runs/STEM``.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    faults = Faults(document.lines)
    readers: dict[str, Reader] = {
        "teacher": partial(network, base=folder),
        "donors": partial(donors, base=folder),
        "data": partial(images, base=folder),
        "quantise": quantise,
        "retrain": partial(recipe, default="teaching"),
    }
    values: dict[str, Any] = read_fields(faults, (), document.data, FIELDS, readers)
    faults.least(values, rounds=1, candidates=1, contenders=1, sessions=1, seed=0)
    for key, find in (("task", named_task), ("strategy", named_strategy)):
        try:
            if (name := values[key]) is not None:
                values[key] = Named(name, find(name, folder=folder))
        except ConfigError as error:
            faults.adopt((key,), error)
    given = {key: values.pop(key) for key in KEYS}
    targets = read_targets(faults, given, base=folder, reference="teacher", needs="device")
    if faults.found or targets is None:
        raise ConfigError(faults.found)
    run = folder / Path(values["run"] or Path("runs", stem)).expanduser()
    return HousePlan(**{**values, "targets": targets, "run": run})


def build(plan: HousePlan, *, folder: Path) -> dict[str, Any]:
    """Build networks and images of a checked job.

    Networks that start untrained get their weights from the job's seed. Modules in ``folder``, the
    job file's, can be imported, here and for the rest of the process; installed ones go first.

    Returns:
        Keyword arguments of `tailorbird.pipeline.Job`.

    Raises:
        TailorbirdError: the fault itself where there is one, else a ConfigError with all of them.
    """
    make_importable(folder)
    errors: list[tuple[str, TailorbirdError]] = []

    def attempt(name: str, make: Callable[[int], Made]) -> Made | None:
        try:
            return make(plan.seed)
        except TailorbirdError as error:
            errors.append((name, error))
            return None

    notes: list[str] = []
    teacher = attempt("teacher", partial(plan.teacher.build, say=notes.append))
    made = {
        name: attempt(f"donors.{name}", partial(one.build, say=notes.append))
        for name, one in plan.donors.items()
    }
    told = None if teacher is None else preparation_of(teacher)
    read = attempt("data", partial(_images, plan.data, told, say=notes.append))
    data, section = read or (None, plan.data)
    networks = {"teacher": plan.teacher, **plan.donors}
    training = {name: one.train for name, one in networks.items() if one.train is not None}
    if data is not None and training and not data.labelled:
        unlabelled = DataError(
            f"the images have no labels, and training {', '.join(training)} needs them; give a "
            "checkpoint instead of train"
        )
        errors.append(("data", unlabelled))
    _raise(errors)
    return {
        "teacher": teacher,
        "donors": made,
        "data": data,
        "targets": plan.targets.targets,
        "run": plan.run,
        "options": plan.house,
        "recipe": plan.retrain,
        "training": training,
        "rounds": plan.rounds,
        "candidates": plan.candidates,
        "contenders": plan.contenders,
        "sessions": plan.sessions,
        "export": plan.export,
        "quantise": plan.quantise,
        "check_teacher": plan.check_teacher,
        "seed": plan.seed,
        "task": plan.task.made,
        "strategy": None if plan.strategy is None else plan.strategy.made,
        "description": replace(plan, data=section).plain(),
        "notes": tuple(notes),
    }


def _images(
    section: Images, told: Preparation | None, seed: int, *, say: Callable[[str], None]
) -> tuple[ImageData, Images]:
    """The images, prepared as the teacher's were where the job leaves that open, which is said."""
    if told is None:
        return section.read(seed), section
    data, used = section.read_as(told, seed)
    before, after = section.plain(), used.plain()
    taken = {key: after[key] for key in after if after[key] != before[key]}
    if taken:
        words = yaml.safe_dump(taken, default_flow_style=True, sort_keys=False, width=1000)
        say(f"data: left open by the job, so as timm names it for the teacher: {words.strip()}")
    return data, used


def _raise(errors: Sequence[tuple[str, TailorbirdError]]) -> None:
    """One error as what it is, several as one, each with what it is about."""
    if len(errors) == 1:
        name, error = errors[0]
        raise type(error)(f"{name}: {error}") from error
    if errors:
        raise ConfigError([f"{name}: {error}" for name, error in errors])
