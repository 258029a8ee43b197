"""Biases that make up for what rounding does to the mean of every channel.

Rounded weights and inputs shift the mean of what a channel gives, by W E[x] - W' E[x'] for its
weights W and inputs x, and the same rounded. That shift is the same for all images, so the bias
takes it out at no cost (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and
Bias Correction", section 4.2, with means that are measured on calibration images). It matters most
where channels have few weights, as in depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Values = npt.NDArray[np.floating[Any]]
Means = Mapping[str, tuple[Values, Values]]
"""Tensor -> means (C,) of its channels, as they are and rounded."""

_CORRECTED = ("Conv", "Gemm")


def inputs_of(model: onnx.ModelProto) -> list[str]:
    """The tensors that products with a bias take, in a network in float32."""
    return sorted({node.input[0] for node in _products(model)})


def means(
    model: onnx.ModelProto, rounded: onnx.ModelProto, batches: Iterable[Mapping[str, Values]]
) -> Means:
    """Means of `inputs_of` a network, and what they become by rounding.

    Args:
        model: in float32.
        rounded: made of it, in QDQ form; nodes have the same names.
        batches: tensor -> values (n, C, ...), for some images each.
    """
    grids = dict(_grids(model, rounded))
    found: dict[str, list[tuple[Values, Values]]] = {}
    for batch in batches:
        for name, values in batch.items():
            pair = (_mean(values), _mean(_on(grids.get(name), values)))
            found.setdefault(name, []).append(pair)
    return {
        name: (np.mean([own for own, _ in pairs], 0), np.mean([after for _, after in pairs], 0))
        for name, pairs in found.items()
    }


def correct_biases(rounded: onnx.ModelProto, model: onnx.ModelProto, known: Means) -> None:
    """Shift the biases of a quantised network in place.

    Args:
        rounded: in QDQ form; biases that it holds as whole numbers are shifted.
        model: the network in float32 that it was made of; nodes have the same names.
        known: as `means` gives them.
    """
    own, back = _by_name(rounded), _dequantised(rounded)
    entries, plain = _held(rounded), _held(model)
    readers = [name for node in rounded.graph.node for name in node.input]
    for node in _products(model):
        weight, bias = (back.get(name) for name in own[node.name].input[1:3])
        if weight is None or bias is None or readers.count(bias.output[0]) != 1:
            continue  # in float32, or shared
        if weight.input[0] not in entries or bias.input[0] not in entries:
            continue
        before, after = known[node.input[0]]
        lost = _applied(node, numpy_helper.to_array(plain[node.input[1]]), before)
        lost = lost - _applied(node, _values(weight, entries), after)
        entry = entries[bias.input[0]]
        whole, ends = numpy_helper.to_array(entry), np.iinfo(np.int32)
        steps = numpy_helper.to_array(entries[bias.input[1]]).astype(np.float64)
        shifted = np.rint(whole + lost / steps).clip(ends.min, ends.max).astype(whole.dtype)
        entry.CopyFrom(numpy_helper.from_array(shifted, entry.name))


def _products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Products of which weights and bias are constants."""
    held = set(_held(model))
    return [
        node
        for node in model.graph.node
        if node.op_type in _CORRECTED and len(node.input) > 2 and held.issuperset(node.input[1:3])
    ]


def _grids(
    model: onnx.ModelProto, rounded: onnx.ModelProto
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Scale and zero point of what products take."""
    own, back = _by_name(rounded), _dequantised(rounded)
    entries = _held(rounded)
    for node in _products(model):
        source = back.get(own[node.name].input[0])
        if source is not None and set(source.input[1:]) <= entries.keys():
            scale, zero = (numpy_helper.to_array(entries[name]) for name in source.input[1:3])
            yield node.input[0], (float(scale), float(zero))


def _on(grid: tuple[float, float] | None, values: Values) -> Values:
    """Values as they are in uint8."""
    if grid is None:
        return values
    scale, zero = grid
    return np.asarray(((np.rint(values / scale) + zero).clip(0, 255) - zero) * scale)


def _mean(values: Values) -> Values:
    return np.asarray(values.mean(axis=(0, *range(2, values.ndim)), dtype=np.float64))


def _values(node: onnx.NodeProto, entries: Mapping[str, onnx.TensorProto]) -> Values:
    """What the whole numbers of a constant stand for; weights have zero points of 0."""
    whole, scale = (
        numpy_helper.to_array(entries[name]).astype(np.float64) for name in node.input[:2]
    )
    if not scale.ndim:
        return np.asarray(whole * scale)
    shape = [1] * whole.ndim
    shape[_attribute(node, "axis", 1)] = -1
    return np.asarray(whole * scale.reshape(shape))


def _applied(node: onnx.NodeProto, weights: Values, mean: Values) -> Values:
    """Means of a product's outputs (O,), its border taken like its inside."""
    if node.op_type == "Gemm":
        matrix = weights if _attribute(node, "transB", 0) else weights.T
        return np.asarray(matrix @ mean)
    per_input = weights.reshape(*weights.shape[:2], -1).sum(-1)  # (O, C / groups)
    groups, width = _attribute(node, "group", 1), per_input.shape[1]
    apart = per_input.reshape(groups, -1, width)
    return np.asarray((apart * mean.reshape(groups, 1, width)).sum(-1).ravel())


def _attribute(node: onnx.NodeProto, name: str, otherwise: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), otherwise)


def _held(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {entry.name: entry for entry in model.graph.initializer}


def _by_name(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def _dequantised(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
