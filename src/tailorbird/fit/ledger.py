"""What candidates answered after a share of their training: written once, never asked again.

A network that is trained on can't be judged at an earlier point again. So a run that is killed, or
a later one whose targets have the same contenders, reads here what was decided by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tailorbird.errors import StoreError
from tailorbird.files import write_json
from tailorbird.fit.candidates import Candidates, Judgement, Key, Trained
from tailorbird.records import read_record

NETWORK = ""
"""Stands for a place where the network itself was judged, in float32."""

WORST = Judgement(quality=-1e9, accuracy=0.0)
"""Stands for answers that are no numbers."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One judgement.

    Args:
        key: of the candidate.
        training: hash of what its training comes from, itself included.
        share: of the training that was done.
        place: key of the place in whose precision its file was judged; `NETWORK` for none.
        quality: see `tailorbird.fit.candidates.Judgement`.
        accuracy: ditto.
        epochs: that it had been trained for then; fewer than that share of the recipe's where
            minutes were short. ``None`` in what an earlier version wrote.
    """

    key: Key
    training: str
    share: float
    place: str
    quality: float
    accuracy: float
    epochs: float | None = None

    @property
    def judgement(self) -> Judgement:
        """What was found."""
        return Judgement(self.quality, self.accuracy)


class Ledger:
    """Judgements of trained candidates in a file, in the order in which they came.

    Args:
        path: of the file, made when the first one is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._entries = list(read_record(path, _Stored).entries)
        except StoreError:  # none yet, or damaged
            self._entries = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def find(self, training: str, share: float, place: str = NETWORK) -> Entry | None:
        """What was found of a training at a share of it."""
        own = (training, share, place)
        return next((e for e in self._entries if (e.training, e.share, e.place) == own), None)

    def add(self, entries: Sequence[Entry]) -> None:
        """Write down some more, all or none.

        Raises:
            StoreError: when the file can't be written.
        """
        if entries:
            self._entries += entries
            write_json(self._path, asdict(_Stored(tuple(self._entries))))

    def trained(self, candidates: Candidates, first: int | None = None) -> list[Trained]:
        """What became of candidates that are still trained in the same way.

        Args:
            candidates: whose.
            first: only so many of the judgements, those that came first.
        """
        return [
            Trained(key=one.key, share=one.share, quality=one.quality)
            for one in self._entries[:first]
            if one.place == NETWORK
            and one.quality > WORST.quality
            and candidates.training(one.key) == one.training
        ]


@dataclass(frozen=True)
class _Stored:
    entries: tuple[Entry, ...]
