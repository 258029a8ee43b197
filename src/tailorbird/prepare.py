"""A user's network as it may come, made into one that can be read, without changing theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tailorbird.copying import copy_network
from tailorbird.errors import ConfigError


def prepared(
    model: nn.Module, input_shape: Sequence[int], *, name: str
) -> tuple[nn.Module, list[str]]:
    """A network out of its wrappers, with all of its weights, in float32.

    ``torch.compile``, `torch.nn.DataParallel`, distributed ones and averages are taken off, also
    of parts; lazy
    layers get their weights by one pass of zeros. The network given is left as it is.

    Args:
        model: as handed over.
        input_shape: (C, H, W) of an image.
        name: what messages call it, such as ``"teacher"``.

    Returns:
        The network itself where nothing had to be done, else one of its modules or a copy; and what
        was done, in words.

    Raises:
        ConfigError: for a quantised network, weights without values or that aren't finite, and lazy
            layers that a pass doesn't fill.

    Example:
        >>> net, notes = prepared(nn.DataParallel(nn.Linear(2, 2).half()), (2,), name="teacher")
        >>> type(net).__name__, next(net.parameters()).dtype, len(notes)
        ('Linear', torch.float32, 2)
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{name}: expected a torch.nn.Module, got {type(model).__name__}"
            + (f"; tailorbird.load_model({model!r}) builds one" if isinstance(model, str) else "")
        )
    notes: list[str] = []
    while (inner := wrapped_by(model)) is not None:
        notes.append(f"{name}: taken out of {type(model).__name__}")
        model = inner
    if any(wrapped_by(part) is not None for part in model.modules()):
        model, inside = _unwrapped_inside(model)
        notes.append(f"{name}: parts taken out of {', '.join(inside)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"{name}: a TorchScript network can't be cut into blocks; give the network that it was "
            "made from"
        )
    _refuse_quantised(model, name)
    if any(is_lazy(tensor) for tensor in _tensors(model)):
        model = _filled(model, input_shape, name)
        notes.append(f"{name}: lazy layers got their weights by one pass")
    if any(tensor.is_meta for tensor in _tensors(model)):
        raise ConfigError(
            f"{name}: its weights have no values (they are on the meta device); load them first"
        )
    broken = [
        key
        for key, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all())
    ]
    if broken:
        raise ConfigError(
            f"{name}: weights that are not finite: {', '.join(broken[:10])}"
            f"{', ...' if len(broken) > 10 else ''}; check its training or its checkpoint"
        )
    kinds = {tensor.dtype for tensor in _tensors(model) if tensor.is_floating_point()}
    if kinds - {torch.float32}:
        words = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        model = copy_network(model).float()
        notes.append(f"{name}: {words} weights were brought to float32")
    return model, notes


def wrapped_by(model: nn.Module | None) -> nn.Module | None:
    """The network within a wrapper of PyTorch's own; ``None`` where it is in none."""
    compiled = getattr(model, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return compiled
    kinds = (
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    inner = model.module if isinstance(model, kinds) else None
    return inner if isinstance(inner, nn.Module) else None


def _unwrapped_inside(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy in which the parts stand without their wrappers, and the wrappers' kinds."""
    twin, kinds = copy_network(model), set()
    for part in list(twin.modules()):
        for child in part._modules:
            while (inner := wrapped_by(part._modules[child])) is not None:
                kinds.add(type(part._modules[child]).__name__)
                part._modules[child] = inner
    return twin, sorted(kinds)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _refuse_quantised(model: nn.Module, name: str) -> None:
    found = [
        path or type(module).__name__
        for path, module in model.named_modules()
        if ".quantized" in type(module).__module__
        or any(t is not None and t.is_quantized for t in module._buffers.values())
    ]
    if found:
        raise ConfigError(
            f"{name}: quantised layers can't be distilled or exported: {', '.join(found[:5])}"
            f"{', ...' if len(found) > 5 else ''}; give the network as it was before quantisation"
        )


def _filled(model: nn.Module, input_shape: Sequence[int], name: str) -> nn.Module:
    twin = copy_network(model).eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin(torch.zeros(2, *input_shape))
    except Exception as error:  # the user's forward may raise anything
        raise ConfigError(
            f"{name}: its lazy layers have no weights yet, and a pass of images "
            f"{tuple(input_shape)} failed: {type(error).__name__}: {error}; run it once yourself"
        ) from error
    named = [*twin.named_parameters(), *twin.named_buffers()]
    left = [key for key, tensor in named if is_lazy(tensor)]
    if left:
        raise ConfigError(
            f"{name}: lazy layers that a pass does not reach: {', '.join(left[:5])}; remove them, "
            "or run them once yourself"
        )
    return twin.train(model.training)
