"""What a training run does: plain values, checked when they are written down."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from tailorbird.errors import ConfigError, Fault

Optimizer = Literal["sgd", "adabelief", "adamw"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]
Keep = Literal["best", "last"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is retrained, or a teacher trained.

    Args:
        epochs: passes over the training split; fractions are allowed, such as 0.25.
        batch_size: images per step.
        optimizer: ``sgd`` (Nesterov), ``adabelief`` (the paper's) or ``adamw``.
        learning_rate: the peak, reached after the warm-up.
        weight_decay: not applied to biases and normalisation layers.
        momentum: of SGD; the first moment's decay of the other two.
        warmup: share of all steps in which the rate rises linearly from near 0.
        schedule: what follows: ``cosine`` down to 0, or ``constant``.
        clip_norm: gradients are scaled down to this norm; None leaves them alone.
        ce_weight: weight of the cross-entropy with the labels; unused without labels.
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
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; with both, each batch gets one of them.
        validation_limit: images used for the validation after each epoch (a seeded choice);
            None for all. The final figure is always measured on all.
        keep: weights of the ``best`` validation, or the ``last`` ones: where a pretrained network
            has seen the validation images, no later weights look as good on them as its own.
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
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    clip_norm: float | None = 5.0
    ce_weight: float = 1.0
    label_smoothing: float = 0.1
    kl_weight: float = 0.5
    temperature: float = 1.0
    mse_weight: float = 0.5
    ema: float | None = None
    precision: Precision = "auto"
    channels_last: bool = True
    minutes: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    validation_limit: int | None = None
    keep: Keep = "best"
    recalibrate_batches: int = 20

    def __post_init__(self) -> None:
        problems = [
            *self._positive("epochs", "learning_rate", "temperature"),
            *(self._positive("minutes") if self.minutes is not None else ()),
            *(self._positive("clip_norm") if self.clip_norm is not None else ()),
            *self._not_negative("weight_decay", "ce_weight", "kl_weight", "mse_weight"),
            *self._not_negative("mixup", "cutmix"),
            *self._share("momentum", "warmup", "label_smoothing"),
            *(self._share("ema") if self.ema is not None else ()),
            *self._count("batch_size", 2),
            *self._count("recalibrate_batches", 0),
            *(self._count("validation_limit", 1) if self.validation_limit is not None else ()),
            *self._one_of("optimizer", get_args(Optimizer)),
            *self._one_of("schedule", get_args(Schedule)),
            *self._one_of("precision", get_args(Precision)),
            *self._one_of("keep", get_args(Keep)),
        ]
        if problems:
            raise ConfigError(problems)

    def as_record(self) -> dict[str, float | int | str | bool | None]:
        """The recipe as JSON-able values, in the order of the fields."""
        return asdict(self)

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return math.nan
        return float(value) if math.isfinite(value) else math.nan

    def _wrong(self, name: str, expected: str) -> str:
        return Fault(f"recipe.{name}", f"expected {expected}, got {getattr(self, name)!r}")

    def _positive(self, *names: str) -> list[str]:
        return [self._wrong(n, "a number above 0") for n in names if not self._number(n) > 0]

    def _not_negative(self, *names: str) -> list[str]:
        return [self._wrong(n, "a number of 0 or more") for n in names if not self._number(n) >= 0]

    def _share(self, *names: str) -> list[str]:
        wrong = [n for n in names if not 0 <= self._number(n) < 1]
        return [self._wrong(n, "a number of 0 or more and below 1") for n in wrong]

    def _count(self, name: str, least: int) -> list[str]:
        value = getattr(self, name)
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return [] if fine else [self._wrong(name, f"a whole number of {least} or more")]

    def _one_of(self, name: str, known: tuple[str, ...]) -> list[str]:
        fine = getattr(self, name) in known
        return [] if fine else [self._wrong(name, f"one of {', '.join(known)}")]
