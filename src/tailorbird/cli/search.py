"""Commands about spaces: searching them, describing architectures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailorbird.cli.exits import INTERRUPTED, Quiet, console
from tailorbird.cli.outputs import check_outputs
from tailorbird.quiet import terminal as terminal_stream

if TYPE_CHECKING:
    from tailorbird.targets import Target


def search(
    space: Annotated[str, typer.Option(help="Such as ofa-mbv3-w1.2; `spaces` lists them.")],
    accuracy_predictor: Annotated[Path, typer.Option(help="Predictor's weights (safetensors).")],
    *,
    latency_table: Annotated[
        Path | None, typer.Option(help="File, or folder with one file per resolution.")
    ] = None,
    limits: Annotated[
        str | None, typer.Option(help="Such as 15,20,0.5x: one architecture for each.")
    ] = None,
    limit_on: Annotated[
        str,
        typer.Option(help="What --limits bounds: latency_ms, images_per_second, macs or params."),
    ] = "latency_ms",
    limits_file: Annotated[
        Path | None,
        typer.Option(help="Devices and targets (YAML): several devices, combined limits."),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="all-at-once, independent, top-down, bottom-up, random, exhaustive, nsga2 or "
            "package.module:name."
        ),
    ] = "all-at-once",
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal results.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="The same as a table.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the front here (PNG).")] = None,
    quiet: Quiet = False,
) -> None:
    """Find the best architectures of a supernet for many limits.

    Works on predictions alone; nothing is built. Ctrl-C ends with the best so far, which is
    written as well; the exit code is 130 then.
    """
    from tailorbird.config.strategies import strategy as strategy_called
    from tailorbird.pipeline.search import search as search_for
    from tailorbird.report.search_table import show
    from tailorbird.report.terminal import terminal

    how = strategy_called(strategy, place="--strategy")
    targets = _asked(limits, limit_on, limits_file, latency_table)
    check_outputs({"--json": json, "--csv": csv, "--plot": plot})
    try:
        found = search_for(
            targets,
            space=space,
            accuracy_predictor=accuracy_predictor,
            strategy=how,
            seed=seed,
            progress=terminal(quiet=quiet),
            json=json,
            csv=csv,
            plot=plot,
        )
    except KeyboardInterrupt:
        typer.echo("stopped before there was anything to write", file=terminal_stream())
        raise typer.Exit(INTERRUPTED) from None
    show(found, console())
    if found.stopped:
        raise typer.Exit(INTERRUPTED)


def describe(
    space: Annotated[str, typer.Option(help="Such as ofa-mbv3-w1.2.")],
    architectures: Annotated[
        Path, typer.Option(help="One architecture per line, as JSON in the official form.")
    ],
    *,
    latency_table: Annotated[Path | None, typer.Option(help="File or folder.")] = None,
    accuracy_predictor: Annotated[Path | None, typer.Option(help="Weights.")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write JSON lines here, else print them.")
    ] = None,
) -> None:
    """Tell MACs, parameters, latency and accuracy of architectures."""
    from json import dumps

    from tailorbird.files import write_bytes
    from tailorbird.pipeline.search import describe_file

    check_outputs({"--json": json})
    rows = describe_file(
        architectures,
        space=space,
        latency_table=latency_table,
        accuracy_predictor=accuracy_predictor,
    )
    text = "".join(dumps(row) + "\n" for row in rows)
    if json is None:
        typer.echo(text, nl=False)
    else:
        write_bytes(json, text.encode())
        typer.echo(f"{len(rows)} architectures: {json}")


def spaces() -> None:
    """List the supernets' spaces that can be searched."""
    from tailorbird.supernet.architecture import SPACES, load_space

    for name in SPACES:
        space = load_space(name).space
        typer.echo(f"{name}: {space.size:.3g} architectures, {len(space.choices)} genes")


def _do_not_go_together(
    limits: str | None, limit_on: str, limits_file: Path | None, latency_table: Path | None
) -> list[str]:
    """What is wrong with the options that say what to search for."""
    from tailorbird.targets import LATENCY, METRICS, TIMES, unsearchable

    problems = []
    if (limits is None) == (limits_file is None):
        problems.append("give either --limits or --limits-file")
    if limits_file is not None and latency_table is not None:
        problems.append("--latency-table: with --limits-file the tables are named in the file")
    if limits_file is not None and limit_on != LATENCY:
        problems.append("--limit-on: with --limits-file the metrics are named in the file")
    if limit_on not in METRICS:
        known = ", ".join(metric for metric in METRICS if not unsearchable(metric))
        problems.append(f"--limit-on: expected one of {known}, got {limit_on!r}")
    if unsearchable(limit_on):
        problems.append(f"--limit-on {limit_on}: {unsearchable(limit_on)}")
    if limits is not None and limit_on in TIMES and latency_table is None:
        problems.append(f"--limits on {limit_on} need --latency-table (or --limit-on macs)")
    return problems


def _asked(
    limits: str | None, limit_on: str, limits_file: Path | None, latency_table: Path | None
) -> tuple[Target, ...]:
    """The targets that the options ask for.

    Raises:
        ConfigError: listing all that is wrong with them.
    """
    from tailorbird.config.targets import load_targets

    problems = _do_not_go_together(limits, limit_on, limits_file, latency_table)
    if limits_file is not None and not problems:
        return load_targets(limits_file, needs="table")
    return _targets(limits or "", limit_on, latency_table, problems)


def _targets(
    limits: str, limit_on: str, latency_table: Path | None, problems: list[str]
) -> tuple[Target, ...]:
    """Targets at one place: ``limits`` are numbers or shares with commas between.

    Raises:
        ConfigError: with ``problems`` and all entries that are no limits.
    """
    from tailorbird.config.targets import made_names
    from tailorbird.errors import ConfigError
    from tailorbird.targets import METRICS, Limit, Place, Target, read_limits

    bounds: list[tuple[Limit, ...]] = []
    for entry in limits.split(",") if limits or not problems else ():
        read, wrong = read_limits({limit_on: entry.strip()}, reference="full network")
        bounds.append(read)
        if wrong and limit_on in METRICS:
            problems.append(
                "--limits: expected positive numbers or shares with commas between, such as "
                f"15,20.5,0.5x; got {entry.strip()!r}"
            )
    if problems:
        raise ConfigError(problems)
    place = Place(name="device", table=latency_table)
    names = made_names([place.name] * len(bounds), bounds)
    return tuple(Target(name, place, own) for name, own in zip(names, bounds, strict=True))
