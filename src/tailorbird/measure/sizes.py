"""What an ONNX file says that its values take, before any of it is made."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx

from tailorbird.errors import MeasurementError

MOST_ELEMENTS = 2_000_000_000
"""Elements of one value while a network runs, at most; eight gigabytes in float32."""

_MOST_BYTES = 2_000_000_000
_KEPT_BYTES = 4096


def check_sizes(model: Path) -> None:
    """Refuse a file one of whose values is absurdly large, as far as that stands in the file.

    What is no whole ONNX file passes: whoever loads it tells of that.

    Cost: reading the file, and an inference of shapes without its weights.

    Raises:
        MeasurementError: naming the value.
    """
    try:
        if model.stat().st_size > _MOST_BYTES:
            return
        content = onnx.load(model, load_external_data=False)
        for tensor in content.graph.initializer:
            if len(tensor.raw_data) > _KEPT_BYTES:  # a weight, not a shape
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
        graph = onnx.shape_inference.infer_shapes(content, data_prop=True).graph
    except Exception:  # the reader and the inference raise anything on a file that isn't whole
        return
    values = {
        one.name: one.type.tensor_type.shape.dim for one in (*graph.value_info, *graph.output)
    }
    sizes = {name: prod(size.dim_value or 1 for size in sizes) for name, sizes in values.items()}
    largest = max(sizes, key=sizes.__getitem__, default=None)
    if largest is not None and sizes[largest] > MOST_ELEMENTS:
        raise MeasurementError(
            f"{model}: its value '{largest}' has {sizes[largest]:,} elements, more than "
            f"{MOST_ELEMENTS:,}; export it at a smaller size"
        )
