"""Networks on disk: structure as JSON, weights as safetensors, never pickle.

``NAME.json`` is written last and holds the SHA-256 of ``NAME.safetensors`` and of its own
content, so a pair that is half-written, mixed or changed is found out and never loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import fx, nn

from tailorbird.errors import GraphError, StoreError, TailorbirdError
from tailorbird.files import write_bytes
from tailorbird.graph.callables import code_path, function_name
from tailorbird.graph.describe import (
    describe,
    plain_tensors,
)
from tailorbird.graph.encoding import Json, code_in
from tailorbird.graph.rebuild import Builder, join

_FORMAT = "tailorbird-module"
VERSION = 2
"""Of stored networks."""

_READ = (1, 2)
_MOST_ELEMENTS = 2**31
_LARGEST_JSON = 256 * 2**20


def to_spec(module: fx.GraphModule) -> Json:
    """The network's structure as a JSON-able table, without weights.

    Shared modules and tied tensors stay shared, frozen parameters and each module's train or eval
    mode are kept. The table is proved by rebuilding the network from it on the meta device.

    Raises:
        GraphError: naming what can't be stored without pickle.

    Example:
        >>> net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
        >>> again = from_spec(to_spec(net))
        >>> tuple(again(torch.zeros(1, 3, 5, 5)).shape)
        (1, 8, 3, 3)
    """
    if not isinstance(module, fx.GraphModule):
        raise GraphError(
            f"expected a traced network (fx.GraphModule), got {type(module).__name__}; "
            "trace it with tailorbird.graph.trace.trace(model, input_shape).module"
        )
    network = describe(module, "", {})
    code = sorted(code_in(network))
    spec: Json = {"format": _FORMAT, "version": VERSION, "code": code, "network": network}
    try:
        skeleton, _ = _skeleton(spec, code)
    except TailorbirdError as error:
        raise GraphError(f"the network's structure can't be read back: {error}") from error
    names = {name for name, _ in _tensors(skeleton)}
    originals = {name: tensor for name, tensor in _tensors(module) if name in names}
    modes = {path: child.training for path, child in module.named_modules(remove_duplicate=False)}
    odd = [
        path
        for path, _ in skeleton.named_modules()
        if modes.get(path, module.training) != module.training
    ]
    frozen = [
        name
        for name, tensor in originals.items()
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    ]
    ties: dict[int, list[str]] = {}
    for name, tensor in originals.items():
        ties.setdefault(id(tensor), []).append(name)
    return spec | {
        "training": module.training,
        "other_mode": odd,
        "frozen": frozen,
        "ties": [group for group in ties.values() if len(group) > 1],
    }


def from_spec(spec: Mapping[str, object], *, trust: Collection[str] = ()) -> fx.GraphModule:
    """The network that ``to_spec`` described, with fresh weights as its constructors draw them.

    Layers that are rebuilt from attributes instead of their constructor start at zero.

    Args:
        spec: the table.
        trust: import paths of code that may be imported and run: those that the table names.

    Raises:
        StoreError: for a table that ``to_spec`` would not have written, or that names code which
            isn't trusted; nothing else but listed tensor functions and layer classes is ever
            looked up or called.
    """
    _skeleton(spec, trust)
    builder = Builder(trust)
    module = builder.rebuild(spec["network"])
    return _finish(cast(fx.GraphModule, module), spec, builder)


def is_storable(module: fx.GraphModule) -> bool:
    """Whether ``save_module`` would store a network."""
    try:
        to_spec(module)
    except GraphError:
        return False
    return True


def code_of(module: fx.GraphModule) -> tuple[str, ...]:
    """Import paths of the user's own code that a network is made of, as far as it can be stored.

    Example:
        >>> code_of(fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())))
        ()
    """
    found: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "call_module":
            with suppress(GraphError):
                found |= code_in(describe(module.get_submodule(str(node.target)), "", {}))
        elif node.op == "call_function" and function_name(node.target) is None:
            found |= {path for path in [code_path(node.target)] if path is not None}
    return tuple(sorted(found))


def _skeleton(spec: Mapping[str, object], trust: Collection[str]) -> tuple[fx.GraphModule, Builder]:
    """The network on the meta device: all checks, no memory."""
    if not isinstance(spec, Mapping) or spec.get("format") != _FORMAT:
        raise StoreError(f"expected a stored network with format {_FORMAT!r}")
    if spec.get("version") not in _READ:
        raise StoreError(
            f"stored network of version {str(spec.get('version'))[:20]!r}: this Tailorbird reads "
            f"versions up to {VERSION}; upgrade Tailorbird"
        )
    builder = Builder(trust)
    with torch.device("meta"):
        try:
            _check_trust(spec.get("network"), trust)
            module = builder.rebuild(spec.get("network"))
        except RecursionError:
            raise StoreError("stored network: nested beyond all reason") from None
    if not isinstance(module, fx.GraphModule):
        raise StoreError("stored network: expected a graph at the top")
    elements = sum(tensor.numel() for _, tensor in _tensors(module))
    if elements > _MOST_ELEMENTS:
        raise StoreError(
            f"stored network: {elements:.3g} weights, more than the {_MOST_ELEMENTS:.3g} accepted"
        )
    return module, builder


def _check_trust(network: object, trust: Collection[str]) -> None:
    missing = sorted(code_in(network) - set(trust))
    if missing:
        raise StoreError(
            f"to rebuild it, code that it names has to be imported and run: {', '.join(missing)}; "
            f"if you trust it and that code, load it with trust={missing}"
        )


def _finish(module: fx.GraphModule, spec: Mapping[str, object], builder: Builder) -> fx.GraphModule:
    """Tie tensors, freeze parameters, set modes and what refers to tensors."""
    tensors = dict(_tensors(module))
    ties, frozen, odd = (spec.get(key, []) for key in ("ties", "frozen", "other_mode"))
    if not all(isinstance(part, list) for part in (ties, frozen, odd)):
        raise StoreError("stored network: expected lists of ties, frozen weights and modes")
    for group in cast(list[object], ties):
        names = group if isinstance(group, list) else []
        if not names or any(not isinstance(name, str) or name not in tensors for name in names):
            raise StoreError(f"stored network: tied tensors {str(group)[:80]!r} don't exist")
        for name in names[1:]:
            if tensors[name].shape != tensors[names[0]].shape:
                raise StoreError(f"stored network: {name!r} can't be tied, its shape differs")
            _put(module, name, tensors[names[0]])
    for name in cast(list[object], frozen):
        if not isinstance(name, str) or not isinstance(tensors.get(name), nn.Parameter):
            raise StoreError(f"stored network: frozen weight {str(name)[:80]!r} doesn't exist")
        tensors[name].requires_grad_(False)
    modules = dict(module.named_modules(remove_duplicate=False))
    training = spec.get("training") is True
    module.train(training)
    for path in cast(list[object], odd):
        if not isinstance(path, str) or path not in modules:
            raise StoreError(f"stored network: module {str(path)[:80]!r} doesn't exist")
        modules[path].training = not training
    builder.settle()
    return module


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers, each name of a shared one, also buffers that aren't saved
    in a ``state_dict``, and tensors that are plain attributes."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for path, part in module.named_modules(remove_duplicate=False):
        yield from ((join(path, name), tensor) for name, tensor in plain_tensors(part))


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    holder = module.get_submodule(path)
    for table in (holder._parameters, holder._buffers, vars(holder)):
        if last in table:
            cast(dict[str, torch.Tensor | None], table)[last] = tensor
            return


# ---------------------------------------------------------------- files


def save_module(
    module: fx.GraphModule, folder: Path, name: str, extra: Mapping[str, object]
) -> tuple[str, ...]:
    """Write ``NAME.safetensors``, then ``NAME.json`` with structure, checksums and ``extra``.

    Each is written to a temporary file, flushed to disk and renamed; the folder is made.

    Args:
        extra: JSON-able table of the caller's, given back by ``load_module``.

    Returns:
        Import paths of the code that ``load_module`` has to be trusted with.

    Raises:
        GraphError: when the network can't be stored without pickle; nothing is written.
        StoreError: when a file can't be written, naming it, or ``extra`` isn't JSON-able.
    """
    structure, weights = _paths(folder, name)
    spec = to_spec(module)
    skeleton, _ = _skeleton(spec, cast(list[str], spec["code"]))
    kept = {item for item, _ in _tensors(skeleton)}
    repeated = {item for group in cast(list[list[str]], spec["ties"]) for item in group[1:]}
    tensors = {
        item: tensor.detach().to("cpu", copy=True).contiguous()
        for item, tensor in _tensors(module)
        if item in kept - repeated
    }
    data = safetensors.torch.save(tensors)
    try:
        body = {"spec": spec, "extra": json.loads(_dump(dict(extra)))}
    except (TypeError, ValueError) as error:
        raise StoreError(f"{structure}: extra data isn't plain JSON: {error}") from error
    record = {
        "weights": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
        "sha256": hashlib.sha256(_dump(body)).hexdigest(),
        **body,
    }
    write_bytes(weights, data)
    write_bytes(structure, _dump(record))
    return tuple(cast(list[str], spec["code"]))


def load_module(
    folder: Path, name: str, *, trust: Collection[str] = ()
) -> tuple[fx.GraphModule, Json]:
    """The network of ``NAME.json`` and ``NAME.safetensors`` on the CPU, and the caller's ``extra``.

    Args:
        folder: where the files lie.
        name: of both, without ending.
        trust: import paths of code that may be imported and run: those that the file names.

    Raises:
        StoreError: naming the file that is missing, half-written, changed since, hostile, or in
            need of code that isn't trusted.
    """
    structure, weights = _paths(folder, name)
    record = _read_structure(structure)
    data = _read(weights)
    stated = record["weights"]
    if (
        not isinstance(stated, dict)
        or stated.get("bytes") != len(data)
        or stated.get("sha256") != hashlib.sha256(data).hexdigest()
    ):
        raise StoreError(
            f"{weights}: doesn't match the checksum in {structure.name}; it was half-written or "
            "changed. Delete both files and run again"
        )
    try:
        spec = cast(Json, record["spec"])
        module, builder = _skeleton(spec, trust)
        _fill_in(module, safetensors.torch.load(data), spec)
        return _finish(module, spec, builder), cast(Json, record["extra"])
    except SafetensorError as error:
        raise StoreError(f"{weights}: not a safetensors file: {error}") from error
    except StoreError as error:
        raise StoreError(f"{structure}: {error}") from error


def _fill_in(module: fx.GraphModule, tensors: Mapping[str, torch.Tensor], spec: Json) -> None:
    """Put loaded tensors in the place of the skeleton's; all faults of fit at once."""
    groups = spec.get("ties")
    ties = (
        [group for group in groups if isinstance(group, list)] if isinstance(groups, list) else []
    )
    repeated = {str(name) for group in ties for name in group[1:]}
    wanted = {name: tensor for name, tensor in _tensors(module) if name not in repeated}
    problems = [f"{name}: missing" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [f"{name}: unexpected" for name in sorted(tensors.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & tensors.keys()):
        given, expected = tensors[name], wanted[name]
        if given.shape != expected.shape or given.dtype != expected.dtype:
            problems.append(
                f"{name}: expected {tuple(expected.shape)} {expected.dtype}, "
                f"got {tuple(given.shape)} {given.dtype}"
            )
    if problems:
        raise StoreError("weights don't fit: " + "; ".join(problems))
    for name, expected in wanted.items():
        if isinstance(expected, nn.Parameter):
            _put(module, name, nn.Parameter(tensors[name], requires_grad=expected.requires_grad))
        else:
            _put(module, name, tensors[name])


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}", name):
        raise StoreError(f"name {name!r}: use letters, digits, '.', '_' and '-', at most 150")
    return Path(folder) / f"{name}.json", Path(folder) / f"{name}.safetensors"


def _read_structure(path: Path) -> Json:
    data = _read(path)
    if len(data) > _LARGEST_JSON:
        raise StoreError(f"{path}: {len(data)} bytes is too large for a network's structure")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not JSON ({error}); delete it and run again") from error
    if not isinstance(record, dict) or {"weights", "sha256", "spec", "extra"} - record.keys():
        raise StoreError(f"{path}: not a stored network")
    body = {"spec": record["spec"], "extra": record["extra"]}
    if hashlib.sha256(_dump(body)).hexdigest() != record["sha256"]:
        raise StoreError(f"{path}: changed since it was written; delete it and run again")
    return record


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: missing; it was never finished, or was moved away") from None
    except OSError as error:
        raise StoreError(f"{path}: can't be read: {error.strerror}") from error


def _dump(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
