"""The books of a training run: losses, figures of an epoch, and what to say when it fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tailorbird.data.images import Split, blame_images
from tailorbird.errors import TrainingError
from tailorbird.space import Genome
from tailorbird.supernet.counts import macs
from tailorbird.supernet.samplers import RESOLUTION, Observe
from tailorbird.supernet.schemes.scheme import Step
from tailorbird.supernet.train_state import Sums, SupernetEpoch, SupernetSteps, TrainState
from tailorbird.train.clock import Clock


@dataclass(frozen=True)
class _Made:
    """A step whose losses are still on the device."""

    number: int
    step: Step
    figures: Tensor


class Ledger:
    """Counts what steps cost and gave, and stops training where a loss is not a number.

    Args:
        state: whose counters and history are kept.
        split: blamed where its images are not finite.
        clock: of the run.
        tell: told genomes and losses of each step's networks; None where nobody listens.
        last_good: says which checkpoint is left.
    """

    def __init__(
        self,
        state: TrainState,
        split: Split,
        *,
        clock: Clock,
        tell: Observe | None,
        last_good: Callable[[], str],
    ) -> None:
        self.state, self.split, self.clock = state, split, clock
        self.tell, self.last_good = tell, last_good
        self.macs = macs(state.module.architectures).sum
        self.largest = state.module.largest()
        self.waiting: list[_Made] = []
        self.last: Step | None = None
        self.epoch_began = 0.0

    def open_epoch(self) -> None:
        """Time counts from here, or goes on where the epoch was left."""
        self.epoch_began = self.clock.seconds - self.state.sums.seconds

    def enter(self, step: Step, figures: Tensor, images: int) -> None:
        """Enter a step that was just made, from so many images; waits for nothing."""
        state = self.state
        self.last = step
        self.waiting.append(_Made(state.net.step - 1, step, figures))
        state.macs += self._cost(step) * images
        state.sums.images += images

    def settle(self) -> SupernetSteps:
        """Fetch the losses of what was entered: the one place that waits for the device.

        Raises:
            TrainingError: when one isn't finite; DataError where the images are why.
        """
        rows = [made.figures for made in self.waiting]
        values = iter(torch.cat(rows).tolist() if rows else [])
        sums, mean = self.state.sums, math.nan
        for made in self.waiting:
            losses = [next(values) for _ in made.step.networks]
            brightness = next(values)
            for member, value in zip(made.step.networks, losses, strict=True):
                if not math.isfinite(value):
                    self._give_up(made, brightness, member.genome, value)
                if self._is_full(member.genome):
                    sums.full += 1
                    sums.full_loss += value
            if self.tell is not None:
                self.tell(np.stack([m.genome for m in made.step.networks]), np.array(losses))
            mean = sum(losses) / len(losses)
            sums.steps += 1
            sums.networks += len(losses)
            sums.loss += sum(losses)
        self.waiting.clear()
        sums.seconds = self.clock.seconds - self.epoch_began
        return SupernetSteps(
            step=self.state.net.step,
            phase=self.phase,
            loss=mean,
            learning_rate=self.rate,
            images_per_second=sums.images / max(sums.seconds, 1e-9),
        )

    def close_epoch(self, epoch: float, accuracies: tuple[float, float] | None) -> SupernetEpoch:
        """Enter the epoch's figures and begin a new page."""
        state, sums = self.state, self.state.sums
        largest, smallest = (None, None) if accuracies is None else accuracies
        closed = SupernetEpoch(
            epoch=epoch,
            step=state.net.step,
            phase=self.phase,
            loss=sums.loss / sums.networks,
            full_loss=sums.full_loss / sums.full if sums.full else None,
            networks=sums.networks / sums.steps,
            learning_rate=self.rate,
            images_per_second=sums.images / max(sums.seconds, 1e-9),
            seconds=self.clock.seconds,
            largest=largest,
            smallest=smallest,
        )
        state.net.history.append(closed)
        state.sums = Sums()
        return closed

    def check_weights(self) -> None:
        """Make sure that the weights are worth keeping.

        Raises:
            TrainingError: where they aren't finite.
        """
        net = self.state.net
        if not net.finite():
            raise TrainingError(
                f"weights are not finite after step {net.step - 1}; {self.last_good()}; a lower "
                f"learning rate than {self.rate:g} or clip_norm usually helps",
                step=net.step - 1,
            )

    @property
    def phase(self) -> str:
        """What the scheme calls the last step."""
        return "" if self.last is None else self.last.phase

    @property
    def rate(self) -> float:
        """The last step's learning rate."""
        return 0.0 if self.last is None else self.last.rate

    def _cost(self, step: Step) -> float:
        """Multiply-accumulates per image: three forward passes' worth for each network."""
        genomes = np.stack([member.genome for member in step.networks])
        cost = 3.0 * float(self.macs(genomes).sum())
        asked = {int(m.genome[RESOLUTION]) for m in step.networks if m.teacher == "frozen"}
        for resolution in asked:
            teacher = self.largest.copy()
            teacher[RESOLUTION] = resolution
            cost += float(self.macs(teacher[None])[0])
        return cost

    def _is_full(self, genome: Genome) -> bool:
        return bool((genome[RESOLUTION + 1 :] == self.largest[RESOLUTION + 1 :]).all())

    def _give_up(self, made: _Made, brightness: float, genome: Genome, value: float) -> None:
        blame_images([torch.tensor(brightness)], self.split, "training")
        name = "the full network"
        if not self._is_full(genome):
            [architecture] = self.state.module.architectures.architectures(genome[None])
            name = f"the subnet {json.dumps(architecture)}"
        raise TrainingError(
            f"the loss is {value} at step {made.number} for {name}; {self.last_good()}; a lower "
            f"learning rate than {made.step.rate:g}, a longer warm-up or clip_norm usually helps",
            step=made.number,
        )
