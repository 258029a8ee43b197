"""From a student to proven files: export, comparison, measurement beside the reference, record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tailorbird.data.images import ImageData
from tailorbird.errors import ExportError, GraphError, StoreError
from tailorbird.export.bundle import save_student
from tailorbird.export.delivered import about, as_given, delivered
from tailorbird.export.exporters import Exporter
from tailorbird.export.onnx import relabel
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Parity
from tailorbird.files import cannot_write, digest_of, write_json
from tailorbird.fit.candidates import Key, Made, Network
from tailorbird.fit.judge import parity_images
from tailorbird.measure.counts import count
from tailorbird.measure.guarded import measured
from tailorbird.records import read_record
from tailorbird.search.selection import within
from tailorbird.targets import LATENCY, Device, Format, Latency, Limit, Target, run_of

_Parities = dict[str | None, Parity]
"""Key of the device that ran a file, ``None`` for this machine -> how it compared."""

BUNDLE = ("student.json", "student.safetensors")
"""What rebuilds a student, where it can be stored."""

DELIVERED = (*BUNDLE, "verify.json")
"""What a target's folder holds for the user, beside the artifact."""


def clear(home: Path, format: Format) -> None:  # noqa: A002  # the field's word
    """Remove what an earlier request or attempt left for the user, and is no answer to this one.

    Raises:
        StoreError: when a file can't be removed.
    """
    for name in (format.file, *DELIVERED, "result.json"):
        try:
            (home / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(home / name, error) from error


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found of an exported student.

    Args:
        limits: metric -> bound; shares of latency are of the reference in the same session.
        measured: metric -> figure; without a latency where the place has only a table.
        reference_ms: the reference's latency in the same, interleaved session, if there was one.
        met: every limit is kept, as measured or counted.
        code: import paths of the user's own code that rebuilding the student needs.
        unstored: why there is no student to rebuild, only the artifact; ``None`` where there is.
    """

    limits: Mapping[str, float]
    measured: Mapping[str, float]
    reference_ms: float | None
    met: bool
    code: tuple[str, ...] = ()
    unstored: str | None = None


class Shipping:
    """Writes students' files into a run's folder; equal networks are converted and compared once.

    Args:
        data: whose validation images exported files are compared on, and whose class names and
            normalisation travel with them.
        folder: the run folder; files go to ``students/NAME/``.
        options: of the export.
        exporter: makes the files.
    """

    def __init__(
        self, data: ImageData, folder: Path, options: ExportOptions, exporter: Exporter
    ) -> None:
        self.data, self.folder, self.options = data, folder, options
        self.exporter = exporter
        self._proven: dict[Path, tuple[Key, _Parities]] = {}

    def home(self, name: str) -> Path:
        """The folder of a target."""
        return self.folder / "students" / name

    def deliver(self, student: Made, name: str, *, key: Key, device: Device | None = None) -> Path:
        """Export a student to ``students/NAME`` and compare the file to PyTorch.

        Args:
            student: trained.
            name: of the target.
            key: equal for equal students, and for no others that go through this object.
            device: where the file is run to be compared, if it can be.

        Raises:
            ExportError: when the file can't be written or disagrees with the network.
        """
        home, shape, scale = self.home(name), student.input_shape, self.data.normalisation
        path = home / self.exporter.format.file
        module = delivered(student.module, scale, self.options)
        notes = metadata(self.data, name, shape, self.options)
        self._proven.pop(path, None)
        twin = self._twin(key)
        parities: _Parities = {}
        if twin is None:
            self.exporter.final(module, shape, path, options=self.options, metadata=notes)
        else:
            source, parities = twin
            relabel(source, path, notes)
        run = run_of(device)
        where = None if device is None or run is None else device.key
        if where not in parities:
            images = as_given(parity_images(self.data, shape), scale, self.options)
            parities[where] = self.exporter.verify(module, path, images, run)
        parity = parities[where]
        write_json(home / "verify.json", asdict(parity))
        if not parity.passed:
            raise ExportError(
                f"target '{name}': the ONNX file disagrees with PyTorch by "
                f"{parity.max_difference:.3g}, expected at most {parity.tolerance:.3g}"
            )
        self._proven[path] = key, parities
        return path

    def prove(
        self,
        student: Made,
        target: Target,
        *,
        key: Key,
        base: Mapping[str, float],
        beside: Path,
    ) -> Proof:
        """Deliver a student, measure it beside the reference where that can be, write its bundle.

        Args:
            student: trained.
            target: whose it is.
            key: as for `deliver`.
            base: the reference's figures at the target's place.
            beside: the reference's exported file.

        Raises:
            ExportError: when the file can't be written or disagrees with the network.
            MeasurementError: when the device can't run it.
        """
        path = self.deliver(student, target.name, key=key, device=target.place.device)
        counts = count(student.module, student.input_shape).as_metrics()
        figures, reference = dict(counts), None
        device = target.place.device
        if device is not None:
            reference, own = measured(device, [beside, path])
            figures = {LATENCY: own.median_ms, **counts}
        limits = {limit.metric: _bound(limit, base, reference) for limit in target.limits}
        code, unstored = self._bundle(student, self.home(target.name), figures)
        return Proof(
            limits=limits,
            measured=figures,
            reference_ms=None if reference is None else reference.median_ms,
            met=limits.keys() <= figures.keys() and within(figures, limits),
            code=code,
            unstored=unstored,
        )

    def _bundle(
        self, student: Made, home: Path, measured: Mapping[str, float]
    ) -> tuple[tuple[str, ...], str | None]:
        """Store the student if it can be: what code it needs, or why it can't be."""
        try:
            code = save_student(
                student.module,
                home,
                classes=self.data.classes,
                normalisation=self.data.normalisation,
                input_shape=student.input_shape,
                metrics=measured,
                options=self.options,
            )
        except GraphError as error:
            for name in BUNDLE:  # of an earlier answer
                (home / name).unlink(missing_ok=True)
            return (), str(error)
        return code, None

    def _twin(self, key: Key) -> tuple[Path, _Parities] | None:
        """The file of the same network, if another target has been given it and it is there."""
        for path, (known, parities) in self._proven.items():
            if known == key and path.exists():
                return path, parities
        return None


def _bound(limit: Limit, base: Mapping[str, float], reference: Latency | None) -> float:
    """A share of the reference's latency is taken of the reference timed in the same session."""
    if limit.share and limit.metric == LATENCY and reference is not None:
        return limit.value * reference.median_ms
    return limit.absolute(base)


def metadata(
    data: ImageData, target: str, input_shape: Sequence[int], options: ExportOptions
) -> dict[str, str]:
    """What travels inside the exported file."""
    return {
        "tailorbird.target": target,
        "tailorbird.classes": json.dumps(data.classes),
        **about(data.normalisation, options),
        "tailorbird.input_shape": json.dumps(list(input_shape)),
    }


def export_reference(
    reference: Network, data: ImageData, folder: Path, exporter: Exporter, *, name: str
) -> Path:
    """Export the reference and prove it, before any time is spent on its candidates.

    Args:
        reference: the teacher, or the full network.
        data: whose validation images it is compared on.
        folder: where the file goes.
        exporter: makes it.
        name: what messages call it, such as ``"teacher"``.

    Raises:
        ExportError: when it can't be exported or the file disagrees with the network.
    """
    path, proof = folder / exporter.format.file, folder / "proven.json"
    if path.exists() and _as_proven(path, proof):
        return path
    images = parity_images(data, reference.input_shape)
    with torch.no_grad():
        if not bool(reference.module(images).isfinite().all()):
            raise ExportError(
                f"the {name}'s outputs are not finite on {len(images)} validation images; "
                "check its checkpoint and the images' normalisation"
            )
    # Under another name until it is proven: a kill leaves no unproven file behind.
    draft = path.with_name(f"unproven{path.suffix}")
    options = ExportOptions()
    notes = metadata(data, name, reference.input_shape, options)
    try:
        exporter.final(
            reference.module,
            reference.input_shape,
            draft,
            options=options,
            metadata=notes,
        )
    except ExportError as error:
        raise ExportError(f"the {name} can't be exported: {error}") from error
    parity = exporter.verify(reference.module, draft, images)
    if not parity.passed:
        draft.unlink()
        raise ExportError(
            f"the {name}'s ONNX file disagrees with PyTorch by {parity.max_difference:.3g}, "
            f"expected at most {parity.tolerance:.3g}; check operators that behave "
            "differently in evaluation mode"
        )
    write_json(proof, {path.name: digest_of(draft)})
    draft.replace(path)
    return path


def _as_proven(path: Path, proof: Path) -> bool:
    """Whether a reference's file is the one that was proven; an earlier version noted no digest."""
    if not proof.exists():
        return True
    try:
        known = read_record(proof, dict[str, str])
    except StoreError:
        return False
    return known.get(path.name) == digest_of(path)
