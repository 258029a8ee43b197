"""Searching a supernet's space for many targets, on predictors and latency tables alone.

Nothing is built or trained here: what comes out are architectures, to be extracted and measured.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailorbird.errors import ConfigError, SpaceError
from tailorbird.estimate.latency_files import LEARNED, latency_for, opened
from tailorbird.estimate.latency_table import LatencyTable, compile_table, read_table
from tailorbird.estimate.predicted import PredictedFamily, Predictor
from tailorbird.estimate.predictor_files import open_predictor
from tailorbird.family import Floats
from tailorbird.progress import Progress, Silent
from tailorbird.search.outcome import save_csv, save_json
from tailorbird.search.strategy import SearchResult, Strategy
from tailorbird.supernet.architecture import ArchitectureSpace, load_space
from tailorbird.supernet.counts import macs, params
from tailorbird.targets import LATENCY, Place, Target, places_of, unsearchable

COUNTED = ("macs", "params")
"""Metrics that are counted of an architecture; its latency is predicted."""


def search(
    targets: Sequence[Target],
    *,
    space: str,
    accuracy_predictor: Path,
    strategy: Strategy,
    seed: int = 0,
    progress: Progress | None = None,
    json: Path | None = None,
    csv: Path | None = None,
    plot: Path | None = None,
) -> SearchResult:
    """Search for all targets in one call, and write what was found.

    Args:
        targets: at places with latency tables, where latencies are limited. Shares are of the
            largest network's figures: at the largest resolution that all tables cover.
        space: name of the supernet's space.
        accuracy_predictor: its weights.
        strategy: how to search.
        seed: of every random choice.
        progress: told how it goes.
        json: file for the result.
        csv: the same as a table.
        plot: picture of the front.

    Raises:
        ConfigError: for files or limits that are wrong, such as one on the accuracy.
        SpaceError: for an unknown space, or a table that lacks layers of it.
        InfeasibleError: naming every limit below the reachable.
    """
    faults = [
        f"target '{target.name}': limit {limit.metric}: {unsearchable(limit.metric)}"
        for target in targets
        for limit in target.limits
        if unsearchable(limit.metric)
    ]
    if faults:
        raise ConfigError(faults)
    priced = price(space, list(places_of(targets).values()))
    predictor = predictor_for(accuracy_predictor, priced.architectures)
    bounds = [priced.bounds(target) for target in targets]
    shown = progress or Silent()
    found = strategy.search(priced.family(predictor), bounds, seed=seed, progress=shown)
    names = [target.place.name for target in targets]
    if json is not None:
        save_json(json, found, priced.architectures.architectures, devices=names)
    if csv is not None:
        save_csv(csv, found, priced.architectures.architectures, devices=names)
    if plot is not None:
        from tailorbird.report.search_plot import plot as draw  # matplotlib takes a second

        draw([found], plot, quality="accuracy")
    return found


def predictor_for(path: Path, architectures: ArchitectureSpace) -> Predictor:
    """The accuracy predictor in a file, see `opened`."""
    return opened(lambda space: open_predictor(path, space), architectures)


def describe_file(
    path: Path,
    *,
    space: str,
    latency_table: Path | None = None,
    accuracy_predictor: Path | None = None,
) -> list[dict[str, object]]:
    """`describe` for a file with one architecture per line, as JSON.

    Raises:
        ConfigError: for lines that are no JSON objects, all at once.
        SpaceError: for architectures that lie outside the space.
    """
    rows = _read_lines(path)
    place = Place(name="device", table=latency_table)
    priced = price(space, [place])
    predictor = None
    if accuracy_predictor is not None:
        predictor = predictor_for(accuracy_predictor, priced.architectures)
    try:
        return describe(priced, rows, predictor)
    except SpaceError as error:
        raise SpaceError(f"{path} (rows are counted from 0): {error}") from error


@dataclass(frozen=True)
class Priced:
    """A space with what is known about its members.

    Args:
        architectures: the space, restricted to the resolutions that all tables cover.
        costs: metric -> predictor of it; where there are several places, a latency names its own:
            ``latency_ms@phone``.
    """

    architectures: ArchitectureSpace
    costs: Mapping[str, Predictor]

    def bounds(self, target: Target) -> dict[str, float]:
        """A target's bounds under the names that a search knows, shares made absolute.

        Metrics without a figure here keep theirs, for the search to refuse.
        """
        largest = (self.architectures.space.sizes - 1)[None]
        found: dict[str, float] = {}
        for limit in target.bounds:
            own = f"{limit.metric}@{target.place.name}"
            name = own if limit.metric == LATENCY and LATENCY not in self.costs else limit.metric
            known = name in self.costs
            full = {limit.metric: float(self.costs[name](largest)[0])} if known else {}
            value = limit.absolute(full) if known else limit.value
            found[name] = min(value, found.get(name, value))
        return found

    def family(self, predictor: Predictor) -> PredictedFamily:
        """What a search works on."""
        return PredictedFamily(
            space=self.architectures.space, predictor=predictor, costs=self.costs
        )


def price(space: str, places: Sequence[Place]) -> Priced:
    """The space called ``space`` with the places' latency tables, MACs and parameters.

    A table ending in ``.safetensors`` is a learned model, see `LatencyModel.save`.

    Raises:
        ConfigError: where the tables share no resolution, or one can't be read.
        SpaceError: for an unknown space, or tables that lack layers of it.
    """
    load_space(space)  # an unknown one is told before tables are read
    tables: dict[str, LatencyTable] = {}
    learned: dict[str, Path] = {}
    faults: list[str] = []
    several = len(places) > 1
    for name, path in ((place.name, place.table) for place in places):
        if path is None:
            continue
        if path.suffix == LEARNED:
            learned[name] = path
            continue
        try:
            tables[name] = read_table(path)
        except ConfigError as error:
            faults += error.problems
    if faults:
        raise ConfigError(faults)
    architectures = load_space(space, resolutions=_shared(space, tables))
    costs: dict[str, Predictor] = {
        "macs": macs(architectures).sum,
        "params": params(architectures).sum,
    }
    for name, path in learned.items():
        costs[f"{LATENCY}@{name}" if several else LATENCY] = latency_for(path, architectures)
    problems = []
    for name, table in tables.items():
        try:
            costs[f"{LATENCY}@{name}" if several else LATENCY] = compile_table(
                table, architectures
            ).sum
        except SpaceError as error:
            problems.append(f"{name}: {error}" if len(tables) > 1 else str(error))
    if problems:
        raise SpaceError("; ".join(problems))
    return Priced(architectures, costs)


def describe(
    priced: Priced, rows: Sequence[Mapping[str, object]], predictor: Predictor | None
) -> list[dict[str, object]]:
    """Each architecture with its MACs, parameters and, where predictors are given, the rest.

    Args:
        rows: architectures in the official form.

    Raises:
        SpaceError: listing every architecture that lies outside the space.
    """
    genomes = priced.architectures.genomes(rows)
    figures: dict[str, Floats] = {name: of(genomes) for name, of in priced.costs.items()}
    if predictor is not None:
        figures["predicted_accuracy"] = predictor(genomes)
    official = priced.architectures.architectures(genomes)
    return [
        {
            **architecture,
            **{
                name: int(values[row]) if name in COUNTED else float(values[row])
                for name, values in figures.items()
            },
        }
        for row, architecture in enumerate(official)
    ]


def _read_lines(path: Path) -> list[dict[str, object]]:
    """JSON objects, one per line; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    rows, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_format.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"{path} (line {number}): expected a JSON object, got {line[:40]!r}")
    if not rows and not problems:
        problems.append(f"{path}: expected one architecture per line, got an empty file")
    if problems:
        rest = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise ConfigError(problems[:20] + rest)
    return rows


def _shared(space: str, tables: Mapping[str, LatencyTable]) -> list[int] | None:
    """Resolutions of the space that all tables cover; ``None`` where there are no tables."""
    if not tables:
        return None
    (resolution, *_) = load_space(space).space.choices
    shared = {value for value in resolution.values if isinstance(value, int)}
    for table in tables.values():
        shared &= set(table.resolutions)
    if not shared:
        covered = "; ".join(
            f"{name}: {', '.join(map(str, table.resolutions))}" for name, table in tables.items()
        )
        raise ConfigError(
            f"latency tables: expected a resolution of {space} that all of them cover, got "
            f"{covered}; the space has {', '.join(map(str, resolution.values))}"
        )
    return sorted(shared)
