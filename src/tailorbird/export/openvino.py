"""Networks as files of OpenVINO: ``NAME.xml`` for the graph, ``NAME.bin`` for its weights.

A network becomes an ONNX file first, as for every other runtime, and OpenVINO reads that. What
travels in a file stands in its ``rt_info``, in the group ``metadata``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from tailorbird.device import OPENVINO, Format, Precision, Run
from tailorbird.errors import ExportError, MeasurementError, StoreError
from tailorbird.export.exporter import Calibration, Written
from tailorbird.export.int8 import TAKEN_OVER
from tailorbird.export.onnx import export_many
from tailorbird.export.onnx_files import plain_file
from tailorbird.export.openvino_int8 import quantised, timed
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Agreement, Parity, agreement, verify
from tailorbird.files import cannot_write, scratch, write_bytes
from tailorbird.measure.interleave import first_line
from tailorbird.measure.openvino import openvino, read, run_openvino, unreported, weights_of
from tailorbird.train.quantised.openvino_weights import with_weights

if TYPE_CHECKING:
    from openvino import Model

_GROUP = "metadata"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_OF_CONVERSION = ("conversion_parameters", "framework")


@dataclass(frozen=True, kw_only=True)
class OpenVinoExporter:
    """Files of OpenVINO in one precision; see `tailorbird.export.exporters.Exporter`.

    float16 files hold their weights so, and are computed in it where the unit is able to. int8
    files are made by NNCF; see `tailorbird.export.openvino_int8`.

    Args:
        precision: of the files.
    """

    precision: Precision = "float32"
    format: Format = OPENVINO

    def final(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        path: Path,
        *,
        options: ExportOptions,
        metadata: Mapping[str, str],
        batch: int = 1,
        calibration: Calibration | None = None,
    ) -> Written:
        """Write the file that is shipped, and its weights beside it, whole or not at all."""
        if self.precision == "int8" and calibration is None:
            raise ExportError(f"{path.name}: int8 needs calibration images; give a calibration")
        with scratch() as folder:
            source = plain_file(
                module,
                input_shape,
                folder / f"{path.stem}.onnx",
                options=options,
                batch=batch,
            )
            model, written = _converted(source), Written()
            if (
                self.precision == "int8"
                and calibration is not None
                and calibration.like is not None
            ):
                _save(with_weights(calibration.like, model), path, metadata, half=False)
                lost = None if calibration.loss is None else calibration.loss(path)
                return Written(calibration=TAKEN_OVER, loss=lost)
            if self.precision == "int8" and calibration is not None:
                trial = folder / "trial.xml"

                def loss(made: Model) -> float | None:
                    if calibration.loss is None:
                        return None
                    return calibration.loss(_save(made, trial, metadata, half=False, sync=False))

                model, written = quantised(
                    model, calibration.images, what=path.name, loss=loss, most=calibration.max_loss
                )
            _save(model, path, metadata, half=self.precision == "float16")
        return written

    def quick(
        self,
        networks: Sequence[tuple[nn.Module, tuple[int, ...]]],
        folder: Path,
        names: Sequence[str],
        *,
        batch: int = 1,
    ) -> list[Path]:
        """Write files that are only timed: in int8 with ranges found on one made-up image."""
        with scratch() as place:
            sources = export_many(networks, place, names, batch=batch)
            files = []
            for source, name in zip(sources, names, strict=True):
                model = _converted(source)
                if self.precision == "int8":
                    model = timed(model, what=name)
                path = folder / f"{name}.xml"
                half = self.precision == "float16"
                files.append(_save(model, path, {}, half=half, sync=False))
                source.unlink()
        return files

    def verify(
        self, module: nn.Module, path: Path, images: Tensor, run: Run | None = None
    ) -> Parity | Agreement:
        """Whether the file answers as the network does; on this machine's CPU without ``run``."""
        if self.precision == "float32":
            return verify(module, path, images, run=run or run_openvino)
        return agreement(module, path, images, precision=self.precision, run=run or run_openvino)

    def run(self, path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `tailorbird.measure.openvino.run_openvino`."""
        return run_openvino(path, images)

    def metadata_of(self, path: Path) -> dict[str, str]:
        """What travels in a file.

        Raises:
            StoreError: when it can't be read.
        """
        return _metadata(_stored(path))

    def relabel(self, source: Path, path: Path, metadata: Mapping[str, str]) -> None:
        """Copy a file and its weights, with other metadata.

        Raises:
            StoreError: when files can't be read or written.
        """
        _save(_stored(source), path, metadata, half=False)


def _converted(source: Path) -> Model:
    """An ONNX file as OpenVINO's network."""
    try:
        with unreported():
            model: Model = openvino().convert_model(source)
    except Exception as error:  # of its many front ends
        raise ExportError(
            f"{source.name}: OpenVINO can't convert it: {first_line(error)}; replace that "
            "operation in the network, or choose another runtime"
        ) from error
    return model


def _stored(path: Path) -> Model:
    try:
        return read(path)
    except MeasurementError as error:
        raise StoreError(f"{error}; remove it to have it made anew") from error


def _metadata(model: Model) -> dict[str, str]:
    if not model.has_rt_info(_GROUP):
        return {}
    return {key: str(value) for key, value in model.get_rt_info([_GROUP]).value.items()}


def _save(
    model: Model, path: Path, metadata: Mapping[str, str], *, half: bool, sync: bool = True
) -> Path:
    """Write both files; the graph last, and an earlier one is gone before its weights are.

    Args:
        model: is left with this metadata.
        path: of the graph; missing folders are made.
        metadata: in place of what the network has.
        half: whether weights become float16.
        sync: wait until they are on the disk.
    """
    wrong = [key for key in metadata if not _KEY.fullmatch(key)]
    if wrong:
        raise ExportError(
            f"{path.name}: metadata need names of letters, digits, '_', '-' and '.', that begin "
            f"with a letter, got {wrong[0]!r}"
        )
    for group in (_GROUP, *_OF_CONVERSION):
        if model.has_rt_info(group):
            del model.get_rt_info()[group]
    for key, value in metadata.items():
        model.set_rt_info(value, [_GROUP, key])
    with scratch() as folder:
        made = folder / "model.xml"
        try:
            openvino().save_model(model, made, compress_to_fp16=half)
            graph, weights = made.read_bytes(), weights_of(made).read_bytes()
        except (RuntimeError, OSError) as error:
            raise StoreError(f"can't write {path}: {first_line(error)}; free space") from error
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    write_bytes(weights_of(path), weights, sync=sync)
    write_bytes(path, graph, sync=sync)
    return path
