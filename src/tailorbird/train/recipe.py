"""What a training run does: plain values, checked when they are written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from tailorbird.errors import ConfigError, Fault

Optimizer = Literal["sgd", "adabelief", "adamw"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]
Keep = Literal["best", "last"]
Name = Literal["teaching", "standard", "bespoke"]
_MAY_BE_NONE = ("learning_rate", "minutes", "clip_norm", "ema", "validation_limit")

_PEAKS: Mapping[Optimizer, float] = {"sgd": 0.05, "adabelief": 1e-3, "adamw": 1e-3}
"""The highest rates in long trainings, at `_BATCH` images a step; SGD's grows with these."""

_BATCH, _LONG = 128, 7000
"""Images a step, and steps of a long training: 24 epochs of 38,000 images."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is retrained, or a teacher trained.

    The defaults are the recipe ``teaching``, for networks of trained parts: the teacher's answers
    to mixed images, where it is unsure, tell more than its answers to images that it knows by
    heart. `Recipe.named` has the others.

    Args:
        epochs: passes over the training split; fractions are allowed, such as 0.25.
        batch_size: images per step.
        optimizer: ``sgd`` (Nesterov), ``adabelief`` (the paper's) or ``adamw``.
        learning_rate: the peak, reached after the warm-up. None takes what suits trained weights:
            more in a long training than in a short one, and for a network that has lost much of
            what its teacher knows, see `Recipe.peak`.
        weight_decay: not applied to biases and normalisation layers.
        momentum: of SGD; the first moment's decay of the other two.
        warmup: share of all steps in which the rate rises linearly from near 0.
        schedule: what follows: ``cosine`` down to 0, or ``constant``.
        clip_norm: gradients are scaled down to this norm; None leaves them alone.
        ce_weight: weight of the cross-entropy with the labels; unused without labels, and 1 where
            they are all there is to learn from.
        label_smoothing: of the cross-entropy.
        kl_weight: weight of the divergence from the teacher's answer; unused without a teacher.
        temperature: softens both answers in that divergence.
        mse_weight: weight of the relative error at the hints.
        ema: decay of a running average of the weights, validated beside the weights
            themselves; None for no average.
        precision: ``auto`` is bfloat16 autocast where the hardware multiplies in it.
            Weights, losses and statistics stay in float32 in any case.
        channels_last: images and weights in the layout that convolutions like, where the
            network can run in it.
        minutes: training ends when these are spent, with the schedule shortened to fit.
        mixup: alpha of mixup, 0 for none. Images of other tasks than classification are mixed
            only where they have no labels.
        cutmix: alpha of CutMix, 0 for none; with both, each batch gets one of them.
        validation_limit: images used for the validation after each epoch (a seeded choice);
            None for all. The final figure is always measured on all.
        keep: weights of the ``best`` state, or the ``last`` ones. What is retrained is told by the
            holdout, or by validation images laid over each other; other trainings by validation
            images.
        recalibrate_batches: training batches to re-estimate the BatchNorm statistics of the
            best weights from, at the end; kept if they validate better. 0 for never.

    Raises:
        ConfigError: listing every value that is out of range.

    Example:
        >>> Recipe(epochs=0.5, optimizer="adamw", learning_rate=1e-3).epochs
        0.5
        >>> Recipe(epochs=0, momentum=2)
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: 2 problems:
          - recipe.epochs: expected a number above 0, got 0
          - recipe.momentum: expected a number of 0 or more and below 1, got 2
    """

    epochs: float = 30.0
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float | None = None
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    clip_norm: float | None = 5.0
    ce_weight: float = 0.1
    label_smoothing: float = 0.0
    kl_weight: float = 1.0
    temperature: float = 4.0
    mse_weight: float = 0.0
    ema: float | None = 0.999
    precision: Precision = "auto"
    channels_last: bool = True
    minutes: float | None = None
    mixup: float = 0.0
    cutmix: float = 1.0
    validation_limit: int | None = None
    keep: Keep = "best"
    recalibrate_batches: int = 20

    def __post_init__(self) -> None:
        given = vars(self)
        named = {"optimizer": Optimizer, "schedule": Schedule, "precision": Precision, "keep": Keep}
        check_numbers(
            "recipe",
            {k: v for k, v in given.items() if v is not None or k not in _MAY_BE_NONE},
            positive=("epochs", "learning_rate", "temperature", "minutes", "clip_norm"),
            not_negative=(
                "weight_decay",
                "ce_weight",
                "kl_weight",
                "mse_weight",
                "mixup",
                "cutmix",
            ),
            shares=("momentum", "warmup", "label_smoothing", "ema"),
            counts={"batch_size": 2, "recalibrate_batches": 0, "validation_limit": 1},
            others=[
                Fault(f"recipe.{k}", f"expected one of {', '.join(get_args(x))}, got {given[k]!r}")
                for k, x in named.items()
                if given[k] not in get_args(x)
            ],
        )

    def peak(self, steps: int, lost: float = 1.0) -> float:
        """The learning rate after the warm-up.

        What is learned in a few steps at a high rate is less than what trained weights lose by it;
        a network that has lost what it knew has only to learn. So the rate falls with the root of
        the number of steps where nothing is lost, and by less the more is.

        Args:
            steps: of the whole training.
            lost: share of the teacher's accuracy that the network lacks before it, 0 to 1.

        Example:
            >>> recipe = Recipe()
            >>> [round(recipe.peak(70, lost), 4) for lost in (0.0, 0.5, 1.0)]
            [0.005, 0.0158, 0.05]
            >>> recipe.peak(7000, 0.0), Recipe(learning_rate=1.0).peak(70, 0.0)
            (0.05, 1.0)
        """
        if self.learning_rate is not None:
            return self.learning_rate
        batch = self.batch_size / _BATCH if self.optimizer == "sgd" else 1.0
        kept = 1.0 - min(1.0, max(0.0, lost))
        gentle = math.pow(min(1.0, math.sqrt(steps / _LONG)), kept)
        return _PEAKS[self.optimizer] * batch * gentle

    @classmethod
    def named(cls, name: Name, **changes: float | str | bool | None) -> Recipe:
        """A recipe by name, with changes.

        Args:
            name: ``teaching``, the default; ``standard``, for networks that are trained on labels,
                from random weights too; or ``bespoke``, how the paper retrains (Lee and Moon,
                2023): relative errors at the hints alone, AdaBelief at 0.02, for 30 epochs.
            changes: fields that are to be others.

        Raises:
            ConfigError: for an unknown name, and values that are out of range.

        Example:
            >>> Recipe.named("bespoke", epochs=2).optimizer, Recipe.named("teaching") == Recipe()
            ('adabelief', True)
        """
        if name not in NAMED:
            raise ConfigError(f"recipe: expected one of {', '.join(NAMED)}, got {name!r}")
        values: dict[str, Any] = {**NAMED[name], **changes}
        return cls(**values)

    def as_record(self) -> dict[str, float | int | str | bool | None]:
        """The recipe as JSON-able values, in the order of the fields."""
        return asdict(self)


NAMED: Mapping[Name, Mapping[str, Any]] = {
    "teaching": {},
    "standard": {
        "learning_rate": 0.05,
        "ce_weight": 1.0,
        "label_smoothing": 0.1,
        "kl_weight": 0.5,
        "temperature": 1.0,
        "mse_weight": 0.5,
        "ema": None,
        "cutmix": 0.0,
    },
    "bespoke": {
        "optimizer": "adabelief",
        "learning_rate": 0.02,
        "ce_weight": 0.0,
        "kl_weight": 0.0,
        "mse_weight": 1.0,
        "ema": None,
        "cutmix": 0.0,
    },
}
"""Name -> fields that are not as in `Recipe`."""


def check_numbers(
    place: str,
    given: Mapping[str, object],
    *,
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    shares: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
    others: Sequence[str] = (),
) -> None:
    """Refuse settings that are out of range; names that aren't given are not looked at.

    Args:
        place: named in the message.
        given: name -> value.
        positive: above 0.
        not_negative: 0 or more.
        shares: 0 or more and below 1.
        counts: whole numbers, each with the least that it may be.
        others: what else is wrong, told together with these.

    Raises:
        ConfigError: listing all of them.
    """
    rules: list[tuple[Sequence[str], Callable[[float], bool], str]] = [
        (positive, lambda value: value > 0, "a number above 0"),
        (not_negative, lambda value: value >= 0, "a number of 0 or more"),
        (shares, lambda value: 0 <= value < 1, "a number of 0 or more and below 1"),
    ]
    wrong = [
        (name, wanted)
        for names, fits, wanted in rules
        for name in names
        if name in given and not fits(number(given[name]))
    ]
    for name, least in (counts or {}).items():
        value = given.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            wrong.append((name, f"a whole number of {least} or more"))
    faults = [Fault(f"{place}.{n}", f"expected {wanted}, got {given[n]!r}") for n, wanted in wrong]
    if problems := [*faults, *others]:
        raise ConfigError(problems)


def number(value: object) -> float:
    """The value as a number; NaN, which no rule accepts, where it isn't a finite one."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else math.nan  # type: ignore[arg-type]  # plain says so
