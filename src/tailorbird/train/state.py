"""What training changes about a network: stored in checkpoints, and taken up again, as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from tailorbird.errors import StoreError
from tailorbird.task import Score
from tailorbird.train.checkpoint import Json, prefixed, under
from tailorbird.train.optimisers import (
    optimizer_numbers,
    optimizer_tensors,
    restore_optimizer,
    set_rate,
)

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

Figures = TypeVar("Figures")

UNSCORED = Score(-1.0, math.inf)
"""What every score beats."""

_AVERAGES = ("average/", "ema/")
"""Names in checkpoints; the second is that of the first edition's retraining."""


class State(Generic[Figures]):
    """Weights, optimiser, running average, best weights and history of one network.

    There is no random state: all that is random is derived from the seed and the step's number.

    Args:
        module: in training, on its device; trained in place.
        optimizer: makes one for a module.
        figures: the record of an epoch that `history` consists of.
        ema: decay of the weights' running average; None for no average.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        figures: Callable[..., Figures],
        *,
        ema: float | None = None,
    ) -> None:
        self.module = module
        self._new_optimizer, self._figures, self._ema = optimizer, figures, ema
        self.step = 0
        self.seconds = 0.0
        self.history: list[Figures] = []
        self.best: dict[str, Tensor] = {}
        self.best_score = UNSCORED
        self.best_epoch = 0.0
        self.stopped: str | None = None
        self.stopped_step: int | None = None
        self.renew_optimizer()
        self.renew_average()

    def renew_optimizer(self) -> None:
        """Forget momenta."""
        self.optimizer = self._new_optimizer(self.module)

    def renew_average(self) -> None:
        """Begin the average at the weights as they are."""
        self.average: ModelEmaV3 | None = None
        if self._ema is not None:
            from timm.utils.model_ema import ModelEmaV3

            self.average = ModelEmaV3(self.module, decay=self._ema, use_warmup=True)

    def advance(self, rate: float, clip_norm: float | None) -> None:
        """Make a step with the gradients that are there: clip, update, average; they are freed."""
        self.set_rate(rate)
        self.update(clip_norm)
        self.count()

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""
        set_rate(self.optimizer, rate)

    def update(self, clip_norm: float | None) -> None:
        """What `advance` does on the device; nothing here depends on the step's number."""
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def count(self) -> None:
        """What `advance` does last: the average's weight depends on the step's number."""
        self.step += 1
        if self.average is not None:
            self.average.update(self.module, step=self.step)

    def offer(self, net: nn.Module, score: Score, epoch: float) -> None:
        """Keep the weights of ``net``, the module or its average, if they score best so far."""
        if score.beats(self.best_score):
            self.best, self.best_score, self.best_epoch = snapshot(net), score, epoch

    def stop(self, reason: str, step: int) -> None:
        """End this network's training; its best weights stay."""
        self.stopped, self.stopped_step = reason, step

    def finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(p.isfinite().all()) for p in self.module.parameters())

    def changed(self) -> list[Tensor]:
        """What forward passes and `update` change: weights, buffers, the optimiser's state."""
        states = self.optimizer.state.values()
        kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*self.module.parameters(), *self.module.buffers(), *kept]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores as tensors; `record` has the rest."""
        found = prefixed("best/", self.best)
        if self.stopped is not None:
            return found
        found |= prefixed("model/", self.module.state_dict())
        if self.average is not None:
            found |= prefixed("average/", self.average.module.state_dict())
        return found | optimizer_tensors(self.optimizer, self.module)

    def record(self) -> dict[str, Json]:
        """What a checkpoint stores as JSON."""
        scored = self.best_score != UNSCORED
        return {
            "step": self.step,
            "seconds": self.seconds,
            "history": [asdict(cast("Any", epoch)) for epoch in self.history],
            "best_score": [self.best_score.value, self.best_score.loss] if scored else None,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "stopped_step": self.stopped_step,
            "optimizer": optimizer_numbers(self.optimizer, self.module),
            "optimizer_name": self.optimizer_name,
        }

    @property
    def optimizer_name(self) -> str:
        """As recipes spell it."""
        return type(self.optimizer).__name__.lower()

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        record: Mapping[str, Json],
        *,
        others: Sequence[str] = (),
    ) -> None:
        """Take up what `tensors` and `record` gave.

        Args:
            others: what else of the checkpoint doesn't fit, told together with what is found here.

        Raises:
            StoreError: for another network's state; says what differs. Nothing has been taken up.
        """
        known = cast("dict[str, Any]", record)
        whole = known.get("stopped") is None
        if problems := [*(self._misfits(tensors, record) if whole else ()), *others]:
            lines = "".join(f"\n  - {line}" for line in problems)
            raise StoreError(
                "the checkpoint can't be continued with these changes; go back to what it was "
                f"made with, or begin anew in another folder:{lines}"
            )
        self.step, self.seconds = known["step"], known["seconds"]
        self.history = [self._figures(**epoch) for epoch in known["history"]]
        if (best := known.get("best_score")) is not None:
            self.best_score = Score(*best)
        self.best_epoch = known.get("best_epoch", 0.0)
        self.stopped, self.stopped_step = known.get("stopped"), known.get("stopped_step")
        device = next(iter(self.module.state_dict().values())).device
        self.best = {name: value.to(device) for name, value in under("best/", tensors).items()}
        if not whole:
            return
        self.module.load_state_dict(under("model/", tensors))
        if self.average is not None:
            self.average.module.load_state_dict(_average(tensors))
        restore_optimizer(self.optimizer, self.module, tensors, record["optimizer"])

    def _misfits(self, tensors: Mapping[str, Tensor], record: Mapping[str, Json]) -> list[str]:
        """What of a stored state has no place in this one."""
        problems = []
        stored, own = under("model/", tensors), self.module.state_dict()
        wrong = sorted(
            name
            for name in stored.keys() | own.keys()
            if name not in stored or name not in own or stored[name].shape != own[name].shape
        )
        if wrong:
            problems.append(
                f"{len(wrong)} weights are missing, unexpected or misshaped: "
                f"{', '.join(wrong[:10])}{', ...' if len(wrong) > 10 else ''}"
            )
        averaged = bool(_average(tensors))
        if averaged != (self.average is not None):
            told = ("without", "with")
            problems.append(f"recipe.ema: {told[averaged]} there, {told[not averaged]} now")
        there = record.get("optimizer_name", self.optimizer_name)
        if there != self.optimizer_name:
            problems.append(f"recipe.optimizer: {there!r} there, {self.optimizer_name!r} now")
        return problems


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict that later training leaves alone."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _average(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for prefix in _AVERAGES for k, v in under(prefix, tensors).items()}
