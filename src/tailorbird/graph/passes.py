"""Clean-up of a fresh trace: dropout that follows the mode, no in-place writes, local sizes."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tailorbird.graph.tracer import SCOPE, VALUES

_DROPOUTS: dict[Callable[..., Tensor], type[nn.modules.dropout._DropoutNd]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
_ATTENTION = F.scaled_dot_product_attention
_IN_PLACE = frozenset(
    f"{name}_"
    for name in (
        *("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "clamp", "clamp_min", "clamp_max"),
        *("pow", "sqrt", "exp", "neg", "abs", "masked_fill", "floor", "addcmul", "lerp", "square"),
        *("index_copy", "index_add", "index_fill", "scatter"),
    )
)
_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    torch.relu_: torch.relu,
    F.relu_: F.relu,
}


class DropoutAttention(nn.Module):
    """Scaled dot-product attention whose dropout follows train and eval mode.

    Args:
        dropout: probability with which a weight is dropped in train mode.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(  # noqa: PLR0917 - the signature of torch.nn.functional
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """Attend: query (..., n, d), key (..., m, d), value (..., m, v) to (..., n, v)."""
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            scale=scale,
        )


def bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, or nothing where the function shows no signature."""
    try:
        signature = inspect.signature(node.target)  # type: ignore[arg-type]
        call = signature.bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return {}
    call.apply_defaults()
    return dict(call.arguments)


def parting(evaluated: list[fx.Node], trained: list[fx.Node]) -> str:
    """The module that does more in one mode; what is in the other trace resumes after that."""
    sides = {True: (evaluated[0], trained), False: (trained[0], evaluated)}
    resumes = {
        train: next((k for k, n in enumerate(other) if _call(n) == _call(node)), len(other))
        for train, (node, other) in sides.items()
    }
    extra = trained[0] if resumes[True] <= resumes[False] else evaluated[0]
    if resumes[True] == resumes[False]:
        return max((scope(evaluated[0]), scope(trained[0])), key=len)
    return scope(extra)


def _call(node: fx.Node) -> tuple[str, object]:
    return node.op, node.target


def scope(node: fx.Node) -> str:
    """Dotted path of the module whose forward made the node."""
    scope = str(node.meta.get(SCOPE, ""))
    return scope.rpartition(".")[0] if node.op == "call_module" else scope


def _plain(arguments: object) -> str:
    return repr(arguments)  # nodes print as their names, which are made the same way in both


def follower(node: fx.Node, other: fx.Node) -> nn.Module | None:
    """A module that does what ``node`` does in eval and what ``other`` does in train mode."""
    if node.target is not other.target or node.op != "call_function":
        return None
    if node.target in _DROPOUTS:
        left, right = _arguments(node), _arguments(other)
        if left["training"] is False and right["training"] is True:
            rates = [a["p"] for a in (left, right)]
            return _DROPOUTS[node.target](max(rates))
    if node.target is _ATTENTION and len(node.args) <= 4:
        left, right = dict(node.kwargs), dict(other.kwargs)
        rate = right.pop("dropout_p", 0.0)
        left.pop("dropout_p", 0.0)
        if _plain((node.args, left)) == _plain((other.args, right)) and isinstance(rate, float):
            return DropoutAttention(rate)
    return None


def _arguments(node: fx.Node) -> dict[str, Any]:
    arguments = bound(node)
    arguments.setdefault("training", None)
    return arguments


def install(graph: fx.Graph, root: nn.Module, repairs: Iterable[tuple[fx.Node, nn.Module]]) -> None:
    """Replace each node by a call of its module, registered on ``root``."""
    for node, module in repairs:
        name = f"mode_{node.name}"
        root.add_module(name, module.eval())
        kwargs = {key: value for key, value in node.kwargs.items() if key != "dropout_p"}
        args = node.args
        if not isinstance(module, DropoutAttention):
            args, kwargs = (bound(node)["input"],), {}
        with graph.inserting_before(node):
            call = graph.call_module(name, args, kwargs)
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)


def drop_identities(graph: fx.Graph, root: nn.Module) -> None:
    """Remove calls that hand their input on in either mode."""
    for node in list(graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        module = root.get_submodule(str(node.target))
        rate = getattr(module, "p", getattr(module, "drop_prob", None))
        drops = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in (
            "DropPath",
            "StochasticDepth",
        )
        if type(module) is nn.Identity or (drops and rate in (0.0, None)):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def assign(x: Tensor, index: Any, value: Any) -> Tensor:  # noqa: ANN401 - as Tensor.__setitem__
    """``x[index] = value`` as a pure function.

    Args:
        x: any tensor.
        index: whatever indexes it.
        value: a number or a tensor that broadcasts to ``x[index]``.

    Returns:
        A copy of ``x`` with that part replaced.

    Example:
        >>> assign(torch.zeros(3), slice(1, None), 2.0)
        tensor([0., 2., 2.])
    """
    x = x.clone()
    x[index] = value
    return x


def functionalise(graph: fx.Graph, root: nn.Module) -> None:
    """Turn in-place operations into plain ones; later readers of their input read their result.

    A write to a slice writes to what was sliced, too.
    """
    writes = _Writes(graph)
    writers = {name for name, module in root.named_modules() if _writes(module)}
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        if node.op == "call_function" and node.target is operator.getitem:
            writes.note_view(node, source)
        elif node.target in writers if node.op == "call_module" else _made_plain(node):
            writes.propagate(node, source)
    for name in writers:
        root.get_submodule(name).inplace = False  # type: ignore[assignment]


class _Writes:
    """Which node holds the present value of each tensor while writes are made plain."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._position = {node: i for i, node in enumerate(graph.nodes)}
        self._origin: dict[fx.Node, fx.Node] = {}
        self._present: dict[fx.Node, fx.Node] = {}
        self._views: dict[fx.Node, tuple[fx.Node, Any]] = {}

    def note_view(self, node: fx.Node, source: fx.Node) -> None:
        """A slice of a tensor shares its memory."""
        index = node.args[1]
        parts = index if isinstance(index, tuple) else (index,)
        basic = all(isinstance(part, (int, slice)) or part in (None, ...) for part in parts)
        if basic and _shapes(source) is not None:
            self._views[node] = (self._origin.get(source, source), index)

    def propagate(self, node: fx.Node, source: fx.Node) -> None:
        """``node`` gives the new value of ``source`` and, by that, of what it is a slice of."""
        tensor = self._supersede(node, source, self._position[node])
        while tensor in self._views:
            whole, index = self._views[tensor]
            old = self._present.get(whole, whole)
            with self._graph.inserting_after(node):
                new = self._graph.call_function(assign, (old, index, node))
            new.meta = {key: old.meta[key] for key in (SCOPE, VALUES) if key in old.meta}
            self._position[new] = self._position[node]
            tensor = self._supersede(new, old, self._position[node])
            node = new

    def _supersede(self, new: fx.Node, old: fx.Node, since: int) -> fx.Node:
        for user in list(old.users):
            if self._position[user] > since:
                user.replace_input_with(old, new)
        tensor = self._origin.get(old, old)
        self._origin[new], self._present[tensor] = tensor, new
        return tensor


def _writes(module: nn.Module) -> bool:
    return getattr(module, "inplace", False) is True


def _made_plain(node: fx.Node) -> bool:
    """Whether the call wrote in place; it no longer does."""
    if node.op == "call_method" and node.target in _IN_PLACE:
        node.target = str(node.target)[:-1]
        return True
    if node.op == "call_function" and node.target is operator.setitem:
        node.target = assign
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node.meta[VALUES] = source.meta[VALUES]
        return True
    if node.op == "call_function" and node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
        return True
    if node.op == "call_function" and ("inplace" in node.kwargs or len(node.args) > 1):
        arguments = bound(node)
        if arguments.get("inplace") is True and "input" in arguments:
            node.args, node.kwargs = (arguments.pop("input"),), arguments | {"inplace": False}
            return True
    return False


def localise_sizes(graph: fx.Graph) -> None:
    """Let every reshape and every use of the batch size depend on its own tensor only."""
    for node in list(graph.nodes):
        _constant_reshape(node)
    for node in list(graph.nodes):
        if isinstance(_shapes(node), tuple):
            for number in [a for a in node.all_input_nodes if _is_number(a)]:
                _own_size(graph, node, number)


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    pair = node.meta.get(VALUES)
    return pair if pair is not None and isinstance(pair[0], tuple) else None


def _is_number(node: fx.Node) -> bool:
    pair = node.meta.get(VALUES)
    return pair is not None and not isinstance(pair[0], tuple)


def _constant_reshape(node: fx.Node) -> None:
    shapes = _shapes(node)
    names = ("view", "reshape")
    is_method = node.op == "call_method" and node.target in names
    if (
        not (is_method or node.target is torch.reshape)
        or shapes is None
        or not any(map(_is_number, node.all_input_nodes))
    ):
        return
    sizes = [a if a == b else -1 for a, b in zip(*shapes, strict=True)]
    if sizes.count(-1) == 1:
        node.args = (node.args[0], *sizes) if node.op == "call_method" else (node.args[0], sizes)
        node.kwargs = {}


def _own_size(graph: fx.Graph, node: fx.Node, number: fx.Node) -> None:
    wanted = number.meta[VALUES]
    for tensor in node.all_input_nodes:
        shapes = _shapes(tensor)
        if shapes is None or len(shapes[0]) != len(shapes[1]):
            continue
        for d, (left, right) in enumerate(zip(*shapes, strict=True)):
            if (
                left == right
                or wanted[0] == wanted[1]
                or left % wanted[0]
                or left // wanted[0] * wanted[1] != right
            ):
                continue
            with graph.inserting_before(node):
                size = graph.call_method("size", (tensor, d))
                size.meta = {VALUES: (left, right)}
                if left != wanted[0]:
                    size = graph.call_function(operator.floordiv, (size, left // wanted[0]))
                    size.meta = {VALUES: wanted}
            node.replace_input_with(number, size)
            return
