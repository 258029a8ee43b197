"""One network that is trained after labels or a teacher: its own copy, its loss, its checkpoint."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tailorbird.copying import copy_network
from tailorbird.data.images import Split
from tailorbird.errors import ConfigError, TrainingError
from tailorbird.task import Score, Task
from tailorbird.train.beside import Step
from tailorbird.train.checkpoint import Checkpoint, Json, digest
from tailorbird.train.draws import draws
from tailorbird.train.evaluate import score
from tailorbird.train.losses import Seen, Term, total
from tailorbird.train.mutation import guard_for
from tailorbird.train.optimisers import build_optimizer, unrecordable
from tailorbird.train.precision import autocast, lay_out, resolve
from tailorbird.train.recipe import Recipe
from tailorbird.train.state import UNSCORED, State, snapshot


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


Judges = tuple[Split, Tensor | None]
"""Images, and the answers (n,) that are right there; ``None`` where labels say so."""


@dataclass(frozen=True)
class Batch:
    """What a step is made on.

    Args:
        images: (n, C, H, W), mixed where the recipe says so.
        labels: (n,), or mixed (n, classes); None without.
        teacher: what it says to the images, by node name; empty without one.
    """

    images: Tensor
    labels: Tensor | None
    teacher: Mapping[str, Tensor]


class Student:
    """A student's own copy with everything that its training changes.

    Args:
        assignment: its student is copied; all of the copy's parameters are trained.
        terms: summands of its loss.
        task: what its outputs mean.
        example: two images (2, C, H, W) on the device, for a dry run.
        answers: what the teacher says to them, by node name; empty without a teacher.
        recorded: whether its steps are to be recorded.

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
        task: Task,
        device: torch.device,
        example: Tensor,
        answers: Mapping[str, Tensor],
        recorded: bool = False,
    ) -> None:
        self.name, self.recipe, self.device = assignment.name, recipe, device
        self.task = task
        self.terms = tuple(terms)
        module = copy_network(assignment.student).to(device).eval().requires_grad_(True)
        self.precision = resolve(recipe.precision, device, module)
        self.format = lay_out(module, example) if recipe.channels_last else torch.contiguous_format
        make = partial(
            build_optimizer,
            recipe.optimizer,
            learning_rate=recipe.peak(1),  # set before every step
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            capturable=recorded,
        )
        self.state = State(module, make, Epoch, ema=recipe.ema)
        self.state.best = snapshot(module)
        self.activations: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._overwritten: set[str] = set()
        self._hooks = self._listen(assignment.hints)
        self.classes = self._rehearse(example, answers, assignment.hints)
        self._guard = guard_for(module, example)
        self._draws = draws(module, example)
        self.before, self.rate = 0.0, 0.0
        self.total = 0
        self.done = False
        self.store: Checkpoint | None = None
        self._pending: list[Tensor] = []
        self._losses: list[float] = []
        self._loss = torch.zeros((), device=device)

    def resume(self, assignment: Assignment, identity: Mapping[str, Json]) -> bool:
        """Continue from the assignment's checkpoint, if it has any; whether there was one."""
        if assignment.checkpoint is None:
            return False
        hints: list[Json] = [f"{submodule} -> {node}" for submodule, node in assignment.hints]
        own: dict[str, Json] = {"student": digest(assignment.student), "hints": hints}
        self.store = Checkpoint(assignment.checkpoint, {**identity, **own})
        if (found := self.store.load()) is None:
            return False
        tensors, record = found
        self.state.restore(tensors, record)
        self.before = cast("float", record["before"])
        self.total, self.done = cast("int", record["total"]), cast("bool", record["done"])
        self._losses = cast("list[float]", record.get("losses", []))
        return True

    def save(self, epoch: int) -> None:
        """Write a checkpoint, if one is kept."""
        if self.store is not None:
            own: dict[str, Json] = {"before": self.before, "total": self.total, "done": self.done}
            if self._losses:  # paused within an epoch
                own["losses"] = list(self._losses)
            self.store.save(epoch, self.state.tensors(), self.state.record() | own)

    @property
    def unseen(self) -> bool:
        """Whether steps were made since the last validation: it was paused within an epoch."""
        state = self.state
        return state.stopped is None and 0 < state.step != state.history[-1].step

    @property
    def waits(self) -> bool:
        """Whether there is more to train."""
        return self.state.stopped is None and not self.done

    def step(self, prepare: Callable[[Student], None], batch: Callable[[], Batch]) -> Step:
        """A step, to be made again and again: losses, backward, clip, optimiser, average.

        Args:
            prepare: comes first; sets the rate, and seeds what draws.
            batch: gives what the step is made on.
        """
        overwrites = self._guard is not nullcontext
        reason = "they overwrite what their backward pass needs" if overwrites else None
        return Step(
            name=self.name,
            network=self.state.module,
            prepare=lambda: prepare(self),
            compute=lambda: self._compute(batch()),
            conclude=self._conclude,
            changed=self.state.changed,
            alone=self._draws or overwrites,
            unrecordable=reason or unrecordable(self.recipe.optimizer),
        )

    def _compute(self, batch: Batch) -> None:
        with self._guard():
            with autocast(self.device, self.precision):
                logits = self.state.module(batch.images.contiguous(memory_format=self.format))
            seen = Seen(logits.float(), batch.labels, batch.teacher, self.activations)
            loss = total(self.terms, seen)
            if loss is None:
                number = self.state.step + 1
                raise TrainingError(f"'{self.name}': no term of the loss applies", step=number)
            torch.autograd.backward(loss)
        self.activations.clear()
        self.state.update(self.recipe.clip_norm)
        self._loss.copy_(loss.detach())

    def _conclude(self) -> None:
        self.state.count()
        self._pending.append(self._loss.clone())

    def settle(self) -> float:
        """Fetch the losses since the last call: the one place where the loop waits for the device.

        Returns the newest loss; where one is not finite, the student is stopped.
        """
        if not self._pending:
            return math.nan
        values = torch.stack(self._pending).tolist()
        self._pending.clear()
        for number, value in enumerate(values, start=self.state.step - len(values) + 1):
            if not math.isfinite(value):
                self.state.stop(f"the loss is {value} at step {number}", number)
                break
            self._losses.append(value)
        return float(values[-1])

    def validate(self, shown: Judges, deciding: Judges, *, epoch: float, seconds: float) -> None:
        """Validate weights and average, keep the better if it is the best so far, or the last.

        Args:
            shown: images that figures are of, and the answers that are right where no labels are.
            deciding: the same of those that say what is best.
        """
        state, average, limit = self.state, self.state.average, self.recipe.validation_limit
        candidates = [state.module] if average is None else [state.module, average.module]
        scores = [self.evaluate(net, *shown, limit) for net in candidates]
        better = scores
        if deciding[0] is not shown[0]:
            better = [self.evaluate(net, *deciding, limit) for net in candidates]
        if not all(math.isfinite(one.loss) for one in (*scores, *better)):
            state.stop(f"the validation loss is not finite after step {state.step}", state.step)
            return
        if self.recipe.keep == "last":
            state.best_score = UNSCORED
        for net, one in zip(candidates, better, strict=True):
            state.offer(net, one, epoch)
        loss = sum(self._losses) / len(self._losses) if self._losses else 0.0
        self._losses.clear()
        state.history.append(
            Epoch(
                epoch=epoch,
                step=state.step,
                loss=loss,
                accuracy=scores[0].value,
                validation_loss=scores[0].loss,
                ema_accuracy=scores[1].value if len(scores) > 1 else None,
                learning_rate=self.rate,
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
            task=self.task,
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
        self.state.module.load_state_dict(self.state.best)
        return self.state.module.eval()

    def _listen(self, hints: Sequence[tuple[str, str]]) -> list[torch.utils.hooks.RemovableHandle]:
        known = [name for name, _ in self.state.module.named_modules() if name]
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

            return self.state.module.get_submodule(name).register_forward_hook(hook)

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
                logits = self.state.module(example.contiguous(memory_format=self.format))
        except RuntimeError as error:
            raise TrainingError(
                f"'{self.name}' can't run on images of shape {tuple(example.shape)}: {error}"
            ) from error
        problems = []
        self.task.check(logits, what=f"'{self.name}'")
        wanted = answers.get("output")
        if wanted is not None and wanted.shape != logits.shape:
            problems.append(
                f"'{self.name}' answers with {tuple(logits.shape[1:])} numbers, the teacher with "
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
