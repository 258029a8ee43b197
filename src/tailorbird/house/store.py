"""The house on disk: what has been sampled, trained and measured survives any kill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx

from tailorbird.errors import StoreError
from tailorbird.files import write_json
from tailorbird.graph.blocks import Block
from tailorbird.graph.serial import load_module, save_module
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Progress, each
from tailorbird.records import read_record


class HouseStore:
    """Files of one house.

    ``sample.json`` is written last of its stage and names what ``initial/`` holds;
    ``trained/NAME`` holds each alternative when it is done; ``scores.json`` and
    ``latency/DEVICE.json`` grow as figures come in.

    Args:
        folder: made when missing.
        trust: import paths of code that stored networks may be made of: the job's networks' own.
    """

    def __init__(self, folder: Path, trust: Collection[str] = ()) -> None:
        self.folder = folder
        self._trust = tuple(trust)

    # sampling ---------------------------------------------------------------------------------

    def save_sample(self, sample: Sample, progress: Progress | None = None) -> None:
        """Write every initial module, then the record that makes them count."""
        for alternative in each(progress, "store alternatives", sample.alternatives):
            save_module(
                sample.modules[alternative.name], self.folder / "initial", alternative.name, {}
            )
        write_json(self.folder / "sample.json", sample.record())

    def settle_sample(self, sample: Sample) -> None:
        """Write the record of a stored sample some of whose alternatives were turned away since."""
        write_json(self.folder / "sample.json", sample.record())
        kept = {alternative.name for alternative in sample.alternatives}
        for path in (self.folder / "initial").iterdir():
            if path.name.partition(".")[0] not in kept:
                path.unlink()

    def load_sample(self) -> Sample | None:
        """The sample, or ``None`` when that stage has not been completed."""
        if not (self.folder / "sample.json").exists():
            return None
        record = read_record(self.folder / "sample.json", _SampleRecord)
        modules = {
            alternative.name: self._load("initial", alternative.name)[0]
            for alternative in record.alternatives
        }
        return Sample(
            blocks={block.key: block for block in record.blocks},
            alternatives=record.alternatives,
            modules=modules,
            rejections=Counter(record.rejections),
            pending=record.pending,
            devices=record.devices,
        )

    # training ---------------------------------------------------------------------------------

    def save_trained(
        self, name: str, module: fx.GraphModule, figures: Mapping[str, object]
    ) -> None:
        """Write one distilled alternative with its figures (losses, or why it was stopped)."""
        save_module(module, self.folder / "trained", name, figures)

    def load_trained(self, name: str) -> tuple[fx.GraphModule, dict[str, Any]] | None:
        """A distilled alternative, or ``None`` when absent or half-written (made anew then)."""
        if not (self.folder / "trained" / f"{name}.json").exists():
            return None
        try:
            return self._load("trained", name)
        except StoreError:
            return None

    def checkpoint(self, bunch: int) -> Path:
        """Folder of the training state of one bunch.

        Raises:
            StoreError: where the state is in the form of the first edition, one file per bunch.
        """
        folder = self.folder / "bunches" / f"{bunch:03d}"
        if (old := folder.with_suffix(".safetensors")).exists():
            raise StoreError(
                f"{old} is the state of alternatives that an earlier version of Tailorbird was "
                "training, which this one can't continue; remove the file to train them from the "
                "start, or finish with that version: alternatives that are done are kept either way"
            )
        return folder

    def _load(self, stage: str, name: str) -> tuple[fx.GraphModule, dict[str, Any]]:
        return load_module(self.folder / stage, name, trust=self._trust)

    # figures ----------------------------------------------------------------------------------

    def load_scores(self) -> dict[str, dict[str, float]]:
        """Alternative's name -> figures on the validation split, as far as computed."""
        return self._table(self.folder / "scores.json")

    def save_scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Write all scores so far."""
        write_json(self.folder / "scores.json", {k: dict(v) for k, v in scores.items()})

    def latencies(self, device: str) -> Latencies:
        """What has been measured on ``device``: structures, and whole networks."""
        return Latencies(self.folder / "latency", device)

    def _table(self, path: Path) -> dict[str, dict[str, float]]:
        if not path.exists():
            return {}
        try:
            return read_record(path, dict[str, dict[str, float]])
        except StoreError:
            return {}  # damaged: measured anew


@dataclass(frozen=True, kw_only=True)
class _SampleRecord:
    """What ``sample.json`` holds."""

    blocks: tuple[Block, ...]
    alternatives: tuple[Alternative, ...]
    rejections: dict[str, int]
    pending: bool = False
    devices: tuple[str, ...] = ()
