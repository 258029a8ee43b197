"""From a chosen candidate to a proven file: export, parity, measurement, record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from tailorbird.data.images import ImageData
from tailorbird.errors import ExportError
from tailorbird.export.bundle import save_student
from tailorbird.export.onnx import export_onnx
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Parity, verify
from tailorbird.files import write_json
from tailorbird.graph.trace import LayerGraph
from tailorbird.measure.counts import count
from tailorbird.search.selection import within
from tailorbird.targets import Latency, Limit, Target

PARITY_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was measured of an exported student.

    Args:
        limits: metric -> bound; shares of latency are of the teacher in the same session.
        measured: metric -> figure.
        spread_ms: interquartile range of the student's latency.
        teacher_ms: the teacher's latency in the same, interleaved session.
        met: every limit is kept.
        parity: ONNX Runtime against PyTorch.
    """

    limits: Mapping[str, float]
    measured: Mapping[str, float]
    spread_ms: float
    teacher_ms: float
    met: bool
    parity: Parity


def metadata(data: ImageData, target: str) -> dict[str, str]:
    """What travels inside the ONNX file."""
    return {
        "tailorbird.target": target,
        "tailorbird.classes": json.dumps(data.classes),
        "tailorbird.mean": json.dumps(data.normalisation.mean),
        "tailorbird.std": json.dumps(data.normalisation.std),
        "tailorbird.input_shape": json.dumps(data.input_shape),
    }


def export_teacher(teacher: LayerGraph, data: ImageData, folder: Path) -> Path:
    """Export the teacher and prove it, before any time is spent on the house.

    Raises:
        ExportError: when it can't be exported or the file disagrees with the network.
    """
    path = folder / "teacher" / "model.onnx"
    if not path.exists():
        images = parity_images(data)
        with torch.no_grad():
            if not bool(teacher.module(images).isfinite().all()):
                raise ExportError(
                    f"the teacher's outputs are not finite on {len(images)} validation images; "
                    "check its checkpoint and the images' normalisation"
                )
        # Under another name until it is proven: a kill leaves no unproven file behind.
        draft = path.with_name("unproven.onnx")
        try:
            export_onnx(
                teacher.module, teacher.input_shape, draft, metadata=metadata(data, "teacher")
            )
        except ExportError as error:
            raise ExportError(f"the teacher can't be exported: {error}") from error
        parity = verify(teacher.module, draft, images)
        if parity.passed:
            draft.replace(path)
        else:
            draft.unlink()
            raise ExportError(
                f"the teacher's ONNX file disagrees with PyTorch by {parity.max_difference:.3g}, "
                f"expected at most {parity.tolerance:.3g}; check operators that behave "
                "differently in evaluation mode"
            )
    return path


def parity_images(data: ImageData) -> Tensor:
    """The first validation images (n, C, H, W)."""
    images, _ = next(iter(data.validation.batches(min(PARITY_IMAGES, len(data.validation)))))
    return images


def prove(
    module: fx.GraphModule,
    target: Target,
    *,
    teacher: LayerGraph,
    base: Mapping[str, float],
    data: ImageData,
    folder: Path,
    options: ExportOptions,
) -> Proof:
    """Export ``module``, compare it to PyTorch, measure it beside the teacher, write its bundle.

    Args:
        module: the retrained student, masks already cut.
        base: the teacher's figures on the target.
        folder: the run folder; files go to ``students/<target>/``.
        options: of the export.

    Raises:
        ExportError: when the file can't be written or disagrees with the network.
        MeasurementError: when the device can't run it.
    """
    home = folder / "students" / target.name
    path = export_onnx(
        module,
        teacher.input_shape,
        home / "model.onnx",
        opset=options.opset,
        dynamic_batch=options.dynamic_batch,
        metadata=metadata(data, target.name),
    )
    parity = verify(module, path, parity_images(data))
    write_json(home / "verify.json", asdict(parity))
    if not parity.passed:
        raise ExportError(
            f"target '{target.name}': the ONNX file disagrees with PyTorch by "
            f"{parity.max_difference:.3g}, expected at most {parity.tolerance:.3g}"
        )
    beside = export_teacher(teacher, data, folder)
    reference, own = target.device.measure([beside, path])
    measured = {"latency_ms": own.median_ms, **_counts(module, teacher)}
    limits = {limit.metric: _bound(limit, base, reference) for limit in target.parsed}
    proof = Proof(
        limits=limits,
        measured=measured,
        spread_ms=own.spread_ms,
        teacher_ms=reference.median_ms,
        met=within(measured, limits),
        parity=parity,
    )
    save_student(
        module,
        home,
        classes=data.classes,
        normalisation=data.normalisation,
        input_shape=data.input_shape,
        metrics=measured,
    )
    return proof


def _bound(limit: Limit, base: Mapping[str, float], reference: Latency) -> float:
    """A share of the teacher's latency is taken of the teacher timed in the same session."""
    if limit.share and limit.metric == "latency_ms":
        return limit.value * reference.median_ms
    return limit.absolute(base)


def _counts(module: fx.GraphModule, teacher: LayerGraph) -> dict[str, float]:
    figures = count(module, teacher.input_shape).as_metrics()
    return {metric: float(value) for metric, value in figures.items()}
