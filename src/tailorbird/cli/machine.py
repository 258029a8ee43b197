"""Commands about this machine: timing files, and whether all is well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailorbird.cli.exits import BAD_INPUT, console
from tailorbird.cli.recognise import Kind, expect
from tailorbird.quiet import terminal

if TYPE_CHECKING:
    from tailorbird.device import Device, Latency
    from tailorbird.doctor import Finding


def measure(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Exported files.")],
    *,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where: 'KIND [HOST] key=value ...' with the keys of a job's device, "
            "'package.module:factory', or 'job.yaml#TARGET'. ONNX Runtime here by default."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of ONNX Runtime here, within an operator; 1 by default.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="ONNX Runtime's execution provider; the CPU's by default.")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(help="Timed samples per file; 100 by default.")
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="Untimed runs before; 10 by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Time files the way targets are timed, in turns."""
    settings = {"threads": threads, "provider": provider, "runs": runs, "warmup": warmup}
    where = _device(device, {key: value for key, value in settings.items() if value is not None})
    from tailorbird.device import ONNX
    from tailorbird.measure.guarded import format_of, measured, too_many_threads

    if format_of(where) == ONNX:
        for model in models:
            expect(model, Kind.ONNX)
    if device is None and (waiting := too_many_threads(where)):
        typer.echo(f"note: {waiting}", file=terminal())
    tell_latencies(where.key, models, measured(where, models), json=json)


def _device(text: str | None, settings: Mapping[str, Any]) -> Device:
    """The device that options ask for.

    Raises:
        ConfigError: for one that there is not, or settings that belong into its text.
    """
    if text is None:
        from tailorbird.measure.devices.onnxruntime import OnnxRuntime

        return OnnxRuntime(**settings)
    from tailorbird.config.device_text import device_called
    from tailorbird.errors import ConfigError

    if settings:
        said = " ".join(f"{key}={value}" for key, value in settings.items())
        options = ", ".join(f"--{key}" for key in settings)
        raise ConfigError(f"{options}: expected in --device, such as --device '{text} {said}'")
    return device_called(text, folder=Path())


def tell_latencies(
    key: str, models: Sequence[Path], latencies: Sequence[Latency], *, json: bool
) -> None:
    """Print what files took on a device."""
    from tailorbird.measure.batches import batch_of
    from tailorbird.report.devices import images_per_second, show_latencies

    batches = [batch_of(model) for model in models]
    if not json:
        show_latencies(key, list(zip(map(str, models), latencies, batches, strict=True)), console())
        return
    from json import dumps

    rows = [
        {
            "model": str(model),
            "device": key,
            **vars(latency),
            "batch": batch,
            "images_per_second": images_per_second(latency, batch),
        }
        for model, latency, batch in zip(models, latencies, batches, strict=True)
    ]
    typer.echo(dumps(rows, indent=1))


def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs will be written.")] = Path(),
) -> None:
    """Check this machine; say what to mend, and how."""
    from tailorbird.doctor import examine

    tell(examine(folder))


def tell(findings: Sequence[Finding]) -> None:
    """Print what was found.

    Raises:
        typer.Exit: where something is wrong.
    """
    marks = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}
    for finding in findings:
        typer.echo(f"{marks[finding.level]}  {finding.topic}: {finding.text}")
    wrong = sum(finding.level == "wrong" for finding in findings)
    typer.echo(f"{wrong} to mend" if wrong else "ready")
    if wrong:
        raise typer.Exit(BAD_INPUT)
