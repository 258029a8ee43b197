"""A job file, read and checked: everything is known to be well-formed, nothing is built yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tailorbird.config.parts import Network, donors, images, network, settings, targets
from tailorbird.config.reader import Document, read_file
from tailorbird.config.sections import Faults, Field
from tailorbird.errors import ConfigError
from tailorbird.export.options import ExportOptions
from tailorbird.house.options import HouseOptions
from tailorbird.targets import Target
from tailorbird.train.recipe import Recipe

_JOB = {
    "teacher": Field(object, hint="such as 'model: timm:resnet18'"),
    "donors": Field(object, None),
    "data": Field(object, hint="such as 'kind: folder'"),
    "targets": Field(object, hint="a list, with a name, a device and limits each"),
    "house": Field(object, None),
    "retrain": Field(object, None),
    "rounds": Field(int, 3),
    "candidates": Field(int, 4),
    "export": Field(object, None),
    "seed": Field(int, 0),
    "run": Field(str | None, None),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked job; ``tailorbird.config.build`` makes the components.

    Args:
        data: the section's values, its ``kind`` among them, paths absolute.
        devices: the targets' device sections, as plain data.
        folder: the job file's folder, which relative paths start from.
    """

    teacher: Network
    donors: Mapping[str, Network]
    data: Mapping[str, object]
    targets: tuple[Target, ...]
    devices: tuple[Mapping[str, object], ...]
    options: HouseOptions
    recipe: Recipe
    rounds: int
    candidates: int
    export: ExportOptions
    seed: int
    run: Path
    folder: Path

    def plain(self) -> dict[str, object]:
        """The whole job with every default written out: itself a valid job file."""
        return {
            "teacher": self.teacher.plain(),
            "donors": {name: donor.plain() for name, donor in self.donors.items()},
            "data": _listed(self.data),
            "targets": [
                {
                    "name": t.name,
                    "device": dict(device),
                    "limits": {
                        one.metric: f"{one.value:g}x" if one.share else one.value
                        for one in t.limits
                    },
                }
                for t, device in zip(self.targets, self.devices, strict=True)
            ],
            "house": _listed(asdict(self.options)),
            "retrain": asdict(self.recipe),
            "rounds": self.rounds,
            "candidates": self.candidates,
            "export": asdict(self.export),
            "seed": self.seed,
            "run": str(self.run),
        }


def load(path: Path) -> Plan:
    """Read and check a job file.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    return check(read_file(path), folder=path.resolve().parent, stem=path.stem)


def check(document: Document, *, folder: Path, stem: str = "job") -> Plan:
    """Check a document; ``stem`` names the default run folder ``runs/STEM``.

    Raises:
        ConfigError: listing every fault with its place and line.
    """
    faults = Faults(document.lines)
    job = faults.values((), document.data, _JOB)
    for key, least in (("rounds", 1), ("candidates", 1), ("seed", 0)):
        value = job[key]
        if isinstance(value, int) and value < least:
            faults.add((key,), f"expected {least} or more, got {value}")
        elif isinstance(value, int) and value >= 2**63:
            faults.add((key,), f"expected less than 2^63, got {value}")
    given = document.data if isinstance(document.data, dict) else {}
    teacher = network(faults, ("teacher",), job["teacher"], folder) if "teacher" in given else None
    donors_ = donors(faults, job["donors"], folder)
    data = images(faults, job["data"], folder) if "data" in given else None
    pairs = targets(faults, job["targets"], folder) if "targets" in given else []
    options = settings(faults, ("house",), job["house"], HouseOptions, "house.")
    recipe = settings(faults, ("retrain",), job["retrain"], Recipe, "recipe.")
    export = settings(faults, ("export",), job["export"], ExportOptions, "export.")
    parts = (teacher, data, options, recipe, export)
    if faults.found or None in parts:
        raise ConfigError(faults.found)
    assert teacher and data and options and recipe and export  # or there were faults
    run = Path(str(job["run"] or Path("runs", stem))).expanduser()
    return Plan(
        teacher=teacher,
        donors=donors_,
        data=data,
        targets=tuple(target for target, _ in pairs),
        devices=tuple(device for _, device in pairs),
        options=options,
        recipe=recipe,
        rounds=_whole(job["rounds"]),
        candidates=_whole(job["candidates"]),
        export=export,
        seed=_whole(job["seed"]),
        run=folder / run,
        folder=folder,
    )


def _whole(value: object) -> int:
    assert isinstance(value, int)  # the field's type has been checked
    return value


def _listed(values: Mapping[str, object]) -> dict[str, object]:
    """Tuples as lists, the way YAML writes them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
