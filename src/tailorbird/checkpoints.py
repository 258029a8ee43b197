"""Weights from files: read without running anything, the right set, under the right names."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tailorbird.errors import StoreError
from tailorbird.pickled import absurdity

_AVERAGED = ("ema", "averaged", "swa")
"""Words in the names of averaged weights, which are taken before others, as timm does."""

_BOOKKEEPING = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
"""Last parts of names that carry no weights: counters of BatchNorm, averages and profilers."""

_SHOWN, _DEEPEST = 10, 3


@dataclass(frozen=True)
class Weights:
    """Named tensors of a file.

    Args:
        tensors: by name.
        taken: where in the file they stood, dotted; empty for the file itself.
        others: where it holds further sets.
        widened: types of eight bits that were brought to float32, such as ``float8_e4m3fn``.
    """

    tensors: Mapping[str, Tensor]
    taken: str = ""
    others: tuple[str, ...] = field(default=())
    widened: tuple[str, ...] = ()


def read_tensors(file: Path, key: str | None = None) -> dict[str, Tensor]:
    """The named tensors in ``file``: safetensors, or a torch file that holds nothing that runs.

    Args:
        file: the path.
        key: see `read_weights`.

    Raises:
        StoreError: see `read_weights`.
    """
    return dict(read_weights(file, key).tensors)


def read_weights(file: Path, key: str | None = None) -> Weights:
    """One set of weights of a file, which may hold several, such as averaged ones beside others.

    Args:
        file: safetensors, or what ``torch.save`` made of a state dict, alone or within
            dictionaries.
        key: where the set stands, such as ``state_dict``; the averaged one by default, else the
            only one.

    Raises:
        StoreError: for a file that can't be read, would need unpickling, or holds no such set, or
            several that nothing tells apart; and for tensors that are no plain ones in memory.
    """
    loaded = _loaded(file)
    sets = dict(_sets(loaded))
    if not sets:
        raise StoreError(
            f"checkpoint {file}: expected named tensors, got {_described(loaded)}; save "
            "model.state_dict()"
        )
    taken = _choice(sets, key, file)
    tensors = sets[taken]
    odd = [f"{name} ({why})" for name, value in tensors.items() if (why := _oddity(value))]
    if odd:
        listed = ", ".join(odd[:_SHOWN])
        raise StoreError(
            f"checkpoint {file}: {len(odd)} tensors can't be used: {listed}; save plain ones: "
            "{k: v.dequantize().to_dense().contiguous() for k, v in ...}"
        )
    narrow = {name: value for name, value in tensors.items() if _is_eight_bits(value)}
    return Weights(
        {**tensors, **{name: value.float() for name, value in narrow.items()}},
        taken,
        tuple(name for name in sets if name != taken),
        tuple(sorted({_dtype(value) for value in narrow.values()})),
    )


def load_weights(model: nn.Module, path: str | Path, key: str | None = None) -> list[str]:
    """Copy the weights in file ``path`` into ``model``, which changes in place.

    A prefix that all of them share, such as ``module.``, is taken off, and what lies beside the
    network's own (a loss's weights, a metric's counts) is left out; counters of batches may be
    missing. Weights in half precision become what the network has. Nothing is copied unless all of
    it fits.

    Args:
        model: the network.
        path: of the file.
        key: see `read_weights`.

    Returns:
        What was chosen, left out or converted, in words.

    Raises:
        StoreError: for a file that can't be read or doesn't fit, see `read_weights`; missing,
            unexpected and misshaped names are listed at once.
    """
    file = Path(path)
    read, expected = read_weights(file, key), model.state_dict()
    weights, beside = _own(read.tensors, expected)
    missing = [name for name in expected if name not in weights and not _is_bookkeeping(name)]
    unexpected = [name for name in weights if name not in expected and not _is_bookkeeping(name)]
    shared = [name for name in weights if name in expected]
    misshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in shared
        if not is_lazy(expected[name]) and weights[name].shape != expected[name].shape
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
        if read.others:
            hint += f"; taken was '{read.taken}', there are also {', '.join(read.others)}: name "
            hint += "one as checkpoint_key"
        listed = "".join(f"\n  - {line}" for line in lines)
        raise StoreError(f"checkpoint {file} does not fit {type(model).__name__}:{listed}\n{hint}")
    kept = {name: value for name, value in expected.items() if not is_lazy(value)}
    model.load_state_dict({**kept, **{name: weights[name] for name in shared}})
    return _notes(file, read, beside, [weights[name] for name in shared])


def _notes(file: Path, read: Weights, beside: list[str], taken: list[Tensor]) -> list[str]:
    notes = []
    if read.others:
        notes.append(
            f"{file.name}: '{read.taken}' was taken; it also holds {', '.join(read.others)} "
            "(checkpoint_key chooses)"
        )
    if beside:
        notes.append(f"{file.name}: left out beside the network: {', '.join(beside[:_SHOWN])}")
    narrow = {_dtype(t) for t in taken if t.dtype in _NARROW} | set(read.widened)
    if narrow:
        notes.append(f"{file.name}: {', '.join(sorted(narrow))} weights were brought to float32")
    return notes


_NARROW = (torch.float16, torch.bfloat16)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_eight_bits(tensor: Tensor) -> bool:
    """Whether a tensor is of a type that PyTorch can convert, and hardly compute with."""
    return tensor.is_floating_point() and tensor.element_size() == 1


def _loaded(file: Path) -> object:
    """What the file holds: tensors and plain containers."""
    if not file.is_file():
        raise StoreError(f"checkpoint {file}: no such file; check the path")
    with file.open("rb") as stream:
        head = stream.read(9)
    if file.suffix == ".safetensors" or head[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, ValueError) as error:
            raise StoreError(
                f"checkpoint {file}: not a whole safetensors file: {error}; fetch or save it again"
            ) from error
    if _is_torchscript(file):
        raise StoreError(
            f"checkpoint {file} is a TorchScript archive, which holds code; save the network's "
            "weights where it runs: torch.save(model.state_dict(), 'weights.pth')"
        )
    try:
        if why := absurdity(file):
            raise StoreError(
                f"checkpoint {file}: refused, it holds {why}; save model.state_dict() alone"
            )
        # A namespace, as training scripts store their arguments in, is plain data.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)  # about foreign pickles: refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except StoreError:
        raise
    except pickle.UnpicklingError as error:
        raise StoreError(
            f"checkpoint {file} would need unpickling, which can run code; refused. Convert it "
            "where you trust it: safetensors.torch.save_file({k: v.contiguous() for k, v in "
            "model.state_dict().items()}, 'weights.safetensors')"
        ) from error
    except Exception as error:  # torch's reader fails on a foreign file in any way it likes
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(
            f"checkpoint {file}: neither safetensors nor a whole torch file: {cause}; fetch or "
            "save it again"
        ) from error


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _sets(
    value: object, path: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dictionaries that hold tensors, each with where it stands; optimisers are left out."""
    seen = set() if seen is None else seen
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return
    tensors = {str(name): one for name, one in value.items() if isinstance(one, Tensor)}
    inner = [(str(name), one) for name, one in value.items() if isinstance(one, Mapping)]
    if tensors:
        yield path, tensors
    if id(value) in seen:  # it was walked under another name
        return
    seen.add(id(value))
    for name, one in inner:
        if name != "optimizer" and not name.startswith("optimizer"):
            yield from _sets(one, f"{path}.{name}" if path else name, depth + 1, seen)


def _choice(sets: Mapping[str, object], key: str | None, file: Path) -> str:
    known = ", ".join(name or "the file itself" for name in sets)
    if key is not None:
        if key not in sets:
            raise StoreError(f"checkpoint {file}: holds no weights under '{key}'; it has {known}")
        return key
    averaged = [name for name in sets if any(word in name.lower() for word in _AVERAGED)]
    plain = [name for name in sets if name.split(".")[-1] in _PLAIN]
    for chosen in (averaged, list(sets), plain):
        if len(chosen) == 1:
            return chosen[0]
    raise StoreError(
        f"checkpoint {file}: holds several sets of weights: {known}; name one as checkpoint_key"
    )


_PLAIN = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "module")


def _own(
    tensors: Mapping[str, Tensor], expected: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The network's own weights without the prefix that they share, and what lies beside them.

    Of all prefixes that names end on expected ones behind, the one under which most are found.
    """
    tensors = _unwrapped(tensors, set(expected))
    wanted = [name for name in expected if not _is_bookkeeping(name)]
    prefixes = {""}
    for name in wanted[:3]:
        prefixes |= {key.removesuffix(name) for key in tensors if key.endswith(f".{name}")}
    prefix = max(sorted(prefixes, key=len), key=lambda p: sum(p + n in tensors for n in wanted))
    inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    beside = [k for k in tensors if not k.startswith(prefix) and not _is_bookkeeping(k)]
    return inside, beside


_WRAPPERS = ("module", "_orig_mod")


def _unwrapped(tensors: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Tensors under the network's own names where only wrappers of parts stand between."""

    def bare(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in _WRAPPERS)

    own = {bare(name): name for name in expected}
    if len(own) < len(expected):
        return dict(tensors)
    found = {name: own.get(bare(name), name) for name in tensors}
    plain = len(set(found.values())) == len(found)
    return {found[name] if plain else name: value for name, value in tensors.items()}


def _is_bookkeeping(name: str) -> bool:
    return name.rpartition(".")[2] in _BOOKKEEPING


def _oddity(tensor: Tensor) -> str:
    """Why a tensor is no plain one in memory; empty where it is."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_meta:
        return "without values"
    if "_x2" in str(tensor.dtype):
        return "two numbers in a byte"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "expanded beyond what is stored"
    return ""


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(str, list(value)[:5])) or 'nothing'}"
    return type(value).__name__
