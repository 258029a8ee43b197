"""What an evaluation of a supernet found: its record, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tailorbird.report.words import bare, percent, printable


@dataclass(frozen=True, kw_only=True)
class EvaluatedSubnet:
    """One subnet's figures.

    Args:
        architecture: in the official form.
        genome: index of each gene.
        resolution: image size in pixels.
        accuracy: share of validation images classified right.
        latency_ms: measured, where that was asked for.
    """

    architecture: Mapping[str, object]
    genome: tuple[int, ...]
    resolution: int
    macs: float
    params: float
    accuracy: float
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class SupernetEvaluation:
    """A supernet's figures over its range of costs.

    Args:
        images: of the validation split, on which each subnet was evaluated.
        mean_pareto_accuracy: see `tailorbird.supernet.pareto`; over MACs.
        ranges: bounds of the ranges of MACs, one more than there are ranges.
        front: the best subnet of each range; ``None`` where no subnet lies in it.
        subnets: all of them.
        device: what latencies were measured on.
    """

    run: str
    space: str
    seed: int
    images: int
    mean_pareto_accuracy: float
    ranges: tuple[float, ...]
    smallest: EvaluatedSubnet
    largest: EvaluatedSubnet
    front: tuple[EvaluatedSubnet | None, ...]
    subnets: tuple[EvaluatedSubnet, ...]
    device: str | None = None

    def plain(self) -> dict[str, object]:
        """As it is written to ``evaluation.json``."""
        return asdict(self)


def show(found: SupernetEvaluation, console: Console) -> None:
    """Print the front between the smallest and the largest subnet, and the figure for it all."""
    timed = found.device is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("best subnet of")
    for name in ("MACs", "params", "pixels", "accuracy %", *(["latency ms"] if timed else [])):
        table.add_column(name, justify="right")
    rows = {"smallest": found.smallest}
    rows |= {
        f"{bare('macs', low, 3)} to {bare('macs', high, 3)}": subnet
        for low, high, subnet in zip(found.ranges, found.ranges[1:], found.front, strict=False)
        if subnet is not None
    }
    rows["largest"] = found.largest
    for name, subnet in rows.items():
        table.add_row(
            name,
            bare("macs", subnet.macs, 3),
            bare("params", subnet.params, 3),
            str(subnet.resolution),
            percent(subnet.accuracy),
            *([bare("latency_ms", subnet.latency_ms)] if timed else []),
        )
    console.print(table)
    console.print(
        f"mean Pareto accuracy {percent(found.mean_pareto_accuracy)} % over {len(found.front)} "
        f"equal ranges of MACs, from {len(found.subnets)} subnets on {found.images} validation "
        "images",
        highlight=False,
        soft_wrap=True,
    )
    if timed:
        console.print(f"latency: {printable(found.device)}", highlight=False, soft_wrap=True)
