"""Channel masks at the seams between blocks, and cutting them for real after fine-tuning.

A pruned alternative keeps the widths of the block that it replaces by multiplying the channels
it no longer uses by zero; feature distillation needs that. In the finished student these
channels are removed wherever every layer that shares them agrees.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.channels import Channels, analyse, apply_keep
from tailorbird.graph.cutters import Place
from tailorbird.graph.dataflow import device_of
from tailorbird.graph.importance import Scores, choose_keep, step_of


class ChannelMask(nn.Module):
    """Multiplies channels by a fixed mask.

    Args:
        mask: (C,) zeros and ones (booleans do).
        axis: the channels' axis in the batched tensor: 1 for images, -1 for tokens.

    Raises:
        GraphError: if the mask is not a vector of zeros and ones with a one in it.

    Example:
        >>> ChannelMask(torch.tensor([1, 0]))(torch.ones(1, 2, 1, 1)).flatten().tolist()
        [1.0, 0.0]
    """

    mask: Tensor

    def __init__(self, mask: Tensor, axis: int = 1) -> None:
        super().__init__()
        values = torch.as_tensor(mask).detach().float().clone()
        if values.ndim != 1 or not ((values == 0) | (values == 1)).all() or not values.any():
            raise GraphError(
                "mask: expected a vector of zeros and ones with a one in it, "
                f"got shape {tuple(values.shape)}, values {values.flatten().tolist()[:8]}"
            )
        self.axis = axis
        self.register_buffer("mask", values)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (n, ..., C, ...) with the masked channels zero."""
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self.mask.to(x.dtype).reshape(shape)

    def extra_repr(self) -> str:
        """Kept and all channels."""
        return f"{int(self.mask.sum())} of {len(self.mask)}, axis={self.axis}"


def masked(
    body: fx.GraphModule,
    in_mask: Tensor | None = None,
    out_mask: Tensor | None = None,
    *,
    in_shape: Sequence[int],
) -> fx.GraphModule:
    """A copy of ``body`` with masks behind its input and before its output.

    Layers inside that read the same channels again (behind a residual addition, say) get the
    mask too, so the result equals the really narrower body, put back to its old width.

    Args:
        body: one input, one output tensor; left as it is.
        in_mask: (C_in,) zeros and ones, or None.
        out_mask: (C_out,) zeros and ones, or None.
        in_shape: shape of the input without batch.

    Raises:
        GraphError: if a mask's length is not the body's width.
    """
    channels = analyse(body, in_shape)
    off: set[Place] = set()
    for name, mask, places in (
        ("in_mask", in_mask, channels.input),
        ("out_mask", out_mask, channels.output),
    ):
        if mask is not None and len(mask) != len(places):
            raise GraphError(f"{name}: expected {len(places)} channels, got {len(mask)}")
        if mask is not None:
            off.update(p for p, on in zip(places, mask.tolist(), strict=True) if not on)
    result = copy.deepcopy(body)
    last = next(iter(reversed(result.graph.nodes)))
    if out_mask is not None:
        closing = ChannelMask(out_mask, channels.out_axis + 1)
        _insert(result, last.all_input_nodes[0], "mask_out", closing, [last])
    if in_mask is not None:
        first = next(node for node in result.graph.nodes if node.op == "placeholder")
        opening = ChannelMask(in_mask, channels.in_axis + 1)
        _insert(result, first, "mask_in", opening, list(first.users))
    for reader in channels.readers:
        if not off.isdisjoint(reader.places):
            inner = torch.tensor([place not in off for place in reader.places])
            _mask_reader(result, reader.path, ChannelMask(inner, reader.axis))
    return _recompiled(result)


def interface_masks(
    body: fx.GraphModule,
    in_shape: Sequence[int],
    *,
    ratio: float,
    scores: Scores,
    multiple: int = 8,
    floor: int = 4,
    channels: Channels | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks for the input and output of ``body`` that switch its least important channels off.

    Ranks and rounding as in ``prune_interior``, over the groups that touch input or output.

    Returns:
        in_mask (C_in,) and out_mask (C_out,), for ``masked``; ones where nothing is pruned.

    Raises:
        GraphError: for a ratio outside [0, 1) or scores that do not fit the body.
    """
    found = channels or analyse(body, in_shape)
    groups = [g for g in found.groups if not g.interior]
    keep = choose_keep(found, groups, ratio=ratio, scores=scores, multiple=multiple, floor=floor)

    def mask(places: Sequence[Place]) -> Tensor:
        return torch.tensor([float(g not in keep or p in keep[g]) for g, p in places])

    return mask(found.input), mask(found.output)


def cut_masks(
    student: fx.GraphModule, in_shape: Sequence[int], *, multiple: int = 8
) -> fx.GraphModule:
    """A copy of ``student`` with its masked channels removed wherever nobody misses them.

    A channel goes if every layer that reads it, or a channel tied to it, sees a sure zero there;
    so a mask on a residual stream is cut only if all blocks on the stream agree. What can't go
    is folded into the neighbouring weights where that removes the multiply, else the mask stays.
    Equal to ``student`` in eval mode. Where a mask keeps a multiple of ``multiple`` channels but
    only some of the others can go, fewer are cut, so that the width stays a multiple.

    Args:
        student: a whole network, with masks anywhere, nested graphs too; left as it is.
        in_shape: shape of the input without batch.
        multiple: widths that hardware likes.

    Raises:
        GraphError: if the student can't run at ``in_shape``.
    """
    channels = analyse(student, in_shape)
    missed = {p for r in channels.readers for p, z in zip(r.places, r.zero, strict=True) if not z}
    missed.update(channels.output, channels.input)
    keep: dict[int, list[int]] = {}
    for group in channels.groups:
        off = {p for g, p in channels.masked if g == group.index}
        gone = {p for p in off if (group.index, p) not in missed}
        if gone and group.prunable and group.exact:
            gone = _thinned(channels, group.index, gone)
            left, step = group.size - len(gone), step_of(group, multiple)
            if (group.size - len(off)) % step == 0 and left % step:
                gone = set(sorted(gone)[-left % step :])
            keep[group.index] = [p for p in range(group.size) if p not in gone]
    result = apply_keep(student, channels, keep)
    for _, owner in list(_graphs(result)):
        for node in list(owner.graph.nodes):
            mask = _mask_of(owner, node)
            if mask is not None and (mask.mask.all() or _fold(owner, node, mask)):
                _erase(owner, node)
    return _recompiled(result)


def _thinned(channels: Channels, group: int, gone: set[int]) -> set[int]:
    """``gone`` without one channel of each layer that would lose all of its own."""
    for _, places in channels.kept:
        own = {p for g, p in places if g == group}
        if own and own <= gone:
            gone = gone - {min(own)}
    return gone


def _mask_of(owner: fx.GraphModule, node: fx.Node) -> ChannelMask | None:
    if node.op != "call_module":
        return None
    module = owner.get_submodule(str(node.target))
    return module if isinstance(module, ChannelMask) else None


def _calls(owner: fx.GraphModule, target: object) -> int:
    return sum(node.op == "call_module" and node.target == target for node in owner.graph.nodes)


def _fold(owner: fx.GraphModule, node: fx.Node, mask: ChannelMask) -> bool:
    """Zero the weights before or behind a mask in its stead, if that is the same."""
    source = node.all_input_nodes[0]
    if len(source.users) == 1 and _foldable(owner, source, (nn.BatchNorm2d, nn.Conv2d)):
        module = owner.get_submodule(str(source.target))
        tensors = [t for t in (module.weight, module.bias) if isinstance(t, nn.Parameter)]
        if len(tensors) == 2 or isinstance(module, nn.Conv2d):
            for tensor in tensors:
                _scale(tensor, mask.mask, 0)
            return True
    users = list(node.users)
    if users and all(_foldable(owner, user, (nn.Conv2d, nn.Linear)) for user in users):
        modules = [owner.get_submodule(str(user.target)) for user in users]
        if all(getattr(module, "groups", 1) == 1 for module in modules):
            for module in modules:
                assert isinstance(module.weight, nn.Parameter)
                _scale(module.weight, mask.mask, 1)
            return True
    return False


def _foldable(owner: fx.GraphModule, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether ``node`` alone runs a plain layer of one of ``kinds``, shared with nothing."""
    if node.op != "call_module" or _calls(owner, node.target) > 1:
        return False
    return type(owner.get_submodule(str(node.target))) in kinds


def _scale(tensor: nn.Parameter, mask: Tensor, dim: int) -> None:
    shape = [1] * tensor.ndim
    shape[dim] = -1
    with torch.no_grad():
        tensor.mul_(mask.to(tensor).reshape(shape))


def _erase(owner: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    owner.graph.erase_node(node)
    if not _calls(owner, node.target):
        owner.delete_submodule(str(node.target))


def _recompiled(root: fx.GraphModule) -> fx.GraphModule:
    for _, owner in _graphs(root):
        owner.recompile()
    return root


def _insert(
    owner: fx.GraphModule,
    source: fx.Node,
    name: str,
    module: ChannelMask,
    users: Sequence[fx.Node],
) -> None:
    """Put a mask between ``source`` and some of its users."""
    while hasattr(owner, name):
        name += "_"
    owner.add_submodule(name, module.to(device_of(owner)))
    with owner.graph.inserting_after(source):
        node = owner.graph.call_module(name, (source,))
    for user in users:
        user.replace_input_with(source, node)


def _graphs(root: nn.Module) -> Iterator[tuple[str, fx.GraphModule]]:
    for name, part in root.named_modules():
        if isinstance(part, fx.GraphModule):
            yield name, part


def _mask_reader(body: fx.GraphModule, path: str, mask: ChannelMask) -> None:
    """Mask what the layer at ``path`` reads, once for all readers of one tensor."""
    for prefix, owner in list(_graphs(body)):
        for node in list(owner.graph.nodes):
            target = f"{prefix}.{node.target}" if prefix else str(node.target)
            if node.op != "call_module" or target != path:
                continue
            source = node.all_input_nodes[0]
            known = [
                near
                for near in (source, *source.users)
                if (other := _mask_of(owner, near)) is not None
                and torch.equal(other.mask, mask.mask)
            ]
            if not known:
                _insert(owner, source, "mask_inner", copy.deepcopy(mask), [node])
            elif known[0] is not source:
                node.replace_input_with(source, known[0])
