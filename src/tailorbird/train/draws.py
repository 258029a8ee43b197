"""Whether a network's training step draws random numbers, and from where."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.copying import copy_network


def draws(module: nn.Module, example: Tensor) -> bool:
    """Whether a pass in train mode draws from a global generator, as dropout does.

    Generators are the process's: of two networks that draw at the same time, each would get what
    the other left. One that can't be run on the example is taken for one that draws.

    Args:
        module: left as it is.
        example: two images or tensors (2, ...), on the network's device.

    Example:
        >>> draws(nn.BatchNorm1d(3), torch.zeros(2, 3)), draws(nn.Dropout(0.5), torch.zeros(2, 3))
        (False, True)
    """
    trial = copy_network(module).train()
    with _put_back(example.device), torch.no_grad():
        before = _states(example.device)
        try:
            trial(example.clone())
        except RuntimeError:
            return True
        return before != _states(example.device)


def python_numbers(module: nn.Module) -> object:
    """What a pass may change besides tensors: plain attributes, Python's and NumPy's generators.

    Example:
        >>> net = nn.Dropout(0.5)
        >>> before = python_numbers(net)
        >>> net.p = 0.1
        >>> python_numbers(net) == before
        False
    """
    plain = (bool, int, float, str, type(None))
    own = {
        (path, name): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, plain)
    }
    return own, _python_states()


def _states(device: torch.device) -> tuple[object, ...]:
    """Of all generators that a pass may draw from."""
    found = [torch.get_rng_state()]
    if device.type == "cuda":
        found.append(torch.cuda.get_rng_state(device))
    return (*(state.numpy().tobytes() for state in found), _python_states())


def _python_states() -> tuple[object, ...]:
    _, keys, position, *_ = np.random.get_state()
    return random.getstate(), np.asarray(keys).tobytes(), position


@contextmanager
def _put_back(device: torch.device) -> Iterator[None]:
    """Leaves all generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
