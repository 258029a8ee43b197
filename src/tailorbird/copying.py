"""Copies of networks of any kind: also of those that hold tensors which are no leaves."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def copy_network(module: Network) -> Network:
    """A deep copy. Tensors that a module computed and kept, which ``copy.deepcopy`` refuses, are
    copied by value: weight norm of the old kind keeps its weight so.

    Example:
        >>> layer = torch.nn.utils.spectral_norm(nn.Linear(2, 2))
        >>> torch.equal(copy_network(layer).weight, layer.weight)
        True
    """
    computed = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, dict(computed))
