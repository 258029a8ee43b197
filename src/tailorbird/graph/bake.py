"""Weights that are computed from other weights, turned into plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def bake(network: nn.Module) -> None:
    """Keep each computed weight at its value: the network computes the same, without what made it.

    Weight and spectral norm of either kind, masks of ``torch.nn.utils.prune`` and all else that is
    registered with ``torch.nn.utils.parametrize``.

    Args:
        network: in eval mode; it is changed.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).eval()
        >>> bake(layer)
        >>> sorted(name for name, _ in layer.named_parameters())
        ['bias', 'weight']
    """
    for module in list(network.modules()):
        before = set(module._parameters)
        if parametrize.is_parametrized(module):
            _bake_parametrized(module)
        for hook in list(module._forward_pre_hooks.values()):
            _bake_hook(module, hook)
        made = {n: p for n, p in module._parameters.items() if n not in before}
        module._parameters = made | module._parameters  # as constructors do: weight, then bias


def _bake_parametrized(module: nn.Module) -> None:
    """As ``remove_parametrizations``, which changes a class that copies share."""
    held = cast("Mapping[str, parametrize.ParametrizationList]", module.parametrizations)
    kind = parametrize.type_before_parametrizations(module)
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in held}
    module.__class__ = kind
    del module._modules["parametrizations"]
    for name, value in values.items():
        originals = [t for t in held[name]._parameters.values() if t is not None]
        if originals:
            trained = any(original.requires_grad for original in originals)
            module.register_parameter(name, nn.Parameter(value, requires_grad=trained))
        else:
            module.register_buffer(name, value)


def _bake_hook(module: nn.Module, hook: object) -> None:
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, hook.name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, hook.name)
    elif isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
