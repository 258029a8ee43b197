"""How many images a file takes in one call."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import onnx

_MOST_BYTES = 2_000_000_000


def batch_of(path: Path) -> int | None:
    """Images in a call as the file says: 1 where that is open; ``None`` where it can't be told.

    Reads ONNX files, without weights beside them, and OpenVINO's ``.xml``.
    """
    if path.suffix.lower() == ".xml":
        return _of_openvino(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # whoever runs the file tells what is wrong with it
        return None
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    sizes = [size.dim_value for one in inputs for size in one.type.tensor_type.shape.dim[:1]]
    return (sizes[0] or 1) if len(inputs) == len(sizes) == 1 else None


def _of_openvino(path: Path) -> int | None:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    shapes = [
        data.get("shape", "")
        for layer in root.iter("layer")
        if layer.get("type") == "Parameter"
        for data in layer.iter("data")
    ]
    first = shapes[0].partition(",")[0].strip() if len(shapes) == 1 else ""
    return None if not first else int(first) if first.isdecimal() and int(first) > 0 else 1
