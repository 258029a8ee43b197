"""Training a supernet in a run folder: continued when run again, refused for another job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from tailorbird.changes import differences, in_settings, job_of
from tailorbird.data.images import ImageData
from tailorbird.errors import StoreError
from tailorbird.files import write_bytes, write_json
from tailorbird.pipeline.job import digest
from tailorbird.pipeline.reporting import environment
from tailorbird.pipeline.supernet_run import (
    CHECKPOINTS,
    FINISHED,
    SUPERNET,
    holds_whole,
)
from tailorbird.progress import Progress, Silent
from tailorbird.records import read_record
from tailorbird.report.tensorboard import TensorBoard
from tailorbird.report.words import percent
from tailorbird.runfolder import (
    CONFIG,
    ORIGIN,
    RunFolder,
    completed,
    formatted,
)
from tailorbird.supernet.network import Supernet
from tailorbird.supernet.schemes.scheme import Scheme
from tailorbird.supernet.store import classes_of, save_supernet
from tailorbird.supernet.train import TrainedSupernet, train_supernet
from tailorbird.supernet.train_state import SupernetEpoch, SupernetRecipe
from tailorbird.train.world import is_main, joined

HISTORY, ACCEPTED = "history.json", "accepted.json"

_BOUND = {
    *("kind", "space", "resolutions", "classes", "imported", "scheme.name", "samplers"),
    *("recipe.optimizer", "recipe.ema"),
}
"""What a checkpoint's weights, momenta and samplers are made for: never accepted as changes."""


@dataclass(frozen=True, kw_only=True)
class SupernetJob:
    """What is to be trained, as built components.

    Args:
        supernet: where training starts.
        data: labelled images with the supernet's classes.
        scheme: how it is trained.
        recipe: how steps are made.
        seed: of every random choice.
        run: the folder that everything is written to.
        save_steps: steps between checkpoints; ``None`` for an epoch.
        validate_epochs: epochs between validations; ``None`` for none.
        tensorboard: write event files for TensorBoard as well.
        description: the resolved job as plain data, written to ``config.yaml``.
        folder: the job file's; modules in it can be imported when the run is opened again.
        notes: told once at the start.
    """

    supernet: Supernet
    data: ImageData
    scheme: Scheme
    recipe: SupernetRecipe
    seed: int
    run: Path
    save_steps: int | None = None
    validate_epochs: int | None = 1
    tensorboard: bool = False
    description: Mapping[str, object] = field(default_factory=dict)
    folder: Path = field(default_factory=Path)
    notes: tuple[str, ...] = ()


def train_run(
    job: SupernetJob,
    *,
    accept_changes: bool = False,
    progress: Progress | None = None,
    before: Callable[[], None] | None = None,
) -> Path:
    """Train, or continue; returns the run folder, which then holds the supernet.

    Started by ``torchrun``, all processes train together, and the main one alone writes.

    Args:
        job: what is to be trained.
        accept_changes: go on though the job was changed, where the checkpoints allow it.
        progress: told of each epoch.
        before: called by the main process where nothing has been trained yet, such as
            `tailorbird.pipeline.supernet_preflight.tell_training`.

    Raises:
        StoreError: for a folder in use, of another kind, or of a job that was changed; says what.
        ConfigError: where TensorBoard is asked for and not installed.
        TrainingError: when a loss isn't finite.
    """
    shown = progress or Silent()
    made_of = identity(job)
    if not is_main():
        if not _agreed(finished=False):
            _train(job, accept_changes=False, progress=Silent(), board=TensorBoard(None))
            _together()
        return job.run
    board = TensorBoard(job.run / "tensorboard" if job.tensorboard else None)
    with _opened(job, made_of, accept_changes=accept_changes, progress=shown) as folder:
        if _agreed(finished=_finished(job.run, made_of)):
            shown.say(f"{job.run} holds this supernet, trained; nothing to do")
            return job.run
        folder.event("started")
        describe_run(job.run, job.description, job.folder)
        for note in job.notes:
            shown.say(f"note: {note}")
        if before is not None and not (job.run / SUPERNET / CHECKPOINTS).exists():
            before()
        else:
            for note in job.data.told:
                shown.say(f"data: {note}")
        with folder.stage("train"), board:
            # Checkpoints are of the job before it was changed until a new one is written.
            accepted = _is(job.run / ACCEPTED, made_of)
            trained = _train(job, accept_changes=accepted, progress=shown, board=board)
        kept = trained.supernet if trained.average is None else trained.average
        save_supernet(kept.eval(), job.run / SUPERNET)
        write_json(
            job.run / HISTORY,
            {
                "epochs": [asdict(epoch) for epoch in trained.history],
                "macs": trained.macs,
                "seconds": trained.seconds,
            },
        )
        write_json(job.run / FINISHED, formatted(made_of))
        folder.event("finished", epochs=len(trained.history))
        _together()
    return job.run


def identity(job: SupernetJob) -> dict[str, object]:
    """What decides the trained supernet, as plain data."""
    plan = job.scheme.plan(job.supernet.architectures, 1)
    space = job.supernet.architectures
    return {
        "kind": "supernet",
        "space": space.name,
        "definition": space.definition,
        "resolutions": list(space.space.choices[0].values),
        "classes": classes_of(job.supernet),
        "dropout": job.description.get("dropout", 0.0),
        "initial weights": digest(job.supernet),
        "data": {
            "name": job.data.name,
            "fingerprint": job.data.fingerprint,
            "sampled": job.data.sampled,
            "augmentation": job.data.augmentation,
        },
        "scheme": job.scheme.record(),
        "samplers": [sampler.name for sampler in plan.samplers],
        "recipe": asdict(job.recipe),
        "seed": job.seed,
    }


def describe_run(run: Path, description: Mapping[str, object], origin: Path) -> None:
    """Write ``config.yaml``, ``origin.json`` and ``environment.json``."""
    write_bytes(run / CONFIG, yaml.safe_dump(dict(description), sort_keys=False).encode())
    write_json(run / ORIGIN, {"folder": str(origin.resolve())})
    write_json(run / "environment.json", environment())


def _train(
    job: SupernetJob, *, accept_changes: bool, progress: Progress, board: TensorBoard
) -> TrainedSupernet:
    def observe(epoch: SupernetEpoch) -> None:
        progress.say(_line(epoch, job.scheme.epochs))
        board.epoch(epoch)

    return train_supernet(
        job.supernet,
        job.data,
        job.scheme,
        seed=job.seed,
        recipe=job.recipe,
        folder=job.run / SUPERNET / CHECKPOINTS,
        save_steps=job.save_steps,
        validate_epochs=job.validate_epochs,
        accept_changes=accept_changes,
        progress=progress,
        observe=observe,
        observe_steps=board.steps,
    )


def _agreed(*, finished: bool) -> bool:
    """What the main process knows: the others may not see its disk."""
    with joined() as world:
        return world.from_main(bytes([finished])) == bytes([True])


def _together() -> None:
    """Wait for the other processes: one that ends early would have torchrun end the rest."""
    with joined() as world:
        world.barrier()


def _line(epoch: SupernetEpoch, epochs: float) -> str:
    """One epoch in one line."""
    accuracies = ", ".join(
        f"{name} {percent(share)} %"
        for name, share in (("largest", epoch.largest), ("smallest", epoch.smallest))
        if share is not None
    )
    return (
        f"epoch {epoch.epoch:g} of {epochs:g}, {epoch.phase}: loss {epoch.loss:.3f}"
        f"{', ' if accuracies else ''}{accuracies}, {epoch.networks:.3g} networks per step, "
        f"learning rate {epoch.learning_rate:.3g}, {epoch.images_per_second:.0f} images/s"
    )


@contextmanager
def _opened(
    job: SupernetJob, made_of: Mapping[str, object], *, accept_changes: bool, progress: Progress
) -> Iterator[RunFolder]:
    """The run's folder, locked; changes of the job are refused, or entered where accepted.

    Raises:
        StoreError: saying what differs, and whether that can be accepted.
    """
    run, folder = job.run, RunFolder(job.run)
    stored = folder.stored() if run.is_dir() else None
    if stored is None or stored.get("kind") != "supernet":
        with folder.open(made_of):
            yield folder
        return
    if "imported" in stored:
        raise StoreError(f"run folder {run} holds an imported supernet; give another folder")
    changed = differences(completed(stored, made_of), formatted(made_of))
    begun = bool(changed) and (run / SUPERNET).exists()
    images = [line for line in changed if line.startswith("data.")]
    told = [line for line in changed if line not in images]  # these are settings as they are
    told += in_settings(images, job_of(run / CONFIG), job.description)
    listed = "".join(f"\n  - {line}" for line in told)
    if begun and any(_is_bound(line) for line in changed):
        raise StoreError(
            f"run folder {run} was begun with another job; what differs:{listed}\n"
            "weights and checkpoints there are of another kind: give a new folder, or the job as "
            "it was to continue"
        )
    if begun and not accept_changes:
        raise StoreError(
            f"run folder {run} was begun with another job; what differs:{listed}\n"
            "give a new folder, the job as it was to continue, or accept the changes "
            "(accept_changes) to go on with the job as it is now"
        )
    with folder.open(stored):
        if begun:
            progress.say(f"going on with a changed job:{listed}")
            if any(line.startswith("data.fingerprint: ") for line in changed):
                progress.say(
                    "note: the images or their division changed: validation images may be among "
                    "those trained on so far, which makes accuracies on them too good"
                )
            folder.event("accepted changes", changes=changed)
            write_json(run / ACCEPTED, formatted(made_of))
        folder.identify(made_of)
        yield folder


def _is_bound(line: str) -> bool:
    return line.partition(": ")[0] in _BOUND


def _is(path: Path, made_of: Mapping[str, object]) -> bool:
    """Whether the file is there and holds this identity."""
    try:
        known = read_record(path, dict[str, object])
        return not differences(completed(known, made_of), formatted(made_of))
    except StoreError:
        return False


def _finished(run: Path, made_of: Mapping[str, object]) -> bool:
    """Whether the folder holds what this job leads to."""
    return holds_whole(run) and _is(run / FINISHED, made_of)
