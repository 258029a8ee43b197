"""Quantised places of OpenVINO's files, as NNCF makes them.

Activations pass FakeQuantize operators. Weights are whole numbers, made real by a Convert and a
Multiply with their scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailorbird.errors import ExportError
from tailorbird.measure.interleave import first_line
from tailorbird.measure.openvino import CPU, core, read
from tailorbird.train.quantised.places import Constant, Grid, Place, Places

if TYPE_CHECKING:
    from openvino import Model, Node, Output

MARK = "FakeQuantize"
"""OpenVINO's word for what rounds activations to a grid."""

_PASSING = ("MaxPool", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
"""What only hands on values, or 0, which is on every grid."""

_GROUPED = "GroupConvolution"
"""Its weights are (groups, channels of each, ...): an axis more than they have in PyTorch."""

_EIGHT_BITS = ("i8", "u8")
_FULL, _HALF = 127, 63
"""The largest whole number of weights. In the first layer, where sums of two products may overflow
in 16 bits, NNCF takes steps that are twice as large: the largest weight is 63.5 of them."""

_SHARE, _LEAST = 0.01, 8e-5
"""NNCF takes channels that are nearly 0 for larger: by the largest of all, and by a number."""

_OF_NNCF = ("/fq_weights_1", "/WithoutBiases")
"""What OpenVINO and NNCF add to names."""


def read_openvino(path: Path, images: Tensor) -> Places:
    """What a file of OpenVINO quantises, with the values that it has there for some images.

    Source: OpenVINO's FakeQuantize
    (https://docs.openvino.ai/2025/documentation/openvino-ir-format/operation-sets/operation-specs/quantization/fake-quantize-1.html).

    Args:
        path: ``NAME.xml``, made by NNCF, with ``NAME.bin`` beside it.
        images: (n, C, H, W), as the file takes them; where its batch is fixed, the first so many
            are taken.

    Raises:
        ExportError: where it can't be read or run, or holds weights in another way than NNCF does.
    """
    try:
        model = read(path)
        size = model.input().get_partial_shape()[0]
        images = images[: size.get_length() if size.is_static else None]
        found = list(_marks(model))
        values = _values(model, [mark for mark, _ in found], images)
        constants = tuple(_constants(model))
    except ExportError as error:
        raise ExportError(f"{path.name}: {error}") from error
    except Exception as error:  # OpenVINO is missing, or one of its many parts fails
        raise ExportError(
            f"{path.name}: what it has at its quantised places can't be read: {first_line(error)}"
        ) from error
    activations = tuple(
        Place(
            name=(source := mark.input_value(0)).get_node().get_friendly_name(),
            grid=grid,
            values=torch.from_numpy(value),
            sole=_is_sole(source),
        )
        for (mark, grid), value in zip(found, values, strict=True)
    )
    return Places(activations=activations, constants=constants, images=len(images))


# activations ------------------------------------------------------------------------------------


def _marks(model: Model) -> Iterator[tuple[Node, Grid]]:
    """What rounds, in the order in which it is computed; once where it is done twice."""
    seen: set[tuple[str, int, Grid]] = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() != MARK or (grid := _grid(node)) is None:
            continue
        source = node.input_value(0)
        key = (source.get_node().get_name(), source.get_index(), grid)
        if key not in seen and not _is_on(grid, source):
            seen.add(key)
            yield node, grid


def _grid(mark: Node) -> Grid | None:
    """The grid of an activation; ``None`` where it has more than one scale."""
    ends = [_constant_data(mark.input_value(place)) for place in range(1, 5)]
    if any(end is None or end.size != 1 for end in ends):
        return None
    low, high, low_out, high_out = (float(end.ravel()[0]) for end in ends if end is not None)
    if (low, high) != (low_out, high_out) or high <= low:
        return None
    last = int(mark.get_attributes()["levels"]) - 1
    scale = (high - low) / last
    return Grid(scale=scale, zero_point=min(max(round(-low / scale), 0), last), low=0, high=last)


def _is_on(grid: Grid, source: Output) -> bool:
    """Whether values that are rounded are on the grid already, so that nothing changes."""
    while source.get_node().get_type_name() in _PASSING:
        source = source.get_node().input_value(0)
    before = source.get_node()
    return before.get_type_name() == MARK and _grid(before) == grid


def _is_sole(source: Output) -> bool:
    """Whether a tensor, and what it is another shape of, are read once only."""
    while len(source.get_target_inputs()) == 1:
        if source.get_node().get_type_name() not in _PASSING:
            return True
        source = source.get_node().input_value(0)
    return False


def _values(model: Model, marks: Sequence[Node], images: Tensor) -> list[npt.NDArray[np.float32]]:
    """What a network has behind some nodes, computed as it is in its file."""
    if not marks:
        return []
    model.add_outputs([mark.output(0) for mark in marks])
    request = (
        core().compile_model(model, CPU, {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    )
    request.infer(np.ascontiguousarray(images.numpy()))
    places = {
        result.input_value(0).get_node().get_name(): number
        for number, result in enumerate(model.get_results())
    }
    return [
        np.array(request.get_output_tensor(places[mark.get_name()]).data, dtype=np.float32)
        for mark in marks
    ]


# weights ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Held:
    """Weights in 8 bits in a network in memory.

    Args:
        whole: the constant of whole numbers.
        scale: the constant that they are multiplied by.
        constant: both, as PyTorch has these weights.
    """

    whole: Node
    scale: Node
    constant: Constant


def held_in(node: Node) -> Held | None:
    """Weights that a node makes real; ``None`` where it does something else.

    Raises:
        ExportError: where they have zero points, or scales along two axes.
    """
    if node.get_type_name() != "Multiply":
        return None
    before, scale = (node.input_value(place).get_node() for place in (0, 1))
    moved = before.get_type_name() == "Subtract"
    convert = before.input_value(0).get_node() if moved else before
    if convert.get_type_name() != "Convert" or scale.get_type_name() != "Constant":
        return None
    whole = convert.input_value(0).get_node()
    kind = whole.get_output_element_type(0).get_type_name()
    if whole.get_type_name() != "Constant" or kind not in _EIGHT_BITS:
        return None
    name = node.get_friendly_name()
    for added in _OF_NNCF:
        name = name.removesuffix(added)
    if moved or kind == "u8":
        raise ExportError(
            f"the weights of {name} have zero points, which is not known here: expected weights in "
            "int8 around 0, as NNCF makes them for processors"
        )
    readers = [entry.get_node() for entry in node.output(0).get_target_inputs()]
    grouped = any(reader.get_type_name() == _GROUPED for reader in readers)
    constant = _constant(name, whole.data, scale.data, _bias(readers), grouped=grouped)
    return Held(whole=whole, scale=scale, constant=constant)


def _constants(model: Model) -> Iterator[Constant]:
    for node in model.get_ordered_ops():
        if (held := held_in(node)) is not None:
            yield held.constant


def _bias(products: Sequence[Node]) -> Tensor | None:
    """What is added to the one product of some weights."""
    if len(products) != 1:
        return None
    readers = [entry.get_node() for entry in products[0].output(0).get_target_inputs()]
    if len(readers) != 1 or readers[0].get_type_name() != "Add":
        return None
    bias = _constant_data(readers[0].input_value(1))
    return None if bias is None else torch.from_numpy(bias.astype(np.float32).ravel())


def _constant(
    name: str,
    whole: npt.NDArray[Any],
    scale: npt.NDArray[Any],
    bias: Tensor | None,
    *,
    grouped: bool,
) -> Constant:
    numbers = torch.from_numpy(whole.astype(np.float32))
    steps = torch.from_numpy(scale.astype(np.float32))
    steps = steps.reshape((1,) * (numbers.ndim - steps.ndim) + steps.shape)
    if grouped:
        steps = steps.expand(*numbers.shape[:2], *steps.shape[2:]).flatten(0, 1)
        numbers = numbers.flatten(0, 1)
    wide = [axis for axis, count in enumerate(steps.shape) if count > 1]
    if len(wide) > 1:
        raise ExportError(
            f"the weights of {name} have scales along {len(wide)} axes: expected one scale, or one "
            "for each channel"
        )
    half = bool((numbers.abs() <= _HALF + 1).all())  # 63.5 is rounded up or down
    most = _HALF if half else _FULL
    return Constant(
        name=name,
        values=numbers * steps,
        steps=steps,
        axis=wide[0] if wide else None,
        zero_points=torch.zeros_like(steps),
        low=-most,
        high=most,
        symmetric=True,
        largest=_HALF + 0.5 if half else None,
        share=_SHARE,
        least=_LEAST,
        bias=bias,
    )


def _constant_data(output: Output) -> npt.NDArray[Any] | None:
    node = output.get_node()
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None
