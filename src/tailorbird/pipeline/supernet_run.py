"""A trained supernet in its run folder, as evaluation and fitting open it.

The folder holds ``config.yaml`` (the resolved job), ``identity.json`` (what the supernet was made
from), ``origin.json`` (the job file's folder), ``events.jsonl``, ``supernet/`` (the space, the
weights, checkpoints), ``history.json``, ``evaluated.jsonl`` (a line per evaluated subnet),
``evaluation.json`` and ``evaluation.png``, and what fitting adds.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailorbird.changes import differences
from tailorbird.data.images import (
    ImageData,
    Split,
    classes_in,
    resident,
)
from tailorbird.errors import ConfigError, DataError, StoreError
from tailorbird.files import cannot_write, digest_of
from tailorbird.progress import Progress, Silent, Task
from tailorbird.records import read_record
from tailorbird.runfolder import IDENTITY, completed
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.calibrate import accuracies, recalibrate
from tailorbird.supernet.network import Supernet, resize
from tailorbird.supernet.store import WEIGHTS, classes_of, load_supernet
from tailorbird.train.precision import compute_device, lay_out
from tailorbird.train.seeds import derive

Floats = npt.NDArray[np.float64]
Batch = TypeVar("Batch")

SUPERNET, CHECKPOINTS = "supernet", "checkpoints"
EVALUATED, FINISHED = "evaluated.jsonl", "finished.json"

STATISTICS_IMAGES = 2000
"""Training images that the norm statistics of a subnet are estimated from."""

_BATCH = 250
_TOGETHER = 50
"""Subnets per pass over the images: bounds the memory for their statistics."""

_STATISTICS, _SUBSET = 100, 101
"""What a derived seed is for."""


@dataclass(frozen=True, kw_only=True)
class SupernetRun:
    """A supernet and the images it is judged on.

    Args:
        path: the run folder.
        supernet: on the CPU, in eval mode.
        data: training images calibrate, validation images judge.
        seed: the job's.
        weights: sixteen hex digits over the weights as they were read.
    """

    path: Path
    supernet: Supernet
    data: ImageData
    seed: int
    weights: str

    @property
    def architectures(self) -> ArchitectureSpace:
        """The supernet's space."""
        return self.supernet.architectures

    def calibration(self, device: torch.device | None = None) -> Iterator[Tensor]:
        """Training images that norm statistics are estimated from, always the same ones."""
        return _calibration(self.data.train, self.seed, device)


def open_run(folder: Path, data: ImageData, *, seed: int) -> SupernetRun:
    """Open the folder of a supernet that was trained or imported.

    Args:
        folder: the run folder.
        data: labelled images in three channels, of the classes that the supernet knows.
        seed: the run's, which divided these images.

    Raises:
        StoreError: for a folder without a whole supernet.
        DataError: for images with other classes than the supernet has.
    """
    check_whole(folder)
    weights = digest_of(folder / SUPERNET / WEIGHTS)
    supernet = load_supernet(folder / SUPERNET)
    if weights is None or weights != digest_of(folder / SUPERNET / WEIGHTS):
        raise StoreError(f"{folder}: the weights changed while they were read; open it again")
    check_classes(data, classes_of(supernet))
    return SupernetRun(path=folder, supernet=supernet, data=data, seed=seed, weights=weights)


def check_whole(folder: Path) -> None:
    """Make sure that a run folder holds a whole supernet, see `holds_whole`.

    Raises:
        StoreError: saying what makes one.
    """
    if not holds_whole(folder):
        begun = (folder / SUPERNET).is_dir()
        raise StoreError(
            f"{folder}: "
            + (
                "the supernet isn't trained to the end; continue with `tailorbird supernet train`"
                if begun
                else "no supernet in this folder; `tailorbird supernet train` or `import` makes one"
            )
        )


def check_classes(data: ImageData, outputs: int) -> None:
    """Make sure that a supernet with so many outputs answers in the classes of the images.

    Raises:
        DataError: naming both numbers and the way out.
    """
    have = classes_in(data)
    if have > outputs or (data.classes is not None and have != outputs):
        raise DataError(
            f"data: '{data.name}' has {have} classes, and the supernet {outputs} outputs; give "
            "images of its classes, or train on these: a job whose start is the supernet's "
            "weights, with new_classifier: true"
        )


def holds_whole(folder: Path) -> bool:
    """Whether a run folder holds a supernet that was imported, or trained to its job's end.

    While a changed job is under way, the weights of the job as it was are still there.
    """
    if not (folder / SUPERNET / WEIGHTS).is_file():
        return False
    if not (folder / SUPERNET / CHECKPOINTS).is_dir():
        return True
    try:
        finished, identity = (
            read_record(folder / name, dict[str, object]) for name in (FINISHED, IDENTITY)
        )
        return not differences(completed(finished, identity), completed(identity, {}))
    except StoreError:
        return False


def evaluate_subnets(
    run: SupernetRun,
    genomes: Genomes,
    *,
    images: int | None = None,
    progress: Progress | None = None,
) -> Floats:
    """Validation accuracy of subnets, each with norm statistics of its own.

    What is known is kept in ``evaluated.jsonl``, for this supernet's weights and these images, and
    never computed twice. Several subnets share a pass over the images; what is found is written
    after each pass.

    Args:
        run: the supernet.
        genomes: (n, genes).
        images: of the validation split, so many drawn at random; ``None`` for all.
        progress: told how many passes there are.

    Returns:
        Shares (n,) of images classified right.

    Raises:
        SpaceError: for a genome outside the space.
        ConfigError: for less than one image.
    """
    if images is not None and images < 1:
        raise ConfigError(f"images: expected 1 or more, got {images}")
    run.architectures.space.validate(genomes)
    wanted = None if images is None or images >= len(run.data.validation) else images
    book = _Book(run, wanted)
    known = book.read()
    rows = [tuple(row) for row in genomes.tolist()]
    missing = np.array(sorted({row for row in rows if row not in known}), dtype=np.int64)
    parts = [missing[start : start + _TOGETHER] for start in range(0, len(missing), _TOGETHER)]
    if parts:
        judge = _Judge(run, wanted)
        with (progress or Silent()).task("evaluate subnets", len(parts) * judge.batches) as task:
            done = 0
            for part in parts:
                done += len(part)
                found = judge.accuracies(part, task, f"{done} of {len(missing)} subnets")
                book.write(part, found)
                known |= dict(zip(map(tuple, part.tolist()), found.tolist(), strict=True))
    return np.array([known[row] for row in rows])


class _Judge:
    """Statistics and accuracies of subnets, on the device there is."""

    def __init__(self, run: SupernetRun, images: int | None) -> None:
        self.device = compute_device(None)
        self.supernet = copy.deepcopy(run.supernet).to(self.device)
        size = self.supernet.resolution(self.supernet.active)
        self.layout = lay_out(self.supernet, resize(run.data.train.sample(2).to(self.device), size))
        self.train = resident(run.data.train, self.device)
        self.validation = resident(run.data.validation, self.device)
        self.seed, self.images = run.seed, images
        judging = images or len(run.data.validation)
        self.batches = _statistics_batches(run.data.train) + -(-judging // _BATCH)

    def accuracies(self, genomes: Genomes, task: Task, note: str) -> Floats:
        """Shares (n,) of images that the subnets classify right."""
        walk = _calibration(self.train, self.seed, self.device)
        images = (batch.contiguous(memory_format=self.layout) for batch in walk)
        statistics = recalibrate(self.supernet, genomes, _counted(images, task, note))
        return accuracies(
            self.supernet, genomes, statistics, _counted(self._labelled(), task, note)
        )

    def _labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Validation images and labels; a subset is drawn at random, always the same."""
        drawn = None
        if self.images is not None:
            drawn = torch.Generator().manual_seed(derive(self.seed, _SUBSET))
        left = self.images or len(self.validation)
        for images, labels in self.validation.batches(_BATCH, generator=drawn, device=self.device):
            if labels is None:
                raise DataError("the images have no labels, and judging subnets needs them")
            yield images[:left].contiguous(memory_format=self.layout), labels[:left]
            left -= len(images)
            if left <= 0:
                return


class _Book:
    """``evaluated.jsonl``: what is known of these weights on these images."""

    def __init__(self, run: SupernetRun, images: int | None) -> None:
        self.path = run.path / EVALUATED
        self.key: dict[str, object] = {
            "weights": run.weights,
            "data": run.data.fingerprint,
            "seed": run.seed,
            "images": images,
        }

    def read(self) -> dict[tuple[int, ...], float]:
        """Genome -> accuracy. A line that a kill cut off is left out."""
        found: dict[tuple[int, ...], float] = {}
        try:
            lines = self.path.read_text().splitlines() if self.path.exists() else []
        except (OSError, ValueError) as error:
            raise StoreError(f"can't read {self.path}: {error}; remove it to start anew") from error
        for line in lines:
            try:
                record = json.loads(line)
                own = {key: record[key] for key in self.key}
                genome, accuracy = tuple(map(int, record["genome"])), float(record["accuracy"])
            except (ValueError, KeyError, TypeError):
                continue
            if own == self.key and 0.0 <= accuracy <= 1.0:
                found[genome] = accuracy
        return found

    def write(self, genomes: Genomes, accuracies: Floats) -> None:
        """Append a line per subnet."""
        lines = [
            json.dumps({"genome": genome, "accuracy": accuracy, **self.key})
            for genome, accuracy in zip(genomes.tolist(), accuracies.tolist(), strict=True)
        ]
        try:
            with self.path.open("ab+") as file:
                text = "\n".join(lines) + "\n"
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    text = text if file.read(1) == b"\n" else "\n" + text  # cut off by a kill
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _statistics_batch(split: Split) -> int:
    """Images per batch: each batch counts the same, so all have to be full."""
    return min(_BATCH, len(split))


def _statistics_batches(split: Split) -> int:
    return min(-(-STATISTICS_IMAGES // _BATCH), max(1, len(split) // _BATCH))


def _calibration(split: Split, seed: int, device: torch.device | None) -> Iterator[Tensor]:
    size = _statistics_batch(split)
    drawn = torch.Generator().manual_seed(derive(seed, _STATISTICS))
    walk = split.batches(size, generator=drawn, drop_last=True, device=device)
    for images, _ in islice(walk, _statistics_batches(split)):
        yield images


def _counted(batches: Iterable[Batch], task: Task, note: str) -> Iterator[Batch]:
    """The same, telling the task of each one that has been worked on."""
    for batch in batches:
        yield batch
        task.advance(note=note)
