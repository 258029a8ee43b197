"""Latencies of one device on disk, written as they become known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tailorbird.files import write_json
from tailorbird.targets import Latency


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
            content = json.loads(self.path.read_text())
            table = content["latencies"] if content["device"] == device else {}
            self.known = {str(name): Latency(**row) for name, row in table.items()}
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            pass

    def add(self, found: Mapping[str, Latency]) -> None:
        """Take in new figures and write the file.

        Raises:
            StoreError: when it can't be written.
        """
        self.known |= found
        table = {name: vars(latency) for name, latency in self.known.items()}
        write_json(self.path, {"device": self.device, "latencies": table})
