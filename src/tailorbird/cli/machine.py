"""Commands about this machine: timing files, and whether all is well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailorbird.cli.exits import BAD_INPUT
from tailorbird.cli.recognise import Kind, expect
from tailorbird.quiet import terminal

if TYPE_CHECKING:
    from tailorbird.doctor import Finding


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
    for model in models:
        expect(model, Kind.ONNX)
    from tailorbird.measure.devices.onnxruntime import OnnxRuntime
    from tailorbird.measure.guarded import too_many_threads

    device = OnnxRuntime(threads=threads, provider=provider, runs=runs, warmup=warmup)
    if waiting := too_many_threads(device):
        typer.echo(f"note: {waiting}", file=terminal())
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
