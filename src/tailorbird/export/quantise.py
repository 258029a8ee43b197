"""ONNX networks in int8, by ONNX Runtime's own tool: prepared, ranges found, quantised.

Weights become int8, with one scale per output channel, activations uint8, with one scale and zero
point per tensor. Both are marked by pairs of QuantizeLinear and DequantizeLinear, which a runtime
fuses with what lies between them. ONNX Runtime on x86 does not fuse signed activations: there such
a file takes three times as long. Unsigned ones are fused everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from tailorbird.errors import ExportError
from tailorbird.files import scratch
from tailorbird.quiet import silent

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader

Images = npt.NDArray[np.float32]
Ranges = Mapping[str, tuple[float, float]]
"""Tensor -> the least and largest value that it is told apart by."""

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Where the time goes, and what a network without any is not quantised for."""

ARITHMETIC = (
    *("Add", "Mul", "Concat", "Sigmoid", "LeakyRelu"),
    *("AveragePool", "GlobalAveragePool", "Resize"),
)
"""What ONNX Runtime computes in int8 between products."""

PASSING = (
    *("Relu", "Clip", "MaxPool", "Flatten", "Reshape", "Transpose"),
    *("Squeeze", "Unsqueeze", "Slice", "Split", "Pad"),
)
"""What takes values as they come: they stay in int8 where they are in it."""

# LayerNormalization, Softmax and the like have no kernels in int8: they stay in float32.
QUANTISED = (*PRODUCTS, *ARITHMETIC, *PASSING)

_BINS = 2048
_AT_ONCE = 8
"""Images in a batch where its size is open."""


def prepared(source: Path) -> onnx.ModelProto:
    """A float32 file with its shapes inferred, constants folded and BatchNorm in convolutions.

    Raises:
        ExportError: where ONNX Runtime can't do it.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with scratch() as folder, silent():
        path = folder / "prepared.onnx"
        try:
            quant_pre_process(str(source), str(path))
        except Exception:  # symbolic shapes are not known for every operator: do without
            path.unlink(missing_ok=True)
        try:
            if not path.exists():
                quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
            model = onnx.load(path)
        except Exception as error:  # of ONNX Runtime, ONNX or protobuf
            raise ExportError(
                f"{source.name}: ONNX Runtime can't prepare it for int8: {_line(error)}; "
                "use float32 for it"
            ) from error
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def minmax(model: onnx.ModelProto, images: Images) -> dict[str, tuple[float, float]]:
    """Least and largest value of every tensor that may be quantised, over all images.

    Memory: the activations of one batch.

    Args:
        model: as `prepared` gives it.
        images: (n, C, H, W).

    Raises:
        ExportError: where the network does not run on them.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    with scratch() as folder, silent():
        source = folder / "float32.onnx"
        onnx.save(model, source)
        try:
            calibrator = create_calibrator(
                source,
                list(QUANTISED),
                augmented_model_path=str(folder / "watched.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_reader(model, images))
            found = calibrator.compute_data()
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ExportError(
                f"ranges can't be found on images of shape {images.shape[1:]}: {_line(error)}"
            ) from error
    return {name: _ends(entry.range_value) for name, entry in found.items()}


def percentiles(
    model: onnx.ModelProto, images: Images, ranges: Ranges, percents: Sequence[float]
) -> list[dict[str, tuple[float, float]]]:
    """Ranges that leave out the rarest values on both sides, one set for each of ``percents``.

    Values are counted in 2,048 equal bins between the ends of ``ranges``, so memory is that of one
    batch's activations, whatever the number of images. (ONNX Runtime's own histograms keep the
    activations of all batches that are collected together, or grow without bound where a tensor is
    near zero in the first one.)

    Args:
        model: as `prepared` gives it.
        images: (n, C, H, W).
        ranges: as `minmax` gives them on the same images.
        percents: share of values, in percent, that lie within.
    """
    counts = {name: np.zeros(_BINS, np.int64) for name in ranges}
    for found in watched(model, images, sorted(ranges)):
        for name, values in found.items():
            counts[name] += _counted(values, ranges[name])
    return [
        {name: _within(counts[name], ranges[name], percent) for name in ranges}
        for percent in percents
    ]


def watched(
    model: onnx.ModelProto, images: Images, names: Sequence[str]
) -> Iterator[dict[str, Images]]:
    """What tensors hold, batch by batch, each of one size; nothing is fused."""
    open_ended = onnx.ModelProto()
    open_ended.CopyFrom(model)
    given = {value.name for value in open_ended.graph.input}
    outputs = {value.name for value in open_ended.graph.output}
    inner = [name for name in names if name not in given]
    open_ended.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in inner if name not in outputs
    )
    session = _session(open_ended, optimise=False)
    for batch in _batches(model, images):
        found = dict(zip(inner, session.run(inner, batch), strict=True))
        yield found | {name: values for name, values in batch.items() if name in names}


def quantised(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    kept: Collection[str] = (),
    only: Collection[str] = (),
    narrow: bool = False,
) -> onnx.ModelProto:
    """The network in int8.

    Args:
        model: as `prepared` gives it.
        ranges: of its tensors.
        kept: nodes that stay in float32.
        only: the only nodes that are quantised; all where there are none.
        narrow: 7 bits for weights, which processors without 8-bit dot products add up without
            overflow.

    Raises:
        ExportError: where the tool fails.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    own = onnx.ModelProto()
    own.CopyFrom(model)
    floating = stranded(model) | set(kept)
    ends = {
        name: (np.array([low], np.float32), np.array([high], np.float32))
        for name, (low, high) in ranges.items()
    }
    try:
        with silent():
            tool = QDQQuantizer(
                own,
                True,  # a scale for each output channel
                narrow,
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, ends),
                list(only),
                sorted(floating),
                list(QUANTISED),
                {},
            )
            tool.quantize_model()
    except Exception as error:  # whatever its many parts raise
        raise ExportError(
            f"ONNX Runtime can't quantise the network: {_line(error)}; use float32 for it"
        ) from error
    result: onnx.ModelProto = tool.model.model
    _float_ends(result, floating)
    _tidy(result)
    return result


def stranded(model: onnx.ModelProto) -> set[str]:
    """Nodes between products that lead to no product before something that computes in float32.

    The additions along a transformer's residual path lead to LayerNormalization and to each other
    only. In int8 they save no time, and cost most of the accuracy: what is added up there has a few
    values that are far larger than all others.
    """
    used = _used(model)
    leads: dict[str, bool] = {}
    for node in reversed(model.graph.node):  # they are in the order of computing
        after = [other for name in node.output for other in used.get(name, [])]
        leads[node.name] = any(
            other.op_type in PRODUCTS or (other.op_type in QUANTISED and leads[other.name])
            for other in after
        )
    return {
        node.name
        for node in model.graph.node
        if node.op_type in (*ARITHMETIC, *PASSING) and not leads[node.name]
    }


def followed_by(model: onnx.ModelProto, kinds: Collection[str]) -> dict[str, list[str]]:
    """Node -> the nodes of some kinds that take what it gives."""
    used = _used(model)
    return {
        node.name: [
            other.name
            for name in node.output
            for other in used.get(name, [])
            if other.op_type in kinds
        ]
        for node in model.graph.node
    }


def _used(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor -> nodes that take it."""
    used: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            used.setdefault(name, []).append(node)
    return used


def int8_products(model: onnx.ModelProto) -> int:
    """How many products of a quantised network are in int8."""
    made = {name: node for node in model.graph.node for name in node.output}
    return sum(
        node.op_type in PRODUCTS and _is_dequantised(made, node.input[:2])
        for node in model.graph.node
    )


def readable(model: onnx.ModelProto, names: Sequence[str]) -> tuple[str, ...]:
    """What nodes are called in reports: the layer whose weights they have, or its operator."""
    weights = {entry.name for entry in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    return tuple(_called(nodes[name], weights) for name in names)


def _called(node: onnx.NodeProto, weights: Collection[str]) -> str:
    layer, _, own = node.name.partition("/")
    weight = node.input[1] if node.op_type in PRODUCTS else ""
    if weight not in weights:
        return f"{layer} ({node.op_type})" if own else layer
    # BatchNorm that went into a convolution gives the node its place, but not the weight its name.
    owner, _, kind = weight.rpartition(".")
    return owner if owner and kind == "weight" else layer


def _is_dequantised(made: Mapping[str, onnx.NodeProto], names: Sequence[str]) -> bool:
    return all(name in made and made[name].op_type == "DequantizeLinear" for name in names)


def _float_ends(model: onnx.ModelProto, floating: Collection[str]) -> None:
    """Take away pairs behind matrix products that only lead to what computes in float32.

    The product gives float32 there at once, at no cost, and logits are not rounded to 8 bits.
    Convolutions have no such kernel; their pairs stay.
    """
    graph, used = model.graph, _used(model)
    made = {name: node for node in graph.node for name in node.output}
    gone: list[onnx.NodeProto] = []
    for back in graph.node:
        pair = made.get(back.input[0]) if back.op_type == "DequantizeLinear" else None
        source = None if pair is None else made.get(pair.input[0])
        if pair is None or source is None or source.op_type not in ("Gemm", "MatMul"):
            continue
        after = used.get(back.output[0], [])
        alone = len(used[pair.output[0]]) == 1 and len(used[source.output[0]]) == 1
        if alone and all(n.op_type not in QUANTISED or n.name in floating for n in after):
            source.output[0] = back.output[0]
            gone += [pair, back]
    for node in gone:
        graph.node.remove(node)


def _tidy(model: onnx.ModelProto) -> None:
    """Leave no names of operator sets that nothing is of."""
    domains = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(kept)


# running ----------------------------------------------------------------------------------------


def answers(model: onnx.ModelProto, images: Images) -> Images:
    """What a network gives for images (n, C, H, W), from memory: (n, ...).

    Raises:
        ExportError: where it does not run on them.
    """
    try:
        session = _session(model, optimise=True)
        found = [session.run(None, batch)[0] for batch in _batches(model, images)]
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ExportError(
            f"ONNX Runtime can't run it on calibration images of shape {images.shape[1:]}: "
            f"{_line(error)}"
        ) from error
    return np.concatenate(found)[: len(images)]


def _session(model: onnx.ModelProto, *, optimise: bool) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others work too
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _batches(model: onnx.ModelProto, images: Images) -> Iterator[dict[str, Images]]:
    """Inputs of the network's own batch size; the last one is filled up with the first images."""
    (entry,) = model.graph.input
    size = entry.type.tensor_type.shape.dim[0].dim_value or _AT_ONCE
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        missing = np.arange(size - len(batch)) % len(images)
        yield {entry.name: np.concatenate([batch, images[missing]])}


def _reader(model: onnx.ModelProto, images: Images) -> CalibrationDataReader:
    """Batches as ONNX Runtime's calibrators read them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its package has no types
        def __init__(self) -> None:
            self._rest = _batches(model, images)

        def get_next(self) -> dict[str, Images] | None:
            return next(self._rest, None)

    return Reader()


def _ends(found: Sequence[Any]) -> tuple[float, float]:
    low, high = found
    return float(np.min(low)), float(np.max(high))


def _counted(values: Images, ends: tuple[float, float]) -> npt.NDArray[np.int64]:
    low, high = ends
    places = (values.ravel() - low) * (_BINS / max(high - low, 1e-30))
    return np.bincount(places.clip(0, _BINS - 1).astype(np.int64), minlength=_BINS)


def _within(
    counts: npt.NDArray[np.int64], ends: tuple[float, float], percent: float
) -> tuple[float, float]:
    """The inner edges of the bins that hold the rarest values on both sides."""
    low, high = ends
    shares = np.cumsum(counts) / max(int(counts.sum()), 1)
    out = (1 - percent / 100) / 2
    first = int(np.searchsorted(shares, out))
    last = int(np.searchsorted(shares, 1 - out))
    step = (high - low) / _BINS
    return low + first * step, low + (min(last, _BINS - 1) + 1) * step


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
