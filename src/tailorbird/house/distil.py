"""Distilling all alternatives against one frozen teacher (Bespoke, eq. 3).

Each batch passes the teacher once; what enters and leaves every sampled block is kept, and each
alternative of the bunch takes one step on its own block's pair. The graphs of two alternatives
never meet, so each is run forward, backward and freed before the next: a step costs one teacher
forward plus the sum of the alternatives' own forward and backward passes, and memory holds the
kept activations, every alternative's weights, and activations and gradients of one alternative.

An alternative's result does not depend on its bunch: it sees the same batches, draws its own random
numbers, and has an optimiser of its own. So a run that is killed, or whose bunches are halved for
memory, ends with the same weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, fx, nn

from tailorbird.data.images import ImageData, blame_images
from tailorbird.files import write_bytes
from tailorbird.graph.blocks import Block
from tailorbird.graph.surgery import capture
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.bunches import plan_bunches
from tailorbird.house.layout import lay_out
from tailorbird.house.options import HouseOptions
from tailorbird.house.store import HouseStore
from tailorbird.progress import Progress, Silent, Task
from tailorbird.train.precision import (
    Format,
    autocast,
    compute_device,
    reproducible,
    reseed,
    set_layout,
)
from tailorbird.train.precision import resolve as resolve_format

VALIDATION_IMAGES = 1024
"""Images that decide which epoch of an alternative is kept."""

MOMENTUM = 0.9

CLIP_NORM = 1.0
"""Bound on an alternative's gradient. The error is relative, so where the teacher's tensor is small
gradients are large; blocks without BatchNorm, such as those of transformers, diverge unbounded."""


@dataclass
class Trainee:
    """An alternative under training."""

    record: Alternative
    block: Block
    module: fx.GraphModule
    optimizer: torch.optim.SGD
    format: Format
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = math.inf
    stopped: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """Weights, momenta and best weights under names that fit one file."""
        name = self.record.name
        packed = {f"{name}/now/{k}": v for k, v in self.module.state_dict().items()}
        packed |= {f"{name}/best/{k}": v for k, v in self.best.items()}
        for key, parameter in self.module.named_parameters():
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                packed[f"{name}/momentum/{key}"] = momentum
        return packed

    def restore(self, packed: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        name = self.record.name

        def part(kind: str) -> dict[str, Tensor]:
            start = f"{name}/{kind}/"
            return {k.removeprefix(start): v for k, v in packed.items() if k.startswith(start)}

        self.module.load_state_dict(part("now"))
        self.best = part("best")
        momenta = part("momentum")
        # By name: a module read back from disk lists its parameters in another order.
        for key, parameter in self.module.named_parameters():
            if key in momenta:
                value = momenta[key].to(parameter.device)
                self.optimizer.state[parameter]["momentum_buffer"] = value


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
) -> dict[str, fx.GraphModule]:
    """Train every alternative to mimic its block; continue from what is stored.

    Args:
        sample: the house; its modules are left as they are.
        data: only images of the training split are trained on; labels are not used.
        seed: decides the order of images, augmentation and dropout.
        spent: seconds of ``options.minutes`` that earlier processes have used.

    Returns:
        name -> trained module, in evaluation mode on the CPU. One whose loss stopped being
        finite is absent; its record in the store says why.

    Raises:
        DataError: naming images that hold NaN or infinity, once they have spoilt a loss.
    """
    device = compute_device()
    progress = progress or Silent()
    done: dict[str, fx.GraphModule] = {}
    for alternative in sample.alternatives:
        if not alternative.trainable:
            done[alternative.name] = sample.modules[alternative.name]
    trainable = [a for a in sample.alternatives if a.trainable]
    minutes = options.minutes
    deadline = None if minutes is None else time.monotonic() + 60 * minutes - spent
    bunches = plan_bunches(teacher, sample, trainable, options, device=device)
    steps = total_steps(data, options)
    with progress.task("distil", steps * len(bunches)) as task:
        for number, bunch in enumerate(bunches):
            missing = []
            for alternative in bunch:
                stored = store.load_trained(alternative.name)
                if stored is None:
                    missing.append(alternative)
                elif not stored[1].get("stopped"):
                    done[alternative.name] = stored[0]
            if not missing:
                task.advance(steps)
                continue
            share = None if deadline is None else _share(deadline, len(bunches) - number)
            job = Bunch(teacher, sample, data, options, seed, store, device, number, share)
            done |= _train_or_halve(job, missing, task)
            store.checkpoint(number).unlink(missing_ok=True)
    return done


def total_steps(data: ImageData, options: HouseOptions) -> int:
    """Steps that ``options.epochs`` passes over the training split take."""
    return max(1, round(options.epochs * steps_per_epoch(data, options)))


def steps_per_epoch(data: ImageData, options: HouseOptions) -> int:
    """Whole batches in the training split; one where it is smaller than a batch.

    A last batch that is short is left out: one of a single image would break BatchNorm.
    """
    return max(1, len(data.train) // options.batch_size)


@dataclass(frozen=True)
class Bunch:
    """What the training of one bunch of alternatives needs."""

    teacher: LayerGraph
    sample: Sample
    data: ImageData
    options: HouseOptions
    seed: int
    store: HouseStore
    device: torch.device
    number: int
    seconds: float | None

    def format(self, module: nn.Module) -> Format:
        """The number format that ``module`` runs in."""
        return resolve_format(self.options.precision, self.device, module)


@dataclass(frozen=True)
class Probe:
    """The frozen teacher, giving what enters and leaves the blocks of a bunch."""

    module: fx.GraphModule
    device: torch.device
    format: Format

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """(n, C, H, W) -> node -> its tensor."""
        with autocast(self.device, self.format):
            seen: dict[str, Tensor] = self.module(images)
        return seen


def _share(deadline: float, bunches_left: int) -> float:
    return max(1.0, (deadline - time.monotonic()) / bunches_left)


def _train_or_halve(
    job: Bunch, bunch: Sequence[Alternative], task: Task
) -> dict[str, fx.GraphModule]:
    """Train a bunch; out of memory halves it, down to a single alternative."""
    try:
        return _train(job, bunch, task)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        if len(bunch) == 1:
            reason = "out of memory even alone; lower house.batch_size"
            module = job.sample.modules[bunch[0].name]
            job.store.save_trained(bunch[0].name, module, {"stopped": reason})
            return {}
    if job.device.type == "cuda":
        torch.cuda.empty_cache()  # here the failed attempt's tensors are free
    job.store.checkpoint(job.number).unlink(missing_ok=True)
    half = len(bunch) // 2
    return _train_or_halve(job, bunch[:half], task) | _train_or_halve(job, bunch[half:], task)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        hint in str(error).lower() for hint in ("out of memory", "can't allocate memory")
    )


def _train(job: Bunch, bunch: Sequence[Alternative], task: Task) -> dict[str, fx.GraphModule]:
    trainees = [enlist(job, alternative) for alternative in bunch]
    probe = observe(job, trainees)
    total = total_steps(job.data, job.options)
    step = _resume(job, trainees)
    task.advance(step)
    start = time.monotonic()
    with reproducible(job.device):
        if step == 0:  # one that is stitched may begin better than it ends
            _validate(job, probe, trainees, [])
        while step < total:
            for trainee in trainees:
                trainee.module.train()
            sums = []
            for images in _epoch(job, step, total):
                rate = job.options.learning_rate * (1 + math.cos(math.pi * step / total)) / 2
                train_step(job, probe, trainees, images, step=step, rate=rate)
                sums.append(images.sum())
                step += 1
                task.advance(1, _note(trainees, step))
                if _late(job, start):
                    break
            if step < total and _late(job, start):
                task.advance(total - step, "time is spent")
                step = total
            _validate(job, probe, trainees, sums)
            if step < total:
                _save(job, trainees, step)
    return {t.record.name: module for t in trainees if (module := _finish(job, t)) is not None}


def _late(job: Bunch, start: float) -> bool:
    """Whether the bunch's share of the time is spent."""
    return job.seconds is not None and time.monotonic() - start > job.seconds


def observe(job: Bunch, trainees: Sequence[Trainee]) -> Probe:
    """The teacher as it serves ``trainees``."""
    names = sorted({name for t in trainees for name in (t.block.input, t.block.output)})
    module = capture(job.teacher, names).to(job.device).requires_grad_(False)
    lay_out(module, job.teacher.input_shape, job.device)
    return Probe(module, job.device, job.format(job.teacher.module))


def enlist(job: Bunch, alternative: Alternative) -> Trainee:
    """A copy of the alternative with an optimiser of its own."""
    block = job.sample.blocks[alternative.block]
    module = copy.deepcopy(job.sample.modules[alternative.name]).to(job.device).requires_grad_()
    lay_out(module.eval(), block.in_shape, job.device)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=job.options.learning_rate, momentum=MOMENTUM, nesterov=True
    )
    return Trainee(alternative, block, module, optimizer, job.format(module))


def _epoch(job: Bunch, step: int, total: int) -> Iterator[Tensor]:
    """Batches from ``step`` to the end of its epoch; the order depends on seed and epoch only."""
    size = job.options.batch_size
    epoch = step // steps_per_epoch(job.data, job.options)
    batches = job.data.train.batches(
        size,
        generator=torch.Generator().manual_seed(job.seed * 100_003 + epoch),
        augment=True,
        drop_last=len(job.data.train) >= size,
        device=job.device,
    )
    for images, _ in islice(batches, total - step):
        yield images


def train_step(
    job: Bunch,
    probe: Probe,
    trainees: Sequence[Trainee],
    images: Tensor,
    *,
    step: int,
    rate: float,
) -> None:
    """One pass of the teacher, and one step of each trainee on its own block's pair.

    Trainees are in training mode. Gradients are freed at once: one trainee's exist at a time.
    """
    seen = probe(images)
    scales = _Scales(seen)
    for trainee in trainees:
        if trainee.stopped:
            continue
        reseed(job.device, hash((job.seed, int(trainee.record.name[1:]), step)) % 2**63)
        loss = _loss(job, trainee, seen, scales)
        trainee.optimizer.param_groups[0]["lr"] = rate
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainee.optimizer.param_groups[0]["params"], CLIP_NORM)
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)


class _Scales(dict[str, Tensor]):
    """Node -> mean square of its tensor, computed once a batch for all that mimic it."""

    def __init__(self, seen: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._seen = seen

    def __missing__(self, name: str) -> Tensor:
        scale = self[name] = self._seen[name].float().square().mean().clamp_min(1e-12)
        return scale


def _loss(
    job: Bunch, trainee: Trainee, seen: Mapping[str, Tensor], scales: Mapping[str, Tensor]
) -> Tensor:
    """Squared error over the teacher's mean square: 1 is no better than answering zero."""
    images = seen[trainee.block.input]
    with autocast(job.device, trainee.format):
        output = trainee.module(images.float() if trainee.format == "float32" else images)
    error = (output.float() - seen[trainee.block.output].float()).square().mean()
    loss: Tensor = error / scales[trainee.block.output]
    return loss


@torch.no_grad()
def _validate(
    job: Bunch, probe: Probe, trainees: Sequence[Trainee], trained_on: Sequence[Tensor]
) -> None:
    """Keep each trainee's weights if they mimic better than before; stop those gone astray.

    Args:
        trained_on: sum of the pixels of each batch of the epoch, to tell bad images.

    Raises:
        DataError: where a loss is not finite because images are not.
    """
    sums = dict.fromkeys((t.record.name for t in trainees), 0.0)
    pixels: list[Tensor] = []
    for trainee in trainees:
        trainee.module.eval()
    split = job.data.validation
    # Files often come sorted by class: the images that decide are drawn from all of them.
    order = torch.Generator().manual_seed(job.seed) if len(split) > VALIDATION_IMAGES else None
    for images, _ in split.batches(job.options.batch_size, generator=order, device=job.device):
        seen = probe(images)
        scales = _Scales(seen)
        for trainee in trainees:
            sums[trainee.record.name] += float(_loss(job, trainee, seen, scales))
        pixels.append(images.sum())
        if len(pixels) * job.options.batch_size >= VALIDATION_IMAGES:
            break
    for trainee in trainees:
        loss = sums[trainee.record.name] / len(pixels)
        if trainee.stopped:
            continue
        if not math.isfinite(loss):
            blame_images(trained_on, job.data.train, "training")
            blame_images(pixels, split, "validation")
            trainee.stopped = "the loss is not finite; lower house.learning_rate"
        elif loss < trainee.best_loss:
            trainee.best_loss = loss
            trainee.best = {k: v.clone() for k, v in trainee.module.state_dict().items()}


def _note(trainees: Sequence[Trainee], step: int) -> str:
    losses = [t.best_loss for t in trainees if math.isfinite(t.best_loss)]
    return f"relative error {sum(losses) / len(losses):.3f}" if losses and step else ""


def _save(job: Bunch, trainees: Sequence[Trainee], step: int) -> None:
    """Write the bunch's state; one file, so it is whole or absent."""
    tensors = {
        key: value.detach().cpu().contiguous()
        for trainee in trainees
        for key, value in trainee.tensors().items()
    }
    state = {
        "step": step,
        "total": total_steps(job.data, job.options),
        "names": [t.record.name for t in trainees],
        "best": [t.best_loss if math.isfinite(t.best_loss) else None for t in trainees],
        "stopped": [t.stopped for t in trainees],
        "sha256": _digest(tensors),
    }
    content = dump_tensors(tensors, metadata={"state": json.dumps(state)})
    write_bytes(job.store.checkpoint(job.number), content)


def _resume(job: Bunch, trainees: Sequence[Trainee]) -> int:
    """Take back the bunch's saved state; returns the step to go on from, 0 for none."""
    path = job.store.checkpoint(job.number)
    if not path.exists():
        return 0
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        state = json.loads(header["__metadata__"]["state"])
        packed = load_tensors(content)
    except (OSError, ValueError, KeyError, SafetensorError):
        return 0  # damaged: this bunch is trained anew
    if state.get("sha256") != _digest(packed):
        return 0
    names = [t.record.name for t in trainees]
    if state["names"] != names or state["total"] != total_steps(job.data, job.options):
        return 0
    for trainee, best, stopped in zip(trainees, state["best"], state["stopped"], strict=True):
        trainee.restore(packed)
        trainee.best_loss = math.inf if best is None else best
        trainee.stopped = stopped
    return int(state["step"])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """What tells a damaged file's tensors from those that were written."""
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _finish(job: Bunch, trainee: Trainee) -> fx.GraphModule | None:
    """Write the best weights and give the trained module, or `None` for one that was stopped."""
    if trainee.best:
        trainee.module.load_state_dict(trainee.best)
    module = trainee.module.cpu().eval()
    set_layout(module, torch.contiguous_format)
    module.requires_grad_(False)
    figures = {
        "relative_error": trainee.best_loss if math.isfinite(trainee.best_loss) else None,
        "stopped": trainee.stopped,
    }
    job.store.save_trained(trainee.record.name, module, figures)
    return None if trainee.stopped else module
