"""How far masked channels move a body's output: measured one by one, estimated all at once.

The estimate is of first order. A gate g (1, or 0 for a masked channel) in front of whatever reads a
channel moves the output f by about -df/dg, the sum of activation times gradient over all that is
cut together (Molchanov et al. 2019). Its squared length is the mean of (v . df/dg)^2 over random
signs v, so one backward pass with a v for each image does for all channels.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.channels import Channels, Group, analyse
from tailorbird.graph.cutters import Place
from tailorbird.graph.importance import Scores, ranked

T = TypeVar("T")

MEASURED = 32
"""Channels measured one by one for each cut: those whose rank is nearest to it."""

MEASURED_IMAGES = 32
"""Images that they are measured on."""

ESTIMATE_BATCH = 16
"""Images in one backward pass of the estimate: what bounds its memory."""


class Sensitivity:
    """Scores of one body's channels: estimated for all, measured for those near a cut.

    The cost does not grow with the number of channels: the estimate is one forward and backward
    pass over ``images``; a cut measures at most ``MEASURED`` channels on ``MEASURED_IMAGES`` of
    them, and none twice.

    Args:
        body: one input, one output tensor; not changed.
        in_shape: shape of the input without batch.
        images: inputs (n, *in_shape) of the body.
        channels: the body's analysis, if at hand.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        in_shape: Sequence[int],
        images: Tensor,
        *,
        channels: Channels | None = None,
    ) -> None:
        self.channels = channels or analyse(body, in_shape)
        self._body, self._in_shape, self._images = body, in_shape, images
        self._estimate = first_order_scores(
            body, in_shape, torch.split(images, ESTIMATE_BATCH), channels=self.channels
        )
        self._exact = _zeros(self.channels)
        self.measured: set[Place] = set()

    def at(self, ratio: float, groups: Sequence[Group], *, multiple: int) -> Scores:
        """Scores for removing ``ratio`` of ``groups``, see ``choose_keep``."""
        order = ranked(self.channels, groups, self._estimate, multiple=multiple)
        cut = round(ratio * len(order))
        near = order[max(0, cut - MEASURED // 2) : cut + MEASURED // 2]
        self._measure(place for place in near if place not in self.measured)
        scores = {index: estimate.clone() for index, estimate in self._estimate.items()}
        for group, position in near:
            scores[group][position] = self._exact[group][position]
        return scores

    def _measure(self, places: Iterable[Place]) -> None:
        todo: dict[int, list[int]] = {}
        for group, position in places:
            todo.setdefault(group, []).append(position)
            self.measured.add((group, position))
        if todo:
            found = discrepancy_scores(
                self._body,
                self._in_shape,
                [self._images[:MEASURED_IMAGES]],
                channels=self.channels,
                only=todo,
            )
            for group, positions in todo.items():
                self._exact[group][positions] = found[group][positions]


def first_order_scores(
    body: fx.GraphModule,
    in_shape: Sequence[int],
    batches: Sequence[Tensor],
    *,
    channels: Channels | None = None,
) -> dict[int, Tensor]:
    """First-order estimate of ``discrepancy_scores``: one backward pass, of all channels at once.

    The random signs come from a fixed seed. What has no gradient counts as if it didn't matter.

    Args:
        body: one input, one output tensor; not changed.
        in_shape: shape of the input without batch.
        batches: inputs (n, *in_shape) of the body.
        channels: the body's analysis, if at hand.

    Returns:
        Scores of every prunable group whose pruning equals masking.

    Raises:
        GraphError: if there are no batches or they do not have the body's input shape.

    Example:
        >>> body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))
        >>> _ = nn.init.zeros_(body.get_submodule("1").weight[:, 5:])
        >>> first_order_scores(body, (3, 8, 8), [torch.rand(2, 3, 8, 8)])[1][5:].tolist()
        [0.0, 0.0, 0.0]
    """
    found = channels or analyse(body, in_shape)
    _check(in_shape, batches)
    work, draws = _functional(body).requires_grad_(False), torch.Generator().manual_seed(0)
    scores = _zeros(found)
    images = sum(len(batch) for batch in batches)
    for batch in batches:
        moved = {g: torch.zeros(len(batch), len(s), dtype=torch.float64) for g, s in scores.items()}
        for places, slopes in _slopes(work, found, batch, draws):
            for group in {g for g, _ in places} & scores.keys():
                columns = [j for j, (g, _) in enumerate(places) if g == group]
                at = torch.tensor([places[j][1] for j in columns])
                moved[group][: len(slopes)].index_add_(1, at, slopes[:, columns])
        for group, each in moved.items():
            scores[group] += each.square().sum(0) / images
    return scores


def _slopes(
    work: fx.GraphModule, channels: Channels, batch: Tensor, draws: torch.Generator
) -> list[tuple[tuple[Place, ...], Tensor]]:
    """How random projections of the output move with each gate.

    Returns:
        Of each layer that reads channels, and of the output, its places and (n, places) slopes;
        one row, for all images, where the layer reads something that doesn't depend on them.
    """
    places = {reader.path: reader.places for reader in channels.readers}
    places[""] = channels.output  # no layer has this path
    gates: dict[tuple[str, int], Tensor] = {}

    def gated(path: str, value: Tensor, axis: int) -> Tensor:
        rows = len(batch) if len(value) % len(batch) == 0 else 1
        if (path, rows) not in gates:
            gates[path, rows] = torch.ones(rows, value.shape[axis], requires_grad=True)
        return _multiply(value, (gates[path, rows].to(value), axis))

    with torch.enable_grad(), _hooked(work, {r.path: r.axis for r in channels.readers}, gated):
        out = gated("", work(batch), channels.out_axis + 1)
        signs = torch.randint(0, 2, out.shape, generator=draws).to(out) * 2 - 1
        total, leaves = (out * signs).sum(), list(gates.values())
        try:
            found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        except RuntimeError as error:
            raise GraphError(f"no gradient to rank channels by: {error}") from error
    size = out[0].numel() ** 0.5
    return [
        (places[path], slopes.double().cpu() / size)
        for (path, _), slopes in zip(gates, found, strict=True)
    ]


def discrepancy_scores(
    body: fx.GraphModule,
    in_shape: Sequence[int],
    batches: Sequence[Tensor],
    *,
    channels: Channels | None = None,
    samples: int = 512,
    only: Mapping[int, Sequence[int]] | None = None,
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
        only: group index -> positions to mask; all if not given.

    Returns:
        Scores of every prunable group whose pruning equals masking; zero where not masked.

    Raises:
        GraphError: if there are no batches or they do not have the body's input shape.
    """
    found = channels or analyse(body, in_shape)
    _check(in_shape, batches)
    work = _functional(body)
    scores = _zeros(found)
    images = sum(len(batch) for batch in batches)
    for batch in batches:
        runner = _Rerun(work, batch)
        for group in (found.groups[index] for index in scores):
            asked = range(group.size) if only is None else only.get(group.index, ())
            if not asked:
                continue
            errors = _group_errors(runner, found, group, asked, max(1, samples // len(batch)))
            scores[group.index][list(asked)] += errors * (len(batch) / images)
    return scores


def _check(in_shape: Sequence[int], batches: Sequence[Tensor]) -> None:
    wrong = [tuple(b.shape) for b in batches if tuple(b.shape[1:]) != tuple(in_shape)]
    if not batches or wrong:
        raise GraphError(
            f"expected batches of shape (n, {', '.join(map(str, in_shape))}), "
            f"got {wrong[0] if wrong else 'none'}"
        )


def _zeros(channels: Channels) -> dict[int, Tensor]:
    groups = [g for g in channels.groups if g.prunable and g.exact]
    return {g.index: torch.zeros(g.size, dtype=torch.float64) for g in groups}


def _group_errors(
    runner: _Rerun, channels: Channels, group: Group, asked: Sequence[int], chunk: int
) -> Tensor:
    """Error (len(asked),) that each of these positions of ``group`` causes on the batch."""
    readers = [r for r in channels.readers if any(g == group.index for g, _ in r.places)]
    plan = runner.plan([r.path for r in readers])
    step = chunk if runner.replicable(plan) else 1
    errors = torch.zeros(len(asked), dtype=torch.float64)
    for low in range(0, len(asked), step):
        positions = asked[low : low + step]
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
        with (
            torch.no_grad(),
            _hooked(self.body, masks, lambda _path, value, mask: _multiply(value, mask)),
        ):
            for node in plan:
                if node.op != "output":
                    self.interpreter.env[node] = self.interpreter.run_node(node)
        source = next(iter(reversed(self.body.graph.nodes))).all_input_nodes[0]
        result = self.interpreter.env[source]
        assert isinstance(result, Tensor)
        return result


@contextmanager
def _hooked(
    body: nn.Module, given: Mapping[str, T], change: Callable[[str, Tensor, T], Tensor]
) -> Iterator[None]:
    """Change what the layers at the paths ``given`` read."""

    def hook(path: str, what: T) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda _module, args: (change(path, args[0], what), *args[1:])

    handles = [
        body.get_submodule(path).register_forward_pre_hook(hook(path, what))
        for path, what in given.items()
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
