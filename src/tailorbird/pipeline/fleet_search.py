"""Searching a supernet's space for a fleet of targets, on predictors and latency tables alone.

Nothing is built or trained here: what comes out are architectures, to be extracted and measured.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from tailorbird.config.fleet import COUNTED, LATENCY, Fleet, load_fleet, plain_fleet, read_limits
from tailorbird.config.strategies import strategy as named_strategy
from tailorbird.errors import ConfigError, SpaceError, StoreError
from tailorbird.estimate.latency_table import LatencyTable, compile_table, read_table
from tailorbird.estimate.learned_latency import LatencyModel, LayerFeatures
from tailorbird.estimate.predicted import PredictedFamily, Predictor
from tailorbird.estimate.predictor_files import open_predictor
from tailorbird.family import Floats
from tailorbird.progress import Progress
from tailorbird.search.outcome import save_csv, save_json
from tailorbird.search.strategy import SearchResult
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace, load_space
from tailorbird.supernet.counts import macs, params

LEARNED = ".safetensors"
"""Ending of a latency table that is a learned model."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for on the command line.

    Args:
        space: name of the supernet's space.
        accuracy_predictor: its weights.
        latency_table: of one device, for ``limits``.
        limits: numbers with commas between.
        limit_on: the metric that ``limits`` bounds.
        limits_file: a fleet file, instead of the three above.
    """

    space: str
    accuracy_predictor: Path
    latency_table: Path | None = None
    limits: str | None = None
    limit_on: str = LATENCY
    limits_file: Path | None = None

    def fleet(self) -> Fleet:
        """Devices, tables and limits.

        Raises:
            ConfigError: listing all that does not go together.
        """
        problems = []
        if (self.limits is None) == (self.limits_file is None):
            problems.append("give either --limits or --limits-file")
        if self.limits_file is not None and self.latency_table is not None:
            problems.append("--latency-table: with --limits-file the tables are named in the file")
        if self.limits_file is not None and self.limit_on != LATENCY:
            problems.append("--limit-on: with --limits-file the metrics are named in the file")
        if self.limit_on not in (LATENCY, *COUNTED):
            known = ", ".join((LATENCY, *COUNTED))
            problems.append(f"--limit-on: expected one of {known}, got {self.limit_on!r}")
        if self.limits is not None and self.limit_on == LATENCY and self.latency_table is None:
            problems.append("--limits on latency_ms need --latency-table (or --limit-on macs)")
        limits: tuple[dict[str, float], ...] = ()
        if self.limits is not None:
            try:
                limits = read_limits(self.limits, metric=self.limit_on)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        if self.limits_file is not None:
            return load_fleet(self.limits_file)
        return plain_fleet(self.latency_table, limits)


def search_fleet(
    wish: Wish,
    *,
    strategy: str,
    seed: int,
    progress: Progress,
    json: Path | None = None,
    csv: Path | None = None,
    plot: Path | None = None,
) -> SearchResult:
    """Search for all targets of a fleet in one call, and write what was found.

    Raises:
        ConfigError: for files, limits or names that are wrong.
        StoreError: for files that can't be written, before the search begins.
        SpaceError: for an unknown space, or a table that lacks layers of it.
        InfeasibleError: naming every limit below the reachable.
    """
    how = named_strategy(strategy)
    fleet = wish.fleet()
    check_outputs({"--json": json, "--csv": csv, "--plot": plot})
    priced = price(wish.space, fleet)
    predictor = predictor_for(wish.accuracy_predictor, priced.architectures)
    found = how.search(priced.family(predictor), fleet.bounds(), seed=seed, progress=progress)
    devices = [target.device for target in fleet.targets]
    if json is not None:
        save_json(json, found, priced.architectures.architectures, devices=devices)
    if csv is not None:
        save_csv(csv, found, priced.architectures.architectures, devices=devices)
    if plot is not None:
        from tailorbird.report.search_plot import plot as draw  # matplotlib takes a second

        draw([found], plot, quality="accuracy")
    return found


def predictor_for(path: Path, architectures: ArchitectureSpace) -> Predictor:
    """The accuracy predictor in a file, see `opened`."""
    return opened(lambda space: open_predictor(path, space), architectures)


def latency_for(path: Path, architectures: ArchitectureSpace) -> Predictor:
    """The learned latency model in a file, see `opened`."""
    return opened(
        lambda space: LatencyModel.load(path, features=LayerFeatures(space)).latency_ms,
        architectures,
    )


def opened(
    read: Callable[[ArchitectureSpace], Predictor], architectures: ArchitectureSpace
) -> Predictor:
    """What ``read`` gives for a space that may have fewer resolutions than it learned from.

    Raises:
        StoreError: the file is missing or no safetensors file.
        ConfigError: it was made for another space.
    """
    try:
        return read(architectures)
    except ConfigError:
        whole = architectures.with_resolutions(None)
        own, all_ = architectures.space.choices[0].values, whole.space.choices[0].values
        if own == all_ or not set(own) <= set(all_):
            raise
        try:
            predictor = read(whole)
        except ConfigError:
            predictor = None
        if predictor is None:
            raise
    index = np.array([all_.index(value) for value in own], dtype=np.int64)

    def predict(genomes: Genomes) -> Floats:
        """Predictions (n,) for genomes (n, genes) of the smaller space."""
        return predictor(np.column_stack([index[genomes[:, 0]], genomes[:, 1:]]))

    return predict


def check_outputs(paths: Mapping[str, Path | None]) -> None:
    """Try to write where results are to go, so that no search is lost for want of a folder.

    Args:
        paths: option -> file; its folder is made when missing, what is there stays as it is.

    Raises:
        ConfigError: where two options name one file, or an option a folder.
        StoreError: where a file could not be written.
    """
    given = {option: path for option, path in paths.items() if path is not None}
    problems, names = [], dict[Path, str]()
    for option, path in given.items():
        other = names.setdefault(path.absolute(), option)
        if other != option:
            problems.append(f"{option} and {other}: expected different files, got {path} twice")
        if path.is_dir():
            problems.append(f"{option}: expected a file to write, got the folder {path}")
    if problems:
        raise ConfigError(problems)
    for path in given.values():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part"):
                pass
        except OSError as error:
            raise StoreError(
                f"can't write {path}: {error.strerror or error}; choose another folder (nothing "
                "has been searched yet)"
            ) from error


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
    priced = price(space, plain_fleet(latency_table, ()))
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
        costs: metric -> predictor of it.
    """

    architectures: ArchitectureSpace
    costs: Mapping[str, Predictor]

    def family(self, predictor: Predictor) -> PredictedFamily:
        """What a search works on."""
        return PredictedFamily(
            space=self.architectures.space, predictor=predictor, costs=self.costs
        )


def price(space: str, fleet: Fleet) -> Priced:
    """The space called ``space`` with the fleet's latency tables, MACs and parameters.

    A table ending in ``.safetensors`` is a learned model, see `LatencyModel.save`.

    Raises:
        ConfigError: where the tables share no resolution, or one can't be read.
        SpaceError: for an unknown space, or tables that lack layers of it.
    """
    load_space(space)  # an unknown one is told before tables are read
    tables: dict[str, LatencyTable] = {}
    learned: dict[str, Path] = {}
    faults: list[str] = []
    for name, path in fleet.tables.items():
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
        costs[fleet.metric(name, LATENCY)] = latency_for(path, architectures)
    problems = []
    for name, table in tables.items():
        try:
            costs[fleet.metric(name, LATENCY)] = compile_table(table, architectures).sum
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
