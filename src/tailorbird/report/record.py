"""The record of a run: what ``report.json`` holds and what table, picture and page are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from tailorbird.errors import StoreError
from tailorbird.files import write_bytes

if TYPE_CHECKING:
    from pydantic import TypeAdapter

TEACHER = "teacher"
"""What students are compared to, unless the report says otherwise."""

FORMAT = 1
"""Version of the record's layout."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A network as it is, on one device.

    Args:
        name: as the job names it, such as ``"teacher"``.
        latency_ms: median latency at batch 1, ``None`` where it was not measured.
        accuracy: share of right answers in 0..1, ``None`` where the network can't be judged,
            such as a donor with other classes.
        params: number of parameters.
        macs: multiply-accumulates for one image.
        size_mb: weights and buffers in 10^6 bytes.
        device: key of the device that ``latency_ms`` was measured on.
    """

    name: str
    latency_ms: float | None
    accuracy: float | None
    params: int
    macs: int
    size_mb: float
    device: str = ""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage took, in minutes; ``detail`` says what was done, such as counts."""

    name: str
    minutes: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a student took in one call of a device, interleaved with the reference.

    Args:
        own_ms: its median latency.
        reference_ms: the reference's.
        spread_ms: interquartile range of the student's runs.
        drift: by what share its last runs differ from its first, where the device tells.
    """

    own_ms: float
    reference_ms: float
    spread_ms: float
    drift: float | None = None


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How well a student's latency is known.

    Args:
        sessions: as they were measured.
        low_ms: what the latency is above, and
        high_ms: what it is below, in 95 of 100 cases; ``None`` after one session, which was enough
            where its figure was far off the limit.
        margin: share of the limit that the latency leaves free, negative where it is over;
            ``None`` where the latency isn't limited.
    """

    sessions: tuple[Session, ...]
    low_ms: float | None = None
    high_ms: float | None = None
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A candidate of a target that was trained beside others, so that the best could be kept.

    Args:
        number: of the target's contenders, from 1.
        name: tells what it is made of.
        precision: that its file would compute in.
        latency_ms: as it was measured or estimated before it was trained.
        before: accuracy on validation images before it was trained, and
        accuracy: after this round.
        stayed: whether it was trained on.
    """

    number: int
    name: str
    precision: str
    latency_ms: float
    before: float
    accuracy: float
    stayed: bool


@dataclass(frozen=True, kw_only=True)
class TrainingRound:
    """A round after which the better half of a target's contenders was kept.

    Args:
        epochs: of the recipe that had been done by its end.
        contenders: those that were left in it.
    """

    epochs: float
    contenders: tuple[Contender, ...]


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """What one target got.

    Args:
        name: the target's name.
        device: key of the device that measured.
        limits: metric -> what it may be at most, in the unit that the metric's name carries.
        least: metric -> what it has to be at least: ``"accuracy"`` -> 0 to 1.
        asked: metric -> limit as it was asked, such as ``"0.5x"`` or
            ``"images_per_second >= 500"``, where it was in another unit or a share.
        measured: metric -> figure of the exported student; empty where there is none.
        met: every limit is kept, as measured.
        undecided: the latency is so near its limit that all sessions don't tell on which side.
        certainty: of the latency; ``None`` where it was not measured.
        accuracy: the student's, after retraining, in 0..1.
        accuracy_before: the student's, before retraining.
        teacher_accuracy: on the same images.
        validation: the student's accuracy on validation images, by which students are compared.
        validation_loss: its mean loss there.
        compared: where networks may know those by heart, the accuracy on images that none knows
            better than another (`tailorbird.data.unfamiliar`): students are compared by it then.
        as_is: the given network that was shipped instead of a student, as it is.
        found_for: the tighter target whose student serves this one too; ``None`` for its own.
        onnx: path of the exported file, whatever its format, relative to the run folder.
        precision: that the file computes in.
        conditions: what the device said of itself when it measured: machine, runtime, cores, what
            sets its clock (``governor``), its temperature.
        kept: layers that stayed in float32 in a file of a lower precision.
        notes: what else is to be known, such as why a precision was not taken.
        lowest: metric -> lowest reachable figure, where the limits can't be met.
        reason: why the target is not met.
        minutes: spent on this target alone.
        rounds: in which contenders were trained; the last one, in which the student that is left
            was trained to the end, is none of them.
        replaced: the teacher's blocks that were replaced, as ``"block -> alternative"``.
        code: import paths of the user's own code that rebuilding ``student.json`` needs.
        unstored: why there is no ``student.json``, only the exported file.

    Figures that are not finite say nothing: ``measured`` and ``lowest`` leave them out.
    """

    name: str
    device: str
    limits: Mapping[str, float]
    least: Mapping[str, float] = field(default_factory=dict)
    asked: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    met: bool
    undecided: bool = False
    certainty: Certainty | None = None
    accuracy: float | None = None
    accuracy_before: float | None = None
    teacher_accuracy: float | None = None
    validation: float | None = None
    validation_loss: float | None = None
    compared: float | None = None
    as_is: str | None = None
    found_for: str | None = None
    onnx: str | None = None
    precision: str = "float32"
    conditions: Mapping[str, str | int | float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lowest: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    minutes: float = 0.0
    rounds: tuple[TrainingRound, ...] = ()
    replaced: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    unstored: str | None = None

    def __post_init__(self) -> None:
        for name in ("measured", "lowest"):
            figures: Mapping[str, float] = getattr(self, name)
            finite = {metric: value for metric, value in figures.items() if is_figure(value)}
            object.__setattr__(self, name, finite)


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All that a run found.

    Args:
        run: the run folder, as the user named it.
        seed: the job's seed.
        teacher: device key -> the teacher's own figures there.
        donors: donors as they are, one per donor and device.
        targets: in the job's order.
        stages: in the order in which they ran.
        rejections: reason -> number of candidates that were turned away for it.
        environment: versions and machine.
        accuracy_kind: what ``accuracy`` is: ``"top-1"``, or ``"agreement with the teacher"``
            where the images have no labels.
        reference: what ``teacher`` is called: students of supernets have a full network instead.
        judged: images that accuracies are of.
        images: what these are, such as ``"test images"``.
        decided: what images alternatives and candidates were chosen by; empty where the run doesn't
            tell.

    Example:
        >>> result = TargetResult(name="edge", device="cpu", limits={"latency_ms": 2.0}, met=False)
        >>> report = RunReport(run="runs/a", seed=0, targets=(result,))
        >>> RunReport.from_json(report.to_json()) == report
        True
    """

    run: str
    seed: int
    teacher: Mapping[str, Point] = field(default_factory=dict)
    donors: tuple[Point, ...] = ()
    targets: tuple[TargetResult, ...] = ()
    stages: tuple[StageCost, ...] = ()
    rejections: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    accuracy_kind: str = "top-1"
    reference: str = TEACHER
    judged: int | None = None
    images: str = "images"
    decided: str = ""
    format: int = FORMAT

    @property
    def minutes(self) -> float:
        """All stages together."""
        return sum(stage.minutes for stage in self.stages)

    @property
    def met(self) -> bool:
        """Every target is met."""
        return all(target.met for target in self.targets)

    def to_json(self) -> str:
        """Write as JSON text; figures that are not finite become ``null``."""
        return _adapter().dump_json(self, indent=2, fallback=str).decode("utf-8") + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> RunReport:
        """Read what ``to_json`` wrote.

        Raises:
            StoreError: naming every field that does not fit.
        """
        from pydantic import ValidationError

        try:
            report = _adapter().validate_json(text)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}"
                for fault in error.errors(include_url=False, include_input=False)
            )
            raise StoreError(f"not a report that this version can read: {faults}") from error
        if report.format != FORMAT:
            raise StoreError(
                f"report: layout version {report.format}, this version of Tailorbird reads {FORMAT}"
            )
        return report

    def save(self, path: Path) -> None:
        """Write the JSON file whole or not at all.

        Raises:
            StoreError: when the file can't be written.
        """
        write_bytes(path, self.to_json().encode("utf-8"))

    @staticmethod
    def load(path: Path) -> RunReport:
        """Read a ``report.json``.

        Raises:
            StoreError: when the file is missing or is not such a report.
        """
        try:
            text = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: can't be read: {error.strerror}") from error
        try:
            return RunReport.from_json(text)
        except StoreError as error:
            raise StoreError(f"{path}: {error}") from error


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[RunReport]:
    from pydantic import TypeAdapter

    return TypeAdapter(RunReport)


def is_figure(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number that can be drawn or printed."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
