"""From a network to a graph of layers with shapes, MACs and parameters."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from tailorbird.copying import copy_network
from tailorbird.errors import GraphError
from tailorbird.graph.bake import bake
from tailorbird.graph.describe import unlisted
from tailorbird.graph.exported import Reading, read_exported
from tailorbird.graph.kinds import CONSTANT, SIZE, kind_of
from tailorbird.graph.modes import Modes, compare, install_drops
from tailorbird.graph.naming import compact
from tailorbird.graph.passes import (
    drop_identities,
    functionalise,
    install,
    localise_sizes,
)
from tailorbird.graph.proof import prove
from tailorbird.graph.tracer import COMPOSITES, ValueTracer
from tailorbird.measure.counts import RECURRENT, recurrent_flops

FX, EXPORT = "torch.fx", "torch.export"
_RETRACES = 40  # each makes one more module a leaf
_COUNTS = (1, 5)  # of images: other ones than those that the code was run on


@dataclass(frozen=True)
class Layer:
    """One node of a layer graph.

    Args:
        name: the node's name, unique in its graph.
        kind: what it does, see ``tailorbird.graph.kinds.kind_of``.
        shape: of its output without the batch dimension; () where that is not one tensor.
        macs: multiply-accumulate operations for one image.
        params: parameters that it holds or, for a constant, is.
        inputs: names of the nodes that it reads.
        boundary: its output is one floating-point tensor with the batch first, so a block may
            begin or end there.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int
    params: int
    inputs: tuple[str, ...]
    boundary: bool = True


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """A traced network. Compares and hashes by identity.

    Args:
        module: a copy of the network in eval mode as a graph module; nothing changes it.
        layers: in topological order, the image first, constants included.
        input_shape: (C, H, W).
        output: name of the node whose value the network returns.
        notes: what of train mode was left out or replaced, one sentence each.
        read_by: what read the network's code, ``"torch.fx"`` or, where that can't,
            ``"torch.export"``.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    output: str
    notes: tuple[str, ...] = ()
    read_by: str = FX

    @property
    def told(self) -> tuple[str, ...]:
        """How the network was read, and what that left out."""
        return (f"read by {self.read_by}", *self.notes)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Position of each layer by name."""
        return {layer.name: i for i, layer in enumerate(self.layers)}

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return sum(layer.macs for layer in self.layers)

    @cached_property
    def params(self) -> int:
        """Number of parameters that the traced computation reads, each counted once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @cached_property
    def nodes(self) -> Mapping[str, fx.Node]:
        """The graph module's nodes by name."""
        return {node.name: node for node in self.module.graph.nodes}

    def layer(self, name: str) -> Layer:
        """The layer called ``name``.

        Raises:
            GraphError: naming the nearest names.
        """
        if name not in self.index:
            raise GraphError(f"no layer {name!r}; near matches: {near(name, self.index)}")
        return self.layers[self.index[name]]


def near(name: str, known: Mapping[str, object]) -> list[str]:
    """Up to three known names that resemble ``name``."""
    import difflib

    return difflib.get_close_matches(name, list(known), 3)


def trace(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    leaves: Sequence[str | type[nn.Module]] = (),
    ways: Sequence[str] = (FX, EXPORT),
) -> LayerGraph:
    """Trace an image network into a layer graph. The network itself is left as it is.

    Any batch size works afterwards, and so do ``train()`` and ``eval()``: what behaves differently
    while training is kept as one module; what train mode only adds (stochastic depth, auxiliary
    heads) is left out or replaced as the graph's ``notes`` say. In-place operations become plain
    ones. Code that ``torch.fx`` can't read, reads wrongly or reads into something that can't be
    stored is read by ``torch.export``, in eval mode alone. The result's values and gradients are
    compared with the network's on image batches of two sizes before it is returned.

    Args:
        model: takes images (n, C, H, W), returns one tensor with n first.
        input_shape: (C, H, W).
        leaves: dotted paths or classes of modules that must not be looked into.
        ways: to read the network's code, in the order in which they are tried: ``"torch.fx"``
            follows both modes; ``"torch.export"`` reads more Python, and eval mode alone.

    Raises:
        GraphError: the network does not run on this shape, returns something else than one tensor,
            or can't be traced; the latter names the module and the source line.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
        >>> graph = trace(net, (3, 4, 4))
        >>> [(layer.kind, layer.shape, layer.macs) for layer in graph.layers[1:3]]
        [('conv', (8, 2, 2), 864), ('activation', (8, 2, 2), 0)]
    """
    shape = tuple(int(size) for size in input_shape)
    root = _copy(model)
    _check_leaves(root, leaves)
    if not ways or not set(ways) <= _WAYS.keys():
        raise GraphError(f"ways: expected some of {list(_WAYS)}, got {list(ways)}")
    image = _images(root, shape, 1)
    devices = [image.device] if image.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        _reference(root, image, shape)
        return _read(root, shape, leaves, ways)


def retraced(module: fx.GraphModule, graph: LayerGraph) -> LayerGraph:
    """The layers of ``module``, a changed copy of ``graph``'s network that takes the same images.

    Its nodes keep their names. Two passes, over two and over three images.
    """
    image = _images(module, graph.input_shape, 1)
    devices = [image.device] if image.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        return _describe(module, graph.input_shape, graph.notes, graph.read_by)


def _read(
    root: nn.Module,
    shape: tuple[int, ...],
    leaves: Sequence[str | type[nn.Module]],
    ways: Sequence[str],
) -> LayerGraph:
    """The network read in the first way that gives what the network gives, and can be stored."""
    kept: LayerGraph | None = None
    faults: list[GraphError] = []
    for way in ways:
        try:
            found = _proved(root, shape, way, _WAYS[way](root, shape, leaves))
        except GraphError as error:
            faults.append(error)
            continue
        except Exception as error:  # the network's own code runs, on what stands for tensors
            faults.append(GraphError(f"can't trace {type(root).__name__}: {error}"))
            faults[-1].__cause__ = error
            continue
        if not unlisted(found.module):
            return found
        kept = kept or found
    if kept is not None:
        return kept
    others = zip(ways[1:], faults[1:], strict=True)
    more = [f". {way}, which was tried next, can't read it either: {e}" for way, e in others]
    raise GraphError("".join([str(faults[0]), *more]), module=faults[0].module) from faults[0]


def _exported(
    root: nn.Module, shape: tuple[int, ...], leaves: Sequence[str | type[nn.Module]]
) -> Reading:
    return read_exported(root, leaves, (_images(root, shape, 2), _images(root, shape, 3)))


def _proved(root: nn.Module, shape: tuple[int, ...], read_by: str, reading: Reading) -> LayerGraph:
    module, home, notes = reading
    for count in _COUNTS:
        prove(root, module, home, _images(root, shape, count))
    return _describe(module, shape, notes, read_by)


def _copy(model: nn.Module) -> nn.Module:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise GraphError(
            f"{type(model).__name__} holds TorchScript, of which no layers can be made; expected "
            "modules as they are before torch.jit.script or torch.jit.trace: give those"
        )
    try:
        root = copy_network(model).eval()
    except Exception as error:
        raise GraphError(
            f"{type(model).__name__} can't be copied ({error}); expected an nn.Module that "
            "copy.deepcopy takes: leave out what it holds beside layers, or give it a __deepcopy__"
        ) from error
    bake(root)
    return root


def _check_leaves(root: nn.Module, leaves: Sequence[str | type[nn.Module]]) -> None:
    paths = {name: module for name, module in root.named_modules() if name}
    unknown = [leaf for leaf in leaves if isinstance(leaf, str) and leaf not in paths]
    if unknown:
        hints = "; ".join(f"{leaf!r} (near: {near(leaf, paths)})" for leaf in unknown)
        raise GraphError(f"leaves: no module called {hints}")


def _images(root: nn.Module, shape: tuple[int, ...], count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn((count, *shape), generator=generator)
    like = next((p for p in root.parameters() if p.is_floating_point()), images)
    return images.to(device=like.device, dtype=like.dtype)


def _reference(root: nn.Module, image: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        output = root(image.clone())
    except Exception as error:
        raise GraphError(
            f"{type(root).__name__} does not run on images of shape {shape}: {error}. "
            "Check input_shape (channels, height, width); in a job file that is data.image_size"
        ) from error
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != 1:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise GraphError(
            f"{type(root).__name__} returns {given} for one image; expected one tensor with the "
            "batch first: wrap the network so that forward returns its logits"
        )
    return output


def _program(
    root: nn.Module, shape: tuple[int, ...], given: Sequence[str | type[nn.Module]]
) -> Reading:
    """Trace in both modes, making a module that differs between them a leaf, until they agree."""
    path, leaves = "", list(given)
    for _ in range(_RETRACES):
        evaluated, home = _trace_once(root, shape, leaves, training=False)
        trained, _ = _trace_once(root, shape, leaves, training=True)
        modes = compare(evaluated, trained, home)
        if isinstance(modes, Modes):
            return _finish(evaluated, home, modes, type(root).__name__), home, modes.notes
        path = modes
        while path and path in leaves:
            path = path.rpartition(".")[0]
        if not path:
            raise GraphError(
                f"{type(root).__name__}.forward itself does something else in train mode than in "
                "eval mode; switch auxiliary heads off, or move that into a submodule, which is "
                "then kept as one layer",
                module="",
            )
        part = root.get_submodule(path)
        leaves.append(path if next(part.children(), None) is not None else type(part))
    raise GraphError(
        f"{type(root).__name__}: more than {_RETRACES} modules differ between train and eval "
        f"mode, the last is {path!r}; mark what holds them as a leaf: "
        "trace(..., leaves=['its.path'])",
        module=path,
    )


def _finish(graph: fx.Graph, home: nn.Module, modes: Modes, name: str) -> fx.GraphModule:
    """Clean the program up and keep only the modules that it calls."""
    install_drops(graph, home, modes.drops)
    install(graph, home, modes.repairs)
    drop_identities(graph, home)
    functionalise(graph, home)
    localise_sizes(graph)
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)
    return compact(graph, home, name)


def _trace_once(
    root: nn.Module,
    shape: tuple[int, ...],
    leaves: list[str | type[nn.Module]],
    *,
    training: bool,
) -> tuple[fx.Graph, nn.Module]:
    """The graph, and the copy of ``root`` that its constants were put on."""
    home = copy_network(root).train(training)
    images = (_images(root, shape, 2), _images(root, shape, 3))
    tracer = ValueTracer(images, leaves)
    try:
        return tracer.trace(home), home.eval()
    except Exception as error:
        stack = tracer.failed_in or []
        helper = _opaque(stack, leaves)
        if helper is not None:
            leaves.append(helper)
            return _trace_once(root, shape, leaves, training=training)
        path, part = stack[-1] if stack else ("", root)
        where = f"{path!r} ({type(part).__name__})" if path else f"{type(root).__name__}.forward"
        leaf = (
            f"Mark it, or the module around it, as a leaf: trace(..., leaves=[{path!r}]), in a "
            f"job file house: {{leaves: [{json.dumps(path)}]}}"
            if path
            else "Move that line into a submodule and mark that as a leaf: trace(..., "
            "leaves=[...]), in a job file house: {leaves: [...]}"
        )
        raise GraphError(
            f"can't trace {where} at {_line(error)}: {error}. {leaf}, or make the line "
            "independent of the images' values and number",
            module=path,
        ) from error


def _opaque(
    stack: list[tuple[str, nn.Module]], leaves: list[str | type[nn.Module]]
) -> type[nn.Module] | None:
    """The innermost failing module that timm asks not to look into, or that is torch's own."""
    from timm.layers._fx import is_notrace_module

    for _, module in reversed(stack):
        kind = type(module)
        if (is_notrace_module(kind) or kind in COMPOSITES) and kind not in leaves:
            return kind
    return None


def _line(error: Exception) -> str:
    """File and line of the network's own code that failed."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(own)]
    frame = users[-1] if users else frames[-1]
    return f"{frame.filename}, line {frame.lineno} ({frame.line})"


_WAYS = {FX: _program, EXPORT: _exported}


class _MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up multiply-accumulates of convolutions, matrix products and attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            query, key, value = args[:3]
            rows = prod(query.shape[:-1]) * key.shape[-2]
            self.flops += 2 * rows * (query.shape[-1] + value.shape[-1])
        elif packet in RECURRENT:
            shapes = tree_map(lambda a: a.shape if isinstance(a, Tensor) else a, args)
            self.flops += recurrent_flops(*shapes)
        elif name in ("_native_multi_head_attention", "_transformer_encoder_layer_fwd"):
            self.flops += _fused_attention(name, args)
        return result


def _fused_attention(name: str, args: tuple[Any, ...]) -> int:
    """FLOPs of the fused kernels that torch.nn's attention layers choose in eval mode."""
    query = args[0]
    batch, tokens, width = query.shape
    keys = args[1].shape[1] if name == "_native_multi_head_attention" else tokens
    macs = batch * (2 * tokens * width**2 + 2 * keys * width**2 + 2 * tokens * keys * width)
    if name == "_transformer_encoder_layer_fwd":
        matrices = [a for a in args[7:] if isinstance(a, Tensor) and a.ndim == 2]
        macs += batch * tokens * sum(matrix.numel() for matrix in matrices)
    return int(2 * macs)


class _Observer(fx.Interpreter):
    """Runs the graph and keeps, per node, what kind of value came out and its cost."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        self.floating: dict[str, bool] = {}
        self.numbers: set[str] = set()
        self.flops: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401
        """Run one node under the counter."""
        with _MacCounter() as counter:
            value = super().run_node(n)
        self.flops[n.name] = counter.flops
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
            self.floating[n.name] = value.is_floating_point()
        elif isinstance(value, (int, float, bool)):
            self.numbers.add(n.name)
        return value


def _describe(
    module: fx.GraphModule, shape: tuple[int, ...], notes: Sequence[str], read_by: str
) -> LayerGraph:
    two, three = _Observer(module), _Observer(module)
    two.run(_images(module, shape, 2))
    three.run(_images(module, shape, 3))
    layers: list[Layer] = []
    constants: set[fx.Node] = set()
    output = ""
    for node in module.graph.nodes:
        node.meta = {}
        if node.op == "output":
            output = node.args[0].name
            continue
        constant = node.op != "placeholder" and constants.issuperset(node.all_input_nodes)
        if constant:
            constants.add(node)
        left, right = two.shapes.get(node.name), three.shapes.get(node.name)
        batched = bool(left) and bool(right) and (left[0], right[0]) == (2, 3)  # type: ignore[index]
        kind = kind_of(node, module)
        kind = CONSTANT if constant else SIZE if node.name in two.numbers else kind
        sizes = () if left is None else left if constant else left[1:]
        macs = (2 * two.flops[node.name] - three.flops[node.name]) // 2
        inputs = tuple(source.name for source in node.all_input_nodes)
        boundary = batched and not constant and two.floating[node.name]
        layers.append(
            Layer(node.name, kind, sizes, macs, _own_params(node, module), inputs, boundary)
        )
    return LayerGraph(module, tuple(layers), shape, output, tuple(notes), read_by)


def _own_params(node: fx.Node, module: fx.GraphModule) -> int:
    return sum(parameter.numel() for parameter in own_parameters(node, module))


def own_parameters(node: fx.Node, module: fx.GraphModule) -> list[nn.Parameter]:
    """The parameters that a node holds (a module's) or is (an attribute)."""
    if node.op == "call_module":
        return list(module.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value: Any = module
        for atom in str(node.target).split("."):
            value = getattr(value, atom)
        return [value] if isinstance(value, nn.Parameter) else []
    return []
