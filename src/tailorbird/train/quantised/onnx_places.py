"""Quantised places of ONNX files in QDQ form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from tailorbird.errors import ExportError
from tailorbird.train.quantised.places import Bias, Constant, Grid, Place, Places

_EIGHT_BITS = (np.dtype(np.int8), np.dtype(np.uint8))
_RENAMED = "_QuantizeLinear_Input"
"""What ONNX Runtime adds to the name of an output that is quantised."""


def read_onnx(path: Path, images: Tensor) -> Places:
    """What an ONNX file quantises, with the values that it has there for some images.

    Source: the QuantizeLinear and DequantizeLinear operators of ONNX, and ONNX Runtime's
    "Quantize ONNX models" (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        path: a file with pairs of QuantizeLinear and DequantizeLinear.
        images: (n, C, H, W), as the file takes them.

    Raises:
        ExportError: where it can't be read or run.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # the file system's errors, or protobuf's own
        raise ExportError(f"{path.name} can't be read: {error}; export it again") from error
    held = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    constants: list[Constant] = []
    biases: list[Bias] = []
    pairs: dict[str, tuple[onnx.NodeProto, str]] = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        if node.input[0] in held:
            if held[node.input[0]].dtype in _EIGHT_BITS:
                constants.append(constant_of(node, held))
            elif held[node.input[0]].dtype == np.int32:
                biases.append(_bias(node, held))
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
        )
        for source, output in pairs.values()
        if (grid := _grid(source, held)) is not None
    ]
    return Places(activations=tuple(activations), constants=tuple(constants), biases=tuple(biases))


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


def _bias(node: onnx.NodeProto, held: dict[str, npt.NDArray[Any]]) -> Bias:
    whole, scale = (held[name].astype(np.float32).ravel() for name in node.input[:2])
    steps = np.broadcast_to(scale, whole.shape)
    return Bias(values=torch.from_numpy(whole * steps), steps=torch.from_numpy(steps.copy()))


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
