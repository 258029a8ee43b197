"""Commands of the model house: a job to start from, running one, looking at what it made."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailorbird.cli.exits import NOT_MET, Quiet, console
from tailorbird.cli.recognise import Kind, expect

if TYPE_CHECKING:
    from tailorbird.report.record import RunReport


class Until(StrEnum):
    """Where a run stops; each value includes what comes before it."""

    HOUSE = "house"
    SEARCH = "search"
    RETRAIN = "retrain"
    EXPORT = "export"


def init() -> None:
    """Print a job file to start from; it runs as it stands."""
    from tailorbird.config import template

    typer.echo(template("job"), nl=False)


def run(
    job: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    until: Annotated[Until, typer.Option(help="Stop after this stage.")] = Until.EXPORT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try everything once; train and write nothing.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run a job; the same command again continues it."""
    expect(job, Kind.HOUSE_JOB)
    if dry_run:
        try_job(job, quiet=quiet)
    else:
        run_job(job, until, quiet=quiet)


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    most: Annotated[int, typer.Option(min=1, help="Rows shown per table.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what a run folder holds so far."""
    if not (folder / "report.json").exists():
        expect(folder, Kind.HOUSE_RUN)
    from tailorbird.report.house import contents, show_contents

    found = contents(folder)
    if json:
        typer.echo(found.to_json())
    else:
        show_contents(found, console(), most=most)


def demo(
    folder: Annotated[
        Path, typer.Argument(help="Folder for the job file and its run; made when missing.")
    ] = Path("tailorbird-demo"),
    until: Annotated[Until, typer.Option(help="Stop after this stage.")] = Until.EXPORT,
    quiet: Quiet = False,
) -> None:
    """Run the embedded job on handwritten digits."""
    run_job(job_in(folder), until, quiet=quiet)


def job_in(folder: Path) -> Path:
    """The folder's job file, which is the embedded one where there was none."""
    from tailorbird.config import template
    from tailorbird.files import write_bytes

    job = folder / "job.yaml"
    if not job.exists():
        write_bytes(job, template("job").encode())
    return job


def run_job(
    job: Path,
    until: Until,
    *,
    quiet: bool = False,
    execute: Callable[..., RunReport] | None = None,
) -> None:
    """Run a job file and tell what came of it.

    Args:
        job: the file.
        until: where to stop.
        quiet: no progress, only news.
        execute: what runs jobs; the pipeline when ``None``.

    Raises:
        typer.Exit: with a code of its own where a target is not met.
    """
    from tailorbird import pipeline
    from tailorbird.config.house_job import build, load
    from tailorbird.report.terminal import terminal

    plan = load(job)
    built = pipeline.Job(**build(plan, folder=job.resolve().parent))
    carry_out = execute or pipeline.execute
    report = carry_out(built, until=until.value, progress=terminal(quiet=quiet))
    if report.targets:
        tell(report, built.run, told=until is Until.EXPORT)
    else:
        typer.echo(f"done until {until.value}; see: tailorbird inspect {built.run}")
        typer.echo(f"report: {built.run / 'report.html'}")


def try_job(job: Path, *, quiet: bool = False) -> None:
    """Try all that a job file's run will need, and say what was found."""
    from tailorbird.config.house_job import build, load
    from tailorbird.pipeline.execute import dry_run
    from tailorbird.pipeline.job import Job
    from tailorbird.report.terminal import terminal

    built = Job(**build(load(job), folder=job.resolve().parent))
    dry_run(built, progress=terminal(quiet=quiet))
    typer.echo(f"nothing was found wrong; nothing was trained. Start it: tailorbird run {job}")


def tell(report: RunReport, folder: Path, *, told: bool = True) -> None:
    """Print what a run found.

    Args:
        report: of the run.
        folder: of the run.
        told: a target that is not met is an exit code of its own.

    Raises:
        typer.Exit: for such a target.
    """
    from tailorbird.report.table import show

    show(report, console())
    typer.echo(f"report: {folder / 'report.html'}")
    if told and not report.met:
        raise typer.Exit(NOT_MET)
