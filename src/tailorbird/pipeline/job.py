"""What a run is asked to do, as built components."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tailorbird.data.images import ImageData
from tailorbird.data.unfamiliar import UNFAMILIAR
from tailorbird.errors import ConfigError
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.fit.sessions import MOST
from tailorbird.fit.settings import Settings, check_targets
from tailorbird.house.options import HouseOptions
from tailorbird.prepare import prepared
from tailorbird.search.strategy import Strategy
from tailorbird.targets import Target
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.recipe import Recipe
from tailorbird.train.walk import batches_of, steps_of

Until = Literal["house", "search", "retrain", "export"]
"""Where to stop; each value includes what comes before it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A teacher, donors, images and targets.

    Args:
        teacher: trained network, or one that ``training`` says how to train.
        donors: name -> pretrained network.
        data: images; the holdout decides, or else the validation split, see
            `tailorbird.data.unfamiliar`; the test split is read once, at the end. Where the job
            trains all of its networks, none has seen the validation split, which is the holdout.
        targets: at least one, with distinct names.
        run: the folder that everything is written to.
        options: sizes and budgets of the house.
        recipe: how students are retrained.
        training: ``"teacher"`` or a donor's name -> how to train it before anything else.
        rounds: most searches per target, and most retrainings of a student that is over its limit.
        candidates: selections measured whole for each target and precision in a search.
        contenders: of a target that are retrained, in rounds that leave the better half, until one
            is left.
        sessions: measurements of a finished student at most, until its limit is clear.
        export: of the ONNX files.
        quantise: how files in int8 are made.
        seed: of every random choice.
        task: what the networks' outputs mean.
        strategy: how selections are searched; proven by integer programming where ``None``.
        check_teacher: stop where the teacher is no good on the validation images.
        description: the resolved job as plain data, written to ``config.yaml``.
        notes: said when the run begins.

    Raises:
        ConfigError: listing every fault.
    """

    teacher: nn.Module
    data: ImageData
    targets: tuple[Target, ...]
    run: Path
    donors: Mapping[str, nn.Module] = field(default_factory=dict)
    options: HouseOptions = field(default_factory=HouseOptions)
    recipe: Recipe = field(default_factory=Recipe)
    training: Mapping[str, Recipe] = field(default_factory=dict)
    rounds: int = 3
    candidates: int = 4
    contenders: int = 4
    sessions: int = MOST
    export: ExportOptions = field(default_factory=ExportOptions)
    quantise: QuantiseOptions = field(default_factory=QuantiseOptions)
    seed: int = 0
    task: Task = CLASSIFICATION
    strategy: Strategy | None = None
    check_teacher: bool = True
    description: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> Settings:
        """How targets are fitted."""
        return Settings(
            rounds=self.rounds,
            candidates=self.candidates,
            contenders=self.contenders,
            sessions=self.sessions,
            export=self.export,
            quantise=self.quantise,
            seed=self.seed,
        )

    def __post_init__(self) -> None:
        problems = check_targets(self.targets)
        problems += [
            f"{name}: expected at least 1, got {getattr(self, name)}"
            for name in ("rounds", "candidates", "contenders", "sessions")
            if getattr(self, name) < 1
        ]
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed: expected 0 or more and less than 2^63, got {self.seed}")
        if "teacher" in self.donors:
            problems.append("donors: 'teacher' is taken; give the donor another name")
        known = {"teacher", *self.donors}
        problems += [f"training: no network named '{n}'" for n in self.training if n not in known]
        problems += self._endless()
        if problems:
            raise ConfigError(problems)
        models, notes = prepared_all({"teacher": self.teacher, **self.donors}, self.data)
        object.__setattr__(self, "teacher", models.pop("teacher"))
        object.__setattr__(self, "donors", models)
        object.__setattr__(self, "notes", (*self.notes, *notes))
        if self.data.holdout is None and known <= self.training.keys():  # which validation spares
            object.__setattr__(self, "data", replace(self.data, holdout=self.data.validation))

    def _endless(self) -> list[str]:
        """Which trainings take more steps than can be counted."""
        asked: dict[str, HouseOptions | Recipe] = {
            "house": self.options,
            "retrain": self.recipe,
            **{f"training of {name}": recipe for name, recipe in self.training.items()},
        }
        problems = []
        for title, one in asked.items():
            try:
                steps_of(one.epochs, batches_of(len(self.data.train), one.batch_size))
            except ConfigError as error:
                problems += [f"{title}: {problem}" for problem in error.problems]
        return problems


def prepared_all(
    models: Mapping[str, nn.Module], data: ImageData
) -> tuple[dict[str, nn.Module], list[str]]:
    """Networks as `tailorbird.prepare.prepared` makes them, and what was done.

    Raises:
        ConfigError: listing the faults of all.
    """
    found: dict[str, nn.Module] = {}
    notes: list[str] = []
    problems: list[str] = []
    for name, model in models.items():
        title = name if name == "teacher" else f"donor '{name}'"
        try:
            found[name], told = prepared(model, data.input_shape, name=title)
            notes += told
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found, notes


def identity(
    *,
    teacher: nn.Module,
    donors: Mapping[str, nn.Module],
    data: ImageData,
    options: HouseOptions,
    training: Mapping[str, Recipe],
    seed: int,
    task: Task = CLASSIFICATION,
) -> dict[str, object]:
    """What decides a house, as plain data: equal identities can share a run folder."""
    models = {"teacher": teacher, **donors}
    own = {} if task == CLASSIFICATION else {"task": task.name}  # houses of before have none
    return {
        **own,
        "models": {
            name: _structure_digest(model) if name in training else digest(model)
            for name, model in models.items()
        },
        "other tensors": {name: _other_digest(model) for name, model in models.items()},
        "initial weights": {name: digest(models[name]) for name in training},
        "training": {name: asdict(recipe) for name, recipe in training.items()},
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "sampled": data.sampled,
            "augmentation": data.augmentation,
        },
        "scores": {"images": data.held_out or UNFAMILIAR},
        "house": asdict(options),
        "seed": seed,
    }


_FITTED = ("fit", "students", "finished.json")
_SCORED = ("house/scores.json", *_FITTED)
_DISTILLED = ("retrain", "house/bunches", "house/trained", *_SCORED)

REDONE: Mapping[str, tuple[str, ...]] = {
    "data.name": (),
    "data.augmentation": _DISTILLED,
    "scores": ("retrain", *_SCORED),
    "house.minutes": (),
    "house.memory_mb": ("house/bunches",),
    "house.rank_by": _FITTED,
    **{
        f"house.{name}": _DISTILLED
        for name in ("epochs", "learning_rate", "batch_size", "precision")
    },
}
"""Key of `identity` -> what in the run folder depends on it; all else decides the whole house."""


def digest(model: nn.Module) -> str:
    """A short hash of a network's weights and their names."""
    return _digest(sorted(model.state_dict().items()))


def _other_digest(model: nn.Module) -> str:
    """The same of what a network computes with and does not store as weights.

    Buffers that are not persistent, and tensors that are plain attributes of its modules.
    """
    stored = set(model.state_dict())
    found = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found[f"{path}.{name}"] = value
    return _digest(sorted(found.items()))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    sha = hashlib.sha256()
    for name, tensor in tensors:
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def _structure_digest(model: nn.Module) -> str:
    names = [f"{name}{tuple(t.shape)}" for name, t in sorted(model.state_dict().items())]
    return hashlib.sha256("".join(names).encode()).hexdigest()[:16]
