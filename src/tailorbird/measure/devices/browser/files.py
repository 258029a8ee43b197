"""What a page has to be told of an ONNX file, read before it is sent anywhere."""

from __future__ import annotations

from math import prod
from pathlib import Path

from tailorbird.errors import MeasurementError

MOST_BYTES = 1_000_000_000
"""A file of more bytes is not sent to a browser, whose memory ends at four gigabytes."""

MOST_ELEMENTS = 16_000_000


def input_shape(model: Path) -> tuple[int | None, ...]:
    """The shape of a file's one input; ``None`` first where the batch is open.

    Raises:
        MeasurementError: naming the file, when a page can't run it as it is.
    """
    import onnx

    if not model.is_file():
        raise MeasurementError(f"{model}: there is no such file")
    if model.stat().st_size > MOST_BYTES:
        raise MeasurementError(
            f"{model}: the file has {model.stat().st_size:,} bytes, more than the {MOST_BYTES:,} "
            "that a browser is given"
        )
    try:
        graph = onnx.load(model, load_external_data=False).graph
    except Exception as error:  # the reader raises anything on a file that isn't whole
        raise MeasurementError(f"{model}: it is no whole ONNX file; export it again") from error
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in graph.initializer):
        raise MeasurementError(
            f"{model}: its weights lie in another file, and a browser gets one; save it as one"
        )
    weights = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    if len(inputs) != 1:
        raise MeasurementError(f"{model}: expected one input, found {len(inputs)}")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise MeasurementError(f"{model}: expected a float32 input")
    sizes = [one.dim_value or None for one in kind.shape.dim]
    if not sizes or not all(size is not None and size > 0 for size in sizes[1:]):
        raise MeasurementError(
            f"{model}: only the batch dimension may be open, the input is "
            f"{[one.dim_value or one.dim_param for one in kind.shape.dim]}; export it with fixed "
            "sizes"
        )
    elements = prod(size or 1 for size in sizes)
    if elements > MOST_ELEMENTS:
        raise MeasurementError(
            f"{model}: its input has {elements:,} elements, more than {MOST_ELEMENTS:,}; export it "
            "at a smaller size"
        )
    return tuple(sizes)
