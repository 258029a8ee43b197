"""Training a supernet: one loop for all schemes, which continues exactly where it was interrupted.

Everything random is derived from the seed and the step: the order and augmentation of an epoch's
images from (seed, epoch), subnets and dropout from (seed, step). So a checkpoint needs no random
state, and the global generators are left alone. One process on one device; several are out of scope
so far.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.data.images import ImageData, blame_images, check_head, resident
from tailorbird.errors import ConfigError, DataError, TrainingError
from tailorbird.progress import Progress, Silent, Task
from tailorbird.supernet.calibrate import accuracies, recalibrate
from tailorbird.supernet.counts import macs
from tailorbird.supernet.network import Supernet, resize
from tailorbird.supernet.samplers import RESOLUTION, Genome
from tailorbird.supernet.schemes.scheme import Member, Plan, Scheme, Step
from tailorbird.supernet.train_state import (
    Sums,
    SupernetEpoch,
    SupernetRecipe,
    TrainState,
    identity,
    stored_identity,
)
from tailorbird.train.checkpoint import Checkpoint, Json
from tailorbird.train.losses import Seen, total
from tailorbird.train.mixing import Mixer
from tailorbird.train.optimisers import set_rate
from tailorbird.train.precision import (
    autocast,
    compute_device,
    memory_format,
    reproducible,
    reseed,
    resolve,
    runs_channels_last,
    set_layout,
)
from tailorbird.train.seeds import derive

_ORDER, _SUBNETS, _DROPOUT, _MIXING, _STATISTICS = range(5)
"""What a derived seed is for."""

_SETTLE_STEPS = {"cpu": 1, "cuda": 32}
"""Steps between two looks at the losses, each of which waits for the device."""

_STATISTICS_IMAGES = 2000
"""Training images that BatchNorm statistics are estimated from before a validation."""


@dataclass(frozen=True, kw_only=True)
class TrainedSupernet:
    """What training leaves. BatchNorm statistics fit no subnet: recalibrate before evaluating.

    Args:
        supernet: the last weights, on the CPU, the full network active.
        average: the running average of the weights, where the recipe asked for one.
        history: figures per epoch.
        macs: multiply-accumulates of all forward and backward passes (a backward counts as two
            forward), teacher's included.
        seconds: wall time, all processes that worked on the run.
    """

    supernet: Supernet
    average: Supernet | None
    history: tuple[SupernetEpoch, ...]
    macs: float
    seconds: float


def train_supernet(
    supernet: Supernet,
    data: ImageData,
    scheme: Scheme,
    *,
    seed: int,
    recipe: SupernetRecipe | None = None,
    folder: Path | None = None,
    save_steps: int | None = None,
    validate_epochs: int | None = None,
    accept_changes: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> TrainedSupernet:
    """Train a supernet on labelled images by a scheme.

    Args:
        supernet: where training starts; copied, never changed.
        data: trained on ``train``; ``validation`` is only read where ``validate_epochs`` says so.
        scheme: one of ``schemes/``.
        seed: drives the order of images, augmentation, subnets and dropout.
        recipe: how steps are made; `SupernetRecipe` as it is when None.
        folder: for checkpoints; a run started again goes on there, to the same bits.
        save_steps: steps between checkpoints; None is an epoch.
        validate_epochs: epochs between validations of the full and the smallest network; None is
            never. Has no influence on training.
        accept_changes: go on from a checkpoint even though seed, data, recipe or scheme differ.
        device: None is the first CUDA device, else the CPU.
        progress: told phase, loss and images per second.

    Raises:
        DataError: for data without labels, or with other classes than the network has.
        ConfigError: where scheme and space don't fit.
        TrainingError: when a loss isn't finite; says step, subnet and last good checkpoint.
        StoreError: when the folder holds another run; says what differs.
    """
    if not data.labelled:
        raise DataError(f"data '{data.name}' has no labels, and training a supernet needs them")
    if len(data.train) < 2:
        raise DataError(f"data '{data.name}' has {len(data.train)} training images; expected 2")
    wrong = {"save_steps": save_steps, "validate_epochs": validate_epochs}
    if problems := [
        f"{name}: expected 1 or more, got {value}"
        for name, value in wrong.items()
        if value is not None and value < 1
    ]:
        raise ConfigError(problems)
    recipe = recipe or SupernetRecipe()
    where = compute_device(device)
    with reproducible(where):
        loop = _Loop(
            supernet,
            data,
            scheme,
            recipe=recipe,
            seed=seed,
            device=where,
            save_steps=save_steps,
            validate_epochs=validate_epochs,
        )
        if folder is not None:
            made_of = identity(supernet, data, scheme, loop.plan, recipe=recipe, seed=seed)
            loop.open(folder, made_of, accept_changes=accept_changes)
        return loop.run(progress or Silent())


class _Loop:
    """Steps and epochs of one run."""

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        scheme: Scheme,
        *,
        recipe: SupernetRecipe,
        seed: int,
        device: torch.device,
        save_steps: int | None,
        validate_epochs: int | None,
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device
        self.data, self.validate_epochs = data, validate_epochs
        self.split = resident(data.train, device)
        self.drop_last = len(data.train) >= recipe.batch_size
        self.per_epoch = len(data.train) // recipe.batch_size if self.drop_last else 1
        self.save_steps = save_steps or self.per_epoch
        self.plan: Plan = scheme.plan(supernet.architectures, self.per_epoch)
        self.sizes = cast("tuple[int, ...]", supernet.architectures.space.choices[0].values)
        self.macs = macs(supernet.architectures).sum
        module = copy.deepcopy(supernet).to(device).requires_grad_(True)
        self.precision = resolve(recipe.precision, device, module)
        example = data.train.sample(2).to(device)
        self.layout = _layout(module, resize(example, self.sizes[-1]), recipe)
        classes, used = _rehearse(module, example, self.sizes)
        check_head(data, classes)
        self.mixer: Mixer | None = None
        if recipe.mixup or recipe.cutmix:
            self.mixer = Mixer(mixup=recipe.mixup, cutmix=recipe.cutmix, classes=classes)
        self.dropouts = [part for part in module.modules() if isinstance(part, nn.Dropout)]
        self.state = TrainState(
            module,
            optimizer_name=recipe.optimizer,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            decayed=used if scheme.decays_largest_only else None,
            ema=recipe.ema,
        )
        self.store: Checkpoint | None = None
        self.saved: int | None = None
        self.pending: list[tuple[int, Tensor, list[Tensor], tuple[Member, ...]]] = []
        self.last: Step | None = None
        self.began = self.epoch_began = time.monotonic()

    def open(self, folder: Path, made_of: dict[str, Json], *, accept_changes: bool) -> None:
        """Take up a checkpoint folder, and the newest state in it."""
        self.store = Checkpoint(folder, made_of)
        if accept_changes:
            self.store.identity = stored_identity(folder) or made_of
        found = self.store.load()
        self.store.identity = made_of
        if found is not None:
            self.state.restore(*found, self.plan.samplers)
            self.saved = self.state.step
            self.began -= self.state.seconds

    def run(self, progress: Progress) -> TrainedSupernet:
        state = self.state
        with progress.task("train supernet", self.plan.total) as task:
            task.advance(min(state.step, self.plan.total))
            while state.step < self.plan.total:
                self._epoch(task)
        average = None if state.average is None else cast("Supernet", state.average.module)
        for net in (state.module, average):
            if net is not None:
                set_layout(net, torch.contiguous_format)
                net.cpu().activate(net.largest())
        return TrainedSupernet(
            supernet=state.module,
            average=average,
            history=tuple(state.history),
            macs=state.macs,
            seconds=state.seconds,
        )

    def _epoch(self, task: Task) -> None:
        """Train to the end of the epoch or the run, from wherever in the epoch it was left."""
        state = self.state
        epoch, skipped = divmod(state.step, self.per_epoch)
        walk = self.split.batches(
            self.recipe.batch_size,
            generator=torch.Generator().manual_seed(derive(self.seed, _ORDER, epoch)),
            augment=True,
            drop_last=self.drop_last,
            device=self.device,
        )
        every = _SETTLE_STEPS.get(self.device.type, 1)
        self.epoch_began = time.monotonic() - state.sums.seconds
        for images, labels in islice(walk, skipped, None):
            self._step(images, labels)
            ends = state.step % self.per_epoch == 0 or state.step == self.plan.total
            saves = ends or state.step % self.save_steps == 0
            if saves or len(self.pending) >= every:
                self._settle(task)
            if ends:
                self._close_epoch()
            if saves:
                self._save()
            if ends:
                break

    def _step(self, images: Tensor, labels: Tensor | None) -> None:
        state, number = self.state, self.state.step
        rng = np.random.default_rng(derive(self.seed, _SUBNETS, number))
        step = self.last = self.plan.step(number, rng)
        for action in step.before:
            state.act(action)
        brightness = images.sum()
        if self.mixer is not None:
            mixing = derive(self.seed, _MIXING, number)
            images, labels = self.mixer(images, labels, seed=mixing)
        state.module.train()
        state.optimizer.zero_grad(set_to_none=True)
        reseed(self.device, derive(self.seed, _DROPOUT, number))
        losses = self._gradients(step, images, labels)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(state.module.parameters(), self.recipe.clip_norm)
        set_rate(state.optimizer, step.rate)
        state.optimizer.step()
        state.step = number + 1
        if state.average is not None:
            state.average.update(state.module, step=state.step)
        state.macs += self._cost(step) * len(images)
        state.sums.images += len(images)
        self.pending.append((number, brightness, losses, step.networks))

    def _gradients(self, step: Step, images: Tensor, labels: Tensor | None) -> list[Tensor]:
        """Add up the weighted gradients of the step's networks; returns their losses.

        One network's activations are freed before the next one runs, so a step takes the memory of
        its largest network.
        """
        sized: dict[int, Tensor] = {}
        taught: dict[int, Tensor] = {}
        losses: list[Tensor] = []
        full: Tensor | None = None
        for member in step.networks:
            size = self.sizes[int(member.genome[RESOLUTION])]
            if size not in sized:
                sized[size] = resize(images, size).contiguous(memory_format=self.layout)
            if member.teacher == "frozen" and size not in taught:
                taught[size] = self._ask_teacher(sized[size])
            logits = self._forward(member, sized[size])
            known = {"full": full, "frozen": taught.get(size), None: None}[member.teacher]
            seen = Seen(logits, labels, {} if known is None else {"output": known}, {})
            loss = total(member.terms, seen)
            if loss is None:
                raise TrainingError(
                    f"step {step.phase}: no term of a network's loss applies; the scheme asks for "
                    "a teacher that isn't there, or for labels where there are none",
                    step=self.state.step,
                )
            torch.autograd.backward(loss * member.weight)
            losses.append(loss.detach())
            full = logits.detach() if full is None else full
        return losses

    def _forward(self, member: Member, images: Tensor) -> Tensor:
        module = self.state.module
        module.activate(member.genome)
        for part in self.dropouts:
            part.train(member.dropout)
        with autocast(self.device, self.precision):
            logits = module(images)
        return cast("Tensor", logits.float())

    @torch.no_grad()
    def _ask_teacher(self, images: Tensor) -> Tensor:
        teacher = self.state.teacher
        if teacher is None:
            raise TrainingError(
                "a network learns from a frozen teacher, and the scheme has frozen none",
                step=self.state.step,
            )
        teacher.activate(teacher.largest())
        with autocast(self.device, self.precision):
            return cast("Tensor", teacher(images).float())

    def _cost(self, step: Step) -> float:
        """Multiply-accumulates per image: three forward passes' worth for each network."""
        genomes = np.stack([member.genome for member in step.networks])
        cost = 3.0 * float(self.macs(genomes).sum())
        asked = {int(m.genome[RESOLUTION]) for m in step.networks if m.teacher == "frozen"}
        for resolution in asked:
            teacher = self.state.module.largest()
            teacher[RESOLUTION] = resolution
            cost += float(self.macs(teacher[None])[0])
        return cost

    def _settle(self, task: Task) -> None:
        """Fetch the losses since the last call: the one place that waits for the device."""
        flat = [loss for _, _, losses, _ in self.pending for loss in losses]
        values = iter(torch.stack(flat).tolist() if flat else [])
        largest = self.state.module.largest()[RESOLUTION + 1 :]
        sums, mean = self.state.sums, math.nan
        for number, brightness, losses, members in self.pending:
            found = [next(values) for _ in losses]
            for member, value in zip(members, found, strict=True):
                if not math.isfinite(value):
                    self._give_up(number, brightness, member.genome, value)
                if (member.genome[RESOLUTION + 1 :] == largest).all():
                    sums.full += 1
                    sums.full_loss += value
            mean = sum(found) / len(found)
            sums.steps += 1
            sums.networks += len(found)
            sums.loss += sum(found)
        steps = len(self.pending)
        self.pending.clear()
        sums.seconds = time.monotonic() - self.epoch_began
        speed = sums.images / max(sums.seconds, 1e-9)
        phase = "" if self.last is None else f"{self.last.phase}, "
        task.advance(steps, note=f"{phase}loss {mean:.3f}, {speed:.0f} images/s")

    def _give_up(self, step: int, brightness: Tensor, genome: Genome, value: float) -> None:
        blame_images([brightness], self.split, "training")
        raise TrainingError(
            f"the loss is {value} at step {step} for {self._describe(genome)}; "
            f"{self._last_good()}; a lower learning rate than {self._rate():g}, a longer warm-up "
            "or clip_norm usually helps",
            step=step,
        )

    def _describe(self, genome: Genome) -> str:
        if (genome[RESOLUTION + 1 :] == self.state.module.largest()[RESOLUTION + 1 :]).all():
            return "the full network"
        [architecture] = self.state.module.architectures.architectures(genome[None])
        return f"the subnet {json.dumps(architecture)}"

    def _last_good(self) -> str:
        if self.store is None:
            return "no checkpoints were kept"
        if self.saved is None:
            return "no checkpoint had been written yet"
        return f"the last good checkpoint, of step {self.saved}, is in {self.store.folder}"

    def _rate(self) -> float:
        return 0.0 if self.last is None else self.last.rate

    def _close_epoch(self) -> None:
        """Validate where asked, and enter the epoch's figures."""
        state, sums = self.state, self.state.sums
        epoch = state.step / self.per_epoch
        ended = state.step == self.plan.total
        largest: float | None = None
        smallest: float | None = None
        if self.validate_epochs is not None and (ended or round(epoch) % self.validate_epochs == 0):
            largest, smallest = self._accuracies()
        state.history.append(
            SupernetEpoch(
                epoch=epoch,
                step=state.step,
                phase="" if self.last is None else self.last.phase,
                loss=sums.loss / sums.networks,
                full_loss=sums.full_loss / sums.full if sums.full else None,
                networks=sums.networks / sums.steps,
                learning_rate=self._rate(),
                images_per_second=sums.images / max(sums.seconds, 1e-9),
                seconds=time.monotonic() - self.began,
                largest=largest,
                smallest=smallest,
            )
        )
        state.sums = Sums()

    def _accuracies(self) -> tuple[float, float]:
        """Of the full and the smallest network on the validation images, each with its own norms.

        The supernet's own statistics stay as they are.
        """
        module = self.state.module
        genomes = np.stack([module.largest(), module.smallest()])
        statistics = recalibrate(module, genomes, self._statistics_images())
        found = accuracies(module, genomes, statistics, self._validation())
        return float(found[0]), float(found[1])

    def _validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = max(256, self.recipe.batch_size)
        for images, labels in self.data.validation.batches(size, device=self.device):
            if labels is not None:
                yield images.contiguous(memory_format=self.layout), labels

    def _statistics_images(self) -> Iterator[Tensor]:
        size = min(self.recipe.batch_size, len(self.data.train))
        walk = self.split.batches(
            size,
            generator=torch.Generator().manual_seed(derive(self.seed, _STATISTICS, 0)),
            drop_last=True,
            device=self.device,
        )
        for images, _ in islice(walk, -(-_STATISTICS_IMAGES // size)):
            yield images.contiguous(memory_format=self.layout)

    def _save(self) -> None:
        """Write a checkpoint, if they are kept and the weights are numbers."""
        state = self.state
        state.seconds = time.monotonic() - self.began
        if not state.finite():
            raise TrainingError(
                f"weights are not finite after step {state.step - 1}; {self._last_good()}; a lower "
                f"learning rate than {self._rate():g} or clip_norm usually helps",
                step=state.step - 1,
            )
        if self.store is not None:
            state.saves += 1
            self.store.save(state.saves, state.tensors(), state.record(self.plan.samplers))
            self.saved = state.step


def _layout(module: Supernet, example: Tensor, recipe: SupernetRecipe) -> torch.memory_format:
    """Bring the weights into channels-last layout where asked and possible."""
    if recipe.channels_last:
        module.eval()
        set_layout(module, torch.channels_last)
        if runs_channels_last(module, example):
            return memory_format(example.shape[1:])
        set_layout(module, torch.contiguous_format)
    return torch.contiguous_format


def _rehearse(
    module: Supernet, example: Tensor, sizes: Sequence[int]
) -> tuple[int, frozenset[str]]:
    """Run the smallest and the full network; classes, and which weights the full one uses."""
    module.eval()
    classes = 0
    for genome in (module.smallest(), module.largest()):
        module.activate(genome)
        size = sizes[int(genome[RESOLUTION])]
        try:
            logits = module(resize(example, size))
        except RuntimeError as error:
            raise TrainingError(f"the supernet can't run at {size} pixels: {error}") from error
        classes = int(logits.shape[1])
    torch.autograd.backward(logits.sum())
    used = frozenset(name for name, value in module.named_parameters() if value.grad is not None)
    module.zero_grad(set_to_none=True)
    return classes, used
