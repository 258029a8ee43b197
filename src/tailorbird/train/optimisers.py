"""Optimisers and the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tailorbird.train.checkpoint import Json, under
from tailorbird.train.recipe import Optimizer as OptimizerName
from tailorbird.train.recipe import Schedule

_PREFIX = "optimizer/"
"""Of its tensors' names in a checkpoint."""


def parameter_groups(
    module: nn.Module, weight_decay: float, *, decayed: Collection[str] | None = None
) -> list[dict[str, object]]:
    """Trainable parameters in two groups: with decay, and without (biases, norms, scales).

    Parameters of one dimension are the biases and the gains of normalisation layers: decaying
    them costs accuracy and regularises nothing. So do those that a module with a method
    ``no_weight_decay`` names, as timm's networks name their positions. Shared parameters appear
    once. Without decay there is one group.

    Args:
        decayed: names of the parameters that may decay; None for all.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> [len(group["params"]) for group in parameter_groups(net, 1e-4)]
        [1, 3]
    """
    spared = {
        f"{path}.{name}".lstrip(".")
        for path, part in module.named_modules()
        if callable(names := getattr(part, "no_weight_decay", None))
        for name in names()
    }
    may: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, value in module.named_parameters():
        if value.requires_grad:
            decays = value.ndim > 1 and name not in spared
            decays &= decayed is None or name in decayed
            (may if decays else plain).append(value)
    if not weight_decay:
        may, plain = [], [*may, *plain]
    groups: list[dict[str, object]] = [
        {"params": may, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: OptimizerName,
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    decayed: Collection[str] | None = None,
    fused: bool = True,
    capturable: bool = False,
) -> torch.optim.Optimizer:
    """The named optimiser over the module's trainable parameters.

    SGD and AdamW run fused (one kernel per group); AdaBelief is timm's, with decoupled decay
    and rectification. Parameters without a gradient, now or until some later step, are fine.

    Args:
        name: ``sgd`` (Nesterov), ``adabelief`` or ``adamw``.
        momentum: of SGD; the first moment's decay of the other two.
        decayed: names of the parameters that may decay; None for all but biases and norms.
        fused: off: no fused kernels, which round differently.
        capturable: keep the rate as a tensor beside the parameters, so that steps can be recorded
            as a CUDA graph; see `unrecordable`. Needs ``fused``.
    """
    groups = parameter_groups(module, weight_decay, decayed=decayed)
    rate: Rate = learning_rate
    if capturable and unrecordable(name) is None:
        rate = torch.tensor(learning_rate, device=next(module.parameters()).device)
    return _BUILDERS[name](groups, rate, momentum, fused)


def unrecordable(name: OptimizerName) -> str | None:
    """Why steps of the named optimiser can't be recorded as a CUDA graph; None if they can.

    Example:
        >>> unrecordable("sgd"), unrecordable("adabelief")
        (None, 'AdaBelief counts its steps in Python')
    """
    return "AdaBelief counts its steps in Python" if name == "adabelief" else None


def rate_factor(done: float, *, warmup: float, schedule: Schedule) -> float:
    """Factor on the peak learning rate when the share ``done`` of all steps lies behind.

    Example:
        >>> [round(rate_factor(x, warmup=0.2, schedule="cosine"), 3) for x in (0.1, 0.2, 0.6, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if done < warmup:
        return done / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (done - warmup) / (1.0 - warmup))))


def cosine(number: int, total: int, *, peak: float, warmup: int = 0) -> float:
    """Learning rate of step ``number`` of ``total``: linear warm-up, then half a cosine to near 0.

    ``0.5 * peak * (1 + cos(pi * t / T))`` (Loshchilov & Hutter, SGDR, 2017, eq. 5).

    Example:
        >>> [round(cosine(n, 6, peak=1.0, warmup=2), 2) for n in range(6)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if number < warmup:
        return peak * (number + 1) / warmup
    return 0.5 * peak * (1.0 + math.cos(math.pi * (number - warmup) / max(1, total - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint stores of an optimiser as tensors; `optimizer_numbers` has the rest.

    By the parameters' names: a network read back from disk may list them in another order.
    """
    return {
        f"{_PREFIX}{weight}/{name}": value
        for weight, values in _states(optimizer, module).items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def optimizer_numbers(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Json]:
    """What a checkpoint stores of an optimiser as JSON."""
    return {
        weight: {k: v for k, v in values.items() if not isinstance(v, Tensor)}
        for weight, values in _states(optimizer, module).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    numbers: Json,
) -> None:
    """Take up, in place, what `optimizer_tensors` (among other tensors) and its fellow gave.

    Checkpoints of the first edition, which number the parameters in the optimiser's order, too.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbered = {id(value): number for number, value in enumerate(parameters)}
    place = {name: numbered.get(id(value)) for name, value in module.named_parameters()}
    place |= {str(number): number for number in range(len(parameters)) if str(number) not in place}
    state: dict[int | None, dict[str, object]] = {
        place[weight]: dict(values)
        for weight, values in cast("dict[str, dict[str, float]]", numbers).items()
    }
    for key, value in under(_PREFIX, tensors).items():
        weight, name = key.rsplit("/", 1)
        number = place[weight]
        assert number is not None
        owner, taken = parameters[number], value
        if value.shape == owner.shape and value.ndim:
            # In the parameter's own layout, so that fused kernels go the same way as before.
            taken = torch.empty_like(owner, dtype=value.dtype).copy_(value)
        state.setdefault(number, {})[name] = taken
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _states(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Mapping[str, Any]]:
    """The optimiser's state by the parameters' names."""
    known = optimizer.state
    return {name: known[value] for name, value in module.named_parameters() if value in known}


Groups = list[dict[str, object]]
Rate = float | Tensor


def _sgd(groups: Groups, rate: Rate, momentum: float, fused: bool) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(
        groups, lr=rate, momentum=momentum, nesterov=momentum > 0, fused=fused or None
    )
    if momentum and fused:
        # Fused SGD can't start one weight's momentum later than another's, as when its block is
        # trained for the first time. Zeros are what it starts from anyway.
        for group in optimizer.param_groups:
            for value in group["params"]:
                optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
    return optimizer


def _adamw(groups: Groups, rate: Rate, momentum: float, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=rate,
        betas=(momentum, 0.999),
        fused=fused or None,
        capturable=isinstance(rate, Tensor),
    )


def _adabelief(groups: Groups, rate: Rate, momentum: float, _: bool) -> torch.optim.Optimizer:
    from timm.optim.adabelief import AdaBelief

    optimizer: torch.optim.Optimizer = AdaBelief(groups, lr=rate, betas=(momentum, 0.999))
    return optimizer


_BUILDERS: dict[OptimizerName, Callable[[Groups, Rate, float, bool], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adabelief": _adabelief,
    "adamw": _adamw,
}
