"""OpenVINO's networks in int8, by NNCF.

NNCF marks what is to be computed in int8 by FakeQuantize operators, and holds weights in int8 with
one scale per channel. Where it puts them depends on the network alone. With what ranges is tried in
a few ways, and the one is kept whose outputs on the calibration images are nearest to those of the
float32 network. Where the file then loses too much accuracy, the layers that do most of the damage
stay in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tailorbird.errors import ExportError
from tailorbird.export.exporter import Written
from tailorbird.export.options import LEAST_CALIBRATION
from tailorbird.measure.interleave import first_line
from tailorbird.measure.openvino import answers, nncf, openvino
from tailorbird.quiet import silent

if TYPE_CHECKING:
    from openvino import Input, Model, Node, Output

Images = npt.NDArray[np.float32]
Loss = Callable[["Model"], float | None]
"""Points of accuracy that a network loses against float32; ``None`` where nobody asks."""

PRODUCTS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
"""Where the time goes, and what can be kept in float32."""

KEPT_SHARES = (1 / 16, 1 / 8, 1 / 4)
"""Shares of the layers that are kept in float32, one after the other, while too much is lost."""

_PASSING = ("MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""What takes values as they come, between what marks them and what takes them."""

_RANKED_ON = 64
"""Images that layers are compared on."""


@dataclass(frozen=True)
class Setting:
    """One way to find ranges.

    Args:
        name: as it is told.
        preset: ``"performance"``: the same range below and above 0 for activations that have both
            signs; ``"mixed"``: one of their own.
        ranges: NNCF's name for how they come from many images.
        corrects: whether biases are shifted so that channels have the means that they have in
            float32. With the ranges "minmax" it doubled the difference on CIFAR-10 networks.
    """

    name: str
    preset: str
    ranges: str
    corrects: bool = False


SETTINGS = (
    Setting("minmax", "performance", "MINMAX"),
    Setting("minmax, asymmetric", "mixed", "MINMAX"),
    Setting("histogram", "performance", "HISTOGRAM"),
    Setting("mean minmax, corrected", "performance", "MEAN_MINMAX", corrects=True),
)
"""Tried in this order; of equals the first is kept. The last is what NNCF does by itself."""


def quantised(
    model: Model, images: Tensor, *, what: str, loss: Loss, most: float
) -> tuple[Model, Written]:
    """A network in int8.

    Cost: four quantisations; where the loss is too large, up to three more, and a compilation and
    a few images for each layer.

    Args:
        model: in float32.
        images: (n, C, H, W), 16 or more, as the network takes them.
        what: the file's name, for messages.
        loss: of a network in int8.
        most: points that may be lost before layers stay in float32.

    Raises:
        ExportError: where images are missing, or it can't be quantised.
    """
    shown = np.ascontiguousarray(images.detach().cpu().float().numpy())
    if len(shown) < LEAST_CALIBRATION:
        raise ExportError(
            f"{what}: expected {LEAST_CALIBRATION} or more calibration images, got {len(shown)}: "
            "fewer say nothing of the ranges of activations"
        )
    _check(model, shown, what)
    exact = answers(model, shown)
    best: tuple[float, Setting, Model] | None = None
    for setting in SETTINGS:
        made = _by_nncf(model, shown, setting, what=what)
        apart = _apart(answers(made, shown), exact)
        if best is None or apart < best[0]:
            best = apart, setting, made
    assert best is not None  # there are settings
    _, setting, found = best
    if not layers(found):
        kinds = ", ".join(sorted(Counter(one.get_type_name() for one in model.get_ops())))
        raise ExportError(f"{what}: nothing in it can be quantised: {kinds}; use float32 for it")
    lost = loss(found)
    kept: tuple[str, ...] = ()
    if lost is not None and lost > most:
        ranked = _damage(model, found, shown[:_RANKED_ON])
        for count in sorted({ceil(share * len(ranked)) for share in KEPT_SHARES}):
            made = _by_nncf(model, shown, setting, what=what, without=ranked[:count])
            now = loss(made)
            if now is not None and now < lost:
                found, lost, kept = made, now, ranked[:count]
            if lost <= most:
                break
    names = tuple(_readable(model, name) for name in kept)
    return found, Written(calibration=setting.name, kept=names, loss=lost)


def timed(model: Model, *, what: str) -> Model:
    """A network with the operators that `quantised` gives it, ranges from one made-up image.

    What has nothing to quantise stays as it is.

    Raises:
        ExportError: where it can't be quantised.
    """
    if not any(one.get_type_name() in PRODUCTS for one in model.get_ops()):
        return model
    shape = model.input().get_partial_shape().get_min_shape()
    image = np.random.default_rng(0).standard_normal([max(1, size) for size in shape])
    return _by_nncf(model, image.astype(np.float32), SETTINGS[0], what=what)


def layers(model: Model) -> list[str]:
    """Products of a quantised network that are computed in int8, by their names."""
    return [
        one.get_friendly_name()
        for one in model.get_ordered_ops()
        if one.get_type_name() in PRODUCTS and _is_int8(one)
    ]


def _is_int8(layer: Node) -> bool:
    """Whether what it multiplies by is in int8: its weights, or another activation."""
    return _marked(layer.input(0)) is not None and (
        _marked(layer.input(1)) is not None or _weights(layer) in ("i8", "u8")
    )


def _marked(port: Input) -> Input | None:
    """The input behind a FakeQuantize that leads to this one, over what passes values on."""
    node = port.get_source_output().get_node()
    while node.get_type_name() in _PASSING:
        port = node.input(0)
        node = port.get_source_output().get_node()
    return port if node.get_type_name() == "FakeQuantize" else None


def _weights(layer: Node) -> str | None:
    """What a layer's weights are stored in; ``None`` where it has none."""
    node = layer.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Subtract", "Multiply", *_PASSING):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    return str(node.get_output_element_type(0).get_type_name())


def _check(model: Model, images: Images, what: str) -> None:
    wanted = [size.get_length() for size in list(model.input().get_partial_shape())[1:]]
    if list(images.shape[1:]) != wanted:
        raise ExportError(
            f"{what}: the calibration images have shape {images.shape[1:]}, the network takes "
            f"{tuple(wanted)}; give them as the file takes them"
        )


def _by_nncf(
    model: Model, images: Images, setting: Setting, *, what: str, without: Sequence[str] = ()
) -> Model:
    tool = nncf()
    batch = model.input().get_partial_shape()[0]
    size = batch.get_length() if batch.is_static else 1
    items = [images[at : at + size] for at in range(0, len(images) - size + 1, size)]
    items = items or [np.resize(images, (size, *images.shape[1:]))]
    ranges = getattr(tool.quantization.range_estimator.RangeEstimatorParametersSet, setting.ranges)
    try:
        with silent():
            made: Model = tool.quantize(
                model,
                tool.Dataset(items),
                subset_size=len(items),
                preset=tool.QuantizationPreset(setting.preset),
                model_type=tool.ModelType.TRANSFORMER if _attends(model) else None,
                ignored_scope=tool.IgnoredScope(names=[*without]) if without else None,
                advanced_parameters=tool.AdvancedQuantizationParameters(
                    activations_range_estimator_params=ranges,
                    disable_bias_correction=not setting.corrects,
                ),
            )
    except Exception as error:  # whatever its many parts raise
        raise ExportError(
            f"{what}: NNCF can't quantise it: {first_line(error)}; use float32 for it"
        ) from error
    return made


def _attends(model: Model) -> bool:
    """Whether there is attention: a softmax that a matrix product takes."""
    kinds = {one.get_type_name() for one in model.get_ops()}
    return "ScaledDotProductAttention" in kinds or any(
        user.get_node().get_type_name() == "MatMul"
        for one in model.get_ops()
        if one.get_type_name() == "Softmax"
        for user in one.output(0).get_target_inputs()
    )


def _apart(found: Images, exact: Images) -> float:
    """Mean absolute difference; infinite where something is not finite."""
    apart = float(np.abs(found - exact).mean())
    return apart if np.isfinite(apart) else float("inf")


def _damage(model: Model, quantised: Model, images: Images) -> tuple[str, ...]:
    """Layers in int8; first the one without whose quantisation outputs come nearest to float32."""
    exact = answers(model, images)
    twins = {one.get_friendly_name(): one for one in model.get_ops()}
    places = {one.get_friendly_name(): one for one in quantised.get_ops()}
    left = {
        name: _apart(_answers_without(quantised, places[name], twins[name], images), exact)
        for name in layers(quantised)
        if name in twins
    }
    return tuple(sorted(left, key=left.__getitem__))


def _answers_without(model: Model, layer: Node, twin: Node, images: Images) -> Images:
    """What a network answers while one layer takes float32, activations and weights."""
    changes: list[tuple[Input, Output]] = []
    for place in (0, 1):
        port, exact = layer.input(place), twin.input_value(place).get_node()
        marked = _marked(port)
        if marked is not None:
            changes.append((marked, marked.get_source_output().get_node().input_value(0)))
        elif exact.get_type_name() == "Constant":
            changes.append((port, openvino().op.Constant(exact.data.copy()).output(0)))
    before = [port.get_source_output() for port, _ in changes]
    try:
        for port, value in changes:
            port.replace_source_output(value)
        return answers(model, images)
    finally:
        for (port, _), value in zip(changes, before, strict=True):
            port.replace_source_output(value)


def _readable(model: Model, name: str) -> str:
    """What a layer is called in reports: the module whose weights it has, where that is known."""
    for one in model.get_ops():
        if one.get_friendly_name() == name:
            module, _, kind = one.input_value(1).get_node().get_friendly_name().rpartition(".")
            return module if kind == "weight" and module else name
    return name
