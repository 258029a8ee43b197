"""The second way to read a network: ``torch.export``, for code that ``torch.fx`` can't read.

It runs the network's code on tensors that have shapes and no values, so all that Python does with
tensors works, and what is written into parts of them is understood. Layers stay layers, see
``tailorbird.graph.leaf_calls``; what else was computed becomes public functions of torch.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tailorbird.copying import copy_network
from tailorbird.errors import GraphError
from tailorbird.graph.answers import Answers
from tailorbird.graph.callables import class_name
from tailorbird.graph.kinds import kind_of_module
from tailorbird.graph.leaf_calls import LeafCalls
from tailorbird.graph.naming import compact
from tailorbird.graph.passes import drop_identities, localise_sizes
from tailorbird.graph.programs import cleaned
from tailorbird.graph.tracer import is_torch_layer
from tailorbird.graph.translate import Translator

_FEW = 4096  # numbers, of which values are worked out while the code runs
_ASKING = frozenset(
    getattr(Tensor, name)
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")
)
_IN_PLACE = re.compile(
    r".*[^_]_|__setitem__|__i(add|sub|mul|truediv|floordiv|mod|pow|and|or|xor|[lr]shift)__"
)
_NOTE = "layers follow train and eval mode, and what functions do in train mode alone is left out"

Examples = tuple[Tensor, Tensor]
Reading = tuple[fx.GraphModule, nn.Module, list[str]]
"""The graph module; the copy of the network that its layers and tensors are of; notes."""


def read_exported(
    root: nn.Module, leaves: Sequence[str | type[nn.Module]], examples: Examples
) -> Reading:
    """Read a network by ``torch.export``.

    Args:
        root: the network in eval mode; it is left as it is.
        leaves: paths and classes of modules that are kept as one layer, beside layers of torch.
        examples: two batches of images of different size.

    Returns:
        The graph module; the copy of the network whose layers and tensors it holds; notes on what
        was left out.

    Raises:
        GraphError: saying what ``torch.export`` can't read.
    """
    kept, first = _kept(root, leaves), ""
    for attempt in _ATTEMPTS:
        reader = _Reader(root, kept, examples)
        try:
            with _quiet():
                return attempt(reader)
        except Exception as error:  # foreign code runs, on tensors of a foreign kind
            first = first or _short(error)
    raise GraphError(first)


class _Reader:
    """One attempt to read a network, with copies of its own."""

    def __init__(self, root: nn.Module, kept: Sequence[str], examples: Examples) -> None:
        self._root, self._kept, self._examples = root, kept, examples
        self._home, self._copy = copy_network(root), copy_network(root)
        self._calls = LeafCalls(self._home, kept)

    def run(self, *, gradients: bool) -> Reading:
        """Run the network's code."""
        with self._calls.open(self._copy, self._examples[0].clone()):
            whole = _Watched(self._copy, self._calls.begin, _Watch(self._copy, self._home))
            with self._calls.watched():
                program = self._export(whole, gradients=gradients, strict=False)
            return self._finish(program)

    def interpret(self) -> Reading:
        """Read the network's bytecode: it need not be run, but less of Python is understood."""
        with self._calls.open_plain(self._copy, self._examples[0].clone()):
            return self._finish(self._export(_Whole(self._copy), gradients=True, strict=True))

    def _export(self, whole: nn.Module, *, gradients: bool, strict: bool) -> ExportedProgram:
        images = self._examples[0].clone()
        batch = ({0: torch.export.Dim.AUTO},)
        with torch.set_grad_enabled(gradients):
            program = torch.export.export(whole, (images,), dynamic_shapes=batch, strict=strict)
        return cleaned(program)

    def _finish(self, program: ExportedProgram) -> Reading:
        for layer in map(self._home.get_submodule, self._kept):
            if getattr(layer, "inplace", False) is True:
                setattr(layer, "inplace", False)  # noqa: B010
        graph = Translator(self._home, self._calls, self._examples).graph(program)
        image = next(node for node in graph.nodes if node.op == "placeholder")
        next(iter(graph.nodes)).prepend(image)  # programs begin with their parameters
        drop_identities(graph, self._home)
        localise_sizes(graph)
        module = compact(graph, self._home, type(self._root).__name__)
        return module, self._home, _notes(program)


_ATTEMPTS: tuple[Callable[[_Reader], Reading], ...] = (
    lambda reader: reader.run(gradients=True),
    lambda reader: reader.run(gradients=False),  # some writes into views are refused otherwise
    _Reader.interpret,
)


class _Whole(nn.Module):
    """The network as ``torch.export`` gets it: one image batch, nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Any:  # noqa: ANN401
        """What the network gives."""
        return self.network(image)


class _Watched(_Whole):
    """The same, with something to do before, and something to watch what its code calls."""

    def __init__(self, network: nn.Module, begin: Callable[[], None], watch: _Watch) -> None:
        super().__init__(network)
        self.begin, self.watch = begin, watch

    def forward(self, image: Tensor) -> Any:  # noqa: ANN401
        """What the network gives."""
        self.begin()
        with self.watch:
            return super().forward(image)


class _Watch(TorchFunctionMode):
    """While a network's code runs without values: Python's own functions take what stands for
    tensors and sizes, and what is made of weights and buffers alone tells its values.

    Args:
        network: whose code runs.
        home: a copy with values.
    """

    def __init__(self, network: nn.Module, home: nn.Module) -> None:
        super().__init__()
        self._network, self._home = network, home
        self._known: dict[int, tuple[Tensor, Any]] = {}
        self._answers = Answers(
            FakeTensor,
            (torch.SymInt, torch.SymFloat),
            torch.sym_int,
            lambda number: isinstance(number, torch.SymInt),
        )

    def __enter__(self) -> _Watch:
        self._known.clear()
        for standing, real in zip(_held(self._network), _held(self._home), strict=True):
            self._note(standing, real)
        self._answers.__enter__()
        for module in self._network.modules():
            self._answers.give_module(getattr(type(module).forward, "__globals__", {}))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._answers.__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        self._answers.give(sys._getframe(1))
        values = self._values_of((args, kwargs or {}))
        if values is not None and func in _ASKING:
            with _disable_current_modes():
                return func(*values[0], **values[1])
        result = func(*args, **(kwargs or {}))
        if _may_write(func, kwargs or {}):
            if any(id(value) in self._known for value in tree_leaves((args, kwargs))):
                self._known.clear()
        elif values is not None:
            with suppress(Exception), _disable_current_modes():
                self._note(result, func(*values[0], **values[1]))
        return result

    def _values_of(self, arguments: Any) -> Any:  # noqa: ANN401
        """Arguments with values in place of what stands for them, if all are known and few."""
        flat, form = tree_flatten(arguments)
        tensors = [value for value in flat if isinstance(value, Tensor)]
        if not tensors or any(id(tensor) not in self._known for tensor in tensors):
            return None
        if sum(tensor.numel() for tensor in tensors) > _FEW:
            return None
        return tree_unflatten(
            [self._known[id(v)][1] if isinstance(v, Tensor) else v for v in flat], form
        )

    def _note(self, results: object, values: object) -> None:
        for result, value in zip(tree_leaves(results), tree_leaves(values), strict=True):
            if isinstance(result, Tensor):
                self._known[id(result)] = (result, value)


def _kept(root: nn.Module, leaves: Sequence[str | type[nn.Module]]) -> list[str]:
    """Paths of the modules that are one layer: torch's, the caller's, what only train mode does."""
    kinds = tuple(leaf for leaf in leaves if not isinstance(leaf, str))
    kept: list[str] = []
    for path, module in root.named_modules():
        drops = kind_of_module(module) == "dropout" and class_name(type(module)) is not None
        whole = path in leaves or isinstance(module, kinds) or is_torch_layer(module) or drops
        if path and whole and not any(path.startswith(f"{above}.") for above in kept):
            kept.append(path)
    return kept


def _may_write(function: object, kwargs: Mapping[str, Any]) -> bool:
    name = str(getattr(function, "__name__", "")).partition(".")[0]
    return _IN_PLACE.fullmatch(name) is not None or "out" in kwargs


def _held(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _notes(program: ExportedProgram) -> list[str]:
    """What the graph does not do, one sentence each."""
    written = [
        str(spec.target).removeprefix("network.")
        for spec in program.graph_signature.output_specs
        if spec.kind == OutputKind.BUFFER_MUTATION
    ]
    return [_NOTE, *([f"what it writes into {', '.join(written)} is left out"] if written else [])]


def _short(error: Exception) -> str:
    """The first line of a long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch prints, warns and logs while it reads a network."""
    disabled = logging.root.manager.disable
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, disabled)
        yield
