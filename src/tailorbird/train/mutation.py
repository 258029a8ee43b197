"""Training of networks that write into tensors which their backward pass needs.

``x[:, :4] = conv(x[:, :4])`` does: PyTorch refuses, unless it copies what is to be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from tailorbird.copying import copy_network

Guard = Callable[[], AbstractContextManager[object]]
"""A context for forward and backward of one training step."""


def guard_for(module: nn.Module, example: Tensor) -> Guard:
    """The context that training steps of a network need: none, but for one that overwrites.

    Args:
        module: left as it is.
        example: a few images (n, C, H, W), on the network's device.

    Example:
        >>> class Shift(nn.Module):
        ...     def forward(self, x):
        ...         x = x.exp()
        ...         x[:, 0] = x[:, 1]
        ...         return x
        >>> guard_for(nn.ReLU(), torch.zeros(2, 3)) is nullcontext
        True
        >>> guard_for(nn.Sequential(nn.Linear(3, 3), Shift()), torch.zeros(2, 3)) is nullcontext
        False
    """
    trial = copy_network(module).eval().requires_grad_(True)
    devices = [example.device] if example.is_cuda else []
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices):
            torch.autograd.backward(trial(example.clone()).float().sum())
    except RuntimeError as error:
        if "inplace operation" in str(error):
            return allow_mutation_on_saved_tensors
    return nullcontext
