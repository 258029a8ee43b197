"""Networks by name: timm, torchvision or the user's own factory, with weights from a safe file."""

from __future__ import annotations

import difflib
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tailorbird.errors import ConfigError, StoreError
from tailorbird.factories import resolve_factory

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_SHOWN = 10


def load_model(
    source: str,
    *,
    arguments: Mapping[str, object] | None = None,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
) -> nn.Module:
    """Build the network that ``source`` names and fill it from ``checkpoint``, in eval mode.

    Nothing is downloaded unless the arguments ask for it (timm's ``pretrained``, torchvision's
    ``weights``).

    Args:
        source: ``timm:NAME``, ``torchvision:NAME`` or ``package.module:factory``.
        arguments: keyword arguments of the constructor or factory.
        checkpoint: safetensors, or a torch file that holds nothing but tensors.
        num_classes: outputs of the head; a factory gets it where it takes such an argument.

    Raises:
        ConfigError: for a name, an import or arguments that don't work, with near matches.
        StoreError: for a checkpoint that can't be read, would need unpickling, or doesn't fit;
            missing, unexpected and misshaped names are listed at once.

    Example:
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
    try:
        model = make(**given)
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
        load_weights(model, checkpoint)
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

    remote = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    if not remote and not timm.is_model(name):
        near = _near(name, timm.list_models()) or "; see timm.list_models()"
        raise ConfigError(f"model timm:{name}: timm knows no such model{near}")

    create = cast("Callable[..., object]", timm.create_model)

    def make(**arguments: object) -> object:
        return create(name, **arguments)

    return make


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


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in file ``path`` into ``model``, which changes in place.

    A wrapper such as ``{"state_dict": ...}`` is opened and a prefix such as ``module.`` is taken
    off; counters of batches that BatchNorm keeps may be missing. Nothing else is guessed, and
    nothing is copied unless all of it fits.

    Raises:
        StoreError: for a file that can't be read, would need unpickling, or doesn't fit.
    """
    file = Path(path)
    expected = model.state_dict()
    weights = _unprefixed(read_tensors(file), expected.keys())
    missing = [
        name
        for name in expected
        if name not in weights and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in weights if name not in expected]
    shared = [name for name in weights if name in expected]
    misshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in shared
        if weights[name].shape != expected[name].shape
    ]
    broken = [
        name
        for name in shared
        if weights[name].is_floating_point() and not bool(weights[name].isfinite().all())
    ]
    lines = [
        f"{len(names)} {word}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for word, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshaped", misshaped),
            ("not finite", broken),
        )
        if names
    ]
    if lines:
        hint = "check that the checkpoint belongs to this model and its arguments"
        if misshaped and not missing and not unexpected and len(misshaped) <= 2:
            hint = "if this is the head, set num_classes to what the checkpoint was trained with"
        listed = "".join(f"\n  - {line}" for line in lines)
        raise StoreError(f"checkpoint {file} does not fit {type(model).__name__}:{listed}\n{hint}")
    model.load_state_dict({**expected, **{name: weights[name] for name in shared}})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The named tensors in ``file``: safetensors, or a torch file that holds nothing else.

    A wrapper such as ``{"state_dict": ...}`` is opened.

    Raises:
        StoreError: for a file that can't be read, would need unpickling, or holds other things.
    """
    if not file.is_file():
        raise StoreError(f"checkpoint {file}: no such file; check the path")
    with file.open("rb") as stream:
        head = stream.read(9)
    try:
        if file.suffix == ".safetensors" or head[8:9] == b"{":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(file)
            except SafetensorError as error:
                raise StoreError(
                    f"checkpoint {file}: not a whole safetensors file: {error}; fetch or save it "
                    "again"
                ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about foreign pickles: refused below
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StoreError(
            f"checkpoint {file} would need unpickling, which can run code; refused. Convert it "
            "where you trust it: safetensors.torch.save_file({k: v.contiguous() for k, v in "
            "model.state_dict().items()}, 'weights.safetensors')"
        ) from error
    except StoreError:
        raise
    except Exception as error:  # torch's reader fails on a foreign file in any way it likes
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(
            f"checkpoint {file}: neither safetensors nor a whole torch file: {cause}; fetch or "
            "save it again"
        ) from error
    return _unwrapped(loaded, file)


def _unwrapped(loaded: object, file: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[w] for w in _WRAPPERS if isinstance(loaded.get(w), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not loaded:
        raise StoreError(
            f"checkpoint {file}: expected named tensors, got {type(loaded).__name__}; save "
            "model.state_dict()"
        )
    strange = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strange:
        raise StoreError(
            f"checkpoint {file}: these entries are not tensors: {', '.join(strange[:_SHOWN])}; "
            f"save model.state_dict(), alone or under one of {', '.join(_WRAPPERS)}"
        )
    return {str(key): value for key, value in loaded.items()}


def _unprefixed(weights: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """``weights`` with those prefixes off that all names share, where more names then fit."""
    wanted = set(expected)
    best, current = weights, weights
    for _ in range(len(_PREFIXES)):
        prefix = _common(list(current))
        if prefix is None:
            break
        current = {name.removeprefix(prefix): value for name, value in current.items()}
        if len(wanted & current.keys()) > len(wanted & best.keys()):
            best = current
    return best


def _common(names: Sequence[str]) -> str | None:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in names):
            return prefix
    return None
