"""int8 as users make it without Tailorbird: each runtime's own tool, as its documentation shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from tailorbird.device import Format, Precision
from tailorbird.export.exporters import exporter_for
from tailorbird.export.options import ExportOptions

Shape = tuple[int, int, int]


def in_float32(format: Format, network: nn.Module, shape: Shape, path: Path) -> None:  # noqa: A002  # the field's word
    """A file in float32 as Tailorbird writes it, at batch 1."""
    precision: Precision = "float32"
    exporter = exporter_for(format, precision)
    exporter.final(network, shape, path, options=ExportOptions(), metadata={}, calibration=None)


def by_onnxruntime(source: Path, path: Path, images: Tensor, **settings: object) -> None:
    """`onnxruntime.quantization.quantize_static` after its pre-processing.

    Args:
        source: a file in float32 of which the input is called ``image``.
        path: of the file in int8.
        images: that ranges are found on (n, C, H, W).
        settings: those of the tool; signed activations and one scale per tensor without any.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its package has no types
        def __init__(self) -> None:
            self.rest = iter(images.numpy())

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {"image": image[None]}

    prepared = path.with_name(f"{path.stem}-prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(str(prepared), str(path), Reader(), **settings)


def as_documented(source: Path, path: Path, images: Tensor) -> None:
    """The same as its documentation advises for x86: unsigned activations, scales per channel."""
    from onnxruntime.quantization import QuantType

    settings = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    by_onnxruntime(source, path, images, per_channel=True, **settings)


def by_nncf(source: Path, path: Path, images: Tensor) -> None:
    """`nncf.quantize` as it is, of OpenVINO's file ``source``."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    data = nncf.Dataset([image[None] for image in images.numpy()])
    made = nncf.quantize(model, data, subset_size=len(images))
    openvino.save_model(made, path, compress_to_fp16=False)
