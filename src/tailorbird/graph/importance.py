"""How much each channel of a body matters, and pruning what matters least.

Lower scores matter less. Scores of one call are comparable across the body's groups.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.channels import Channels, Group, analyse, apply_keep
from tailorbird.graph.cutters import MIXING, Cut, Place

Scores = Mapping[int, Tensor]
"""Group index -> (size,) score per position, float64 on the CPU; lower matters less."""


def layer_norms(body: fx.GraphModule, cut: Cut) -> tuple[Tensor, Tensor]:
    """L1 norms of a layer's weight: per output channel and per input channel."""
    weight = body.get_submodule(cut.path).weight
    assert isinstance(weight, Tensor)
    table = weight.detach().double().cpu().abs()
    table = table.flatten(2).sum(2) if table.ndim > 2 else table
    transposed = cut.kind.endswith("transposed")
    groups = len(cut.rows if transposed else cut.columns) // table.shape[1]
    first, second = table.sum(1), table.reshape(groups, -1, table.shape[1]).sum(1).flatten()
    return (second, first) if transposed else (first, second)


def magnitude_scores(
    body: fx.GraphModule, in_shape: Sequence[int], *, channels: Channels | None = None
) -> dict[int, Tensor]:
    """L1 norm of the weights that make and read each channel.

    Each layer's norms are divided by their mean, so that wide and narrow layers, and layers
    before and after a batch norm, compare; a channel's score is the mean over its layers.

    Args:
        body: one input, one output tensor; not changed.
        in_shape: shape of the input without batch.
        channels: the body's analysis, if at hand.

    Returns:
        Scores of every prunable group.

    Example:
        >>> body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))
        >>> _ = nn.init.zeros_(body.get_submodule("0").weight[5:])
        >>> _ = nn.init.zeros_(body.get_submodule("1").weight[:, 5:])
        >>> magnitude_scores(body, (3, 8, 8))[1][5:].tolist()
        [0.0, 0.0, 0.0]
    """
    found = channels or analyse(body, in_shape)
    total = {g.index: torch.zeros(g.size, dtype=torch.float64) for g in found.groups}
    count = {g.index: torch.zeros(g.size, dtype=torch.float64) for g in found.groups}
    for cut in found.cuts:
        if cut.kind not in MIXING:
            continue
        made, read = layer_norms(body, cut)
        for norms, places in ((made, cut.rows), (read, cut.columns)):
            scaled = norms / norms.mean().clamp_min(1e-12)
            for value, (group, position) in zip(scaled, places, strict=True):
                total[group][position] += value
                count[group][position] += 1
    return {
        g.index: total[g.index] / count[g.index].clamp_min(1) for g in found.groups if g.prunable
    }


def discrepancy_scores(
    body: fx.GraphModule,
    in_shape: Sequence[int],
    batches: Sequence[Tensor],
    *,
    channels: Channels | None = None,
    samples: int = 512,
) -> dict[int, Tensor]:
    """Mean squared error that masking each channel alone causes at the body's own output.

    The variant of CURL (Luo and Wu 2020) that Bespoke uses: one channel-dependency position at
    a time is zeroed at every layer that reads it (and at the output, if it gets there). Runs in
    eval mode on a copy. Cost: one pass over ``batches`` per position, of the layers from the
    first reader on only; many positions share one pass as long as ``samples`` inputs fit.

    Args:
        body: one input, one output tensor; not changed.
        in_shape: shape of the input without batch.
        batches: inputs (n, *in_shape) of the body.
        channels: the body's analysis, if at hand.
        samples: how many inputs, over all positions, to run at once.

    Returns:
        Scores of every prunable group whose pruning equals masking.

    Raises:
        GraphError: if there are no batches or they do not have the body's input shape.
    """
    found = channels or analyse(body, in_shape)
    wrong = [tuple(b.shape) for b in batches if tuple(b.shape[1:]) != tuple(in_shape)]
    if not batches or wrong:
        raise GraphError(
            f"expected batches of shape (n, {', '.join(map(str, in_shape))}), "
            f"got {wrong[0] if wrong else 'none'}"
        )
    work = _functional(body)
    groups = [g for g in found.groups if g.prunable and g.exact]
    scores = {g.index: torch.zeros(g.size, dtype=torch.float64) for g in groups}
    images = sum(len(batch) for batch in batches)
    for batch in batches:
        runner = _Rerun(work, batch)
        for group in groups:
            errors = _group_errors(runner, found, group, max(1, samples // len(batch)))
            scores[group.index] += errors * (len(batch) / images)
    return scores


def _group_errors(runner: _Rerun, channels: Channels, group: Group, chunk: int) -> Tensor:
    """Error (size,) that each position of ``group`` causes on the runner's batch."""
    readers = [r for r in channels.readers if any(g == group.index for g, _ in r.places)]
    plan = runner.plan([r.path for r in readers])
    step = chunk if runner.replicable(plan) else 1
    errors = torch.zeros(group.size, dtype=torch.float64)
    for low in range(0, group.size, step):
        positions = range(low, min(low + step, group.size))
        masks = {r.path: _mask(r.places, r.axis, group.index, positions) for r in readers}
        out = runner.run(plan, masks, len(positions))
        if group.at_output:
            mask = _mask(channels.output, channels.out_axis + 1, group.index, positions)
            out = _multiply(out, mask)
        difference = out.reshape(len(positions), -1, *out.shape[1:]) - runner.output
        errors[low : low + len(positions)] = difference.double().square().flatten(1).mean(1).cpu()
    return errors


Mask = tuple[Tensor, int]


def _mask(places: Sequence[Place], axis: int, group: int, positions: Sequence[int]) -> Mask:
    """A mask (candidates, channels) with zeros where a candidate's position is."""
    where = torch.tensor([p if g == group else -1 for g, p in places])
    return (where[None, :] != torch.tensor(list(positions))[:, None]).float(), axis


def _multiply(value: Tensor, mask: Mask) -> Tensor:
    table, axis = mask
    stacked = value.reshape(len(table), -1, *value.shape[1:])
    shape = [len(table), *[1] * value.ndim]
    shape[axis + 1] = table.shape[1]
    return (stacked * table.to(value).reshape(shape)).flatten(0, 1)


class _Rerun:
    """Runs the part of a body that some masks touch again; the rest is kept from a first run."""

    def __init__(self, body: fx.GraphModule, batch: Tensor) -> None:
        self.body, self.size = body, len(batch)
        self.interpreter = fx.Interpreter(body, garbage_collect_values=False)
        with torch.no_grad():
            self.output: Tensor = self.interpreter.run(batch)
        self.values = dict(self.interpreter.env)
        self.live: set[fx.Node] = set()
        for node in body.graph.nodes:
            if node.op == "placeholder" or not self.live.isdisjoint(node.all_input_nodes):
                self.live.add(node)

    def plan(self, paths: Sequence[str]) -> dict[fx.Node, None]:
        """The nodes that run one of the modules ``paths``, and all behind them."""
        again: dict[fx.Node, None] = {}
        for node in self.body.graph.nodes:
            target = str(node.target)
            reads = node.op == "call_module" and any(
                path == target or path.startswith(target + ".") for path in paths
            )
            if reads or any(source in again for source in node.all_input_nodes):
                again[node] = None
        return again

    def replicable(self, plan: Mapping[fx.Node, None]) -> bool:
        """Whether several candidates can share a pass, stacked along the batch."""
        kept = {s for node in plan for s in node.all_input_nodes if s not in plan}
        return all(
            isinstance(self.values[node], Tensor) and len(self.values[node]) == self.size
            for node in kept & self.live
        )

    def run(self, plan: Mapping[fx.Node, None], masks: Mapping[str, Mask], count: int) -> Tensor:
        """Output (count * n, ...) with each of ``count`` candidates' masks applied."""
        self.interpreter.env = {
            node: value.repeat(count, *[1] * (value.ndim - 1))
            if count > 1 and node in self.live and isinstance(value, Tensor)
            else value
            for node, value in self.values.items()
            if node not in plan and any(user in plan or user.op == "output" for user in node.users)
        }
        with torch.no_grad(), _hooked(self.body, masks):
            for node in plan:
                if node.op != "output":
                    self.interpreter.env[node] = self.interpreter.run_node(node)
        source = next(iter(reversed(self.body.graph.nodes))).all_input_nodes[0]
        result = self.interpreter.env[source]
        assert isinstance(result, Tensor)
        return result


@contextmanager
def _hooked(body: nn.Module, masks: Mapping[str, Mask]) -> Iterator[None]:
    def multiply(mask: Mask) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda _module, args: (_multiply(args[0], mask), *args[1:])

    handles = [
        body.get_submodule(path).register_forward_pre_hook(multiply(mask))
        for path, mask in masks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_PLAIN = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


def _functional(body: fx.GraphModule) -> fx.GraphModule:
    """A copy in eval mode that writes to no tensor in place, so that kept values stay."""
    work = copy.deepcopy(body).eval()
    for module in list(work.modules()):
        if isinstance(module, fx.GraphModule):
            for node in list(module.graph.nodes):
                _unwrite(module, node)
            module.recompile()
    for module in work.modules():
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010 - not an attribute of every module
    return work


def _unwrite(owner: fx.GraphModule, node: fx.Node) -> None:
    """Make one node return what it wrote; later readers of the old value read the new one."""
    module = owner.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = str(node.target)
    if node.target in _PLAIN:
        node.target = _PLAIN[node.target]
    elif node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
        node.target = name.rstrip("_")
    elif node.kwargs.get("inplace") is True:
        node.update_kwarg("inplace", False)
    elif getattr(module, "inplace", False) is not True:
        return
    source = node.args[0] if node.args else None
    later = False
    for other in list(node.graph.nodes):
        if later and isinstance(source, fx.Node):
            other.replace_input_with(source, node)
        later = later or other is node


def prune_interior(
    body: fx.GraphModule,
    in_shape: Sequence[int],
    *,
    ratio: float,
    scores: Scores,
    multiple: int = 8,
    floor: int = 4,
    channels: Channels | None = None,
) -> fx.GraphModule:
    """A copy of ``body`` without its least important interior channels.

    Ranks are global over the interior groups that can be pruned exactly: the lowest
    ``ratio`` of all their channels are marked, then each group's kept width is rounded to the
    nearest ``multiple`` (at least ``floor``, never above the original), because odd widths were
    measured to run slower. Groups narrower than ``multiple`` stay. The result may equal the
    body where rounding undoes the marks.

    Args:
        body: one input, one output tensor; left as it is.
        in_shape: shape of the input without batch.
        ratio: share of the channels to remove, 0 to 1 (1 excluded).
        scores: from ``magnitude_scores`` or ``discrepancy_scores``.
        multiple: kept widths are multiples of this.
        floor: fewest channels to keep in a group.
        channels: the body's analysis, if at hand.

    Raises:
        GraphError: for a ratio outside [0, 1) or scores that do not fit the body.

    Example:
        >>> body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 1)))
        >>> scores = magnitude_scores(body, (3, 8, 8))
        >>> narrow = prune_interior(body, (3, 8, 8), ratio=0.4, scores=scores)
        >>> narrow.get_submodule("0").out_channels
        16
    """
    found = channels or analyse(body, in_shape)
    keep = choose_keep(
        found,
        [g for g in found.groups if g.interior],
        ratio=ratio,
        scores=scores,
        multiple=multiple,
        floor=floor,
    )
    return apply_keep(body, found, keep)


def choose_keep(
    channels: Channels,
    groups: Sequence[Group],
    *,
    ratio: float,
    scores: Scores,
    multiple: int,
    floor: int,
) -> dict[int, list[int]]:
    """Kept positions of those ``groups`` that get narrower, ranked and rounded together.

    Raises:
        GraphError: for a ratio outside [0, 1) or scores that do not fit the body.
    """
    if not 0 <= ratio < 1 or multiple < 1:
        raise GraphError(
            f"expected 0 <= ratio < 1 and multiple >= 1, got ratio {ratio}, multiple {multiple}"
        )
    steps = {g.index: multiple // math.gcd(multiple, g.span) for g in groups}
    wide = [g for g in groups if g.prunable and g.exact and g.size >= steps[g.index]]
    bad = [g.index for g in wide if g.index not in scores or len(scores[g.index]) != g.size]
    if bad:
        raise GraphError(f"scores: missing or of the wrong length for groups {bad} of this body")
    ranked = sorted((float(scores[g.index][p]), g.index, p) for g in wide for p in range(g.size))
    marked = [group for _, group, _ in ranked[: round(ratio * len(ranked))]]
    keep: dict[int, list[int]] = {}
    for group in wide:
        left = group.size - marked.count(group.index)
        step, least = steps[group.index], math.ceil(floor / group.span)
        width = min(group.size, max(least, math.floor(left / step + 0.5) * step, 1))
        if width < group.size:
            keep[group.index] = _best(channels, group, scores[group.index], width)
    return keep


def _best(channels: Channels, group: Group, scores: Tensor, width: int) -> list[int]:
    """The ``width`` best positions, among them the best of every layer that makes some."""
    order = sorted(range(group.size), key=lambda p: (-float(scores[p]), p))
    rank = {p: r for r, p in enumerate(order)}
    chosen: dict[int, None] = {}
    for layer, places in channels.kept:
        own = [p for g, p in places if g == group.index]
        if layer and own and not chosen.keys() & set(own):
            chosen[min(own, key=rank.__getitem__)] = None
    for position in order:
        if len(chosen) >= width:
            break
        chosen[position] = None
    return sorted(chosen)
