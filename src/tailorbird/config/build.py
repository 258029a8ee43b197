"""From a checked job to built components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from tailorbird.config.parts import DATA, Network, data_fields, make_importable, normalisation_of
from tailorbird.config.plan import Plan
from tailorbird.data.sources import ImageData, from_datasets
from tailorbird.errors import ConfigError, DataError, TailorbirdError
from tailorbird.models import load_model, resolve_factory
from tailorbird.pipeline import Job

Made = TypeVar("Made")


def build(plan: Plan) -> Job:
    """Build networks and images of a checked job.

    Networks that start untrained get their weights from the job's seed. Modules beside the job
    file can be imported, here and for the rest of the process; installed ones go first.

    Raises:
        TailorbirdError: the fault itself where there is one, else a ConfigError with all of them.
    """
    make_importable(plan.folder)
    errors: list[tuple[str, TailorbirdError]] = []

    def attempt(name: str, make: Callable[[], Made]) -> Made | None:
        try:
            return make()
        except TailorbirdError as error:
            errors.append((name, error))
            return None

    teacher = attempt("teacher", partial(_network, plan.teacher, plan.seed))
    donors: dict[str, nn.Module] = {}
    for name, entry in plan.donors.items():
        donor = attempt(f"donors.{name}", partial(_network, entry, plan.seed))
        if donor is not None:
            donors[name] = donor
    data = attempt("data", partial(images, plan.data, plan.seed))
    recipes = {
        name: entry.train
        for name, entry in {"teacher": plan.teacher, **plan.donors}.items()
        if entry.train is not None
    }
    if data is not None and recipes and not data.labelled:
        errors.append(
            (
                "data",
                DataError(
                    f"the images have no labels, and training {', '.join(recipes)} needs them; "
                    "give a checkpoint instead of train"
                ),
            )
        )
    if len(errors) == 1:
        name, error = errors[0]
        raise type(error)(f"{name}: {error}") from error
    if errors or teacher is None or data is None:
        raise ConfigError([f"{name}: {error}" for name, error in errors])
    return Job(
        teacher=teacher,
        donors=donors,
        data=data,
        targets=plan.targets,
        run=plan.run,
        options=plan.options,
        recipe=plan.recipe,
        training=recipes,
        rounds=plan.rounds,
        candidates=plan.candidates,
        export=plan.export,
        seed=plan.seed,
        description=plan.plain(),
    )


def images(values: Mapping[str, object], seed: int) -> ImageData:
    """Read the images that a checked section names.

    Raises:
        DataError: for images that can't be used.
        ConfigError: for a factory that can't be called or returns something else.
    """
    given = {key: value for key, value in values.items() if key not in ("kind", "normalisation")}
    normalisation = normalisation_of(values)
    if normalisation is not None:
        given["normalisation"] = normalisation
    kind = str(values["kind"])
    if kind in DATA:
        source, fixed = DATA[kind]
        return source(**given, **fixed, seed=seed)
    return _own_images(kind, given, seed)


def _own_images(source: str, given: dict[str, object], seed: int) -> ImageData:
    arguments = given.pop("arguments") or {}
    assert isinstance(arguments, dict)  # the field's type has been checked
    make = resolve_factory(source)
    try:
        made = make(**arguments)
    except Exception as error:  # the user's code may raise anything; the cause stays attached
        raise ConfigError(
            f"{source}: calling it with {arguments or 'no arguments'} failed: "
            f"{type(error).__name__}: {error}"
        ) from error
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


def _network(entry: Network, seed: int) -> nn.Module:
    """Build one network; random weights come from ``seed``, the caller's generator is left be."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_model(
            entry.model,
            arguments=entry.arguments,
            checkpoint=entry.checkpoint,
            num_classes=entry.num_classes,
        )
