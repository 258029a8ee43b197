"""A run folder made of weights that were trained elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from tailorbird.config.sections import near, short
from tailorbird.config.supernet_data import check_classes, load_data_file, read_data
from tailorbird.config.supernet_job import space_called
from tailorbird.errors import ConfigError, SpaceError, StoreError
from tailorbird.models import read_tensors
from tailorbird.pipeline.supernet_run import SUPERNET
from tailorbird.pipeline.supernet_training import describe_run
from tailorbird.runfolder import RunFolder
from tailorbird.supernet.architecture import SPACES, ArchitectureSpace, load_space
from tailorbird.supernet.network import build_supernet
from tailorbird.supernet.ofa_checkpoint import load_official
from tailorbird.supernet.store import outputs_of, save_supernet

_ANY = "ofa-mbv3-w1.0"
"""Where the space asked for doesn't exist, resolutions are checked as if for this one."""


@dataclass(frozen=True)
class Imported:
    """What was found in a checkpoint."""

    architectures: ArchitectureSpace
    classes: int


def import_supernet(
    checkpoint: Path,
    run: Path,
    *,
    space: str,
    resolutions: str | None = None,
    data: Path | None = None,
    seed: int = 0,
) -> Imported:
    """Load a checkpoint and write the run folder that evaluation and fitting open.

    Importing the same again changes nothing.

    Args:
        checkpoint: official once-for-all weights, or a supernet's of this project.
        run: the folder.
        space: the checkpoint's space: a name, or the path of a JSON file.
        resolutions: image sizes with commas between; the space's own when ``None``.
        data: YAML file with a ``data`` section; needed to evaluate and fit, now or later.
        seed: of the division of the images.

    Raises:
        ConfigError: for an unknown space, resolutions that can't be, or a faulty data file.
        StoreError: for a checkpoint that can't be read or is of another space, and for a folder
            that holds something else.
        DataError: for images with other classes than the checkpoint.
    """
    architectures = _space(space, resolutions)
    values = None if data is None else load_data_file(data)
    tensors = read_tensors(checkpoint)
    classes = outputs_of(architectures, tensors)
    supernet = build_supernet(
        architectures, classes=classes, generator=torch.Generator().manual_seed(0)
    )
    try:
        load_official(supernet, tensors)
    except StoreError as error:
        raise StoreError(f"{checkpoint}: {error}") from error
    base = Path() if data is None else data.resolve().parent
    if values is not None and classes is not None:
        check_classes(read_data(values, seed=seed, folder=base), classes)
    identity = {
        "kind": "supernet",
        "imported": hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16],
        "space": architectures.name,
        "resolutions": list(architectures.space.choices[0].values),
    }
    with RunFolder(run).open(identity) as folder:
        folder.event("imported", checkpoint=str(checkpoint))
        described = {
            "space": {
                "name": str(space_called(space, Path())),
                "resolutions": identity["resolutions"],
            },
            "data": values,
            "imported": str(checkpoint.resolve()),
            "seed": seed,
        }
        describe_run(run, described, base)
        save_supernet(supernet.eval(), run / SUPERNET)
    return Imported(architectures, classes or 0)


def _space(name: str, resolutions: str | None) -> ArchitectureSpace:
    """The space of that name, or in that file; faults of both options at once."""
    problems = []
    known = name in SPACES or name.endswith(".json")
    if not known:
        problems.append(f"--space: unknown space {short(name)}{near(name, SPACES)}")
    sizes: list[int] | None = None
    try:
        if resolutions is not None:
            sizes = [int(part) for part in resolutions.split(",")]
        space = load_space(name if known else _ANY, resolutions=sizes)
    except ValueError:
        problems.append(
            f"--resolutions: expected whole numbers with commas between, got {resolutions!r}"
        )
    except SpaceError as error:
        problems.append(f"--{error}")
    if problems:
        raise ConfigError(problems)
    return space
