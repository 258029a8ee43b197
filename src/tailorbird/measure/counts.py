"""What a network costs on paper: multiply-accumulates, parameters, size, peak memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from tailorbird.device import Precision
from tailorbird.errors import MeasurementError

MB = 1e6


@dataclass(frozen=True)
class Counts:
    """Figures that need no device. MB is 10^6 bytes.

    Args:
        macs: multiply-accumulates of convolutions, linear layers and matrix products (attention
            included) at batch 1; one multiplication with its addition counts once.
        params: trainable or not, shared ones once.
        size_mb: parameters and buffers, floating ones as float32.
        peak_memory_mb: ``size_mb`` plus the largest sum of activations that live at once.
    """

    macs: int
    params: int
    size_mb: float
    peak_memory_mb: float

    def as_metrics(self) -> dict[str, float]:
        """The figures by the names that limits use."""
        return {name: float(value) for name, value in asdict(self).items()}


def count(module: nn.Module, input_shape: Sequence[int]) -> Counts:
    """Count ``module`` in eval mode at batch 1, by running it or a copy once on the CPU.

    Peak memory follows a runtime that plans ahead, not PyTorch's own allocations. A tensor lives
    from the operation that makes it to the last one that reads it (the input from the start, the
    output to the end), and an operation needs its inputs and outputs together. Views take
    nothing. An elementwise operation or a batch normalisation writes over an input of equal size
    that is not needed afterwards, whether the code says ``inplace`` or not. Scratch space inside
    an operation (such as a convolution's column buffer) is left out. Attention is taken as the
    matrix products that its ONNX form consists of.

    Args:
        module: takes one tensor (1, *input_shape).
        input_shape: without the batch dimension.

    Raises:
        MeasurementError: when the network does not run on that shape.

    Example:
        >>> counts = count(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
        >>> counts.macs, counts.params, counts.size_mb
        (8, 10, 4e-05)
        >>> round(1e6 * counts.peak_memory_mb) - 40  # 4 floats in, 2 floats out
        24
    """
    own = module if _left_alone(module) else copy.deepcopy(module).cpu().float().eval()
    image = torch.zeros(1, *input_shape)
    recorder = _Recorder()
    try:
        with torch.no_grad(), _decomposed(), recorder:
            output = own(image)
    except Exception as error:  # a network's forward may raise anything
        raise MeasurementError(
            f"the network can't be counted: it does not run on an input of shape "
            f"{tuple(image.shape)}: {error}; give the input shape that it was made for"
        ) from error
    params = list(own.parameters())
    weights = [*params, *own.buffers()]
    size = sum(4 * t.numel() if t.is_floating_point() else t.nbytes for t in weights)
    activations = _peak(recorder.steps, inputs=[image], outputs=_tensors(output), fixed=weights)
    return Counts(
        macs=recorder.flops // 2,
        params=sum(p.numel() for p in params),
        size_mb=size / MB,
        peak_memory_mb=(size + activations) / MB,
    )


def recurrent_flops(image: Sequence[int], weights: Any, *others: Any, **_: object) -> int:  # noqa: ANN401
    """FLOPs of a fused recurrent layer, from the shapes that its operator is given.

    Args:
        image: of the sequence (steps, n, features), or with steps and n changed round.
        weights: of the matrix that the sequence is multiplied by, or a list of all weights' shapes.
        others: of the matrix that the state is multiplied by, first of all, where there is no list.
    """
    listed = weights and not isinstance(weights[0], int)
    matrices = [w for w in weights if len(w) == 2] if listed else [weights, others[0]]
    return 2 * prod(image[:2]) * sum(map(prod, matrices))


RECURRENT = (torch.ops.aten.mkldnn_rnn_layer, torch.ops.aten._cudnn_rnn)
"""Operators that PyTorch's counter knows nothing of, for `recurrent_flops`."""


_FLOPS: dict[Any, Any] = {
    **flop_registry,
    **dict.fromkeys(RECURRENT, shape_wrapper(recurrent_flops)),  # type: ignore[no-untyped-call]
}
"""Functions that tell what an operator costs, from its arguments and its result."""


def _left_alone(module: nn.Module) -> bool:
    """Whether it can run as it is, which is quicker than to copy it: in eval mode, of float32 on
    the CPU, and a graph of PyTorch's own layers, which running does not change.
    """
    return all(
        not part.training
        and not part._forward_hooks
        and not part._forward_pre_hooks
        and (type(part).__module__.startswith("torch.nn.modules.") or _pure(part))
        for part in module.modules()
    ) and all(
        tensor.is_cpu and (tensor.dtype == torch.float32 or not tensor.is_floating_point())
        for tensor in (*module.parameters(), *module.buffers())
    )


def _pure(part: nn.Module) -> bool:
    """Whether it is a graph without buffers that its operations could write to."""
    return isinstance(part, fx.GraphModule) and not part._buffers


@dataclass(frozen=True)
class _Step:
    """One operation: storages read and written (id -> bytes), and whether it may overwrite."""

    reads: Mapping[int, int]
    writes: Mapping[int, int]
    overwrites: bool


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation; holds on to the tensors so that no id is given out twice."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.steps: list[_Step] = []
        self._held: list[Tensor] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        with self:  # into the operators that it consists of, where PyTorch has not done so
            result = func.decompose(*args, **named)
        if result is not NotImplemented:
            return result
        result = func(*args, **named)
        if (flops := _FLOPS.get(func.overloadpacket)) is not None:
            self.flops += flops(*args, **named, out_val=result)
        given, made = _tensors((args, named)), _tensors(result)
        self._held += [*given, *made]
        overwrites = torch.Tag.pointwise in func.tags or "batch_norm" in str(func)
        self.steps.append(_Step(_storages(given), _storages(made), overwrites))
        return result


def _peak(
    steps: Sequence[_Step],
    *,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    fixed: Iterable[Tensor],
) -> int:
    """Largest sum of bytes alive at once, weights (``fixed``) not counted."""
    outside = set(_storages(fixed))
    last = {storage: i for i, step in enumerate(steps) for storage in (*step.reads, *step.writes)}
    last |= dict.fromkeys(_storages(outputs), len(steps))
    alive = {s: size for s, size in _storages(inputs).items() if s not in outside}
    peak = sum(alive.values())
    for i, step in enumerate(steps):
        fresh = {s: size for s, size in step.writes.items() if s not in outside and s not in alive}
        ending = [s for s in step.reads if s in alive and last[s] == i]
        if step.overwrites:
            for storage in _overwritten(fresh, {s: alive[s] for s in ending}):
                del alive[storage]
        alive |= fresh
        peak = max(peak, sum(alive.values()))
        alive = {s: size for s, size in alive.items() if last.get(s, -1) > i}
    return peak


def _overwritten(fresh: Mapping[int, int], ending: Mapping[int, int]) -> Iterator[int]:
    """One ending storage of equal size for each fresh one, where there is one."""
    free = dict(ending)
    for size in fresh.values():
        match = next((storage for storage, other in free.items() if other == size), None)
        if match is not None:
            del free[match]
            yield match


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Identity and bytes of each storage."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in storages}


@contextmanager
def _decomposed() -> Iterator[None]:
    """Attention as plain matrix products: fused kernels would be missed by the counter."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


BYTES: Mapping[Precision, int] = {"float32": 4, "float16": 2, "int8": 1}
"""What a number takes in a precision."""


def in_precision(metrics: Mapping[str, float], precision: Precision) -> dict[str, float]:
    """Figures of a network in float32 as they are, nearly, in another precision.

    Weights and activations shrink alike; some stay as they were, so that a file is somewhat larger.

    Example:
        >>> in_precision({"macs": 10.0, "size_mb": 8.0}, "int8")
        {'macs': 10.0, 'size_mb': 2.0}
    """
    share = BYTES[precision] / BYTES["float32"]
    held = ("size_mb", "peak_memory_mb")
    return {name: value * (share if name in held else 1.0) for name, value in metrics.items()}
