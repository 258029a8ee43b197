"""What times a house's structures before it is distilled: the devices of its targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tailorbird.export.exporters import Exporter, exporter_for
from tailorbird.fit.bench import Bench
from tailorbird.fit.candidates import Network
from tailorbird.house.store import HouseStore
from tailorbird.house.structures import TEACHER
from tailorbird.measure.guarded import format_of
from tailorbird.progress import Progress
from tailorbird.targets import PLAIN, Place, Target


def timings_at(
    targets: Sequence[Target],
    teacher: Network,
    store: HouseStore,
    exporter: Exporter,
    progress: Progress,
) -> dict[str, Callable[[], Bench]]:
    """Key of each distinct place that measures -> opens what times networks there in float32.

    Args:
        targets: whose places they are; one that only has a table measures nothing.
        teacher: takes part in every session.
        store: keeps what was measured.
        exporter: makes files of its own format; others come from `exporter_for`.
        progress: told about networks being timed.
    """

    def bench(place: Place) -> Bench:
        assert place.device is not None
        return Bench(
            place.device,
            lambda: teacher,
            name=TEACHER,
            store=store.latencies(place.key),
            exporter=exporter_for(format_of(place.device), PLAIN, own=exporter),
            progress=progress,
            batch=place.batch,
        )

    places = [target.place.at(PLAIN) for target in targets]
    return {place.key: partial(bench, place) for place in places if place.device is not None}
