"""Commands about devices: whether they answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailorbird.cli.exits import NOT_MET, Quiet, console, plainly
from tailorbird.cli.recognise import Kind, expect

if TYPE_CHECKING:
    from tailorbird.measure.check import Checked

app = typer.Typer(
    name="devices",
    help="Look at the devices that targets are for.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def devices() -> None:
    """Look at the devices that targets are for."""


def check(
    job: Annotated[
        Path, typer.Argument(help="A job or fleet file; only its devices and targets are read.")
    ],
    *,
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Reach every device, run a small network there, and say what it is.

    Exit codes: 0 all devices answer, 3 some do not.
    """
    expect(job, Kind.HOUSE_JOB, Kind.FLEET)
    from tailorbird.config.targets import load_devices
    from tailorbird.measure.check import check_devices
    from tailorbird.report.terminal import terminal

    tell(check_devices(load_devices(job), progress=terminal(quiet=quiet)), json=json)


def tell(found: Sequence[Checked], *, json: bool) -> None:
    """Print what was found.

    Raises:
        typer.Exit: where a device does not answer.
    """
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps([{**asdict(one), "answers": one.answers} for one in found], indent=1))
    else:
        from tailorbird.report.devices import show_checked

        show_checked(found, console())
    if not all(one.answers for one in found):
        raise typer.Exit(NOT_MET)


app.command()(plainly(check))
