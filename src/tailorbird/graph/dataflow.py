"""Walking a network with channel ids in hand: each node is run once, and a rule moves its ids.

What no rule describes *pins* the ids that it touches: they then stay, with the reason on record.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.flow import Call, Flow, Grid, State, Tag, Value
from tailorbird.graph.rules import apply_rule


def device_of(body: nn.Module) -> torch.device:
    """Where the body's first parameter or buffer lives; the CPU if it has none."""
    for tensor in (*body.parameters(), *body.buffers()):
        return tensor.device
    return torch.device("cpu")


def input_axis(body: fx.GraphModule, rank: int) -> int:
    """The axis of the input's channels (batch is 0): 1, or the last for token layouts.

    The first layer met on the way from the input decides: a linear layer or layer norm reads
    the last axis, a convolution or batch norm axis 1.
    """
    queue = [node for node in body.graph.nodes if node.op == "placeholder"]
    seen = set(queue)
    while queue:
        node = queue.pop(0)
        if node.op == "call_module":
            module = body.get_submodule(str(node.target))
            if isinstance(module, fx.GraphModule):
                return input_axis(module, rank)
            name = type(module).__name__
            if isinstance(module, nn.Linear) or name in ("LayerNorm", "RmsNorm", "Attention"):
                return rank
            if "Conv" in name or "BatchNorm" in name or name.endswith("2d"):
                return 1
        for user in node.users:
            if user not in seen:
                seen.add(user)
                queue.append(user)
    return rank if rank == 2 else 1


def walk(body: fx.GraphModule, in_shape: Sequence[int]) -> tuple[Flow, Tag, Tag, tuple[int, ...]]:
    """Run ``body`` once at batch 2 and follow its channels.

    Returns:
        The flow, the input's tag, the output's tag, and the output's shape without batch.

    Raises:
        GraphError: if the body can't run at ``in_shape``, or is not one tensor in, one out.
    """
    places = [node for node in body.graph.nodes if node.op == "placeholder"]
    if len(places) != 1:
        raise GraphError(
            f"expected a body with one input, got {len(places)}; extract it as a block"
        )
    work = copy.deepcopy(body).eval()
    flow = Flow()
    tag = flow.fresh(
        in_shape[input_axis(body, len(in_shape)) - 1], input_axis(body, len(in_shape)), "input"
    )
    image = torch.zeros((2, *in_shape), device=device_of(body))
    with torch.no_grad():
        value, state = _run(flow, work, "", [image], [tag])
    if not isinstance(value, torch.Tensor):
        raise GraphError(f"expected a body that returns one tensor, got {type(value).__name__}")
    if isinstance(state, Grid):
        state = flow.decide(state, max(state.axes, key=lambda axis: axis.size).at)
    if not isinstance(state, Tag):
        state = flow.pinned(value, "output", "the output's channels are not known")
        if state is None:
            raise GraphError("expected a body that returns a batch of tensors, got a scalar")
    flow.settle()
    return flow, tag, state, tuple(value.shape[1:])


@dataclass
class _Scope:
    """One graph module under way, perhaps nested in another."""

    owner: fx.GraphModule
    prefix: str
    env: dict[fx.Node, Value] = field(default_factory=dict)
    tags: dict[fx.Node, State] = field(default_factory=dict)


def _run(
    flow: Flow, owner: fx.GraphModule, prefix: str, values: list[Value], states: list[State]
) -> tuple[Value, State]:
    scope = _Scope(owner, prefix)
    env, tags = scope.env, scope.tags
    feed = iter(zip(values, states, strict=True))
    for node in owner.graph.nodes:
        if node.op == "placeholder":
            env[node], tags[node] = next(feed)
        elif node.op == "get_attr":
            env[node], tags[node] = _attribute(flow, owner, prefix, node)
        elif node.op == "output":
            result = node.args[0]
            if isinstance(result, fx.Node):
                return env[result], tags[result]
            flow.pin_states((tags[n] for n in node.all_input_nodes), "returned in a tuple")
            return _evaluate(result, env), None
        else:
            env[node], tags[node] = _step(flow, scope, node)
    raise GraphError("the graph has no output node")


def _evaluate(argument: fx.node.Argument, env: Mapping[fx.Node, Value]) -> Value:
    return fx.node.map_arg(argument, lambda node: cast(fx.node.Argument, env[node]))


def _attribute(
    flow: Flow, owner: fx.GraphModule, prefix: str, node: fx.Node
) -> tuple[Value, State]:
    value: Value = owner
    for part in str(node.target).split("."):
        value = getattr(value, part)
    if not isinstance(value, torch.Tensor) or value.numel() <= 1:
        return value, None
    axis = max(axis for axis, size in enumerate(value.shape) if size > 1)
    if not value.is_floating_point():
        return value, None
    return value, flow.attribute(value, prefix + str(node.target), axis)


def _step(flow: Flow, scope: _Scope, node: fx.Node) -> tuple[Value, State]:
    """Compute one node and its tag; whatever no rule describes pins what it touches."""
    owner, prefix, env, tags = scope.owner, scope.prefix, scope.env, scope.tags
    args = cast(tuple[Value, ...], _evaluate(node.args, env))
    kwargs = cast(dict[str, Value], _evaluate(node.kwargs, env))
    inputs = [tags.get(arg) if isinstance(arg, fx.Node) else None for arg in node.args]
    module = owner.get_submodule(str(node.target)) if node.op == "call_module" else None
    path = prefix + (str(node.target) if module is not None else node.name)
    if isinstance(module, fx.GraphModule):
        return _run(flow, module, path + ".", list(args), inputs)
    shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
    try:
        if module is not None:
            value = module(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            value = node.target(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise GraphError(
            f"'{path}' can't run on inputs of shape {shapes}: {error}; give the input shape "
            "that the block was made for",
            module=path,
        ) from error
    call = Call(node, path, module, tuple(args), dict(kwargs), inputs, value, prefix, tags)
    call_tags = [tags.get(n) for n in node.all_input_nodes]
    covered, state = apply_rule(flow, call, tags)
    if covered:
        return value, state
    reason = f"'{call.name}' at '{path}' can't follow a cut"
    flow.pin_states(call_tags, reason)
    if isinstance(value, torch.Tensor):
        return value, flow.pinned(value, path, reason)
    return value, None
