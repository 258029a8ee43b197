"""What a network does in train mode beside what it does in eval mode.

The two traces are walked side by side. What train mode adds at random (drop connect, stochastic
depth) is left out, or, where it drops whole samples of a branch, becomes timm's ``DropPath`` of
the same rate; so are outputs that only train mode returns (auxiliary heads).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from tailorbird.graph.passes import follower, parting, scope
from tailorbird.graph.tracer import VALUES

if TYPE_CHECKING:
    from timm.layers.drop import DropPath

_SAMPLES = 2048  # enough that a rate of 1 % drops some
_RANDOM = ("rand", "bernoulli", "dropout", "normal", "uniform", "exponential", "multinomial")


@dataclass
class Modes:
    """How train mode differs from eval mode.

    Args:
        repairs: nodes of the eval trace to be replaced by a module that follows the mode.
        drops: branches that train mode drops: the node, its readers' arguments, the module.
        notes: what was left out or replaced, one sentence each.
    """

    repairs: list[tuple[fx.Node, nn.Module]] = field(default_factory=list)
    drops: list[Noise] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Noise:
    """A stretch of the train trace that eval mode skips, from ``source`` to ``result``."""

    source: fx.Node
    result: fx.Node
    stretch: list[fx.Node]
    drop: DropPath | None = None
    readers: list[tuple[fx.Node, tuple[Any, Any]]] = field(default_factory=list)


def compare(evaluated: fx.Graph, trained: fx.Graph, home: nn.Module) -> Modes | str:
    """Compare the traces of eval and train mode.

    Args:
        evaluated: of eval mode.
        trained: of train mode; loses its auxiliary outputs.
        home: the network.

    Returns:
        The differences, or the dotted path of the module in which the two traces part for good.
    """
    modes = Modes()
    if _drop_extra_outputs(evaluated, trained):
        modes.notes.append("outputs that only train mode returns (auxiliary heads) are left out")
    twins: dict[fx.Node, fx.Node] = {}
    noises: dict[fx.Node, Noise] = {}
    left, right = list(evaluated.nodes), list(trained.nodes)
    j = 0
    for i, node in enumerate(left):
        if j == len(right) or not _same(node, right[j], twins):
            module = follower(node, right[j]) if j < len(right) else None
            if module is not None:
                modes.repairs.append((node, module))
            else:
                noise = _noise(node, right[j:], twins)
                path = parting(left[i:], right[j:]) if j < len(right) else ""
                if noise is None or not _taken(noise, path, home, modes):
                    return path
                noises[noise.result], twins[noise.result] = noise, noise.source
                j += len(noise.stretch)
        for read in right[j].all_input_nodes:
            if read in noises and noises[read].drop is not None:
                dropped = {result: result for result, noise in noises.items() if noise.drop}
                noises[read].readers.append((node, _twin_args(right[j], twins | dropped)))
        twins[right[j]] = node
        j += 1
    modes.drops = [noise for noise in noises.values() if noise.drop is not None]
    return modes


def _taken(noise: Noise, path: str, home: nn.Module, modes: Modes) -> bool:
    """Whether the noise can go; a small module of its own is better kept whole."""
    part = home.get_submodule(scope(noise.result))
    where = f"{scope(noise.result)!r} ({type(part).__name__})" if part is not home else "forward"
    rate = drop_rate(noise)
    if rate is not None:
        from timm.layers.drop import DropPath  # with it comes all of timm

        noise.drop = DropPath(rate)
        modes.notes.append(f"{where}: its drop path of train mode became timm's DropPath({rate:g})")
        return True
    if path and next(part.children(), None) is None:
        return False
    modes.notes.append(f"{where}: the random regularisation of train mode is left out")
    return True


def _drop_extra_outputs(evaluated: fx.Graph, trained: fx.Graph) -> bool:
    """Cut the train trace down to the output that eval mode returns."""
    wanted, end = _output(evaluated).args[0], _output(trained)
    given = end.args[0]
    if isinstance(given, fx.Node) and isinstance(given.target, type):
        given = (*given.args, *given.kwargs.values())
    if isinstance(given, dict):
        given = tuple(given.values())
    if not isinstance(given, (tuple, list)) or not isinstance(wanted, fx.Node):
        return False
    shape = wanted.meta.get(VALUES)
    main = [n for n in given if isinstance(n, fx.Node) and n.meta.get(VALUES) == shape]
    if not main:
        return False
    end.args = (main[0],)
    _erase_unread(trained, _leading_to([n for n in given if isinstance(n, fx.Node)]))
    return True


def _output(graph: fx.Graph) -> fx.Node:
    last: fx.Node = list(graph.nodes)[-1]
    return last


def _leading_to(nodes: list[fx.Node]) -> set[fx.Node]:
    found, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend([*node.all_input_nodes, *(u for u in node.users if _packs(u))])
    return found


def _packs(node: fx.Node) -> bool:
    return isinstance(node.target, type)


def _erase_unread(graph: fx.Graph, nodes: set[fx.Node]) -> None:
    for node in reversed(list(graph.nodes)):
        if node in nodes and not node.users and node.op != "placeholder":
            graph.erase_node(node)


def _twin_args(node: fx.Node, twins: dict[fx.Node, fx.Node]) -> tuple[Any, Any]:
    return fx.node.map_arg((node.args, node.kwargs), lambda n: twins.get(n, f"?{n}"))


def _same(node: fx.Node, other: fx.Node, twins: dict[fx.Node, fx.Node]) -> bool:
    if (node.op, node.target) != (other.op, other.target):
        return False
    return repr((node.args, node.kwargs)) == repr(_twin_args(other, twins))


def _noise(node: fx.Node, rest: list[fx.Node], twins: dict[fx.Node, fx.Node]) -> Noise | None:
    """The stretch of train mode after which ``node`` follows, if it is noise."""
    for k, other in enumerate(rest):
        stretch = rest[:k]
        results = [n for n in stretch if any(user not in stretch for user in n.users)]
        if len(results) != 1 or other.op != node.op:
            continue
        result = results[0]
        reads = {twins[r]: None for n in stretch for r in n.all_input_nodes if r in twins}
        for source in reads:
            noise = Noise(source, result, stretch)
            if _same(node, other, {**twins, result: source}) and _is_noise(noise, twins):
                return noise
    return None


def _is_noise(noise: Noise, twins: dict[fx.Node, fx.Node]) -> bool:
    """Random, made from the source, and of its shape."""
    before = _leading_to([noise.result])
    inside = [node for node in noise.stretch if node in before]
    random = any(str(_name(node)).lstrip("_").startswith(_RANDOM) for node in inside)
    reads = {twins.get(read) for node in inside for read in node.all_input_nodes}
    same = noise.result.meta.get(VALUES) == noise.source.meta.get(VALUES)
    return random and same and noise.source in reads


def _name(node: fx.Node) -> object:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def drop_rate(noise: Noise) -> float | None:
    """The rate at which the noise drops whole samples and scales up what stays, else ``None``."""
    shape = noise.source.meta[VALUES][0]
    values: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:  # noqa: ANN401
        if node in values:
            return values[node]
        seen = node.meta[VALUES]
        if seen == noise.source.meta[VALUES]:
            return torch.ones(_SAMPLES, *shape[1:2], *(1 for _ in shape[2:]))
        if isinstance(seen[0], int) and seen[0] * 3 == seen[1] * 2:
            return seen[0] // 2 * _SAMPLES
        raise KeyError(node)

    try:
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(0)
            for node in noise.stretch:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
                values[node] = _call(node)(*args, **kwargs)
            rows = values[noise.result].reshape(_SAMPLES, -1)
    except Exception:  # whatever does not run so is no plain drop path
        return None
    return _rate(rows)


def _call(node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_method":
        return lambda x, *args, **kwargs: getattr(x, str(node.target))(*args, **kwargs)
    if node.op == "call_function" and callable(node.target):
        return node.target
    raise KeyError(node.op)


def _rate(rows: Tensor) -> float | None:
    first, top = rows[:, 0], rows.max()
    kept = torch.isclose(first, top)
    plain = torch.equal(rows, first[:, None].expand_as(rows)) and bool((kept | (first == 0)).all())
    if not plain or top <= 1 or bool(kept.all()):
        return None
    return round(1 - 1 / top.item(), 4)


def install_drops(graph: fx.Graph, root: nn.Module, drops: list[Noise]) -> None:
    """Put each ``DropPath`` between its branch and those that read it."""
    calls: dict[fx.Node, fx.Node] = {}
    for noise in drops:
        assert noise.drop is not None
        name = f"drop_{noise.source.name}"
        root.add_module(name, noise.drop.eval())
        with graph.inserting_after(noise.source):
            call = graph.call_module(name, (noise.source,))
        call.meta = dict(noise.source.meta)
        calls[noise.result] = call
    for noise in drops:
        for node, (args, kwargs) in noise.readers:
            node.args, node.kwargs = fx.node.map_arg((args, kwargs), lambda n: calls.get(n, n))
