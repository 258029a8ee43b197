"""From a student to proven files: export, comparison, measurement beside the reference, record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tailorbird.data.images import ImageData
from tailorbird.device import Device, Format, key_of
from tailorbird.errors import ExportError, GraphError, StoreError
from tailorbird.export.bundle import save_student
from tailorbird.export.delivered import about, as_given, delivered
from tailorbird.export.exporters import Exporter
from tailorbird.export.onnx import metadata_of, relabel
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Agreement, Parity
from tailorbird.files import cannot_write, digest_of, write_bytes, write_json
from tailorbird.fit.candidates import Key, Made, Network
from tailorbird.fit.judge import parity_images
from tailorbird.measure.guarded import answering
from tailorbird.records import read_record

_Parities = dict[str | None, Parity | Agreement]
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
        run = answering(device)
        where = None if device is None or run is None else key_of(device)
        if where not in parities:
            images = as_given(parity_images(self.data, shape), scale, self.options)
            try:
                parities[where] = self.exporter.verify(module, path, images, run)
            except ExportError as error:
                raise (
                    error if where is None else ExportError(f"on device {where}: {error}")
                ) from error
        parity = parities[where]
        write_json(home / "verify.json", asdict(parity))
        if not parity.passed:
            raise ExportError(f"target '{name}': the file disagrees with PyTorch {parity.fault}")
        self._proven[path] = key, parities
        return path

    def bundle(
        self, student: Made, name: str, metrics: Mapping[str, float]
    ) -> tuple[tuple[str, ...], str | None]:
        """Store a student in its target's folder if it can be.

        Args:
            student: trained.
            name: of the target.
            metrics: metric -> figure, which is stored with it.

        Returns:
            Import paths of the code that rebuilding it needs, and why it can't be stored.
        """
        home = self.home(name)
        try:
            code = save_student(
                student.module,
                home,
                classes=self.data.classes,
                normalisation=self.data.normalisation,
                input_shape=student.input_shape,
                metrics=metrics,
                options=self.options,
            )
        except GraphError as error:
            for file in BUNDLE:  # of an earlier answer
                (home / file).unlink(missing_ok=True)
            return (), str(error)
        return code, None

    def at(self, folder: Path) -> Shipping:
        """The same, into another folder."""
        return Shipping(self.data, folder, self.options, self.exporter)

    def copy(self, source: Path, name: str) -> None:
        """Give a target the files that were delivered to a folder.

        Raises:
            StoreError: when files can't be read or written.
        """
        file = self.exporter.format.file
        home = self.home(name)
        clear(home, self.exporter.format)
        self._proven.pop(home / file, None)
        about = {**metadata_of(source / file), "tailorbird.target": name}
        relabel(source / file, home / file, about)
        for beside in DELIVERED:
            if (source / beside).exists():
                write_bytes(home / beside, (source / beside).read_bytes())

    def _twin(self, key: Key) -> tuple[Path, _Parities] | None:
        """The file of the same network, if another target has been given it and it is there."""
        for path, (known, parities) in self._proven.items():
            if known == key and path.exists():
                return path, parities
        return None


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
            f"the {name}'s file disagrees with PyTorch {parity.fault}; check operators that "
            "behave differently in evaluation mode"
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
