"""Latencies of one device on disk, written as they become known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tailorbird.device import Latency
from tailorbird.errors import StoreError
from tailorbird.files import write_json
from tailorbird.records import read_record


class Latencies:
    """Latencies under short names, in one JSON file of a folder.

    Args:
        folder: a file is one device's.
        device: key of the device.

    Attributes:
        known: name -> latency. What was stored of another device, or is damaged, is left out, and
            so measured anew.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> found = Latency(median_ms=2.0, spread_ms=0.1, runs=100, warmup=10)
        >>> Latencies(folder, "phone").add({"teacher": found})
        >>> Latencies(folder, "phone").known["teacher"] == found
        True
    """

    def __init__(self, folder: Path, device: str) -> None:
        digest = hashlib.sha256(device.encode()).hexdigest()[:12]
        self.path, self.device = folder / f"{digest}.json", device
        self.known: dict[str, Latency] = {}
        try:
            stored = read_record(self.path, _Stored)
        except StoreError:
            return
        if stored.device == device:
            self.known = {
                name: latency
                for name, latency in stored.latencies.items()
                if latency.median_ms >= 0 and latency.spread_ms >= 0
            }

    def add(self, found: Mapping[str, Latency]) -> None:
        """Take in new figures and write the file.

        Raises:
            StoreError: when it can't be written.
        """
        self.known |= found
        table = {name: vars(latency) for name, latency in self.known.items()}
        write_json(self.path, {"device": self.device, "latencies": table})


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a file of latencies holds."""

    device: str
    latencies: dict[str, Latency]
