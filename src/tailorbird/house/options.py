"""What the user can turn when a model house is built."""

from __future__ import annotations

from dataclasses import dataclass

from tailorbird.errors import ConfigError, Fault

MOST_BLOCKS = 100_000
"""Of a kind; the paper has 200."""

RANKINGS = ("divergence", "accuracy_loss", "distillation")
"""What alternatives can be ranked by."""


@dataclass(frozen=True, kw_only=True)
class HouseOptions:
    """Sizes and budgets of a model house; the paper's symbols in brackets.

    Args:
        teacher_blocks: blocks sampled from the teacher (n_T; 100 in the paper).
        donor_blocks: alternatives taken from the donors (n_P; 200 in the paper).
        pruned: pruned variants added by expansion (200 in the paper).
        recall: share of the blocks behind a start layer that is drawn from, smallest first (r).
        donor_recall: the same for donors.
        designed: alternatives of standard designs with new weights (LANA).
        merged: offer one convolution for each block that can be merged into one.
        width_multiple: pruned widths are multiples of this.
        identity: offer leaving a block out wherever its shapes allow.
        depth: offer the teacher and the donors with fewer residual branches, stage by stage; in
            chains without branches, with fewer layers.
        stem: let blocks begin at the image.
        epochs: passes over the training split for distilling the alternatives.
        minutes: distilling ends when these are spent, with the schedule shortened to fit.
        learning_rate: of SGD with momentum 0.9 and cosine decay (0.02 in the paper).
        batch_size: images per distillation step.
        memory_mb: budget for one bunch of alternatives trained together.
        precision: ``"float32"``, ``"bfloat16"`` or ``"auto"`` (bfloat16 where hardware has it).
        rank_by: what is added up over the alternatives of a candidate and kept low:
            ``"divergence"`` (mean Kullback-Leibler divergence from the teacher's answers, in nats),
            ``"accuracy_loss"`` (the paper's, eq. 4) or ``"distillation"`` (relative error of the
            blocks' outputs; DNA, Li et al., CVPR 2020). Whole candidates are judged by their
            divergence in the last case, too.
        leaves: module paths that tracing must not look into, such as ``layers.3.router`` or ``2``.

    Raises:
        ConfigError: listing every value out of range.
    """

    teacher_blocks: int = 50
    donor_blocks: int = 50
    pruned: int = 50
    recall: float = 0.3
    donor_recall: float = 0.3
    designed: int = 0
    merged: bool = True
    width_multiple: int = 8
    identity: bool = True
    depth: bool = True
    stem: bool = True
    epochs: float = 5.0
    minutes: float | None = None
    learning_rate: float = 0.02
    batch_size: int = 128
    memory_mb: int = 4096
    precision: str = "auto"
    rank_by: str = "divergence"
    leaves: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", tuple(map(str, self.leaves)))
        problems = []

        def expect(fine: bool, name: str, expected: str, quoted: bool = False) -> None:
            value = getattr(self, name)
            if not fine:
                got = repr(value) if quoted else str(value)
                problems.append(Fault(f"house.{name}", f"expected {expected}, got {got}"))

        for name in ("teacher_blocks", "width_multiple", "batch_size", "memory_mb"):
            expect(getattr(self, name) >= 1, name, "at least 1")
        for name in ("donor_blocks", "pruned", "designed"):
            expect(getattr(self, name) >= 0, name, "0 or more")
        for name in ("teacher_blocks", "donor_blocks", "pruned", "designed"):
            expect(getattr(self, name) <= MOST_BLOCKS, name, f"at most {MOST_BLOCKS}")
        for name in ("recall", "donor_recall"):
            expect(0 < getattr(self, name) <= 1, name, "more than 0, at most 1")
        for name in ("epochs", "learning_rate"):
            expect(getattr(self, name) > 0, name, "more than 0")
        expect(self.minutes is None or self.minutes > 0, "minutes", "more than 0")
        known = self.precision in ("auto", "float32", "bfloat16")
        expect(known, "precision", "'auto', 'float32' or 'bfloat16'", quoted=True)
        known = self.rank_by in RANKINGS
        expect(known, "rank_by", " or ".join(map(repr, RANKINGS)), quoted=True)
        if problems:
            raise ConfigError(problems)
