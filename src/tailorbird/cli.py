"""The command line: thin, quick to start, and plain about what is wrong.

Exit codes: 0 done; 2 bad input, or something that can't be done; 3 a target is not met;
130 stopped by ctrl-C, which ends a command in order; pressed again, it ends at once.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailorbird.cli_exit import BAD_INPUT, INTERRUPTED, NOT_MET, plainly
from tailorbird.cli_supernet import Quiet
from tailorbird.cli_supernet import app as supernet

if TYPE_CHECKING:
    from rich.console import Console

    from tailorbird.report.record import RunReport

app = typer.Typer(
    name="tailorbird",
    help="One trained network in, one measured, specialised network per deployment target out.",
    epilog="Start with: tailorbird init > job.yaml; tailorbird run job.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(supernet)


class Until(StrEnum):
    """Where a run stops; each value includes what comes before it."""

    HOUSE = "house"
    SEARCH = "search"
    RETRAIN = "retrain"
    EXPORT = "export"


def _version(wanted: bool) -> None:
    if wanted:
        from tailorbird import __version__

        typer.echo(f"tailorbird {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """One trained network in, one measured, specialised network per deployment target out."""


@app.command()
@plainly
def init() -> None:
    """Print a job file to start from; it runs as it stands."""
    from tailorbird.config.template import TEMPLATE

    typer.echo(TEMPLATE, nl=False)


@app.command()
@plainly
def run(
    job: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    until: Annotated[Until, typer.Option(help="Stop after this stage.")] = Until.EXPORT,
    quiet: Quiet = False,
) -> None:
    """Run a job; the same command again continues it."""
    _run(job, until, quiet)


@app.command()
@plainly
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    most: Annotated[int, typer.Option(min=1, help="Rows shown per table.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what a run folder holds so far."""
    from tailorbird.report.house import contents, show_contents

    found = contents(folder)
    if json:
        typer.echo(found.to_json())
    else:
        show_contents(found, _out(), most=most)


@app.command()
@plainly
def measure(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx...", help="ONNX files.")],
    *,
    threads: Annotated[int, typer.Option(help="Threads within an operator.")] = 1,
    provider: Annotated[
        str, typer.Option(help="ONNX Runtime's execution provider.")
    ] = "CPUExecutionProvider",
    runs: Annotated[int, typer.Option(help="Timed samples per file.")] = 100,
    warmup: Annotated[int, typer.Option(help="Untimed runs before.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Time ONNX files the way targets are timed."""
    from tailorbird.measure.onnxruntime import OnnxRuntime

    device = OnnxRuntime(threads=threads, provider=provider, runs=runs, warmup=warmup)
    latencies = device.measure(models)
    if json:
        from json import dumps

        rows = [
            {"model": str(model), "device": device.key, **vars(latency)}
            for model, latency in zip(models, latencies, strict=True)
        ]
        typer.echo(dumps(rows, indent=1))
        return
    typer.echo(device.key)
    for model, latency in zip(models, latencies, strict=True):
        typer.echo(
            f"{model}: {latency.median_ms:.4f} ms median, {latency.spread_ms:.4f} ms between "
            f"quartiles, {latency.runs} runs"
        )


@app.command()
@plainly
def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs will be written.")] = Path(),
) -> None:
    """Check this machine; say what to mend, and how."""
    from tailorbird.doctor import examine

    findings = examine(folder)
    marks = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}
    for finding in findings:
        typer.echo(f"{marks[finding.level]}  {finding.topic}: {finding.text}")
    wrong = sum(finding.level == "wrong" for finding in findings)
    typer.echo(f"{wrong} to mend" if wrong else "ready")
    if wrong:
        raise typer.Exit(BAD_INPUT)


@app.command()
@plainly
def demo(
    folder: Annotated[
        Path, typer.Argument(help="Folder for the job file and its run; made when missing.")
    ] = Path("tailorbird-demo"),
    until: Annotated[Until, typer.Option(help="Stop after this stage.")] = Until.EXPORT,
    quiet: Quiet = False,
) -> None:
    """Run the embedded job on handwritten digits."""
    from tailorbird.config.template import TEMPLATE
    from tailorbird.files import write_bytes

    job = folder / "job.yaml"
    if not job.exists():
        write_bytes(job, TEMPLATE.encode())
    _run(job, until, quiet)


@app.command()
@plainly
def search(
    space: Annotated[str, typer.Option(help="Such as ofa-mbv3-w1.2; `spaces` lists them.")],
    accuracy_predictor: Annotated[Path, typer.Option(help="Predictor's weights (safetensors).")],
    *,
    latency_table: Annotated[
        Path | None, typer.Option(help="File, or folder with one file per resolution.")
    ] = None,
    limits: Annotated[
        str | None, typer.Option(help="Such as 15,20,25: one architecture for each.")
    ] = None,
    limit_on: Annotated[
        str, typer.Option(help="What --limits bounds: latency_ms, macs or params.")
    ] = "latency_ms",
    limits_file: Annotated[
        Path | None, typer.Option(help="Fleet file (YAML): several devices, combined limits.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="all-at-once, independent, top-down, bottom-up, random, exhaustive or nsga2."
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
    from tailorbird.pipeline.fleet_search import Wish, search_fleet
    from tailorbird.report.search_table import show
    from tailorbird.report.terminal import terminal

    wish = Wish(
        space=space,
        accuracy_predictor=accuracy_predictor,
        latency_table=latency_table,
        limits=limits,
        limit_on=limit_on,
        limits_file=limits_file,
    )
    try:
        found = search_fleet(
            wish,
            strategy=strategy,
            seed=seed,
            json=json,
            csv=csv,
            plot=plot,
            progress=terminal(quiet=quiet),
        )
    except KeyboardInterrupt:
        typer.echo("stopped before there was anything to write", err=True)
        raise typer.Exit(INTERRUPTED) from None
    show(found, _out())
    if found.stopped:
        raise typer.Exit(INTERRUPTED)


@app.command()
@plainly
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
    from tailorbird.pipeline.fleet_search import check_outputs, describe_file

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


@app.command()
@plainly
def spaces() -> None:
    """List the supernets' spaces that can be searched."""
    from tailorbird.supernet.architecture import SPACES, load_space

    for name in SPACES:
        space = load_space(name).space
        typer.echo(f"{name}: {space.size:.3g} architectures, {len(space.choices)} genes")


def _run(job: Path, until: Until, quiet: bool) -> None:
    from tailorbird.config.build import build
    from tailorbird.config.plan import load
    from tailorbird.pipeline import execute
    from tailorbird.report.terminal import terminal

    plan = load(job)
    report = execute(build(plan), until=until.value, progress=terminal(quiet=quiet))
    _close(report, plan.run, until)


def _close(report: RunReport, folder: Path, until: Until) -> None:
    """Print what the run found; a target that is not met is an exit code of its own."""
    from tailorbird.report.table import show

    if report.targets:
        show(report, _out())
    else:
        typer.echo(f"done until {until.value}; see: tailorbird inspect {folder}")
    typer.echo(f"report: {folder / 'report.html'}")
    if until is Until.EXPORT and not report.met:
        raise typer.Exit(NOT_MET)


def _out() -> Console:
    from rich.console import Console

    return Console()
