"""Networks by name: timm, torchvision or the user's own factory, with weights from a safe file."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

from torch import nn

from tailorbird.checkpoints import load_weights
from tailorbird.errors import ConfigError
from tailorbird.factories import refuse_unpickled, resolve_factory


def load_model(
    source: str,
    *,
    arguments: Mapping[str, object] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    num_classes: int | None = None,
    say: Callable[[str], None] | None = None,
) -> nn.Module:
    """Build the network that ``source`` names and fill it from ``checkpoint``, in eval mode.

    Nothing is downloaded unless the arguments ask for it (timm's ``pretrained``, torchvision's
    ``weights``).

    Args:
        source: ``timm:NAME``, ``torchvision:NAME`` or ``package.module:factory``.
        arguments: keyword arguments of the constructor or factory.
        checkpoint: safetensors, or a torch file that holds nothing that runs.
        checkpoint_key: where in the file the weights stand, such as ``state_dict``; averaged ones
            are taken by default where there are any.
        num_classes: outputs of the head; a factory gets it where it takes such an argument.
        say: told what was chosen, left out or converted.

    Raises:
        ConfigError: for a name, an import or arguments that don't work, with near matches.
        StoreError: for a checkpoint that can't be read, would need unpickling, or doesn't fit;
            missing, unexpected and misshaped names are listed at once.

    Example:
        >>> import torch
        >>> model = load_model("timm:resnet18", num_classes=10)
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    kind, _, name = source.partition(":")
    if not kind or not name:
        raise ConfigError(
            f"model {source!r}: expected timm:NAME, torchvision:NAME or package.module:factory"
        )
    given = dict(arguments or {})
    if kind == "timm":
        make = _timm(name)
    elif kind == "torchvision":
        make = _torchvision(name)
    else:
        make = resolve_factory(source)
    if num_classes is not None and "num_classes" not in given and _takes(make, "num_classes"):
        given["num_classes"] = num_classes
    refuse_unpickled(source, make, given)
    try:
        model = make(**given)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a factory may raise anything; the cause is kept
        raise ConfigError(
            f"model {source}: building it with {given or 'no arguments'} failed: "
            f"{type(error).__name__}: {error}; check the arguments"
            + (
                ", or that the weights can be downloaded from here (else give a checkpoint)"
                if given.get("pretrained") or given.get("weights")
                else ""
            )
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model {source}: expected a torch.nn.Module, got {type(model).__name__}; "
            "name a class or a function that returns a network"
        )
    if checkpoint is not None:
        for note in load_weights(model, checkpoint, checkpoint_key):
            if say is not None:
                say(note)
    return model.eval()


def _near(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=5, cutoff=0.5)
    return f"; near matches: {', '.join(matches)}" if matches else ""


def _takes(make: Callable[..., object], argument: str) -> bool:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


def _timm(name: str) -> Callable[..., object]:
    import timm

    if name.startswith(("local-dir:", "local_dir:")):
        raise ConfigError(
            f"model timm:{name}: timm may unpickle what a folder holds; name the model, and give "
            "its weights as checkpoint"
        )
    remote = name.startswith(("hf-hub:", "hf_hub:"))
    if not remote and not timm.is_model(name):
        near = _near(name, timm.list_models()) or "; see timm.list_models()"
        raise ConfigError(f"model timm:{name}: timm knows no such model{near}")

    return partial(cast("Callable[..., object]", timm.create_model), name)


def _torchvision(name: str) -> Callable[..., object]:
    import torchvision.models

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = _near(name, known) or f"; there are {', '.join(known[:5])}, ..."
        raise ConfigError(
            f"model torchvision:{name}: torchvision knows no such classification model{near}"
        )

    def make(**arguments: object) -> object:
        with warnings.catch_warnings():
            # Inception and GoogLeNet announce a future change of their initial weights.
            warnings.simplefilter("ignore", FutureWarning)
            return torchvision.models.get_model(name, **arguments)

    return make
