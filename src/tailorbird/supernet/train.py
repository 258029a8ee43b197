"""Training a supernet: one loop for all schemes, which continues exactly where it was interrupted.

Everything random is derived from the seed and the step: the order and augmentation of an epoch's
images from (seed, epoch), subnets from (seed, step), dropout and mixing from (seed, step, part of
the batch). So a checkpoint needs no random state, the global generators are left alone, and it
doesn't matter how many processes share the work (`tailorbird.train.world`): the parts of a batch
are what they share out, so two processes do what one does with ``accumulate=2``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tailorbird.data.images import ImageData, resident
from tailorbird.errors import ConfigError, DataError, TrainingError
from tailorbird.progress import Progress, Silent
from tailorbird.supernet.calibrate import accuracies, recalibrate
from tailorbird.supernet.network import Supernet, resize
from tailorbird.supernet.samplers import RESOLUTION
from tailorbird.supernet.schemes.scheme import Plan, Scheme, keepers, listener
from tailorbird.supernet.train_ledger import Ledger
from tailorbird.supernet.train_state import (
    SupernetEpoch,
    SupernetRecipe,
    SupernetSteps,
    TrainState,
    identity,
    part_problems,
)
from tailorbird.supernet.train_step import Stepper
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train import norm_stats
from tailorbird.train.checkpoint import Checkpoint
from tailorbird.train.clock import Clock
from tailorbird.train.mixing import Mixer
from tailorbird.train.precision import lay_out, reproducible, resolve, set_layout
from tailorbird.train.seeds import derive
from tailorbird.train.walk import Walk, look_steps, run
from tailorbird.train.world import World, joined

_ORDER, _SUBNETS, _STATISTICS = 0, 1, 4
"""What a derived seed is for; steps have others."""

_STATISTICS_IMAGES = 2000
"""Training images that BatchNorm statistics are estimated from, for a validation or at the end."""


@dataclass(frozen=True, kw_only=True)
class TrainedSupernet:
    """What training leaves. With several processes the main one's; others' lack the accuracies.

    Args:
        supernet: the last weights, on the CPU, in eval mode, the full network active. BatchNorm
            statistics are the full network's, estimated from training images; recalibrate before
            evaluating others.
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
    task: Task = CLASSIFICATION,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    observe: Callable[[SupernetEpoch], None] | None = None,
    observe_steps: Callable[[SupernetSteps], None] | None = None,
) -> TrainedSupernet:
    """Train a supernet on labelled images by a scheme.

    Started by ``torchrun``, all processes work on each batch, every one decoding its own share of
    the images. The main one alone writes checkpoints, shows progress, is observed and validates,
    while the others wait. A loss that isn't finite anywhere stops all of them with one error; where
    one process dies, ``torchrun`` ends the rest.

    Args:
        supernet: where training starts; copied, never changed.
        data: trained on ``train``; ``validation`` is only read where ``validate_epochs`` says so.
        scheme: one of ``schemes/``.
        seed: drives the order of images, augmentation, subnets and dropout.
        recipe: how steps are made; `SupernetRecipe` as it is when None.
        folder: for checkpoints; a run started again goes on there, to the same bits where there
            are as many parts of a batch, and with any number of processes. Read and written by
            the main process.
        save_steps: steps between checkpoints; None is an epoch.
        validate_epochs: epochs between validations of the full and the smallest network; None is
            never. Has no influence on training.
        accept_changes: go on from a checkpoint even though seed, data, recipe or scheme differ, as
            long as its weights, average, optimiser and samplers' memories fit.
        task: what outputs mean; a scheme's terms hold their own.
        device: None is the first CUDA device, else the CPU; each process of a machine has a CUDA
            device of its own.
        progress: told phase, loss and images per second.
        observe: told every epoch's figures.
        observe_steps: told the losses whenever they are looked at: every step on a CPU, every 32
            on a GPU.

    Raises:
        DataError: for data without labels, or with other classes than the network has; where a
            validation is asked for, also for validation images that are missing or unlabelled.
        ConfigError: where scheme and space don't fit.
        TrainingError: when a loss isn't finite; says step, subnet and last good checkpoint.
        StoreError: when the folder holds another run; says what differs.
    """
    least = {"save_steps": (save_steps, 1), "validate_epochs": (validate_epochs, 1)}
    if problems := [
        f"{name}: expected {bound} or more, got {value}"
        for name, (value, bound) in {**least, "seed": (seed, 0)}.items()
        if value is not None and value < bound
    ]:
        raise ConfigError(problems)
    _check_labels(data, validates=validate_epochs is not None)
    with joined(device) as world, reproducible(world.device):
        work = _Training(
            supernet,
            data,
            scheme,
            recipe=recipe or SupernetRecipe(),
            seed=seed,
            task=task,
            world=world,
            validate_epochs=validate_epochs,
            observe=observe if world.is_main else None,
            observe_steps=observe_steps if world.is_main else None,
        )
        work.resume(supernet, folder, accept_changes=accept_changes)
        shown = progress if world.is_main and progress is not None else Silent()
        with shown.task("train supernet", work.plan.total) as told:
            run(work, work.walk, work.clock, told, every=work.every, save_steps=save_steps)
        return work.finish()


class _Training:
    """A step: what the scheme's plan says of its number, on the batch at hand."""

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        scheme: Scheme,
        *,
        recipe: SupernetRecipe,
        seed: int,
        task: Task,
        world: World,
        validate_epochs: int | None,
        observe: Callable[[SupernetEpoch], None] | None,
        observe_steps: Callable[[SupernetSteps], None] | None,
    ) -> None:
        self.data, self.scheme, self.recipe = data, scheme, recipe
        self.seed, self.world, self.device = seed, world, world.device
        self.validate_epochs = validate_epochs
        self.observe, self.observe_steps = observe, observe_steps
        parts = _parts(recipe, data, world)
        size = min(recipe.batch_size, len(data.train))
        self.walk = Walk(
            resident(data.train, self.device),
            size - size % parts,
            lambda epoch: derive(seed, _ORDER, epoch),
            self.device,
            share=(world.rank, world.size),
        )
        self.plan: Plan = scheme.plan(supernet.architectures, self.walk.per_epoch)
        self.clock = Clock(self.plan.total, self.walk.per_epoch)
        self.sizes = cast("tuple[int, ...]", supernet.architectures.space.choices[0].values)
        module = copy.deepcopy(supernet).to(self.device).requires_grad_(True)
        precision = resolve(recipe.precision, self.device, module)
        example = data.train.sample(2).to(self.device)
        self.layout = torch.contiguous_format
        if recipe.channels_last:
            self.layout = lay_out(module.eval(), resize(example, self.sizes[-1]))
        outputs, used = _rehearse(module, example, self.sizes)
        task.check(outputs, data, what="the supernet")
        self.task, classes = task, outputs.shape[1]
        self.state = TrainState(
            module,
            optimizer=recipe.optimizer,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            decayed=used if scheme.decays_largest_only else None,
            ema=recipe.ema,
        )
        mixer: Mixer | None = None
        if recipe.mixup or recipe.cutmix:
            mixer = Mixer(mixup=recipe.mixup, cutmix=recipe.cutmix, classes=classes)
        self.stepper = Stepper(
            self.state,
            world=world,
            parts=parts,
            sizes=self.sizes,
            layout=self.layout,
            precision=precision,
            mixer=mixer,
            clip_norm=recipe.clip_norm,
            seed=seed,
        )
        tell = listener(self.plan)
        # Who learns from losses is told after every step, so that draws don't depend on saves.
        self.every = look_steps(self.device) if tell is None else 1
        self.ledger = Ledger(
            self.state, self.walk.split, clock=self.clock, tell=tell, last_good=self._last_good
        )
        self.store: Checkpoint | None = None
        self.saved: int | None = None

    def resume(self, supernet: Supernet, folder: Path | None, *, accept_changes: bool) -> None:
        """Make sure that all processes do the same, and take up the newest checkpoint."""
        if folder is None and self.world.size == 1:
            return
        made_of = identity(
            supernet, self.data, self.scheme, self.plan, recipe=self.recipe, seed=self.seed
        )
        self.world.agree(made_of)
        if folder is None:
            return
        self.store = Checkpoint(folder, made_of)
        found = self.store.load(any_identity=accept_changes) if self.world.is_main else None
        if (state := self.world.state_from_main(found)) is not None:
            self.state.restore(*state, keepers(self.plan))
            self.saved = self.step
            self.clock.resume(self.state.net.seconds)

    @property
    def step(self) -> int:
        """Steps made so far."""
        return self.state.net.step

    def begin(self) -> None:
        """Nothing is validated before training."""

    def open(self) -> None:
        """Count the epoch's time."""
        self.ledger.open_epoch()

    def make(self, images: Tensor, labels: Tensor | None) -> None:
        """Ask the plan, and do what it says."""
        rng = np.random.default_rng(derive(self.seed, _SUBNETS, self.step))
        step = self.plan.step(self.step, rng)
        figures = self.stepper.make(step, images, labels)
        self.ledger.enter(step, figures, len(images) * self.world.size)

    def settle(self) -> str:
        """Fetch the losses and tell them."""
        seen = self.ledger.settle()
        if self.observe_steps is not None:
            self.observe_steps(seen)
        return f"{seen.phase}, loss {seen.loss:.3f}, {seen.images_per_second:.0f} images/s"

    def close(self) -> None:
        """Validate where asked, and enter the epoch's figures."""
        every, epoch = self.validate_epochs, self.step / self.walk.per_epoch
        found: tuple[float, float] | None = None
        due = every is not None and (self.step == self.plan.total or round(epoch) % every == 0)
        if due and self.world.is_main:
            found = self._accuracies()
        closed = self.ledger.close_epoch(epoch, found)
        if self.observe is not None:
            self.observe(closed)

    def save(self) -> None:
        """Write a checkpoint, if they are kept and the weights are numbers."""
        state = self.state
        state.net.seconds = self.clock.seconds
        self.ledger.check_weights()
        if self.store is None:
            return
        state.saves += 1
        if self.world.is_main:
            learnt = keepers(self.plan)
            self.store.save(state.saves, state.tensors(learnt), state.record(learnt))
        self.saved = self.step

    def finish(self) -> TrainedSupernet:
        """Leave the networks as users want them: in full, with own statistics, on the CPU."""
        state = self.state
        average = None if state.net.average is None else state.kept()
        for net in (state.module,) if average is None else (state.module, average):
            net.activate(net.largest())
            sized = (resize(images, self.sizes[-1]) for images in self._statistics_images())
            norm_stats.recalibrate(net, sized)
            set_layout(net, torch.contiguous_format)
            net.eval().cpu()
        return TrainedSupernet(
            supernet=state.module,
            average=average,
            history=tuple(state.net.history),
            macs=state.macs,
            seconds=state.net.seconds,
        )

    def _accuracies(self) -> tuple[float, float]:
        """Of the full and the smallest network on the validation images, each with its own norms.

        Of the averaged weights where there are any: they are what is kept in the end.
        The supernet's own statistics stay as they are.
        """
        module = self.state.kept()
        genomes = np.stack([module.largest(), module.smallest()])
        statistics = recalibrate(module, genomes, self._statistics_images())
        found = accuracies(module, genomes, statistics, self._validation(), self.task)
        return float(found[0]), float(found[1])

    def _validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = max(256, self.recipe.batch_size)
        for images, labels in self.data.validation.batches(size, device=self.device):
            if labels is not None:
                yield images.contiguous(memory_format=self.layout), labels

    def _statistics_images(self) -> Iterator[Tensor]:
        size = min(self.recipe.batch_size, len(self.data.train))
        batches, drawn = -(-_STATISTICS_IMAGES // size), derive(self.seed, _STATISTICS, 0)
        return replace(self.walk, size=size).plain(batches, seed=drawn, layout=self.layout)

    def _last_good(self) -> str:
        if self.store is None:
            return "no checkpoints were kept"
        if self.saved is None:
            return "no checkpoint had been written yet"
        return f"the last good checkpoint, of step {self.saved}, is in {self.store.folder}"


def _check_labels(data: ImageData, *, validates: bool) -> None:
    """Refuse data that a supernet can't learn from, or be validated on."""
    if not data.labelled:
        raise DataError(f"data '{data.name}' has no labels, and training a supernet needs them")
    splits = {"training": data.train} | ({"validation": data.validation} if validates else {})
    problems = []
    for name, split in splits.items():
        known = split.labels
        if known is None:
            problems.append(f"the {name} images have no labels; expected one for each")
        elif not len(known):
            problems.append(f"there are no {name} images; expected 1 or more")
        elif int(known.min()) < 0:
            problems.append(
                f"{int((known < 0).sum())} {name} images have a label below 0; expected 0 or more"
            )
    known = data.train.labels
    if not problems and known is not None and int(known.min()) == int(known.max()):
        problems.append("all training images have the same label; expected 2 classes or more")
    if problems:
        raise DataError(f"data '{data.name}': " + "; ".join(problems))


def _parts(recipe: SupernetRecipe, data: ImageData, world: World) -> int:
    """Into how many parts batches are split, each process taking as many as the others."""
    parts = max(recipe.accumulate, world.size)
    problems = part_problems(recipe.batch_size, parts)
    if parts % world.size:
        problems.append(
            f"recipe.accumulate: expected a multiple of the {world.size} processes, or 1; got "
            f"{recipe.accumulate}"
        )
    if problems:
        raise ConfigError(problems)
    if len(data.train) < 2 * parts:
        raise DataError(
            f"data '{data.name}' has {len(data.train)} training images; expected {2 * parts} or "
            "more, 2 for each part of a batch"
        )
    return parts


def _rehearse(
    module: Supernet, example: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, frozenset[str]]:
    """Run the smallest and the full network; its outputs, and which weights it uses."""
    module.eval()
    for genome in (module.smallest(), module.largest()):
        module.activate(genome)
        size = sizes[int(genome[RESOLUTION])]
        try:
            logits = module(resize(example, size))
        except RuntimeError as error:
            raise TrainingError(f"the supernet can't run at {size} pixels: {error}") from error
    torch.autograd.backward(logits.sum())
    used = frozenset(name for name, value in module.named_parameters() if value.grad is not None)
    module.zero_grad(set_to_none=True)
    return logits.detach(), used
