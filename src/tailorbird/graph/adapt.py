"""Fit a donor's block to the exact input and output shapes of the block that it replaces."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.channels import Channels, analyse, apply_keep
from tailorbird.graph.cutters import MIXING, Place
from tailorbird.graph.dataflow import device_of, input_axis
from tailorbird.graph.importance import layer_norms

NOISE = 0.01
"""Standard deviation of an adapter's initial weights around the partial identity."""


def fit_shape(
    body: fx.GraphModule,
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    *,
    native_in: Sequence[int],
    generator: torch.Generator,
) -> fx.GraphModule:
    """A copy of ``body`` with input shape ``in_shape`` and output shape ``out_shape``.

    Where the body has more channels, those of largest L1 norm stay: of the input, by the weights
    of the layers that read them; of the output, by the weights of all layers that make them.
    Channels shared by input and output (a residual block) are cut alike. Where it has fewer, or
    can't be cut, a 1x1 convolution (a linear layer for tokens) adapts it on that side. Adapters
    start as a partial identity plus noise and have a bias but no batch norm: at the start they
    hand the teacher's scale on as it is.

    Args:
        body: the donor's block, one input, one output tensor; left as it is.
        in_shape: the teacher's input shape without batch.
        out_shape: the teacher's output shape without batch.
        native_in: the input shape that the body was made for, without batch.
        generator: draws the adapters' noise.

    Returns:
        A graph module with the one placeholder ``x``.

    Raises:
        GraphError: if layout or spatial size do not come out exactly.

    Example:
        >>> body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
        >>> fitted = fit_shape(body, (6, 5, 5), (12, 5, 5), native_in=(8, 9, 9),
        ...                    generator=torch.Generator().manual_seed(0))
        >>> fitted(torch.zeros(1, 6, 5, 5)).shape
        torch.Size([1, 12, 5, 5])
    """
    channels = _at_teacher_size(body, in_shape, out_shape, native_in)
    wanted_in = in_shape[channels.in_axis]
    wanted_out = out_shape[channels.out_axis]
    dropped = _dropped(body, channels, wanted_in, wanted_out)
    keep: dict[int, list[int]] = {}
    for group in {g for g, _ in dropped}:
        size = channels.groups[group].size
        keep[group] = [p for p in range(size) if (group, p) not in dropped]
    fitted = apply_keep(body, channels, keep)
    _name_input(fitted)
    has_in = sum(place not in dropped for place in channels.input)
    has_out = sum(place not in dropped for place in channels.output)
    device = device_of(body)
    if has_in != wanted_in:
        layer = _adapter(wanted_in, has_in, channels.in_axis, len(in_shape), generator)
        first = next(node for node in fitted.graph.nodes if node.op == "placeholder")
        _insert(fitted, first, list(first.users), "adapter_in", layer.to(device))
    if has_out != wanted_out:
        layer = _adapter(has_out, wanted_out, channels.out_axis, len(out_shape), generator)
        last = next(iter(reversed(fitted.graph.nodes)))
        _insert(fitted, last.all_input_nodes[0], [last], "adapter_out", layer.to(device))
    fitted.recompile()
    _dry_run(fitted, in_shape, out_shape)
    return fitted


def _at_teacher_size(
    body: fx.GraphModule,
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    native_in: Sequence[int],
) -> Channels:
    """The body's analysis with its own channels at the teacher's spatial size."""
    given, native = tuple(in_shape), tuple(native_in)
    if len(given) != len(native):
        raise GraphError(f"the layouts differ: the teacher gives {given}, the donor takes {native}")
    axis = input_axis(body, len(native)) - 1
    at = (*given[:axis], native[axis], *given[axis + 1 :])
    try:
        channels = analyse(body, at)
    except GraphError as error:
        raise GraphError(
            f"the donor's block can't run at the teacher's size: made for {native}, "
            f"run at {at}: {error}"
        ) from error
    got, expected = list(channels.out_shape), list(out_shape)
    if len(got) == len(expected):
        got[channels.out_axis] = expected[channels.out_axis]
    if got != expected:
        raise GraphError(
            "the donor's block gives another output size: expected "
            f"{tuple(out_shape)}, got {channels.out_shape} from {at}; choose another donor block"
        )
    return channels


def _dropped(
    body: fx.GraphModule, channels: Channels, wanted_in: int, wanted_out: int
) -> set[Place]:
    """The channels to cut, so that input and output are as wide as wanted or need an adapter."""
    norms = _norms(body, channels)
    inputs, outputs = set(channels.input), set(channels.output)
    if inputs & outputs:  # one stream: what is cut at one end is missing at the other
        wanted_in = max(wanted_in, min(wanted_out, len(outputs)))
    dropped: set[Place] = set()
    for ends, keep_off, wanted in (
        (channels.input, set(), wanted_in),
        (channels.output, inputs, wanted_out),
    ):
        left = [place for place in ends if place not in dropped]
        free = [p for p in dict.fromkeys(left) if p not in keep_off and left.count(p) == 1]
        free = [p for p in free if channels.groups[p[0]].prunable]
        worst = sorted(free, key=lambda place: (norms[place], place))[: max(0, len(left) - wanted)]
        dropped.update(worst)
    return _without_empty_layers(channels, dropped, norms)


def _without_empty_layers(
    channels: Channels, dropped: set[Place], norms: Mapping[Place, float]
) -> set[Place]:
    """Give back the best channel of each layer that would lose all of its own."""
    for _, places in channels.kept:
        if places and dropped.issuperset(places):
            dropped = dropped - {max(places, key=lambda place: norms[place])}
    return dropped


def _norms(body: fx.GraphModule, channels: Channels) -> dict[Place, float]:
    """L1 norm of each channel: read by the first layers if it is the input's, else made."""
    made: dict[Place, float] = {}
    read: dict[Place, float] = {}
    for cut in channels.cuts:
        if cut.kind in MIXING:
            rows, columns = layer_norms(body, cut)
            for table, norms, places in ((made, rows, cut.rows), (read, columns, cut.columns)):
                for value, place in zip(norms.tolist(), places, strict=True):
                    table[place] = table.get(place, 0.0) + value
    ends, outputs = set(channels.input), set(channels.output)
    return {
        place: (read.get(place, 0.0) if place in ends else 0.0)
        + (made.get(place, 0.0) if place in outputs or place not in ends else 0.0)
        for group in channels.groups
        for place in ((group.index, p) for p in range(group.size))
    }


def _adapter(
    given: int, wanted: int, axis: int, rank: int, generator: torch.Generator
) -> nn.Module:
    """A 1x1 convolution, or a linear layer where the channels come last."""
    noise = torch.randn((wanted, given), generator=generator, device=generator.device)
    weight = NOISE * noise.cpu() + torch.eye(wanted, given)
    # Under fork_rng: the default weights are replaced at once and must not advance global state.
    with torch.random.fork_rng(devices=[]):
        layer: nn.Conv2d | nn.Linear
        if axis == rank - 1:
            layer = nn.Linear(given, wanted)
        elif (axis, rank) == (0, 3):
            layer = nn.Conv2d(given, wanted, 1)
            weight = weight[:, :, None, None]
        else:
            raise GraphError(f"no adapter for channels on axis {axis} of a tensor of rank {rank}")
    layer.weight = nn.Parameter(weight.clone())
    layer.bias = nn.Parameter(torch.zeros(wanted))
    return layer


def _insert(
    owner: fx.GraphModule, source: fx.Node, users: Sequence[fx.Node], name: str, layer: nn.Module
) -> None:
    while hasattr(owner, name):
        name += "_"
    owner.add_submodule(name, layer)
    with owner.graph.inserting_after(source):
        node = owner.graph.call_module(name, (source,))
    for user in users:
        user.replace_input_with(source, node)


def _name_input(body: fx.GraphModule) -> None:
    """Call the placeholder ``x``."""
    first = next(node for node in body.graph.nodes if node.op == "placeholder")
    if first.target == "x" and first.name == "x":
        return
    for node in body.graph.nodes:
        if node.name == "x":
            node.name = "x_1"
    first.name, first.target = "x", "x"


def _dry_run(fitted: fx.GraphModule, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
    work = copy.deepcopy(fitted).eval()
    with torch.no_grad():
        result = work(torch.zeros((2, *in_shape), device=device_of(fitted)))
    got = tuple(result.shape[1:]) if isinstance(result, Tensor) else type(result).__name__
    if got != tuple(out_shape):
        raise GraphError(
            f"the fitted block gives another output size: expected {tuple(out_shape)}, got {got}"
        )
