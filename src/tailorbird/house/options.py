"""What the user can turn when a model house is built."""

from __future__ import annotations

from dataclasses import dataclass

from tailorbird.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HouseOptions:
    """Sizes and budgets of a model house; the paper's symbols in brackets.

    Args:
        teacher_blocks: blocks sampled from the teacher (n_T; 100 in the paper).
        donor_blocks: alternatives taken from the donors (n_P; 200 in the paper).
        pruned: pruned variants added by expansion (200 in the paper).
        recall: share of the blocks behind a start layer that is drawn from, smallest first (r).
        donor_recall: the same for donors.
        width_multiple: pruned widths are multiples of this.
        identity: offer leaving a block out wherever its shapes allow.
        stem: let blocks begin at the image.
        epochs: passes over the training split for distilling the alternatives.
        minutes: distilling ends when these are spent, with the schedule shortened to fit.
        learning_rate: of SGD with momentum 0.9 and cosine decay (0.02 in the paper).
        batch_size: images per distillation step.
        memory_mb: budget for one bunch of alternatives trained together.
        precision: ``"float32"``, ``"bfloat16"`` or ``"auto"`` (bfloat16 where hardware has it).
        rank_by: what is added up over the alternatives of a candidate and kept low:
            ``"divergence"`` (mean Kullback-Leibler divergence from the teacher's answers, in nats)
            or ``"accuracy_loss"`` (the paper's, eq. 4).
        leaves: module paths that tracing must not look into.

    Raises:
        ConfigError: listing every value out of range.
    """

    teacher_blocks: int = 50
    donor_blocks: int = 50
    pruned: int = 50
    recall: float = 0.3
    donor_recall: float = 0.3
    width_multiple: int = 8
    identity: bool = True
    stem: bool = True
    epochs: float = 5.0
    minutes: float | None = None
    learning_rate: float = 0.02
    batch_size: int = 128
    memory_mb: int = 4096
    precision: str = "auto"
    rank_by: str = "divergence"
    leaves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        for name in ("teacher_blocks", "width_multiple", "batch_size", "memory_mb"):
            if getattr(self, name) < 1:
                problems.append(f"house.{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("donor_blocks", "pruned"):
            if getattr(self, name) < 0:
                problems.append(f"house.{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("recall", "donor_recall"):
            if not 0 < getattr(self, name) <= 1:
                problems.append(
                    f"house.{name}: expected more than 0, at most 1, got {getattr(self, name)}"
                )
        for name in ("epochs", "learning_rate"):
            if getattr(self, name) <= 0:
                problems.append(f"house.{name}: expected more than 0, got {getattr(self, name)}")
        if self.minutes is not None and self.minutes <= 0:
            problems.append(f"house.minutes: expected more than 0, got {self.minutes}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            problems.append(
                f"house.precision: expected 'auto', 'float32' or 'bfloat16', got {self.precision!r}"
            )
        if self.rank_by not in ("divergence", "accuracy_loss"):
            problems.append(
                f"house.rank_by: expected 'divergence' or 'accuracy_loss', got {self.rank_by!r}"
            )
        if problems:
            raise ConfigError(problems)
