"""From a chosen candidate to a proven file: export, parity, measurement, record."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tailorbird.data.images import ImageData
from tailorbird.errors import ExportError
from tailorbird.export.bundle import save_student
from tailorbird.export.onnx import export_onnx, relabel
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


class Shipping:
    """Writes students' files into a run's folder; equal networks are converted and compared once.

    Args:
        data: whose validation images exported files are compared on.
        folder: the run folder; files go to ``students/NAME/``.
        options: of the export.
    """

    def __init__(self, data: ImageData, folder: Path, options: ExportOptions) -> None:
        self.data, self.folder, self.options = data, folder, options
        self._proven: dict[Path, tuple[Hashable, Parity]] = {}

    def deliver(
        self, module: fx.GraphModule, name: str, *, network: Hashable, input_shape: Sequence[int]
    ) -> tuple[Path, Parity]:
        """Export ``module`` to ``students/NAME`` and compare the file to PyTorch.

        Args:
            module: the trained student, masks already cut.
            name: of the target.
            network: equal for equal modules, and for no others that go through this object.
            input_shape: without the batch dimension.

        Raises:
            ExportError: when the file can't be written or disagrees with the network.
        """
        home = self.folder / "students" / name
        path, about = home / "model.onnx", metadata(self.data, name, input_shape)
        self._proven.pop(path, None)
        twin = self._twin(network)
        if twin is None:
            export_onnx(
                module,
                input_shape,
                path,
                opset=self.options.opset,
                dynamic_batch=self.options.dynamic_batch,
                metadata=about,
            )
            parity = verify(module, path, parity_images(self.data, input_shape))
        else:
            source, parity = twin
            relabel(source, path, about)
        write_json(home / "verify.json", asdict(parity))
        if not parity.passed:
            raise ExportError(
                f"target '{name}': the ONNX file disagrees with PyTorch by "
                f"{parity.max_difference:.3g}, expected at most {parity.tolerance:.3g}"
            )
        self._proven[path] = network, parity
        return path, parity

    def keep(
        self,
        module: fx.GraphModule,
        name: str,
        *,
        input_shape: Sequence[int],
        metrics: Mapping[str, float],
    ) -> None:
        """Write the files in ``students/NAME`` that rebuild ``module``."""
        save_student(
            module,
            self.folder / "students" / name,
            classes=self.data.classes,
            normalisation=self.data.normalisation,
            input_shape=input_shape,
            metrics=metrics,
        )

    def prove(
        self,
        module: fx.GraphModule,
        target: Target,
        *,
        network: Hashable,
        teacher: LayerGraph,
        base: Mapping[str, float],
        input_shape: Sequence[int] | None = None,
        beside: Path | None = None,
    ) -> Proof:
        """Deliver ``module``, measure it beside the teacher on the target, write its bundle.

        Args:
            network: as for :meth:`deliver`.
            base: the teacher's figures on the target.
            input_shape: what the student takes; as the teacher by default.
            beside: the teacher's exported file; by default that of the run folder, made if
                missing.

        Raises:
            ExportError: when the file can't be written or disagrees with the network.
            MeasurementError: when the device can't run it.
        """
        shape = input_shape or teacher.input_shape
        path, parity = self.deliver(module, target.name, network=network, input_shape=shape)
        beside = beside or export_teacher(teacher, self.data, self.folder)
        reference, own = target.device.measure([beside, path])
        measured = {"latency_ms": own.median_ms, **figures(module, shape)}
        limits = {limit.metric: _bound(limit, base, reference) for limit in target.limits}
        self.keep(module, target.name, input_shape=shape, metrics=measured)
        return Proof(
            limits=limits,
            measured=measured,
            spread_ms=own.spread_ms,
            teacher_ms=reference.median_ms,
            met=within(measured, limits),
            parity=parity,
        )

    def _twin(self, network: Hashable) -> tuple[Path, Parity] | None:
        """The file of the same network, if another target has been given it and it is there."""
        for path, (known, parity) in self._proven.items():
            if known == network and path.exists():
                return path, parity
        return None


def _bound(limit: Limit, base: Mapping[str, float], reference: Latency) -> float:
    """A share of the teacher's latency is taken of the teacher timed in the same session."""
    if limit.share and limit.metric == "latency_ms":
        return limit.value * reference.median_ms
    return limit.absolute(base)


def figures(module: nn.Module, input_shape: Sequence[int]) -> dict[str, float]:
    """What is counted of a network: metric -> figure, latency left out."""
    counts = count(module, tuple(input_shape)).as_metrics()
    return {metric: float(value) for metric, value in counts.items()}
