"""The command line: thin, quick to start, and plain about what is wrong.

Exit codes: 0 done; 2 bad input, or something that can't be done; 3 a target is not met, or a
device does not answer; 130 stopped by ctrl-C, which ends a command in order; pressed again, it
ends at once.

Nothing heavy is imported here, nor by the files of this package before a command runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tailorbird.cli import devices, house, machine, search, supernet
from tailorbird.cli.exits import VERBOSE, plainly

__all__ = ["app", "plainly"]

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
for command in (
    house.init,
    house.run,
    house.inspect,
    machine.measure,
    machine.doctor,
    house.demo,
    search.search,
    search.describe,
    search.spaces,
):
    app.command()(plainly(command))
app.add_typer(devices.app)
app.add_typer(supernet.app)


def _version(wanted: bool) -> None:
    if wanted:
        from tailorbird import __version__

        typer.echo(f"tailorbird {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            envvar="TAILORBIRD_VERBOSE",
            help="Print what libraries say; else it goes to log.txt of the run folder, if any.",
        ),
    ] = False,
) -> None:
    """One trained network in, one measured, specialised network per deployment target out."""
    token = VERBOSE.set(verbose)
    context.call_on_close(lambda: VERBOSE.reset(token))
