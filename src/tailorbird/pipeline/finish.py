"""From a chosen candidate to a proven file: export, parity, measurement, record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

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


def metadata(
    data: ImageData, target: str, input_shape: Sequence[int] | None = None
) -> dict[str, str]:
    """What travels inside the ONNX file; ``input_shape`` where it isn't that of the images."""
    return {
        "tailorbird.target": target,
        "tailorbird.classes": json.dumps(data.classes),
        "tailorbird.mean": json.dumps(data.normalisation.mean),
        "tailorbird.std": json.dumps(data.normalisation.std),
        "tailorbird.input_shape": json.dumps(input_shape or data.input_shape),
    }


def export_teacher(teacher: LayerGraph, data: ImageData, folder: Path) -> Path:
    """Export the teacher and prove it, before any time is spent on the house.

    Raises:
        ExportError: when it can't be exported or the file disagrees with the network.
    """
    path = folder / "teacher" / "model.onnx"
    if not path.exists():
        images = parity_images(data, teacher.input_shape)
        with torch.no_grad():
            if not bool(teacher.module(images).isfinite().all()):
                raise ExportError(
                    f"the teacher's outputs are not finite on {len(images)} validation images; "
                    "check its checkpoint and the images' normalisation"
                )
        # Under another name until it is proven: a kill leaves no unproven file behind.
        draft = path.with_name("unproven.onnx")
        try:
            about = metadata(data, "teacher", teacher.input_shape)
            export_onnx(teacher.module, teacher.input_shape, draft, metadata=about)
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


def parity_images(data: ImageData, input_shape: Sequence[int]) -> Tensor:
    """The first validation images (n, *input_shape), resized where they have another size."""
    images, _ = next(iter(data.validation.batches(min(PARITY_IMAGES, len(data.validation)))))
    size = list(input_shape[-2:])
    if images.shape[-2:] == torch.Size(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def deliver(
    module: fx.GraphModule,
    name: str,
    *,
    input_shape: Sequence[int],
    data: ImageData,
    folder: Path,
    options: ExportOptions,
) -> tuple[Path, Parity]:
    """Export ``module`` to ``folder/students/NAME`` and compare the file to PyTorch.

    Raises:
        ExportError: when the file can't be written or disagrees with the network.
    """
    home = folder / "students" / name
    path = export_onnx(
        module,
        input_shape,
        home / "model.onnx",
        opset=options.opset,
        dynamic_batch=options.dynamic_batch,
        metadata=metadata(data, name, input_shape),
    )
    parity = verify(module, path, parity_images(data, input_shape))
    write_json(home / "verify.json", asdict(parity))
    if not parity.passed:
        raise ExportError(
            f"target '{name}': the ONNX file disagrees with PyTorch by "
            f"{parity.max_difference:.3g}, expected at most {parity.tolerance:.3g}"
        )
    return path, parity


def keep(
    module: fx.GraphModule,
    name: str,
    *,
    input_shape: Sequence[int],
    data: ImageData,
    folder: Path,
    metrics: Mapping[str, float],
) -> None:
    """Write the files in ``folder/students/NAME`` that rebuild ``module``."""
    save_student(
        module,
        folder / "students" / name,
        classes=data.classes,
        normalisation=data.normalisation,
        input_shape=input_shape,
        metrics=metrics,
    )


def prove(
    module: fx.GraphModule,
    target: Target,
    *,
    teacher: LayerGraph,
    base: Mapping[str, float],
    data: ImageData,
    folder: Path,
    options: ExportOptions,
    input_shape: Sequence[int] | None = None,
    beside: Path | None = None,
) -> Proof:
    """Export ``module``, compare it to PyTorch, measure it beside the teacher, write its bundle.

    Args:
        module: the retrained student, masks already cut.
        base: the teacher's figures on the target.
        folder: the run folder; files go to ``students/<target>/``.
        options: of the export.
        input_shape: what the student takes; as the teacher by default.
        beside: the teacher's exported file; by default that of the run folder, made if missing.

    Raises:
        ExportError: when the file can't be written or disagrees with the network.
        MeasurementError: when the device can't run it.
    """
    shape = input_shape or teacher.input_shape
    path, parity = deliver(
        module, target.name, input_shape=shape, data=data, folder=folder, options=options
    )
    reference, own = target.device.measure([beside or export_teacher(teacher, data, folder), path])
    measured = {"latency_ms": own.median_ms, **figures(module, shape)}
    limits = {limit.metric: _bound(limit, base, reference) for limit in target.parsed}
    proof = Proof(
        limits=limits,
        measured=measured,
        spread_ms=own.spread_ms,
        teacher_ms=reference.median_ms,
        met=within(measured, limits),
        parity=parity,
    )
    keep(module, target.name, input_shape=shape, data=data, folder=folder, metrics=measured)
    return proof


def _bound(limit: Limit, base: Mapping[str, float], reference: Latency) -> float:
    """A share of the teacher's latency is taken of the teacher timed in the same session."""
    if limit.share and limit.metric == "latency_ms":
        return limit.value * reference.median_ms
    return limit.absolute(base)


def figures(module: nn.Module, input_shape: Sequence[int]) -> dict[str, float]:
    """What is counted of a network: metric -> figure, latency left out."""
    counts = count(module, tuple(input_shape)).as_metrics()
    return {metric: float(value) for metric, value in counts.items()}
