"""Where and in which number format networks run: device, autocast, memory layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from tailorbird.errors import ConfigError

Format = Literal["float32", "bfloat16"]

_NARROW = 8
"""Channels per group below which a grouped convolution is slow in bfloat16 on CPUs."""


def compute_device(device: torch.device | str | None = None) -> torch.device:
    """The device asked for, else the first CUDA device, else the CPU.

    Raises:
        ConfigError: when CUDA is asked for and there is none.
    """
    if device is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{device}' was asked for, but no CUDA device is usable here")
    return wanted


def resolve(precision: str, device: torch.device, module: nn.Module | None = None) -> Format:
    """What ``auto`` means for a network on a device. Depends on nothing but these, no timing.

    bfloat16 autocast is taken on CUDA devices with bfloat16 units, and on CPUs with AVX512-BF16
    or AMX. There it was measured 1.4 to 1.9 times faster than float32 for training networks of
    dense convolutions (CIFAR ResNet, ResNet-18) and 2.2 times *slower* for MobileNetV3, whose
    depthwise convolutions have no such kernel; so networks with grouped convolutions narrower
    than 8 channels a group stay in float32 on CPUs.

    Args:
        precision: ``auto``, ``float32`` or ``bfloat16``.
        module: the network; None judges the hardware alone.

    Raises:
        ConfigError: for another word.
    """
    if precision == "float32":
        return "float32"
    if precision == "bfloat16":
        return "bfloat16"
    if precision != "auto":
        raise ConfigError(f"precision: expected one of auto, float32, bfloat16, got {precision!r}")
    if device.type == "cuda":
        fine = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fine else "float32"
    fine = _cpu_multiplies_bfloat16() and not (module is not None and _has_narrow_groups(module))
    return "bfloat16" if fine else "float32"


def autocast(
    device: torch.device, precision: str = "auto", module: nn.Module | None = None
) -> AbstractContextManager[object]:
    """The context in which a forward pass runs; float32 needs none. See `resolve`.

    Example:
        >>> with autocast(torch.device("cpu"), "bfloat16"):
        ...     print(nn.Linear(2, 2)(torch.ones(1, 2)).dtype)
        torch.bfloat16
    """
    if resolve(precision, device, module) == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def memory_format(shape: Sequence[int]) -> torch.memory_format:
    """Channels last for images (C, H, W), contiguous for everything else.

    Example:
        >>> memory_format((3, 32, 32)), memory_format((16, 64))
        (torch.channels_last, torch.contiguous_format)
    """
    return torch.channels_last if len(shape) == 3 else torch.contiguous_format


def set_layout(module: nn.Module, layout: torch.memory_format) -> None:
    """Bring a module's parameters and buffers into a memory layout, in place."""
    module.to(memory_format=layout)  # type: ignore[call-overload]


def lay_out(module: nn.Module, example: Tensor) -> torch.memory_format:
    """Bring a module into channels-last layout, **in place**, if it runs so; says what images need.

    Faster, and the same up to rounding. Inputs that are no images leave it as it is.

    Args:
        module: in eval mode.
        example: images (n, C, H, W), two are enough, or tensors of another rank.
    """
    if memory_format(example.shape[1:]) != torch.channels_last:
        return torch.contiguous_format
    set_layout(module, torch.channels_last)
    try:
        with torch.no_grad():
            module(example.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # some reshape with view
        set_layout(module, torch.contiguous_format)
        return torch.contiguous_format
    return torch.channels_last


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Leaves the global random state of CPU and device as it was; repeatable cuDNN kernels.

    Inside, dropout and drop path draw from the global generators: seed them with `reseed`.
    """
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        try:
            if on_cuda:
                cudnn.deterministic, cudnn.benchmark = True, False
            yield
        finally:
            if on_cuda:
                cudnn.deterministic, cudnn.benchmark = before


def reseed(device: torch.device, seed: int) -> None:
    """Seed the generators that dropout draws from. Only inside `reproducible`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def _cpu_multiplies_bfloat16() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _has_narrow_groups(module: nn.Module) -> bool:
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return any(
        part.groups > 1 and part.in_channels // part.groups < _NARROW
        for part in module.modules()
        if isinstance(part, convolutions)
    )
