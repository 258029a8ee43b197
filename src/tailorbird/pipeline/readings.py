"""How a run's networks were read: noted and told, and compared when the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from tailorbird.changes import differences
from tailorbird.errors import GraphError, StoreError
from tailorbird.files import write_json
from tailorbird.graph.serial import to_spec
from tailorbird.graph.structure import VERSION, structure_key
from tailorbird.graph.trace import LayerGraph
from tailorbird.progress import Progress
from tailorbird.records import read_record


def note_readings(run: Path, graphs: Mapping[str, LayerGraph], progress: Progress) -> None:
    """Keep in ``house/notes.json`` how the networks were read and what of their train mode was left
    out; say the latter."""
    (run / "house").mkdir(exist_ok=True)
    write_json(run / "house" / "notes.json", {name: list(g.told) for name, g in graphs.items()})
    for name, graph in graphs.items():
        if graph.notes:
            more = len(graph.notes) - 1
            rest = f" (and {more} more; see tailorbird inspect)" if more else ""
            progress.say(f"{name}: {'; '.join(graph.told[:2])}{rest}")


def check_structures(run: Path, teacher: LayerGraph, donors: Mapping[str, LayerGraph]) -> None:
    """Refuse networks of the job's weights that compute something else than those of the run.

    `identity` sees weights alone: two networks may hold the same and differ in ``forward``. What
    is computed is known once they are traced; it is noted then, and compared from then on.

    Raises:
        StoreError: naming the networks that differ.
    """
    path = run / "house" / "structures.json"
    known: dict[str, object] = {
        name: structure_key(graph.module, graph.input_shape)
        for name, graph in {"teacher": teacher, **donors}.items()
    }
    known["version of keys"] = VERSION
    stored = read_record(path, dict[str, object]) if path.exists() else {}
    if stored.get("version of keys") != VERSION:
        write_json(path, known)  # nothing is known, or only by keys of another kind
    elif changed := differences(stored, known):
        raise StoreError(
            f"run folder {run} belongs to another job: networks of the same weights compute "
            "something else now; what differs:\n  "
            + "\n  ".join(changed)
            + "\ngive a new folder, or the networks as they were to continue"
        )


def tell_storing(graphs: Mapping[str, LayerGraph], progress: Progress) -> None:
    """Say of which networks students can't be stored, or be rebuilt only with the user's code."""
    for name, graph in graphs.items():
        try:
            code = to_spec(graph.module)["code"]
        except GraphError as error:
            progress.say(f"{name}: {error}. Students that keep that part are exported, not stored")
            continue
        if code:
            progress.say(
                f"{name}: to rebuild students of it from student.json, your code is needed: "
                f"{', '.join(cast(list[str], code))}"
            )
