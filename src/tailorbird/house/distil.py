"""Distilling all alternatives against one frozen teacher (Bespoke, eq. 3).

Each batch passes the teacher once; what enters and leaves every sampled block is kept, and each
alternative of the bunch takes one step on its own block's pair. The graphs of two alternatives
never meet, so some run beside each other, each forward, backward and freed before the next: on a
CPU one per core (`tailorbird.train.beside.Crew`), on a GPU recorded as CUDA graphs on a few streams
(`tailorbird.train.recorded`). A step costs one teacher forward plus the alternatives' own forward
and backward passes, and memory holds the kept activations (twice on a GPU), every alternative's
weights, and activations and gradients of as many alternatives as run at a time.

An alternative's result does not depend on its bunch, nor on how many run beside it: it sees the
same batches, draws its own random numbers, has an optimiser of its own, and its step has the same
number of torch's threads, which follows from the house, its options and the machine. So a run that
is killed, or whose bunches are halved for memory, ends with the same weights.

Alternatives of equal structure are not stacked into one (`torch.func.vmap`): of 97 in the house of
the CIFAR-10 ResNets 75 differ, so that at most a quarter of the work would be asked for less often,
and a stacked convolution rounds otherwise than its parts, by what it is stacked with.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from tailorbird.data.images import ImageData, blame_images
from tailorbird.graph.blocks import Block
from tailorbird.graph.surgery import capture
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.bunches import in_halves, plan_bunches, side_by_side, step_sizes
from tailorbird.house.options import HouseOptions
from tailorbird.house.store import HouseStore
from tailorbird.progress import Progress, Silent, Task
from tailorbird.task import Score
from tailorbird.train.beside import Beside, Crew, Step
from tailorbird.train.checkpoint import Checkpoint, Json, digest, prefixed, under
from tailorbird.train.clock import Clock
from tailorbird.train.draws import draws
from tailorbird.train.mutation import Guard, guard_for
from tailorbird.train.optimisers import build_optimizer, cosine
from tailorbird.train.precision import (
    Format,
    autocast,
    compute_device,
    lay_out,
    reproducible,
    reseed,
    resolve,
    set_layout,
)
from tailorbird.train.recorded import STREAMS, CudaGraphs, Streams
from tailorbird.train.seeds import generator
from tailorbird.train.state import State
from tailorbird.train.walk import Walk, run

VALIDATION_IMAGES = 1024
"""Images that decide which epoch of an alternative is kept."""

CLIP_NORM = 1.0
"""Bound on an alternative's gradient. The error is relative, so where the teacher's tensor is small
gradients are large; blocks without BatchNorm, such as those of transformers, diverge unbounded."""


def distil(
    teacher: LayerGraph,
    sample: Sample,
    data: ImageData,
    options: HouseOptions,
    *,
    seed: int,
    store: HouseStore,
    spent: float = 0.0,
    progress: Progress | None = None,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, fx.GraphModule]:
    """Train every alternative to mimic its block; continue from what is stored.

    Args:
        sample: the house; its modules are left as they are.
        data: only images of the training split are trained on; labels are not used.
        seed: decides the order of images, augmentation and dropout.
        spent: seconds of ``options.minutes`` that earlier processes have used.
        now: tells the time in seconds.

    Returns:
        name -> trained module, in evaluation mode on the CPU. One whose loss stopped being
        finite is absent; its record in the store says why.

    Raises:
        DataError: naming images that hold NaN or infinity, once they have spoilt a loss.
        StoreError: for the state of a bunch that was begun otherwise; says what differs.
    """
    trainable = [a for a in sample.alternatives if a.trainable]
    stored = {a.name: store.load_trained(a.name) for a in trainable}
    done = {a.name: sample.modules[a.name] for a in sample.alternatives if not a.trainable}
    done |= {k: kept[0] for k, kept in stored.items() if kept and not kept[1].get("stopped")}
    if None not in stored.values():
        return done  # planning runs every alternative
    device, sizes = compute_device(), step_sizes(sample, trainable, options)
    abreast = side_by_side(sizes, _most_abreast(device), options, device)
    beside = company(device, abreast, (progress or Silent()).say)
    job = Distillation(teacher, sample, data, options, seed, store, device, now, beside)
    bunches = plan_bunches(
        teacher, sample, trainable, options, device=device, abreast=abreast, sizes=sizes
    )
    steps = job.walk.steps(options.epochs)
    limit = None if options.minutes is None else 60 * options.minutes
    clock = Clock(limit=limit, now=now)
    clock.resume(spent)
    with (progress or Silent()).task("distil", steps * len(bunches)) as task:
        for number, bunch in enumerate(bunches):
            missing = [alternative for alternative in bunch if stored[alternative.name] is None]
            if not missing:
                task.advance(steps)
                continue
            share = max(1.0, clock.left / (len(bunches) - number))
            train = partial(job.train, number=number, seconds=share, task=task)
            done |= in_halves(missing, train, job.give_up)
    return done


def _most_abreast(device: torch.device) -> int:
    """How many alternatives the device can run beside each other, memory apart."""
    return STREAMS if device.type == "cuda" else torch.get_num_threads()


def company(device: torch.device, abreast: int, say: Callable[[str], None]) -> Callable[[], Beside]:
    """For each bunch, what makes its alternatives' steps.

    Args:
        abreast: how many run at a time; torch's threads are shared out among them.
        say: told which train step by step on a GPU, and why.
    """
    if device.type == "cuda":
        return lambda: Streams(CudaGraphs(device), say, most=abreast)
    return lambda: Crew(abreast, torch.get_num_threads() // abreast)


@dataclass
class Trainee:
    """An alternative under training."""

    record: Alternative
    block: Block
    state: State[Any]
    format: Format
    guard: Guard
    draws: bool

    @property
    def scale(self) -> str:
        """What the mean square of its block's output is called among a bunch's tensors."""
        return _scale(self.block.output)


@dataclass(frozen=True)
class Distillation:
    """What the training of a house's alternatives needs."""

    teacher: LayerGraph
    sample: Sample
    data: ImageData
    options: HouseOptions
    seed: int
    store: HouseStore
    device: torch.device
    now: Callable[[], float] = time.monotonic
    beside: Callable[[], Beside] = Crew

    @property
    def walk(self) -> Walk:
        """The batches; their order depends on seed and epoch only."""
        size, seed = self.options.batch_size, self.seed
        return Walk(self.data.train, size, lambda epoch: seed * 100_003 + epoch, self.device)

    def train(
        self, alternatives: Sequence[Alternative], *, number: int, seconds: float, task: Task
    ) -> dict[str, fx.GraphModule]:
        """Train a bunch, from its checkpoint if there is one; those that came through, by name.

        Args:
            number: of the bunch, or that which it is a half of.
            seconds: what it may take.
        """
        clock = self.clock(seconds)
        with reproducible(self.device):
            bunch = Bunch(self, alternatives, clock)
            bunch.resume(Checkpoint(self.store.checkpoint(number), self.identity()))
            run(bunch, bunch.walk, clock, task, every=1)
            if bunch.made < clock.planned:
                task.advance(clock.planned - bunch.made, "time is spent")
        return bunch.finish()

    def give_up(self, alternative: Alternative) -> None:
        """Write down that there is not enough memory for an alternative."""
        reason = "out of memory even alone; lower house.batch_size"
        module = self.sample.modules[alternative.name]
        self.store.save_trained(alternative.name, module, {"stopped": reason})

    def clock(self, seconds: float = math.inf) -> Clock:
        """The time of one bunch."""
        steps, per_epoch = self.walk.steps(self.options.epochs), self.walk.per_epoch
        return Clock(steps, per_epoch, limit=seconds, now=self.now)

    def identity(self) -> dict[str, Json]:
        """What has to be the same for a bunch to go on from a checkpoint, beside its names."""
        options = ("epochs", "learning_rate", "batch_size", "precision")
        known: dict[str, Json] = {"kind": "distil", "seed": self.seed}
        known |= {"data": self.data.fingerprint, "teacher": digest(self.teacher.module)}
        return known | {f"house.{name}": getattr(self.options, name) for name in options}

    def enlist(self, alternative: Alternative, *, recorded: bool = False) -> Trainee:
        """A copy of the alternative with an optimiser of its own, for steps that are recorded."""
        block = self.sample.blocks[alternative.block]
        module = copy.deepcopy(self.sample.modules[alternative.name])
        module = module.to(self.device).requires_grad_().eval()
        example = torch.zeros(2, *block.in_shape, device=self.device)
        lay_out(module, example)
        guard, number_format = guard_for(module, example), self.format(module)
        rate = self.options.learning_rate
        make = partial(
            build_optimizer, "sgd", learning_rate=rate, fused=recorded, capturable=recorded
        )
        state: State[Any] = State(module, make, dict)
        return Trainee(alternative, block, state, number_format, guard, draws(module, example))

    def format(self, module: nn.Module) -> Format:
        """The number format that ``module`` runs in."""
        return resolve(self.options.precision, self.device, module)


class Bunch:
    """A step: one pass of the teacher, and each alternative's own on its own block's pair.

    Args:
        job: what is the same for all bunches.
        alternatives: to train; copied.
        clock: of this bunch.
    """

    def __init__(
        self, job: Distillation, alternatives: Sequence[Alternative], clock: Clock
    ) -> None:
        self.job, self.clock, self.walk = job, clock, job.walk
        self.beside = job.beside()
        recorded = self.beside.records
        self.trainees = [job.enlist(one, recorded=recorded) for one in alternatives]
        names = {name for t in self.trainees for name in (t.block.input, t.block.output)}
        teacher = capture(job.teacher, sorted(names)).to(job.device).requires_grad_(False)
        lay_out(teacher, torch.zeros(2, *job.teacher.input_shape, device=job.device))
        self.teacher, self.format = teacher, job.format(job.teacher.module)
        self.steps = {trainee.record.name: self._step(trainee) for trainee in self.trainees}
        self.seen: Mapping[str, Tensor] = {}
        self.made, self.rate = 0, 0.0
        self.pixels: list[Tensor] = []
        self.checkpoint: Checkpoint | None = None

    @property
    def step(self) -> int:
        """Steps made so far; there are no more once all have been stopped."""
        return self.made if self._running() else max(self.made, self.clock.total)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from the checkpoint, unless it is of other alternatives, as before a halving."""
        self.checkpoint = checkpoint
        if (found := checkpoint.load()) is None:
            return
        tensors, record = found
        records = cast("dict[str, dict[str, Json]]", record["trainees"])
        if records.keys() != {trainee.record.name for trainee in self.trainees}:
            checkpoint.remove()
            return
        for trainee in self.trainees:
            name = trainee.record.name
            trainee.state.restore(under(f"{name}/", tensors), records[name])
        self.made = cast("int", record["step"])

    def begin(self) -> None:
        """One that is stitched may begin better than it ends."""
        if self.made == 0:
            self.close()

    def open(self) -> None:
        """Train."""
        for trainee in self.trainees:
            trainee.state.module.train()

    def make(self, images: Tensor, labels: Tensor | None) -> None:
        """Pass the teacher once; let each trainee make its step, and free what that took."""
        peak = self.job.options.learning_rate
        self.rate = cosine(self.made, self.clock.total, peak=peak)
        self.seen = self.beside.take(self._look(images))
        heaviest_first = sorted(self._running(), key=lambda trainee: -trainee.record.macs)
        self.beside.make([self.steps[trainee.record.name] for trainee in heaviest_first])
        self.pixels.append(images.sum())
        self.made += 1

    def settle(self) -> str:
        """Losses of steps are not looked at; how good the best weights are."""
        losses = [t.state.best_score.loss for t in self.trainees]
        known = [loss for loss in losses if math.isfinite(loss)]
        return f"relative error {sum(known) / len(known):.3f}" if known else ""

    @torch.no_grad()
    def close(self) -> None:
        """Keep each trainee's weights if they mimic better than before; stop those gone astray.

        Raises:
            DataError: where a loss is not finite because images are not.
        """
        losses: dict[str, list[Tensor]] = {t.record.name: [] for t in self.trainees}
        pixels: list[Tensor] = []
        for trainee in self.trainees:
            trainee.state.module.eval()
        split, size = self.job.data.validation, self.job.options.batch_size
        # Files often come sorted by class: the images that decide are drawn from all of them.
        order = generator(self.job.seed) if len(split) > VALIDATION_IMAGES else None
        for images, _ in split.batches(size, generator=order, device=self.job.device):
            seen = self._look(images)
            judge = partial(self._judge, seen=seen, losses=losses)
            self.beside.call([partial(judge, trainee) for trainee in self.trainees])
            pixels.append(images.sum())
            if len(pixels) * size >= VALIDATION_IMAGES:
                break
        for trainee in self._running():
            loss = sum(map(float, losses[trainee.record.name])) / len(pixels)
            if math.isfinite(loss):
                epoch = self.made / self.walk.per_epoch
                trainee.state.offer(trainee.state.module, Score(0.0, loss), epoch)
                continue
            blame_images(self.pixels, self.walk.split, "training")
            blame_images(pixels, split, "validation")
            reason = "the loss is not finite; lower house.learning_rate"
            trainee.state.stop(reason, self.made)
        self.pixels.clear()

    def save(self) -> None:
        """Write the bunch's state while there is more to train."""
        if self.checkpoint is None or self.step >= self.clock.total:
            return
        tensors: dict[str, Tensor] = {}
        for trainee in self.trainees:
            tensors |= prefixed(f"{trainee.record.name}/", trainee.state.tensors())
        records: dict[str, Json] = {t.record.name: t.state.record() for t in self.trainees}
        epoch = -(-self.made // self.walk.per_epoch)
        self.checkpoint.save(epoch, tensors, {"step": self.made, "trainees": records})

    def finish(self) -> dict[str, fx.GraphModule]:
        """Write each trainee's best weights; the modules that came through, by name."""
        done = {}
        for trainee in self.trainees:
            name, state = trainee.record.name, trainee.state
            if state.best:
                state.module.load_state_dict(state.best)
            module = cast("fx.GraphModule", state.module).cpu().eval().requires_grad_(False)
            set_layout(module, torch.contiguous_format)
            loss = state.best_score.loss
            figures = {"relative_error": loss if math.isfinite(loss) else None}
            self.job.store.save_trained(name, module, figures | {"stopped": state.stopped or ""})
            if state.stopped is None:
                done[name] = module
        if self.checkpoint is not None:
            self.checkpoint.remove()
        return done

    def _running(self) -> list[Trainee]:
        return [trainee for trainee in self.trainees if trainee.state.stopped is None]

    @torch.no_grad()
    def ask(self, images: Tensor) -> Mapping[str, Tensor]:
        """What enters and leaves the bunch's blocks: (n, C, H, W) -> node -> its tensor."""
        with autocast(self.job.device, self.format):
            seen: dict[str, Tensor] = self.teacher(images)
        return seen

    @torch.no_grad()
    def _look(self, images: Tensor) -> Mapping[str, Tensor]:
        """What `ask` says, and the mean square of what leaves each block, for all that mimic it."""
        seen = self.ask(images)
        outputs = {trainee.block.output for trainee in self.trainees}
        squares = {name: seen[name].float().square().mean() for name in sorted(outputs)}
        return {**seen, **{_scale(k): value.clamp_min(1e-12) for k, value in squares.items()}}

    def _step(self, trainee: Trainee) -> Step:
        number, overwrites = int(trainee.record.name[1:]), trainee.guard is not nullcontext

        def prepare() -> None:
            if trainee.draws:
                reseed(self.job.device, hash((self.job.seed, number, self.made)) % 2**63)
            trainee.state.set_rate(self.rate)

        def compute() -> None:
            with trainee.guard():
                torch.autograd.backward(self._loss(trainee, self.seen))
            trainee.state.update(CLIP_NORM)

        return Step(
            name=trainee.record.name,
            network=trainee.state.module,
            prepare=prepare,
            compute=compute,
            conclude=trainee.state.count,
            changed=trainee.state.changed,
            alone=trainee.draws or overwrites,
            unrecordable="they overwrite what their backward pass needs" if overwrites else None,
        )

    def _judge(
        self, trainee: Trainee, *, seen: Mapping[str, Tensor], losses: dict[str, list[Tensor]]
    ) -> None:
        with torch.no_grad():  # counts for one thread
            losses[trainee.record.name].append(self._loss(trainee, seen))

    def _loss(self, trainee: Trainee, seen: Mapping[str, Tensor]) -> Tensor:
        """Squared error over the teacher's mean square: 1 is no better than answering zero."""
        images = seen[trainee.block.input]
        with autocast(self.job.device, trainee.format):
            output = trainee.state.module(images.float() if trainee.format == "float32" else images)
        error = (output.float() - seen[trainee.block.output].float()).square().mean()
        loss: Tensor = error / seen[trainee.scale]
        return loss


def _scale(node: str) -> str:
    return f"mean square of {node}"
