"""Copies of networks of any kind: also of those that hold tensors which can't be copied."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

Network = TypeVar("Network", bound=nn.Module)


def copy_network(module: Network) -> Network:
    """A deep copy. Tensors that a module computed and kept, which ``copy.deepcopy`` refuses, are
    copied by value: weight norm of the old kind keeps its weight so. Those of lazy layers, which
    have no values yet, become fresh ones.

    Example:
        >>> import torch
        >>> layer = torch.nn.utils.spectral_norm(nn.Linear(2, 2))
        >>> torch.equal(copy_network(layer).weight, layer.weight)
        True
    """
    held = [value for part in module.modules() for value in tree_leaves(dict(vars(part)))]
    made: dict[int, Any] = {
        id(value): value.detach().clone()
        for value in held
        if isinstance(value, Tensor) and not value.is_leaf
    }
    made |= {
        id(tensor): cast(Any, type(tensor))(device=tensor.device, dtype=tensor.dtype)
        for tensor in (*module.parameters(), *module.buffers())
        if is_lazy(tensor)
    }
    return copy.deepcopy(module, made)
