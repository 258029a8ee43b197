"""From a student to proven files: export, comparison, measurement beside the reference, record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tailorbird.data.images import ImageData
from tailorbird.device import FORMATS, Precision, Run, key_of
from tailorbird.errors import ExportError, GraphError, PrecisionError, StoreError
from tailorbird.export.bundle import save_student
from tailorbird.export.delivered import about, as_given, delivered
from tailorbird.export.exporters import Exporter, Written, exporter_for
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Agreement, Parity
from tailorbird.files import cannot_write, digest_of, scratch, write_bytes, write_json
from tailorbird.fit.candidates import Key, Made, Network
from tailorbird.fit.judge import Answering, parity_images
from tailorbird.fit.quantised import Quantiser, runs
from tailorbird.measure.guarded import answering, format_of
from tailorbird.records import read_record
from tailorbird.targets import PLAIN, Place

_Parities = dict[str | None, Parity | Agreement]
"""Key of the device that ran a file, ``None`` for this machine -> how it compared."""

_Kind = tuple[Key, str, Precision, int]
"""A student's genome, and its file's format, precision and batch size."""

HERE = Place(name="this machine")
"""Where files are run that are for no device: ONNX Runtime here."""

BUNDLE = ("student.json", "student.safetensors")
"""What rebuilds a student, where it can be stored."""

DELIVERED = (*BUNDLE, "verify.json")
"""What a target's folder holds for the user, beside the artifact."""


ARTIFACTS = tuple(name for one in FORMATS for name in (one.file, *one.beside))
"""Files of all formats; a target's folder holds those of one."""


def clear(home: Path, names: Sequence[str] = (*ARTIFACTS, *DELIVERED, "result.json")) -> None:
    """Remove what an earlier request or attempt left for the user, and is no answer to this one.

    Raises:
        StoreError: when a file can't be removed.
    """
    for name in names:
        try:
            (home / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(home / name, error) from error


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A student's file, compared to the student.

    Args:
        path: of the file.
        student: what it was made of: trained on, where its precision needed that.
        written: how it was made.
        size_mb: of the file and those beside it, in 10^6 bytes.
    """

    path: Path
    student: Made
    written: Written
    size_mb: float


@dataclass(frozen=True)
class _File:
    """A file that is to be written: where, by what, for whom, with what in it."""

    path: Path
    exporter: Exporter
    place: Place
    notes: Mapping[str, str]

    @property
    def run(self) -> Run:
        """What tells what it answers."""
        return runs(self.place.device, self.exporter)


class Shipping:
    """Writes students' files into a run's folder; equal networks are converted and compared once.

    Args:
        data: whose validation images exported files are compared on, and whose class names and
            normalisation travel with them.
        folder: the run folder; files go to ``students/NAME/``.
        options: of the export.
        exporter: makes files of its own format and precision; others come from `exporter_for`.
        quantiser: calibrates files in other precisions.
    """

    def __init__(
        self,
        data: ImageData,
        folder: Path,
        options: ExportOptions,
        exporter: Exporter,
        quantiser: Quantiser,
    ) -> None:
        self.data, self.folder, self.options = data, folder, options
        self.exporter, self.quantiser = exporter, quantiser
        self._proven: dict[Path, tuple[_Kind, Shipped, _Parities]] = {}

    def home(self, name: str) -> Path:
        """The folder of a target."""
        return self.folder / "students" / name

    def deliver(self, student: Made, name: str, *, key: Key, place: Place = HERE) -> Shipped:
        """Export a student to ``students/NAME`` and compare the file to PyTorch.

        Args:
            student: trained.
            name: of the target.
            key: equal for equal students, and for no others that go through this object.
            place: where the file is run to be compared, if it can be; its precision and batch.

        Raises:
            ExportError: when the file can't be written or disagrees with the network.
            PrecisionError: when too much accuracy is lost in that precision.
            MeasurementError: when the device does not answer.
        """
        exporter = self.exporter_at(place)
        path = self.home(name) / exporter.format.file
        kind = (key, exporter.format.name, place.precision, place.batch)
        notes = metadata(self.data, name, student.input_shape, self.options)
        self._proven.pop(path, None)
        twin = self._twin(kind)
        clear(path.parent, ARTIFACTS)
        if twin is None:
            parities: _Parities = {}
            shipped = self._write(student, _File(path, exporter, place, notes))
        else:
            source, shipped, parities = twin
            exporter.relabel(source, path, notes)
            shipped = replace(shipped, path=path)
        parity = self._compared(shipped, exporter, place, parities)
        if not parity.passed:
            raise ExportError(f"target '{name}': the file disagrees with PyTorch {parity.fault}")
        self._proven[path] = kind, shipped, parities
        return shipped

    def exporter_at(self, place: Place) -> Exporter:
        """What makes the files of a place.

        Raises:
            ExportError: where nothing does.
            MeasurementError: where the device does not say what it takes.
        """
        what = self.exporter.format if place.device is None else format_of(place.device)
        return exporter_for(what, place.precision, own=self.exporter)

    def answers(self, shipped: Shipped, place: Place) -> Network:
        """A file as a network that answers normalised images, where it is run."""
        run = runs(place.device, self.exporter_at(place))
        file = Answering(run, shipped.path, self.data.normalisation, self.options)
        return Network(file, shipped.student.input_shape)

    def _write(self, student: Made, file: _File) -> Shipped:
        """The file; the student is trained on where its precision costs too much."""
        written = self._final(student, file)
        most = self.quantiser.options.max_loss
        if written.loss is not None and written.loss > most:
            student, written = self._trained_on(student, file, written)
        if written.loss is not None and written.loss > most:
            raise PrecisionError(
                f"{file.place.precision} costs {written.loss:.2f} points of accuracy on validation "
                f"images, {most:g} may be lost"
            )
        beside = [file.path.with_name(name) for name in file.exporter.format.beside]
        size = sum(one.stat().st_size for one in (file.path, *beside) if one.exists())
        return Shipped(path=file.path, student=student, written=written, size_mb=size / 1e6)

    def _trained_on(self, student: Made, file: _File, written: Written) -> tuple[Made, Written]:
        """A student trained as its file computes, and that file, where it loses less."""
        path, what = file.path, file.exporter.format
        trained = self.quantiser.train(
            student,
            path,
            what,
            run=file.run,
            export=self.options,
            batch=file.place.batch,
            name=path.parent.name,
        )
        if trained is None:
            return student, written
        with scratch() as folder:
            for name in (path.name, *what.beside):
                shutil.copy2(path.with_name(name), folder / name)
            like = folder / path.name
            try:
                found = self._final(trained, file, like=like, plain=student)
            except ExportError:  # its graph has changed with its weights
                found = written
            assert found.loss is not None
            assert written.loss is not None
            if found.loss < written.loss:
                return trained, replace(found, kept=written.kept)
            file.exporter.relabel(like, path, file.notes)
        return student, written

    def _final(
        self,
        student: Made,
        file: _File,
        *,
        like: Path | None = None,
        plain: Made | None = None,
    ) -> Written:
        """Write the file of a student; what it loses is told beside ``plain``, else the student."""
        compared = plain or student
        return file.exporter.final(
            delivered(student.module, self.data.normalisation, self.options),
            student.input_shape,
            file.path,
            options=self.options,
            metadata=file.notes,
            batch=file.place.batch,
            calibration=self.quantiser.calibration(
                Network(compared.module, compared.input_shape),
                file.place.precision,
                file.run,
                self.options,
                like=like,
            ),
        )

    def _compared(
        self, shipped: Shipped, exporter: Exporter, place: Place, parities: _Parities
    ) -> Parity | Agreement:
        """How the file compares where it is run; what is known of this device is not asked again.

        Raises:
            ExportError: when the file can't be run.
        """
        run, scale = answering(place.device), self.data.normalisation
        where = None if place.device is None or run is None else key_of(place.device)
        student = shipped.student
        if where not in parities:
            images = as_given(parity_images(self.data, student.input_shape), scale, self.options)
            module = delivered(student.module, scale, self.options)
            try:
                parities[where] = exporter.verify(module, shipped.path, images, run)
            except ExportError as error:
                raise (
                    error if where is None else ExportError(f"on device {where}: {error}")
                ) from error
        parity = parities[where]
        told = asdict(parity)
        if isinstance(parity, Agreement):
            network = Network(student.module, student.input_shape)
            told["accuracy"] = self.quantiser.accuracy(self.answers(shipped, place))
            told["accuracy_float32"] = self.quantiser.accuracy(network)
        if shipped.written.calibration:
            told["quantised"] = asdict(shipped.written)
        write_json(shipped.path.parent / "verify.json", told)
        return parity

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
        return Shipping(self.data, folder, self.options, self.exporter, self.quantiser)

    def copy(self, source: Path, name: str) -> None:
        """Give a target the files that were delivered to a folder.

        Raises:
            StoreError: when files can't be read or written.
        """
        home = self.home(name)
        clear(home)
        for what in FORMATS:
            file = source / what.file
            self._proven.pop(home / what.file, None)
            if file.exists():
                exporter = exporter_for(what, PLAIN, own=self.exporter)
                about = {**exporter.metadata_of(file), "tailorbird.target": name}
                exporter.relabel(file, home / what.file, about)
        for beside in DELIVERED:
            if (source / beside).exists():
                write_bytes(home / beside, (source / beside).read_bytes())

    def _twin(self, kind: _Kind) -> tuple[Path, Shipped, _Parities] | None:
        """The file of the same network, if another target has been given it and it is there."""
        for path, (known, shipped, parities) in self._proven.items():
            if known == kind and path.exists():
                return path, shipped, parities
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
    reference: Network,
    data: ImageData,
    folder: Path,
    exporter: Exporter,
    *,
    name: str,
    batch: int = 1,
) -> Path:
    """Export the reference and prove it, before any time is spent on its candidates.

    Args:
        reference: the teacher, or the full network.
        data: whose validation images it is compared on.
        folder: where the file goes.
        exporter: makes it.
        name: what messages call it, such as ``"teacher"``.
        batch: images per call.

    Raises:
        ExportError: when it can't be exported or the file disagrees with the network.
    """
    path, proof = folder / exporter.format.file, folder / "proven.json"
    files = (*exporter.format.beside, path.name)
    if path.exists() and _as_proven(folder, files, proof):
        return path
    images = parity_images(data, reference.input_shape)
    with torch.no_grad():
        if not bool(reference.module(images).isfinite().all()):
            raise ExportError(
                f"the {name}'s outputs are not finite on {len(images)} validation images; "
                "check its checkpoint and the images' normalisation"
            )
    # Under another name until it is proven: a kill leaves no unproven file behind.
    aside = folder / "unproven"
    draft = aside / path.name
    options = ExportOptions()
    notes = metadata(data, name, reference.input_shape, options)
    try:
        exporter.final(
            reference.module,
            reference.input_shape,
            draft,
            options=options,
            metadata=notes,
            batch=batch,
        )
    except ExportError as error:
        raise ExportError(f"the {name} can't be exported: {error}") from error
    parity = exporter.verify(reference.module, draft, images)
    if not parity.passed:
        shutil.rmtree(aside)
        raise ExportError(
            f"the {name}'s file disagrees with PyTorch {parity.fault}; check operators that "
            "behave differently in evaluation mode"
        )
    write_json(proof, {file: digest_of(aside / file) for file in files})
    for file in files:
        (aside / file).replace(folder / file)
    shutil.rmtree(aside)
    return path


def _as_proven(folder: Path, files: Sequence[str], proof: Path) -> bool:
    """Whether files are those that were proven; an earlier version noted no digests."""
    if not proof.exists():
        return True
    try:
        known = read_record(proof, dict[str, str])
    except StoreError:
        return False
    return all(
        (folder / file).exists() and known.get(file) == digest_of(folder / file) for file in files
    )
