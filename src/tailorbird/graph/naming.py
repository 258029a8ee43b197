"""Modules under names that can stand in a program: what torch.fx writes as source, and what is
stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

import torch
from torch import fx, nn


def gather(graph: fx.Graph, *homes: nn.Module, name: str = "GraphModule") -> fx.GraphModule:
    """A copy of a graph with only the modules and tensors that it names, these taken from the first
    of ``homes`` that has them, under names of letters, digits and underscores.

    Children of networks may be called anything, ``global`` or ``conv 1/2``; torch.fx writes names
    into Python source as they are. Buffers stay out of the ``state_dict`` if they were.

    Example:
        >>> net = nn.Sequential()
        >>> net.add_module("conv 1", nn.Conv2d(3, 8, 3))
        >>> list(gather(fx.Tracer().trace(net), net).state_dict())
        ['conv_1.weight', 'conv_1.bias']
    """
    own = fx.Graph()
    own.output(own.graph_copy(graph, {}))
    held = [node for node in own.nodes if node.op in ("call_module", "get_attr")]
    clean = _clean({str(node.target) for node in held})
    root = nn.Module()
    fleeting = []
    for node in held:
        path, node.target = str(node.target), clean[str(node.target)]
        value, persistent = _fetch(path, homes)
        _place(root, node.target, value)
        fleeting += [] if persistent else [node.target]
    module = fx.GraphModule(root, own, name)
    for path in fleeting:
        owner, _, last = path.rpartition(".")
        module.get_submodule(owner)._non_persistent_buffers_set.add(last)
    return module


def compact(graph: fx.Graph, home: nn.Module, name: str) -> fx.GraphModule:
    """A graph module of only those nodes, and then modules, that its output needs, in eval mode."""
    module = gather(graph, home, name=name)
    module.graph.eliminate_dead_code()
    return gather(module.graph, module, name=name).eval()


def _place(root: nn.Module, path: str, value: object) -> None:
    """Put something at a path, in modules made for it; what holds it already is left alone."""
    holder = root
    *owners, last = path.split(".")
    for name in owners:
        if name not in holder._modules:
            if hasattr(holder, name):
                return
            holder.add_module(name, nn.Module())
        holder = holder.get_submodule(name)
    if isinstance(value, nn.Module):
        holder.add_module(last, value)
    elif isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        if last not in holder._buffers:
            holder.register_buffer(last, value)
    elif not hasattr(holder, last):
        setattr(holder, last, value)


def _fetch(path: str, homes: tuple[nn.Module, ...]) -> tuple[Any, bool]:
    """What stands at a path, and whether it belongs to the state of its module."""
    owner, _, last = path.rpartition(".")
    for home in homes:
        try:
            holder = home.get_submodule(owner)
            value = getattr(holder, last)
        except AttributeError:
            continue
        return value, last not in holder._non_persistent_buffers_set
    raise AttributeError(path)


def _clean(paths: set[str]) -> Mapping[str, str]:
    """Path -> path of which each part is a name that torch.fx can write, and no two are equal."""
    made: dict[str, str] = {"": ""}
    taken: set[str] = set()
    prefixes = {path[:end] for path in paths for end in _ends(path)}
    for path in sorted(prefixes, key=lambda p: (p.count("."), not _is_clean(p), p)):
        owner, _, last = path.rpartition(".")
        wanted = re.sub(r"\W", "_", last, flags=re.ASCII)
        wanted += "_" if iskeyword(wanted) else ""
        wanted = f"m{wanted}" if wanted.startswith("__") else wanted
        stem = f"{made[owner]}." if owner else ""
        number, free = 1, wanted
        while stem + free in taken:
            number += 1
            free = f"{wanted}{number}"
        made[path] = stem + free
        taken.add(made[path])
    return made


def _ends(path: str) -> list[int]:
    return [*(i for i, letter in enumerate(path) if letter == "."), len(path)]


def _is_clean(path: str) -> bool:
    return all(
        re.fullmatch(r"\w+", name, re.ASCII) and not iskeyword(name) and not name.startswith("__")
        for name in path.split(".")
    )
