"""Other weights in a quantised file of OpenVINO, all else as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from tailorbird.errors import ExportError, MeasurementError
from tailorbird.measure.openvino import imported, openvino, read
from tailorbird.train.quantised.fakes import FakeConstant
from tailorbird.train.quantised.openvino_places import MARK, Held, held_in

if TYPE_CHECKING:
    from openvino import Model, Node, Output

_REAL = ("f32", "f16", "f64", "bf16")


def with_weights(like: Path, float32: Model) -> Model:
    """The quantised file ``like`` with the weights of another network of the same structure.

    Places, grids of activations and what is kept in float32 stay. Scales of weights follow from
    the new weights. Biases are the new ones: where NNCF has shifted those of ``like``, that is
    left out, as the new ones are trained for the file.

    Args:
        like: quantised by NNCF.
        float32: the other network, converted in the way that ``like`` was made from.

    Raises:
        ExportError: naming where the other network is of another structure.
    """
    try:
        model = read(like)
    except MeasurementError as error:
        raise ExportError(str(error)) from error
    passes = imported("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(float32)
    editor = _Editor()
    editor.walk(model, float32)
    if editor.faults:
        raise ExportError(
            f"{like.name} can't take the weights of a network of another structure: "
            + "; ".join(editor.faults[:5])
        )
    return model


class _Editor:
    """Walks through two networks at once, from their answers back, and puts in new weights."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._seen: set[tuple[str, int]] = set()

    def walk(self, model: Model, float32: Model) -> None:
        """All of two networks."""
        rest = [
            (old.input_value(0), new.input_value(0))
            for old, new in zip(model.get_results(), float32.get_results(), strict=True)
        ]
        while rest:
            rest += self._step(*rest.pop())

    def _step(self, old: Output, new: Output) -> list[tuple[Output, Output]]:
        """One place in both; gives those before it."""
        while old.get_node().get_type_name() == MARK:
            old = old.get_node().input_value(0)
        node, twin = old.get_node(), new.get_node()
        place = node.get_name(), old.get_index()
        if place in self._seen:
            return []
        self._seen.add(place)
        if (held := held_in(node)) is not None:
            self._round(held, twin)
        elif node.get_type_name() == "Constant":
            self._take(node, twin)
        elif (wanted := _kind(node)) == (found := _kind(twin)):
            return [*zip(node.input_values(), twin.input_values(), strict=True)]
        else:
            self.faults.append(f"{node.get_friendly_name()}: expected {wanted}, it is {found}")
        return []

    def _round(self, held: Held, twin: Node) -> None:
        """New weights and scales."""
        if (weights := self._fresh(held.whole, twin, held.constant.name)) is None:
            return
        constant = held.constant
        fresh = torch.from_numpy(weights.astype(np.float32)).reshape(constant.values.shape)
        scale, _ = FakeConstant(constant).grid(fresh)
        steps = scale.reshape(constant.steps.shape)
        whole = (fresh / steps).round().clamp(constant.low, constant.high)
        _put(held.whole, whole.numpy().reshape(held.whole.data.shape))
        _put(held.scale, steps.numpy().reshape(held.scale.data.shape))

    def _take(self, node: Node, twin: Node) -> None:
        """A new value of what is held as it is; shapes and axes stay."""
        if node.get_output_element_type(0).get_type_name() not in _REAL:
            return
        value = self._fresh(node, twin, node.get_friendly_name())
        if value is not None:
            _put(node, value)

    def _fresh(self, node: Node, twin: Node, name: str) -> npt.NDArray[Any] | None:
        wanted = tuple(node.data.shape)
        if twin.get_type_name() != "Constant":
            self.faults.append(f"{name}: expected shape {wanted}, it is {twin.get_type_name()}")
        elif twin.data.shape != wanted:
            self.faults.append(f"{name}: expected shape {wanted}, it is of {twin.data.shape}")
        else:
            return np.asarray(twin.data)
        return None


def _kind(node: Node) -> str:
    count = node.get_input_size()
    return f"{node.get_type_name()} of {count} input{'' if count == 1 else 's'}"


def _put(node: Node, value: npt.NDArray[Any]) -> None:
    """Another constant in the place of one, in the same type."""
    fresh = openvino().op.Constant(np.array(value, dtype=node.data.dtype, order="C"))
    fresh.set_friendly_name(node.get_friendly_name())
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(fresh.output(0))
