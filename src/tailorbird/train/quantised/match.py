"""Builds the network that a quantised file computes, found by values: no names are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tailorbird.copying import copy_network
from tailorbird.train.quantised.expand import expand
from tailorbird.train.quantised.fakes import FakeActivation, FakeConstant, FakeLayer, fold, scaled
from tailorbird.train.quantised.places import Constant, Place, Places

_STEPS = 0.75
"""How far weights may be from those of the file, in its steps; rounding gives a half."""

_SHARE, _LEAST = 0.05, 0.02
"""How far an activation may be from the file's, as a share of its spread, and in steps."""

_ROOT = "quantised"


class Quantised(nn.Module):
    """A network that rounds as its file does; in train mode too, BatchNorm keeps its statistics.

    Args:
        network: with fake quantisation in it.
        own: names in the state of the plain network, and those of the same in ``network``.
        unmatched: quantised tensors of the file that nothing in the network was found for.
    """

    def __init__(
        self, network: fx.GraphModule, own: dict[str, str], unmatched: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.network, self.own, self.unmatched = network, own, unmatched

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) to what the file answers to them."""
        answer: Tensor = self.network(images)
        return answer

    def train(self, mode: bool = True) -> Quantised:
        """Into train mode, or out of it, all but BatchNorm."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                nn.Module.train(part, False)
        return self

    def state_of_plain(self) -> dict[str, Tensor]:
        """The state of the network without fake quantisation."""
        state = self.network.state_dict()
        return {name: state[there] for name, there in self.own.items()}


def fake_quantised(student: nn.Module, places: Places, images: Tensor) -> Quantised:
    """A copy of a network in which the file's places are rounded to the file's grids.

    The copy is run node by node. A value that becomes the file's when it is rounded to a place's
    grid is that place. From there on the file's own value is taken, so that small differences do
    not add up. Weights are the file's where they are nearer than a step to them, with the
    BatchNorm behind them folded in or without it.

    Args:
        student: in eval mode, on the CPU; `torch.fx` can trace it, if it is no graph already.
        places: read from a file of it.
        images: (n, C, H, W), normalised, those that ``places`` were read from, or more.
    """
    graph = copy_network(student)
    traced = graph if isinstance(graph, fx.GraphModule) else fx.symbolic_trace(graph)
    traced.eval()
    known = set(traced.state_dict())
    own = {name: name for name in student.state_dict() if name in known}
    used = _round_layers(traced, places, own)
    expand(traced)
    used |= _round_attributes(traced, places.constants)
    finder = _Finder(traced, places.activations)
    with torch.no_grad():
        finder.run(images[: places.images])
    for number, (node, place) in enumerate(finder.found.items()):
        _round_node(traced, node, place, f"{_ROOT}.place{number}")
    traced.graph.lint()
    traced.recompile()
    missing = [place.name for place in finder.left]
    missing += [constant.name for constant in places.constants if constant.name not in used]
    return Quantised(traced, own, tuple(missing)).eval()


class _Finder(fx.Interpreter):
    """Runs a graph and finds the file's places in it."""

    def __init__(self, module: fx.GraphModule, places: Sequence[Place]) -> None:
        super().__init__(module)
        self.left = list(places)
        self.found: dict[fx.Node, Place] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - as its base says
        """A node's value, or the file's in its place."""
        value = super().run_node(n)
        if n.op in ("get_attr", "output") or not _is_real(value):
            return value
        near = [
            (distance, i)
            for i, place in enumerate(self.left)
            if (distance := _distance(value, place, reshaped=len(n.users) == 1 or place.sole))
            is not None
        ]
        if not near:
            return value
        place = self.left[min(near)[1]]
        if self._is_later(n, value, place):
            return value
        self.left.remove(place)
        self.found[n] = place
        return place.values.reshape(value.shape).clone()

    def _is_later(self, node: fx.Node, value: Tensor, place: Place) -> bool:
        """Whether a function of the value, such as its ReLU, is the place, and others read it."""
        if len(node.users) < 2:
            return False
        for user in node.users:
            if user.all_input_nodes != [node] or user.op == "output":
                continue
            self.env[node] = value.clone()
            after = super().run_node(user)
            if not _is_real(after) or (after.shape == value.shape and torch.equal(after, value)):
                continue
            if _distance(after, place) is not None:
                return True
        return False


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _distance(value: Tensor, place: Place, *, reshaped: bool = False) -> float | None:
    """Mean distance of a value from the file's, in steps; ``None`` where it is another one.

    Args:
        reshaped: whether it may be of another shape, such as tokens that are rows of one matrix in
            the file.
    """
    if value.shape != place.values.shape and not (
        reshaped and value.numel() == place.values.numel()
    ):
        return None
    value = value.reshape(place.values.shape)
    theirs = place.grid.whole(place.values)
    mean = float((place.grid.whole(value) - theirs).abs().mean())
    spread = float((theirs - theirs.mean()).abs().mean())
    return mean if mean <= _SHARE * spread + _LEAST else None


def _round_node(graph: fx.GraphModule, node: fx.Node, place: Place, name: str) -> None:
    """Put fake quantisation behind a node."""
    graph.add_submodule(name, FakeActivation(place.grid))
    readers = list(node.users)
    with graph.graph.inserting_after(node):
        rounded = graph.graph.call_module(name, (node,))
    for reader in readers:
        reader.replace_input_with(node, rounded)


def _round_attributes(graph: fx.GraphModule, constants: Sequence[Constant]) -> set[str]:
    """Round parameters that functions take; gives the constants that were found."""
    used = set()
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        value = _attribute(graph, str(node.target))
        if not isinstance(value, nn.Parameter):
            continue
        if (found := _match(value, constants)) is None:
            continue
        constant, transposed = found
        used.add(constant.name)
        name = f"{_ROOT}.weight{len(used)}_{node.name}"
        graph.add_submodule(name, FakeConstant(constant, transposed=transposed))
        readers = list(node.users)
        with graph.graph.inserting_after(node):
            rounded = graph.graph.call_module(name, (node,))
        for reader in readers:
            reader.replace_input_with(node, rounded)
    return used


def _round_layers(graph: fx.GraphModule, places: Places, own: dict[str, str]) -> set[str]:
    """Round parameters of layers, BatchNorm folded where it is in the file."""
    used: set[str] = set()
    gone: set[str] = set()
    for path, nodes in _layers(graph).items():
        if path in gone:
            continue
        layer, behind = graph.get_submodule(path), _norm_behind(graph, nodes)
        if type(layer) is nn.Linear and not _in_products(layer, places):
            if (match := _match(layer.weight, places.constants)) is not None:
                _take_bias(layer, None, match[0])
            continue  # it is taken apart
        norm = None if behind is None else graph.get_submodule(str(behind.target))
        assert norm is None or isinstance(norm, _BatchNorm)
        found = {
            name: match
            for name, value in layer.named_parameters(recurse=False)
            if (match := _match(value, places.constants)) is not None
        }
        if norm is not None and "weight" not in found:
            if (match := _match(_folded(layer, norm)[0], places.constants)) is None:
                norm = behind = None
            else:
                found["weight"] = match
                gone.add(str(behind and behind.target))
        else:
            norm = behind = None
        if not found:
            continue
        used |= {constant.name for constant, _ in found.values()}
        fakes = {name: FakeConstant(c, transposed=turned) for name, (c, turned) in found.items()}
        scale = None
        if "weight" in found:
            _take_bias(layer, norm, found["weight"][0])
            scale = _input_scale(found["weight"][0])
        fake = FakeLayer(layer, fakes, norm=norm, input_scale=scale)
        _replace(graph, path, fake, behind, own)
    return used


def _folded(layer: nn.Module, norm: _BatchNorm | None) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of a layer with the BatchNorm behind it in them."""
    weight, bias = layer.get_parameter("weight"), layer.bias
    assert bias is None or isinstance(bias, Tensor)
    if norm is None:
        return weight, bias
    factor, shift = fold(norm)
    return scaled(weight, factor), shift if bias is None else shift + bias * factor


@torch.no_grad()
def _take_bias(layer: nn.Module, norm: _BatchNorm | None, constant: Constant) -> None:
    """Give a layer, or the BatchNorm behind it, the file's bias: training goes on from there."""
    own, (_, bias) = layer.bias if norm is None else norm.bias, _folded(layer, norm)
    if constant.bias is None or not isinstance(own, nn.Parameter) or bias is None:
        return
    if own.shape == constant.bias.shape:
        shift = constant.bias - bias
        if constant.bias_steps is not None:  # up to a step it is nothing but rounded
            shift = shift.where(shift.abs() > constant.bias_steps, 0.0)
        own.add_(shift)


def _input_scale(weight: Constant) -> float | None:
    """By what the steps of a file's bias are those of its weights: the scale of the input."""
    if weight.bias_steps is None:
        return None
    ratios = weight.bias_steps / weight.steps.reshape(-1)
    if float(ratios.amax()) <= float(ratios.amin()) * (1 + 1e-4):
        return float(ratios[0])
    return None


def _in_products(layer: nn.Linear, places: Places) -> bool:
    """Whether the file adds a linear layer's bias to its products, before it rounds."""
    match = _match(layer.weight, places.constants)
    return match is not None and _input_scale(match[0]) is not None


def _layers(graph: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Paths of layers that hold parameters themselves, and the nodes that call them."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            layer = graph.get_submodule(str(node.target))
            if any(True for _ in layer.parameters(recurse=False)):
                found.setdefault(str(node.target), []).append(node)
    return found


def _norm_behind(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.Node | None:
    """The BatchNorm that is all that reads a layer that is called once."""
    if len(nodes) != 1 or len(nodes[0].users) != 1:
        return None
    (reader,) = nodes[0].users
    if reader.op != "call_module":
        return None
    norm = graph.get_submodule(str(reader.target))
    calls = [n for n in graph.graph.nodes if n.op == "call_module" and n.target == reader.target]
    foldable = isinstance(norm, _BatchNorm) and norm.running_mean is not None and len(calls) == 1
    return reader if foldable and _rest(norm) is not None else None


def _rest(norm: nn.Module) -> tuple[nn.Module, ...] | None:
    """What a BatchNorm layer does behind the normalisation; ``None`` where it is not known."""
    if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        return ()
    parts = dict(norm.named_children())
    return tuple(parts.values()) if set(parts) == {"drop", "act"} else None  # timm's with both


def _replace(
    graph: fx.GraphModule, path: str, fake: FakeLayer, norm: fx.Node | None, own: dict[str, str]
) -> None:
    """Put a layer that rounds its weights in place of one that does not."""
    moved = {f"{path}.": f"{path}.layer."}
    if norm is not None:
        before = str(norm.target)
        moved[f"{before}."] = f"{path}.norm."
        rest = _rest(graph.get_submodule(before)) or ()
        graph.set_submodule(before, nn.Sequential(*rest))
        last = norm.all_input_nodes[0]
        with graph.graph.inserting_before(norm):
            for number in range(len(rest)):
                last = graph.graph.call_module(f"{before}.{number}", (last,))
        norm.replace_all_uses_with(last)
        graph.graph.erase_node(norm)
    graph.set_submodule(path, fake)
    for name in own:
        for start, new in moved.items():
            if name.startswith(start):
                own[name] = new + name.removeprefix(start)


def _match(value: Tensor, constants: Sequence[Constant]) -> tuple[Constant, bool] | None:
    """The file's constant that some weights are, and whether it is transposed."""
    for shape, transposed in _ways(value):
        for constant in constants:
            if constant.values.shape == shape.shape:
                off = (shape.detach() - constant.values).abs() / constant.steps
                if float(off.amax()) <= _STEPS:
                    return constant, transposed
    return None


def _ways(value: Tensor) -> Iterator[tuple[Tensor, bool]]:
    yield value, False
    if value.ndim == 2:
        yield value.T, True


def _attribute(graph: fx.GraphModule, path: str) -> object:
    parent, _, name = path.rpartition(".")
    return getattr(graph.get_submodule(parent), name)
