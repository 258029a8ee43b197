"""Other weights in a quantised ONNX file, all else as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from tailorbird.errors import ExportError
from tailorbird.train.quantised.fakes import FakeConstant
from tailorbird.train.quantised.onnx_places import constant_of

_SUFFIX = "_quantized"
"""What ONNX Runtime adds to the names of constants that it quantises."""


def with_weights(like: Path, float32: onnx.ModelProto) -> onnx.ModelProto:
    """The quantised file ``like`` with the weights of another network of the same structure.

    Places, grids of activations and what is kept in float32 stay. Scales of weights follow from
    the new weights, those of biases from them. Metadata are left out.

    Args:
        like: quantised by ONNX Runtime, in QDQ form.
        float32: the other network, exported and prepared in the way that ``like`` was made from.

    Raises:
        ExportError: naming constants that the other network lacks, or has in another shape.
    """
    try:
        model = onnx.load(like)
    except Exception as error:  # the file system's errors, or protobuf's own
        raise ExportError(f"{like.name} can't be read: {error}; export it again") from error
    editor = _Editor(model, float32)
    back = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    held = [node for node in back if node.input[0] in editor.held]
    biases = [node for node in held if editor.held[node.input[0]].dtype == np.int32]
    for node in held:
        if node not in biases:
            editor.round_weights(node)
    for node in biases:
        editor.round_bias(node)
    editor.take_plain()
    del model.metadata_props[:]
    if editor.faults:
        raise ExportError(
            f"{like.name} can't take the weights of a network of another structure: "
            + "; ".join(editor.faults[:5])
        )
    return model


class _Editor:
    """Initialisers of a model by name, and new values for them."""

    def __init__(self, model: onnx.ModelProto, float32: onnx.ModelProto) -> None:
        self.model = model
        self.entries = {entry.name: entry for entry in model.graph.initializer}
        self.held = {name: numpy_helper.to_array(e) for name, e in self.entries.items()}
        self.new = {e.name: numpy_helper.to_array(e) for e in float32.graph.initializer}
        self.made = {name: node for node in model.graph.node for name in node.output}
        self.taken: set[str] = set()
        self.faults: list[str] = []

    def round_weights(self, node: onnx.NodeProto) -> None:
        """New weights, scales and zero points of what a DequantizeLinear reads."""
        if (weights := self._fresh(node.input[0])) is None:
            return
        constant = constant_of(node, self.held)
        scale, zero = FakeConstant(constant).grid(torch.from_numpy(weights.copy()))
        shape = constant.steps.shape if constant.axis is not None else (1,) * weights.ndim
        steps, zeros = scale.reshape(shape).numpy(), zero.reshape(shape).numpy()
        whole = np.rint(weights / steps) + zeros
        self._put(node.input[0], whole.clip(constant.low, constant.high))
        self._put(node.input[1], steps)
        if len(node.input) > 2:
            self._put(node.input[2], zeros)

    def round_bias(self, node: onnx.NodeProto) -> None:
        """A new bias in units of its layer's products."""
        if (bias := self._fresh(node.input[0])) is None:
            return
        reader = next(n for n in self.model.graph.node if node.output[0] in n.input)
        one, other = (self._scale_of(name) for name in reader.input[:2])
        if one is None or other is None:
            self.faults.append(f"{reader.name} has a bias in int32 and no int8 beside it")
            return
        steps = one * other
        end = np.iinfo(np.int32)
        whole = np.rint(bias.astype(np.float64) / steps).clip(end.min, end.max)
        self._put(node.input[0], whole)
        self._put(node.input[1], np.broadcast_to(steps, self.held[node.input[1]].shape))

    def take_plain(self) -> None:
        """New values of what is held in float32."""
        for name, value in self.held.items():
            fresh = self.new.get(name)
            if name not in self.taken and fresh is not None and fresh.shape == value.shape:
                self._put(name, fresh)

    def _fresh(self, name: str) -> npt.NDArray[Any] | None:
        value = self.new.get(name.removesuffix(_SUFFIX))
        if value is None or value.shape != self.held[name].shape:
            found = "missing" if value is None else f"of shape {value.shape}"
            self.faults.append(f"{name}: expected shape {self.held[name].shape}, it is {found}")
            return None
        return value

    def _scale_of(self, name: str) -> npt.NDArray[Any] | None:
        """The scale with which a tensor leaves int8."""
        node = self.made.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return self.held[node.input[1]].ravel()

    def _put(self, name: str, value: npt.NDArray[Any]) -> None:
        before = self.held[name]
        after = np.ascontiguousarray(value.astype(before.dtype).reshape(before.shape))
        self.held[name] = after
        self.entries[name].CopyFrom(numpy_helper.from_array(after, name))
        self.taken.add(name)
