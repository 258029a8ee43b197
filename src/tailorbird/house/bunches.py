"""Which alternatives are distilled together: as many as fit a memory budget, or the memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, fx

from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.options import HouseOptions
from tailorbird.train.precision import compute_device

Item = TypeVar("Item")
Made = TypeVar("Made")

CPU_OVERHEAD = 2.0
"""Resident bytes per byte of live tensors on CPUs: the C library keeps freed tensors back for reuse
(1.7 was measured with glibc, 0.9 once it was told to return them at once, which costs time)."""


def plan_bunches(
    teacher: LayerGraph,
    sample: Sample,
    alternatives: Sequence[Alternative],
    options: HouseOptions,
    *,
    device: torch.device | None = None,
    abreast: int = 1,
    sizes: Mapping[str, int] | None = None,
) -> list[list[Alternative]]:
    """Split into bunches that fit ``options.memory_mb``, in the teacher's order of blocks.

    Counted as float32, which bounds bfloat16 from above: the images; the blocks' inputs and
    outputs, twice on a GPU, where each batch's are copied to where recorded steps read them; the
    teacher's pass, which frees as it goes, as its three largest tensors; what the largest
    alternatives that run at a time need for their steps (`step_sizes`); for each alternative its
    weights, momenta and best weights. Between epochs the activations are gone and the bunch's state
    is written, which takes two more copies of it for a moment.

    On CPUs this is multiplied by ``CPU_OVERHEAD``. Not counted: the data set and the house itself.
    An alternative that alone exceeds the budget is trained in a bunch of its own.

    Args:
        abreast: how many run at a time; see `side_by_side`.
        sizes: what `step_sizes` gave, where that is known.
    """
    order = teacher.index
    ordered = sorted(alternatives, key=lambda a: (order[sample.blocks[a.block].output], a.name))
    per_image = {layer.name: 4 * math.prod(layer.shape) for layer in teacher.layers if layer.shape}
    fixed = 3 * max(per_image.values()) + 4 * math.prod(teacher.input_shape)
    device = device or compute_device()
    budget, twice = _budget(options, device), 1 if device.type == "cpu" else 2
    sizes = sizes or step_sizes(sample, alternatives, options)
    bunches: list[list[Alternative]] = []
    kept: set[str] = set()
    params = 0
    largest: list[int] = []
    for alternative in ordered:
        block = sample.blocks[alternative.block]
        own = sizes[alternative.name]
        grown = kept | {block.input, block.output}
        seen = options.batch_size * (twice * sum(per_image.get(n, 0) for n in grown) + fixed)
        state = 12 * (params + alternative.params)
        steps = sorted([*largest, own])[-abreast:]
        if bunches and state + max(seen + sum(steps), 2 * state) <= budget:
            bunches[-1].append(alternative)
            kept, params, largest = grown, params + alternative.params, steps
        else:
            bunches.append([alternative])
            kept, params, largest = {block.input, block.output}, alternative.params, [own]
    return bunches


def step_sizes(
    sample: Sample, alternatives: Sequence[Alternative], options: HouseOptions
) -> dict[str, int]:
    """Alternative's name -> bytes that its step holds at its peak: activations and gradients."""
    return {
        a.name: options.batch_size
        * step_bytes(sample.modules[a.name], sample.blocks[a.block].in_shape)
        + 4 * a.params
        for a in alternatives
    }


def side_by_side(
    sizes: Mapping[str, int], most: int, options: HouseOptions, device: torch.device
) -> int:
    """How many alternatives run at a time: as many of the largest as half the budget holds.

    Follows from the whole house, so that it stays the same when a part of it is trained already.

    Args:
        sizes: what `step_sizes` gave for all that are to be trained.
        most: what the device can do.

    Returns:
        From 1 to ``most``; at most half as many as there are, so that none waits long for the last.

    Example:
        >>> sizes, cpu = {f"a{n}": 100_000_000 for n in range(6)}, torch.device("cpu")
        >>> [side_by_side(sizes, 8, HouseOptions(memory_mb=m), cpu) for m in (200, 1000, 4000)]
        [1, 2, 3]
    """
    fitting = _budget(options, device) / 2 // max(1, *sizes.values(), 1)
    return max(1, min(most, len(sizes) // 2, int(fitting)))


def _budget(options: HouseOptions, device: torch.device) -> float:
    """Bytes of live tensors that the options allow."""
    return 1e6 * options.memory_mb / (CPU_OVERHEAD if device.type == "cpu" else 1.0)


def in_halves(
    bunch: Sequence[Item],
    train: Callable[[Sequence[Item]], dict[str, Made]],
    give_up: Callable[[Item], None],
) -> dict[str, Made]:
    """Train a bunch; out of memory halves it, down to a single one, which is given up.

    Args:
        train: trains what it is given; what came of it, by name.
        give_up: told of the one that doesn't fit even alone.

    Example:
        >>> def train(bunch):
        ...     if len(bunch) > 2:
        ...         raise MemoryError
        ...     return {name: len(bunch) for name in bunch}
        >>> in_halves("abcde", train, print)
        {'a': 2, 'b': 2, 'c': 1, 'd': 2, 'e': 2}
    """
    try:
        return train(bunch)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        if len(bunch) == 1:
            give_up(bunch[0])
            return {}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # here the failed attempt's tensors are free
    half = len(bunch) // 2
    return in_halves(bunch[:half], train, give_up) | in_halves(bunch[half:], train, give_up)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        hint in str(error).lower() for hint in ("out of memory", "can't allocate memory")
    )


def step_bytes(module: fx.GraphModule, in_shape: Sequence[int]) -> int:
    """Bytes for one image that a training step of ``module`` holds at its peak, in float32.

    What autograd keeps for the backward pass, measured on two images of zeros, and six times the
    largest of these tensors or the output for what the loss and a layer's backward pass hold.
    """
    trial = copy.deepcopy(module).train().requires_grad_()
    images = torch.zeros(2, *in_shape)
    mine = (images, *trial.parameters(), *trial.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in mine}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in own:
            kept[storage] = tensor
        return tensor

    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        output: Tensor = trial(images)
    sizes = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    return (sum(sizes) + 6 * max([*sizes, output.untyped_storage().nbytes()])) // 2
