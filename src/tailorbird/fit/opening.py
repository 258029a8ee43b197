"""Places are tried before time is spent on them, and opened: their estimates begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from tailorbird.device import Precision
from tailorbird.errors import ExportError, MeasurementError
from tailorbird.export.exporters import Exporter
from tailorbird.fit.bench import bench_at, try_out
from tailorbird.fit.candidates import Candidates
from tailorbird.fit.pools import Past, Pools
from tailorbird.progress import Progress
from tailorbird.targets import PLAIN, Place


class Opening:
    """Opens places; a fault of a device, or of a precision there, is noted.

    Args:
        candidates: what is measured there.
        pools: those of the places, and what failed.
        exporter: makes files of its own format and precision; others come from `exporter_for`.
        stage: opened around each place to count its time.
        progress: told how it goes.
        lacks: what keeps files from being made in a precision, whatever the device.
    """

    def __init__(
        self,
        candidates: Candidates,
        pools: Pools,
        exporter: Exporter,
        stage: Callable[[str], AbstractContextManager[None]],
        progress: Progress,
        *,
        lacks: Callable[[Precision], ExportError | None] = lambda _: None,
    ) -> None:
        self._candidates, self._pools, self._exporter = candidates, pools, exporter
        self._stage, self._progress, self._lacks = stage, progress, lacks

    def try_out(
        self, place: Place, precisions: Iterable[Place]
    ) -> MeasurementError | ExportError | None:
        """Ask a device everything once; what is wrong with it.

        Args:
            place: with a device.
            precisions: the same place in the precisions that are wanted; a fault in another one
                than float32 costs that precision only.
        """
        assert place.device is not None
        try:
            try_out(place.device, self._exporter)
        except (MeasurementError, ExportError) as error:
            self._pools.failed[place.name] = error
            return error
        for other in dict.fromkeys(one for one in precisions if one.precision != PLAIN):
            try:
                if fault := self._lacks(other.precision):
                    raise fault
                try_out(place.device, self._exporter, other.precision)
            except (MeasurementError, ExportError) as error:
                self._pools.failed[other.name] = error
                self._progress.say(f"{other.name} is left out: {error}")
        return None

    def open(self, place: Place, past: Past | None) -> None:
        """Begin a place's pool.

        Args:
            place: in some precision.
            past: what was known there before a kill; what its store holds where ``None``.
        """
        failed = self._pools.failed
        if place.name in failed:
            return
        with self._stage(self._candidates.words.opening.format(place=place.name)):
            try:
                timing = bench_at(self._candidates, place, self._exporter, self._progress)
            except (MeasurementError, ExportError) as error:
                failed[place.name] = error
                return
            if past is None:  # what was measured there before any kill, or for other targets
                known = map(self._candidates.named, () if timing is None else timing.known)
                past = Past(checks=tuple(key for key in known if key is not None))
            self._pools.open(place, timing, past)
        if place.name in self._pools.slow:
            self._progress.say(f"{place.name}: {self._pools.slow[place.name]}")
