"""One network in training: its optimiser, average, best state and history."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tailorbird.data.images import Split
from tailorbird.errors import ConfigError, TrainingError
from tailorbird.train.checkpoint import Checkpoint, Json, digest, under
from tailorbird.train.evaluate import Score, score
from tailorbird.train.losses import Seen, Term, total
from tailorbird.train.optimisers import (
    build_optimizer,
    optimizer_numbers,
    optimizer_tensors,
    restore_optimizer,
    set_rate,
)
from tailorbird.train.precision import autocast, lay_out, resolve
from tailorbird.train.recipe import Recipe

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A network to train, and where it should follow the teacher.

    Args:
        name: what messages and the checkpoint call it; distinct among those trained together.
        student: images (n, C, H, W) to logits (n, classes). It is copied, never changed.
        hints: pairs of one of its submodules and the teacher's node to imitate there.
        checkpoint: its own folder for the state of each epoch; None for none.
    """

    name: str
    student: nn.Module
    hints: Sequence[tuple[str, str]] = ()
    checkpoint: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Figures of one epoch; epoch 0 is the state before training.

    Args:
        epoch: passes over the training split so far.
        step: steps so far.
        loss: mean training loss, 0 before training.
        accuracy: on the validation images, 0 to 1; agreement with the teacher without labels.
        validation_loss: cross-entropy there.
        ema_accuracy: the same of the averaged weights, if there is an average.
        learning_rate: at the end of the epoch.
        seconds: wall time since the start.
    """

    epoch: float
    step: int
    loss: float
    accuracy: float
    validation_loss: float
    ema_accuracy: float | None
    learning_rate: float
    seconds: float


class Trainee:
    """A student's own copy with everything that its training changes.

    Args:
        assignment: its student is copied; all of the copy's parameters are trained.
        terms: summands of its loss.
        example: two images (2, C, H, W) on the device, for a dry run.
        answers: what the teacher says to them, by node name; empty without a teacher.

    Raises:
        ConfigError: listing hints that name no submodule or node, or differ in shape.
        TrainingError: when the network can't run on such images.
    """

    def __init__(
        self,
        assignment: Assignment,
        *,
        terms: Sequence[Term],
        recipe: Recipe,
        device: torch.device,
        example: Tensor,
        answers: Mapping[str, Tensor],
    ) -> None:
        self.name = assignment.name
        self.recipe = recipe
        self.device = device
        self.terms = tuple(terms)
        self.module = copy.deepcopy(assignment.student).to(device).eval().requires_grad_(True)
        self.precision = resolve(recipe.precision, device, self.module)
        self.format = self._layout(example)
        self.ema = self._average()
        self.activations: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._overwritten: set[str] = set()
        self._hooks = self._listen(assignment.hints)
        self.classes = self._rehearse(example, answers, assignment.hints)
        self.optimizer = build_optimizer(
            recipe.optimizer,
            self.module,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
        )
        self.best = snapshot(self.module)
        self.best_score = Score(-1.0, math.inf)
        self.best_epoch = 0.0
        self.history: list[Epoch] = []
        self.stopped: str | None = None
        self.stopped_step: int | None = None
        self.before = 0.0
        self.at = 0
        self.total = 0
        self.seconds = 0.0
        self.done = False
        self.store: Checkpoint | None = None
        self._pending: list[Tensor] = []
        self._losses: list[float] = []

    def open(self, assignment: Assignment, identity: Mapping[str, Json]) -> None:
        """Take up a checkpoint folder, for a run with this identity."""
        if assignment.checkpoint is None:
            return
        hints: list[Json] = [f"{submodule} -> {node}" for submodule, node in assignment.hints]
        own: dict[str, Json] = {"student": digest(assignment.student), "hints": hints}
        self.store = Checkpoint(assignment.checkpoint, {**identity, **own})

    def step(
        self,
        images: Tensor,
        labels: Tensor | None,
        teacher: Mapping[str, Tensor],
        *,
        rate: float,
        number: int,
    ) -> None:
        """Losses, backward, clip, optimiser, average. ``number`` counts from 1."""
        with autocast(self.device, self.precision):
            logits = self.module(images.contiguous(memory_format=self.format))
        seen = Seen(logits.float(), labels, teacher, self.activations)
        loss = total(self.terms, seen)
        if loss is None:
            raise TrainingError(f"'{self.name}': no term of the loss applies", step=number)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.activations.clear()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.module, step=number)
        self.at = number
        self._pending.append(loss.detach())

    def settle(self, step: int) -> float:
        """Fetch the losses since the last call, the newest of which is of ``step``.

        The one place where the loop waits for the device. Returns the newest loss; where one is
        not finite, the trainee is stopped.
        """
        if not self._pending:
            return math.nan
        values = torch.stack(self._pending).tolist()
        self._pending.clear()
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                first = step - len(values) + 1 + offset
                self.stop(f"the loss is {value} at step {first}", first)
                break
            self._losses.append(value)
        return float(values[-1])

    def stop(self, reason: str, step: int) -> None:
        """Stop this trainee; its best state so far stays."""
        self.stopped = reason
        self.stopped_step = step
        self._pending.clear()

    def validate(
        self,
        split: Split,
        answers: Tensor | None,
        *,
        epoch: float,
        rate: float,
        seconds: float,
    ) -> None:
        """Validate weights and average, keep the better if it is the best so far, or the last."""
        candidates = [self.module] if self.ema is None else [self.module, self.ema.module]
        scores = [self.evaluate(net, split, answers, self.recipe.validation_limit)
                  for net in candidates]  # fmt: skip
        if not all(math.isfinite(one.loss) for one in scores):
            self.stop(f"the validation loss is not finite after step {self.at}", self.at)
            return
        if self.recipe.keep == "last":
            self.best_score = Score(-1.0, math.inf)
        for net, one in zip(candidates, scores, strict=True):
            if one.beats(self.best_score):
                self.best, self.best_score, self.best_epoch = snapshot(net), one, epoch
        loss = sum(self._losses) / len(self._losses) if self._losses else 0.0
        self._losses.clear()
        self.history.append(
            Epoch(
                epoch=epoch,
                step=self.at,
                loss=loss,
                accuracy=scores[0].accuracy,
                validation_loss=scores[0].loss,
                ema_accuracy=scores[1].accuracy if len(scores) > 1 else None,
                learning_rate=rate,
                seconds=seconds,
            )
        )

    def evaluate(
        self, net: nn.Module, split: Split, answers: Tensor | None, limit: int | None = None
    ) -> Score:
        """Score in float32, with the recipe's batch size."""
        result = score(
            net,
            split,
            answers=answers,
            batch_size=max(256, self.recipe.batch_size),
            device=self.device,
            limit=limit,
            channels_last=self.format is torch.channels_last,
        )
        self.activations.clear()
        return result

    def release(self) -> nn.Module:
        """The copy without hooks, holding the best state, in eval mode."""
        for hook in self._hooks:
            hook.remove()
        self.module.load_state_dict(self.best)
        self.optimizer.zero_grad(set_to_none=True)
        return self.module.eval()

    def resume(self) -> bool:
        """Continue from the checkpoint; whether there was one."""
        state = None if self.store is None else self.store.load()
        if state is not None:
            self._restore(*state)
        return state is not None

    def save(self, epoch: int) -> None:
        """Write a checkpoint, if one is kept."""
        if self.store is not None:
            self.store.save(epoch, self._tensors(), self._record())

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores as tensors; `_record` has the rest."""
        found = {f"best/{name}": value for name, value in self.best.items()}
        if self.stopped is not None:
            return found
        found |= {f"model/{name}": value for name, value in self.module.state_dict().items()}
        if self.ema is not None:
            average = self.ema.module.state_dict()
            found |= {f"ema/{name}": value for name, value in average.items()}
        return found | optimizer_tensors(self.optimizer)

    def _record(self) -> dict[str, Json]:
        """What a checkpoint stores as JSON."""
        scored = self.best_score.accuracy >= 0
        return {
            "history": [cast("dict[str, Json]", asdict(epoch)) for epoch in self.history],
            "best_score": [self.best_score.accuracy, self.best_score.loss] if scored else None,
            "before": self.before,
            "step": self.at,
            "total": self.total,
            "seconds": self.seconds,
            "done": self.done,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "stopped_step": self.stopped_step,
            "optimizer": optimizer_numbers(self.optimizer),
        }

    def _restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Json]) -> None:
        """Take up the state that `_tensors` and `_record` gave."""
        history = cast("list[dict[str, float]]", record["history"])
        self.history = [Epoch(**epoch) for epoch in history]  # type: ignore[arg-type]
        best = cast("list[float] | None", record["best_score"])
        if best is not None:
            self.best_score = Score(best[0], best[1])
        self.at = cast("int", record["step"])
        self.before = cast("float", record["before"])
        self.total = cast("int", record["total"])
        self.seconds = cast("float", record["seconds"])
        self.done = cast("bool", record["done"])
        self.best_epoch = cast("float", record["best_epoch"])
        self.stopped = cast("str | None", record["stopped"])
        self.stopped_step = cast("int | None", record["stopped_step"])
        self.best = {k: v.to(self.device) for k, v in under("best/", tensors).items()}
        if self.stopped is not None:
            return
        self.module.load_state_dict(under("model/", tensors))
        if self.ema is not None:
            self.ema.module.load_state_dict(under("ema/", tensors))
        restore_optimizer(self.optimizer, tensors, record["optimizer"])

    def _layout(self, example: Tensor) -> torch.memory_format:
        if not self.recipe.channels_last:
            return torch.contiguous_format
        return lay_out(self.module, example)

    def _average(self) -> ModelEmaV3 | None:
        if self.recipe.ema is None:
            return None
        from timm.utils.model_ema import ModelEmaV3

        return ModelEmaV3(self.module, decay=self.recipe.ema, use_warmup=True)

    def _listen(self, hints: Sequence[tuple[str, str]]) -> list[torch.utils.hooks.RemovableHandle]:
        known = [name for name, _ in self.module.named_modules() if name]
        problems = []
        for submodule, _ in hints:
            if submodule not in known:
                near = difflib.get_close_matches(submodule, known, n=3)
                hint = f"; near: {', '.join(near)}" if near else ""
                problems.append(f"'{self.name}': no submodule '{submodule}' for a hint{hint}")
        if problems:
            raise ConfigError(problems)

        def keep(name: str) -> torch.utils.hooks.RemovableHandle:
            def hook(_: nn.Module, __: tuple[object, ...], output: Tensor) -> None:
                if name in self._overwritten:
                    self.activations[name] = output.clone()
                    return
                self.activations[name] = output
                if not output.is_inference():
                    self._versions[name] = output._version

            return self.module.get_submodule(name).register_forward_hook(hook)

        return [keep(name) for name in dict(hints)]

    def _rehearse(
        self,
        example: Tensor,
        answers: Mapping[str, Tensor],
        hints: Sequence[tuple[str, str]],
    ) -> int:
        """Run once without training; check shapes. Returns the number of logits."""
        try:
            with torch.no_grad():
                logits = self.module(example.contiguous(memory_format=self.format))
        except RuntimeError as error:
            raise TrainingError(
                f"'{self.name}' can't run on images of shape {tuple(example.shape)}: {error}"
            ) from error
        problems = []
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(f"'{self.name}': expected logits of shape (n, classes), got {given}")
        wanted = answers.get("output")
        if wanted is not None and wanted.shape != logits.shape:
            problems.append(
                f"'{self.name}' answers with {logits.shape[1]} classes, the teacher with "
                f"{tuple(wanted.shape[1:])}"
            )
        for submodule, node in hints:
            ours, theirs = self.activations.get(submodule), answers.get(node)
            pair = f"'{self.name}': hint {submodule} -> {node}"
            if not isinstance(ours, Tensor):
                problems.append(f"{pair}: the submodule gives no tensor, or is never run")
            elif theirs is None:
                known = ", ".join(sorted(answers))
                problems.append(f"{pair}: the teacher gives no '{node}'; it gives {known}")
            elif ours.shape != theirs.shape:
                problems.append(f"{pair}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)}")
            elif ours._version != self._versions[submodule]:
                # An in-place layer behind it, such as a ReLU, wrote over it: keep a copy.
                self._overwritten.add(submodule)
        self.activations.clear()
        if problems:
            raise ConfigError(problems)
        return int(logits.shape[1])


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict that later training leaves alone."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
