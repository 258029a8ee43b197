"""Quantised places of ONNX files in QDQ form.

Single numbers that are held in 8 bits are left out: their scale follows from them, so that they are
what they were.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from tailorbird.errors import ExportError
from tailorbird.train.quantised.places import Constant, Grid, Place, Places

_EIGHT_BITS = (np.dtype(np.int8), np.dtype(np.uint8))
_PASSING = frozenset(
    (
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"),
        *("Gather", "MaxPool", "Identity", "Relu"),
    )
)
"""What only hands on values, or 0, which is on every grid."""

_RENAMED = "_QuantizeLinear_Input"
"""What ONNX Runtime adds to the name of an output that is quantised."""


def read_onnx(path: Path, images: Tensor) -> Places:
    """What an ONNX file quantises, with the values that it has there for some images.

    Source: the QuantizeLinear and DequantizeLinear operators of ONNX, and ONNX Runtime's
    "Quantize ONNX models" (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        path: a file with pairs of QuantizeLinear and DequantizeLinear.
        images: (n, C, H, W), as the file takes them; where its batch is fixed, the first so many
            are taken.

    Raises:
        ExportError: where it can't be read or run.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # the file system's errors, or protobuf's own
        raise ExportError(f"{path.name} can't be read: {error}; export it again") from error
    held = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    images = images[: model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None]
    readers = Counter(name for node in model.graph.node for name in node.input)
    constants: list[Constant] = []
    pairs: dict[str, tuple[onnx.NodeProto, str]] = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        if node.input[0] in held:
            if held[node.input[0]].dtype in _EIGHT_BITS and held[node.input[0]].size > 1:
                known = constant_of(node, held)
                bias, steps = _bias(node.output[0], model, made, held)
                constants.append(replace(known, bias=bias, bias_steps=steps))
            continue
        source = made.get(node.input[0])
        if source is not None and source.op_type == "QuantizeLinear":
            pairs.setdefault(source.output[0], (source, node.output[0]))
    values = _values(model, [output for _, output in pairs.values()], images, path.name)
    activations = [
        Place(
            name=source.input[0].removesuffix(_RENAMED),
            grid=grid,
            values=torch.from_numpy(values[output]),
            sole=_is_sole(source.input[0], made, readers),
        )
        for source, output in pairs.values()
        if (grid := _grid(source, held)) is not None and not _is_on(grid, source, made, held)
    ]
    return Places(
        activations=tuple(activations),
        constants=tuple(constants),
        images=len(images),
    )


def _grid(node: onnx.NodeProto, held: dict[str, npt.NDArray[Any]]) -> Grid | None:
    """The grid of an activation; ``None`` where it has more than one scale."""
    scale, zero = held[node.input[1]], held[node.input[2]]
    if scale.size != 1:
        return None
    ends = np.iinfo(zero.dtype)
    return Grid(
        scale=float(scale.ravel()[0]),
        zero_point=int(zero.ravel()[0]),
        low=int(ends.min),
        high=int(ends.max),
    )


def _is_on(
    grid: Grid,
    node: onnx.NodeProto,
    made: dict[str, onnx.NodeProto],
    held: dict[str, npt.NDArray[Any]],
) -> bool:
    """Whether values that are rounded are on the grid already, so that nothing changes."""
    before = made.get(node.input[0])
    while before is not None and before.op_type in _PASSING:
        before = made.get(before.input[0])
    if before is None or before.op_type != "DequantizeLinear" or before.input[0] in held:
        return False
    return _grid(made[before.input[0]], held) == grid


def _is_sole(name: str, made: dict[str, onnx.NodeProto], readers: Counter[str]) -> bool:
    """Whether a tensor, and what it is another shape of, are read once only."""
    while readers[name] == 1:
        before = made.get(name)
        if before is None or before.op_type not in _PASSING:
            return True
        name = before.input[0]
    return False


def constant_of(node: onnx.NodeProto, held: dict[str, npt.NDArray[Any]]) -> Constant:
    """Weights in 8 bits."""
    whole, scale = held[node.input[0]], held[node.input[1]]
    zero = held[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, whole.dtype)
    axis = None
    if scale.ndim and whole.ndim:
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1) % whole.ndim
    shape = [1] * whole.ndim
    if axis is not None:
        shape[axis] = -1
    steps = torch.from_numpy(scale.astype(np.float32)).reshape(shape)
    zeros = torch.from_numpy(zero.astype(np.float32)).reshape(shape)
    signed = bool(whole.dtype == np.int8)
    numbers = torch.from_numpy(whole.astype(np.float32)) - zeros
    ends = np.iinfo(whole.dtype)
    symmetric = signed and not zeros.any()
    most = int(numbers.abs().max()) if numbers.numel() else 0
    return Constant(
        name=node.input[0],
        values=numbers * steps,
        steps=steps,
        axis=axis,
        zero_points=zeros,
        low=-most if symmetric else int(ends.min),
        high=most if symmetric else int(ends.max),
        symmetric=symmetric,
    )


def _bias(
    weight: str,
    model: onnx.ModelProto,
    made: dict[str, onnx.NodeProto],
    held: dict[str, npt.NDArray[Any]],
) -> tuple[Tensor | None, Tensor | None]:
    """The bias beside some weights and its steps, where the file holds it as whole numbers."""
    for reader in model.graph.node:
        if list(reader.input[1:2]) != [weight] or len(reader.input) < 3:
            continue
        node = made.get(reader.input[2])
        if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in held:
            whole, scale = (held[name].astype(np.float32).ravel() for name in node.input[:2])
            steps = np.broadcast_to(scale, whole.shape)
            return torch.from_numpy(whole * steps), torch.from_numpy(steps.copy())
    return None, None


def _values(
    model: onnx.ModelProto, names: list[str], images: Tensor, what: str
) -> dict[str, npt.NDArray[np.float32]]:
    """What the network has at some tensors; no operator is fused with another."""
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        (entry,) = session.get_inputs()
        found = session.run(names, {entry.name: images.numpy()}) if names else []
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"{what}: what it has at its quantised places can't be read: {line[:300]}"
        ) from error
    return dict(zip(names, found, strict=True))
