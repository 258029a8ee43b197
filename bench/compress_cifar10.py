"""CIFAR-10: ResNet-56 to three latencies, the model house beside its peers in one run.

    python bench/compress_cifar10.py --data ../shared/data            # about 2 hours on one core
    python bench/compress_cifar10.py --data ../shared/data --quick    # about 5 minutes on two cores

Every method gets the same images, loss, recipe and number of retraining epochs, and every network
is measured exported, in ONNX Runtime, on one thread at batch 1, interleaved with the teacher. All
choices use 2,500 images held out from distillation and retraining (the pretrained networks have
seen them, as they have seen all training images); the test split is read at the end. One exception
favours a baseline: the best donor within a limit is the one that is best on the test split.

Stops and continues: what is trained and measured is kept in ``--run``.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn

import tailorbird as tb
from cifar_resnet import DEPTHS, trained
from peers import FastNas, Peer, best_donor, residual_layers, torch_pruning
from record import write_result
from tailorbird.data.images import ImageData, Split, TensorSplit
from tailorbird.data.sources import parquet
from tailorbird.errors import InfeasibleError
from tailorbird.export.exporters import OnnxExporter
from tailorbird.export.onnx import export_many
from tailorbird.fit.bench import bench_at
from tailorbird.fit.candidates import Key, latency_at
from tailorbird.fit.choose import MARGIN, Chooser
from tailorbird.graph.surgery import capture
from tailorbird.house.build import House
from tailorbird.house.candidates import TEACHER, HouseCandidates
from tailorbird.measure.counts import count
from tailorbird.pipeline.job import digest
from tailorbird.report.terminal import terminal
from tailorbird.search.additive import Exact, RandomSelection
from tailorbird.search.strategy import Strategy
from tailorbird.train.evaluate import accuracy as accuracy_on
from tailorbird.train.precision import compute_device
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain_all

SHARES = (0.75, 0.6, 0.4)
SHAPE = (3, 32, 32)
OURS = "tailorbird"


@dataclass
class Entry:
    """One network of the comparison; ``module`` is replaced by its retrained self."""

    method: str
    share: float
    module: nn.Module
    hints: tuple[tuple[str, str], ...] = ()
    note: str = ""
    before: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Scale:
    """How much is spent."""

    house: tb.HouseOptions
    recipe: Recipe
    images: int | None
    fastnas_images: int
    """Held-out images that FastNAS scores cuts on; twice as many training images calibrate them."""
    bisections: int
    """Steps in which the pruners look for a limit."""
    compared: tuple[float, ...]
    """Limits at which the baselines are tried."""


def accuracy(module: nn.Module, split: Split) -> float:
    """Top-1 on the fastest device at hand."""
    return accuracy_on(module, split, device=compute_device())


def scale(quick: bool, epochs: float, house_epochs: float, blocks: int) -> Scale:
    """The full and the quick form."""
    options = tb.HouseOptions(
        teacher_blocks=6 if quick else blocks,
        donor_blocks=6 if quick else blocks,
        pruned=0 if quick else blocks // 3,
        recall=0.7,
        donor_recall=0.7,
        epochs=0.15 if quick else house_epochs,
        learning_rate=0.05,
    )
    recipe = Recipe(
        epochs=0.3 if quick else epochs,
        learning_rate=0.005,  # the donors' own training ended at 0.001
        kl_weight=2.0,
        temperature=2.0,
        mse_weight=0.5,
        label_smoothing=0.0,
        keep="last",
    )
    if quick:
        return Scale(options, recipe, 2000, 16, 2, SHARES[:1])
    return Scale(options, recipe, None, 256, 8, SHARES)


def load(root: Path, limit: int | None) -> ImageData:
    """CIFAR-10 with the normalisation that the networks were trained with."""
    folder = root / "cifar10"
    data = parquet(
        sorted(folder.glob("train-*.parquet")),
        test=sorted(folder.glob("test-*.parquet")),
        normalisation=tb.Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        validation=0.05,
        crop_padding=4,
        flip=True,
    )
    if limit is None:
        return data
    assert isinstance(data.train, TensorSplit)
    assert isinstance(data.validation, TensorSplit)
    assert isinstance(data.test, TensorSplit)
    return replace(
        data,
        train=data.train.take(torch.arange(limit)),
        validation=data.validation.take(torch.arange(limit // 10)),
        test=data.test.take(torch.arange(limit // 3)),
    )


def latency_of(
    teacher: nn.Module, device: tb.OnnxRuntime, base_ms: float
) -> Callable[[nn.Module], float]:
    """A measurement relative to the teacher in the same session, in ms of the base session."""

    def measure(module: nn.Module) -> float:
        with tempfile.TemporaryDirectory() as folder:
            paths = export_many([(teacher, SHAPE), (module, SHAPE)], Path(folder), ["t", "m"])
            reference, own = device.measure(paths)
        return own.median_ms / reference.median_ms * base_ms

    return measure


def subset(house: House, keep: Callable[[str, str], bool]) -> House:
    """The house with only those scored alternatives that ``keep(name, origin)`` lets stay."""
    names = {a.name for a in house.choices if keep(a.name, a.origin)}
    return replace(house, scores={k: v for k, v in house.scores.items() if k in names})


def chooser_of(
    house: House, target: tb.Target, data: ImageData, strategy: Strategy, *, seed: int
) -> tuple[HouseCandidates, Chooser]:
    """A house's candidates, and what chooses from them at the target's place."""
    progress = terminal()
    candidates = HouseCandidates(
        house, data, folder=Path(), recipe=Recipe(), seed=seed, progress=progress
    )
    chooser = Chooser(candidates, strategy, proposals=4, searches=3, seed=seed, progress=progress)
    chooser.pools.open(target.place, bench_at(candidates, target.place, OnnxExporter(), progress))
    return candidates, chooser


def induced(candidates: HouseCandidates, key: Key, method: str, share: float) -> Entry:
    """An entry made of a house's alternatives, with its hints."""
    family = candidates.family
    names = family.names(key)
    blocks = {a.name: family.blocks[a.block] for a in family.alternatives}
    hints = tuple((f"replaced_{i}", blocks[name].output) for i, name in enumerate(names))
    return Entry(method, share, family.induce(names), hints, note=" ".join(names))


def house_baselines(
    house: House, target: tb.Target, share: float, data: ImageData, *, seed: int, parts: bool
) -> list[Entry]:
    """The paper's Rand and Only, and random parts of the house (its Table 6)."""
    rng = np.random.default_rng(seed)
    draw = {a.name: float(rng.random()) for a in house.choices}
    kept: dict[str, Callable[[str, str], bool]] = {
        "only (no donors)": lambda _, origin: origin in ("teacher", "identity"),
    }
    thinned: dict[str, Callable[[str, str], bool]] = {
        "half of the house": lambda name, _: draw[name] < 0.5,
        "3/4 of the house": lambda name, _: draw[name] < 0.75,
    }
    entries = []
    for method, keep in (kept | (thinned if parts else {})).items():
        candidates, chooser = chooser_of(subset(house, keep), target, data, Exact(), seed=seed)
        chooser.settle([target])
        try:
            key = chooser.choose(target).key
        except InfeasibleError as error:
            print(f"{method} at {share}x: {error}")
            continue
        entries.append(induced(candidates, key, method, share))
    candidates, chooser = chooser_of(house, target, data, RandomSelection(), seed=seed)
    pool = chooser.pools[target.place.name]
    bound = chooser.limits(target)["latency_ms"] * (1 - MARGIN)
    for attempt in range(20):
        try:
            (winner,) = chooser.strategy.search(
                candidates, [{latency_at(target.place): bound}], seed=seed * 100 + attempt
            ).winners
        except InfeasibleError as error:
            print(f"random choice at {share}x: {error}")
            break
        key = tuple(winner.genome.tolist())
        chooser.pools.measure(target.place.name, [key])
        if pool.candidates[key] <= bound:
            entries.append(induced(candidates, key, "random choice", share))
            break
    else:
        print(f"random choice at {share}x: none of 20 is within the limit as measured")
    return entries


def _test_accuracy(data: ImageData, module: nn.Module) -> float:
    assert data.test is not None
    return accuracy(module, data.test)


def peer_entries(
    teacher: nn.Module,
    donors: Mapping[str, nn.Module],
    data: ImageData,
    measure: Callable[[nn.Module], float],
    base_ms: float,
    spend: Scale,
    work: Path,
) -> list[Entry]:
    """Off-the-shelf donors, torch-pruning and FastNAS at every compared limit."""
    held, labels = next(iter(data.validation.batches(spend.fastnas_images)))
    calibration, _ = next(iter(data.train.batches(2 * spend.fastnas_images)))
    nas = FastNas(
        teacher=copy.deepcopy(teacher).to(compute_device()),
        images=held.to(compute_device()),
        labels=None if labels is None else labels.to(compute_device()),
        calibration=calibration.to(compute_device()),
        folder=work,
    )
    example = torch.zeros(1, *SHAPE)
    entries = []
    for share in spend.compared:
        limit = share * base_ms * (1 - MARGIN)
        makers: dict[str, Callable[[], Peer]] = {
            "best donor, retrained": partial(
                best_donor, donors, measure, limit, accuracy_of=partial(_test_accuracy, data)
            ),
            "torch-pruning": partial(
                torch_pruning,
                teacher,
                example,
                measure,
                limit,
                ignore=residual_layers,
                steps=spend.bisections,
            ),
            "FastNAS": partial(nas.within, measure, limit, steps=spend.bisections),
        }
        for method, make in makers.items():
            start = time.perf_counter()
            try:
                peer = make()
            except InfeasibleError as error:
                print(f"{method} at {share}x: {error}", flush=True)
                continue
            seconds = time.perf_counter() - start
            entries.append(Entry(method, share, peer.module.cpu(), note=peer.name, seconds=seconds))
            print(f"{method} at {share}x: {peer.latency_ms:.3f} ms, {seconds:.0f} s", flush=True)
    return entries


def judge(
    entries: list[Entry], teacher: nn.Module, data: ImageData, device: tb.OnnxRuntime
) -> list[dict[str, object]]:
    """Final figures: latency of the exported networks in one interleaved session, test top-1."""
    assert data.test is not None
    modules = [teacher, *(entry.module for entry in entries)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            export_many([(module, SHAPE)], Path(folder), [f"m{i}"])[0]
            for i, module in enumerate(modules)
        ]
        base, *latencies = device.measure(paths)
    rows: list[dict[str, object]] = []
    for entry, latency in zip(entries, latencies, strict=True):
        counts = count(entry.module, SHAPE)
        rows.append(
            {
                "method": entry.method,
                "target": entry.share,
                "limit_ms": round(entry.share * base.median_ms, 4),
                "latency_ms": round(latency.median_ms, 4),
                "share_of_teacher": round(latency.median_ms / base.median_ms, 4),
                "met": latency.median_ms <= entry.share * base.median_ms,
                "top1_before": round(100 * entry.before, 2),
                "top1": round(100 * accuracy(entry.module, data.test), 2),
                "macs": counts.macs,
                "params": counts.params,
                "note": entry.note,
            }
        )
    return rows


def main() -> None:
    """Run everything, print the table, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--run", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--epochs", type=float, default=0.75, help="retraining")
    parser.add_argument("--house-epochs", type=float, default=0.75, help="distillation")
    parser.add_argument("--blocks", type=int, default=50, help="teacher's and donors' each")
    parser.add_argument(
        "--no-parts", action="store_true", help="without parts of the house, as --quick"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result file; with --quick, none is written without")
    arguments = parser.parse_args()
    start = time.perf_counter()
    spend = scale(arguments.quick, arguments.epochs, arguments.house_epochs, arguments.blocks)
    progress = terminal()
    data = load(arguments.data, spend.images)
    assert data.test is not None
    networks = {f"resnet{depth}": trained(depth, arguments.data) for depth in DEPTHS}
    teacher = networks.pop("resnet56")
    device = tb.OnnxRuntime(threads=1)
    house = tb.ModelHouse.build(
        teacher,
        donors=networks,
        data=data,
        run=arguments.run,
        options=spend.house,
        seed=arguments.seed,
        progress=progress,
    )
    targets = {
        share: tb.Target(f"x{share:g}", device, {"latency": f"{share}x"}) for share in SHARES
    }
    students = house.fit(list(targets.values()), recipe=spend.recipe)
    ours_minutes = house.folder.seconds()
    print("ours done after", round((time.perf_counter() - start) / 60, 1), "minutes", flush=True)
    base_ms = house.house.store.latencies(device.key).known[TEACHER].median_ms
    with tempfile.TemporaryDirectory() as work:
        entries = peer_entries(
            teacher,
            networks,
            data,
            latency_of(teacher, device, base_ms),
            base_ms,
            spend,
            Path(work),
        )
    for share in spend.compared:
        entries += house_baselines(
            house.house,
            targets[share],
            share,
            data,
            seed=arguments.seed,
            parts=not (arguments.no_parts or arguments.quick),
        )
    donors = [entry for entry in entries if entry.method == "best donor, retrained"]
    as_is = [replace(entry, method="best donor, as it is") for entry in donors]
    retrain(entries, house.house, data, spend.recipe, arguments)
    for entry, donor in zip(as_is, donors, strict=True):
        entry.before = donor.before
    for share, student in zip(SHARES, students, strict=True):
        if student.module is not None:
            entries.append(
                Entry(
                    OURS,
                    share,
                    student.module,
                    note=" | ".join(student.result.replaced),
                    before=student.result.accuracy_before or 0.0,
                )
            )
    entries += as_is
    rows = judge(entries, teacher, data, device)
    figures = {
        "rows": sorted(rows, key=lambda row: (-float(str(row["target"])), str(row["method"]))),
        "networks": {
            name: {"top1": round(100 * accuracy(module, data.test), 2)}
            for name, module in {"resnet56": teacher, **networks}.items()
        },
        "margin": margins(rows),
        "epochs": spend.recipe.epochs,
        "house_epochs": spend.house.epochs,
        "house_seconds": ours_minutes,
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "threads": torch.get_num_threads(),
        "alternatives": len(house.house.choices),
    }
    if arguments.name or not arguments.quick:
        name = arguments.name or "compress_cifar10"
        print("written:", write_result(name, figures, seed=arguments.seed))
    show(figures)


def retrain(
    entries: list[Entry],
    house: House,
    data: ImageData,
    recipe: Recipe,
    arguments: argparse.Namespace,
) -> None:
    """Retrain all baselines as the students were; each entry's module is replaced."""
    assert data.test is not None
    assignments = []
    for number, entry in enumerate(entries):
        entry.before = accuracy(entry.module, data.test)
        assignments.append(
            Assignment(
                name=f"e{number}",
                student=entry.module,
                hints=entry.hints,
                # Peers found anew may differ, as they are bisected on timings.
                checkpoint=arguments.run / "peers" / f"e{number}-{digest(entry.module)}",
            )
        )
    nodes = sorted({node for assignment in assignments for _, node in assignment.hints})
    outcomes = retrain_all(
        assignments,
        capture(house.teacher, nodes),
        data,
        recipe=recipe,
        seed=arguments.seed,
        progress=terminal(),
    )
    for entry, outcome in zip(entries, outcomes, strict=True):
        module = outcome.module  # masks are cut as the students' are
        entry.module = house.cut(module) if isinstance(module, fx.GraphModule) else module
        if outcome.stopped is not None:
            print(f"{entry.method} at {entry.share}x: retraining stopped: {outcome.stopped}")


def margins(rows: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    """Per target: ours, the best of the others that meets the limit, and the difference."""
    found: dict[str, dict[str, object]] = {}
    for share in SHARES:
        at = [row for row in rows if row["target"] == share and row["met"]]
        own = [float(str(row["top1"])) for row in at if row["method"] == OURS]
        others = [row for row in at if row["method"] != OURS]
        if own and others:
            best = max(others, key=lambda row: float(str(row["top1"])))
            found[f"{share}x"] = {
                "ours": own[0],
                "best_other": best["top1"],
                "best_method": best["method"],
                "difference": round(own[0] - float(str(best["top1"])), 2),
            }
    return found


def show(figures: Mapping[str, object]) -> None:
    """Print the table of docs/results.md."""
    print("| target | method | measured | met | top-1 before | top-1 |")
    print("|---|---|---|---|---|---|")
    rows = figures["rows"]
    assert isinstance(rows, list)
    for row in rows:
        print(
            f"| {row['target']}x | {row['method']} | {row['share_of_teacher']:.3f}x | "
            f"{'yes' if row['met'] else 'no'} | {row['top1_before']:.2f} | {row['top1']:.2f} |"
        )
    print(figures["margin"], figures["minutes"], "minutes")


if __name__ == "__main__":
    main()
