"""CIFAR-10: a ResNet-56 at eight limits on two runtimes, Tailorbird beside its rivals in one run.

    python bench/compress_cifar10.py --data ../shared/data --seeds 2 --epochs 24   # with a GPU
    python bench/compress_cifar10.py --data ../shared/data --quick                 # five minutes

Without a GPU, within two hours of two cores; ``--no-parts`` leaves out what is said of parts and
of labels below:

    python bench/compress_cifar10.py --data ../shared/data --seeds 1 --epochs 0.75 \\
        --house-epochs 0.4 --contenders 2 --no-parts

Teacher: ResNet-56; donors: ResNet-20, 32 and 44, all with published weights, which have seen all
training images. Limits are shares of the teacher's float32 latency at one thread and batch 1:
0.75, 0.6, 0.4 and 0.25 in ONNX Runtime, 0.6, 0.4, 0.25 and 0.15 in OpenVINO.

Rivals: donors as they are; donors retrained by the same recipe; torch-pruning and FastNAS at ONNX
Runtime's limits, retrained alike; each of them and the teacher in plain int8 by the runtime's own
tool. Parts of the method: a house without donors, half and three quarters of the house, a random
choice from it (Table 6 of the paper). All get the same images and epochs. Choices of ours never see
the test split; at each limit a rival is the file of it that is best on the test split.

Labels withheld: the same once more from images without labels, judged with them.

Stops and continues: what is trained, asked and measured is kept in ``--run``.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn

import tailorbird as tb
from cifar_resnet import DEPTHS, trained
from contest import (
    AS_IT_IS,
    FLOAT,
    ORT,
    OURS,
    OV,
    PART,
    RETRAINED,
    UNLABELLED,
    Contest,
    Entry,
    Search,
    named,
)
from peers import FastNas, Peer, residual_layers, torch_pruning
from record import write_result
from standings import Judged, Row, best_rival, rows, show
from tailorbird.data.images import ImageData, Split, TensorSplit
from tailorbird.data.loader import LoaderSplit
from tailorbird.data.sources import parquet
from tailorbird.device import Runtime
from tailorbird.errors import ConfigError
from tailorbird.house.build import House
from tailorbird.house.candidates import OWN
from tailorbird.measure.devices.openvino import OpenVino
from tailorbird.runfolder import RunFolder
from tailorbird.search.additive import RandomSelection
from tailorbird.train.precision import compute_device
from tailorbird.train.recipe import Recipe

SHAPE = (3, 32, 32)
SHARES = {ORT: (0.75, 0.6, 0.4, 0.25), OV: (0.6, 0.4, 0.25, 0.15)}
QUICK_SHARES = {ORT: (0.6,), OV: (0.25,)}
QUICK_DEPTHS = (20, 32)
CLEAR = (0.75, 0.4)
"""Limits in ONNX Runtime where networks in float32 are to be well ahead."""

QUICK_SEARCH = Search(rounds=1, candidates=1, contenders=2)
PARTS = ("no donors", "half", "three quarters", "random choice")


@dataclass(frozen=True)
class Scale:
    """How much is spent."""

    house: tb.HouseOptions
    recipe: Recipe
    depths: Sequence[int] = DEPTHS
    """Layers of the donors, and of the teacher, which has most."""
    images: int | None = None
    fastnas_images: int = 256
    """Held-out images that FastNAS scores cuts on; twice as many training images calibrate them."""
    bisections: int = 8
    """Steps in which the pruners look for a limit."""
    shares: Mapping[str, Sequence[float]] = field(default_factory=lambda: SHARES)
    """Runtime's name -> limits as shares of the teacher's float32 latency there."""
    search: Search = field(default_factory=Search)
    parts: bool = True
    """Whether parts of the house are tried, and labels withheld."""


def scale(arguments: argparse.Namespace) -> Scale:
    """The full and the quick form."""
    quick, blocks = arguments.quick, arguments.blocks
    options = tb.HouseOptions(
        teacher_blocks=3 if quick else blocks,
        donor_blocks=3 if quick else blocks,
        pruned=0 if quick else blocks // 3,
        merged=not quick,
        recall=0.7,
        donor_recall=0.7,
        epochs=0.15 if quick else arguments.house_epochs,
    )
    recipe = Recipe(epochs=0.3 if quick else arguments.epochs)
    if quick:
        return Scale(
            options,
            recipe,
            depths=QUICK_DEPTHS,
            images=1000,
            fastnas_images=16,
            bisections=1,
            shares=QUICK_SHARES,
            search=QUICK_SEARCH,
            parts=False,
        )
    search = Search(contenders=arguments.contenders)
    return Scale(options, recipe, search=search, parts=not arguments.no_parts)


def load(root: Path, limit: int | None) -> ImageData:
    """CIFAR-10 with the normalisation that the networks were trained with."""
    folder = root / "cifar10"
    files = sorted(folder.glob("train-*.parquet"))
    data = parquet(
        files if limit is None else files[:1],
        test=sorted(folder.glob("test-*.parquet")),
        normalisation=tb.Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        validation=0.05,
        crop_padding=4,
        flip=True,
    )
    return data if limit is None else first(data, limit)


def first(data: ImageData, count: int) -> ImageData:
    """So many of the training images, a tenth as many that choose, a third as many that test."""

    def taken(split: Split | None, size: int) -> Split:
        assert isinstance(split, (TensorSplit, LoaderSplit))
        return split.take(torch.arange(min(size, len(split))))

    return replace(
        data,
        train=taken(data.train, count),
        validation=taken(data.validation, count // 10),
        test=taken(data.test, count // 3),
    )


def without_labels(data: ImageData) -> ImageData:
    """The same images; nobody says what they show."""

    def bare(split: object) -> TensorSplit:
        assert isinstance(split, TensorSplit)
        return replace(split, labels=None)

    return replace(
        data,
        train=bare(data.train),
        validation=bare(data.validation),
        test=None if data.test is None else bare(data.test),
        labelled=False,
        name=f"{data.name}, no labels",
    )


def runtimes() -> dict[str, Runtime]:
    """Both at one thread; ONNX Runtime alone where OpenVINO is missing."""
    found: dict[str, Runtime] = {ORT: tb.OnnxRuntime(threads=1)}
    try:
        found[OV] = OpenVino(threads=1)
    except ConfigError as error:
        print(f"without OpenVINO: {error}")
    return found


def pruners(
    teacher: nn.Module, data: ImageData, folder: Path, spend: Scale
) -> dict[str, Callable[[Callable[[nn.Module], float], float], Peer]]:
    """torch-pruning and FastNAS, ready for any limit."""
    device = compute_device()
    held, labels = next(iter(data.validation.batches(spend.fastnas_images)))
    calibration, _ = next(iter(data.train.batches(2 * spend.fastnas_images)))
    nas = FastNas(
        teacher=copy.deepcopy(teacher).to(device),
        images=held.to(device),
        labels=None if labels is None else labels.to(device),
        calibration=calibration.to(device),
        folder=folder / "fastnas",
    )

    def pruning(latency: Callable[[nn.Module], float], limit: float) -> Peer:
        return torch_pruning(
            teacher,
            torch.zeros(1, *SHAPE),
            latency,
            limit,
            ignore=residual_layers,
            steps=spend.bisections,
        )

    return {"torch-pruning": pruning, "FastNAS": partial(nas.within, steps=spend.bisections)}


def part(house: tb.ModelHouse, name: str, seed: int) -> tb.ModelHouse:
    """A house in a folder of its own that holds only some of the alternatives, and those donors as
    they are that are among them.
    """
    choices = house.house.choices
    draw = np.random.default_rng(seed).random(len(choices))
    share = {"half": 0.5, "three quarters": 0.75}.get(name, 1.0)
    kept = [
        alternative
        for alternative, number in zip(choices, draw, strict=True)
        if number < share and (name != "no donors" or alternative.origin in OWN)
    ]
    whole = {one.origin for one in kept if one.as_is and one.variant == "whole"}
    if name == "random choice":
        whole = set()
    return replace(
        house,
        house=thinned(house.house, {alternative.name for alternative in kept}),
        folder=RunFolder(house.folder.path.parent / "parts" / name.replace(" ", "-")),
        donors={donor: graph for donor, graph in house.donors.items() if donor in whole},
        made_from={**house.made_from, "part": name},
    )


def thinned(house: House, names: set[str]) -> House:
    """The house with only these of its scored alternatives."""
    return replace(house, scores={k: v for k, v in house.scores.items() if k in names})


def contest(arguments: argparse.Namespace, spend: Scale, data: ImageData, seed: int) -> Contest:
    """One seed's, in a folder of its own."""
    networks = {f"resnet{depth}": trained(depth, arguments.data) for depth in spend.depths}
    teacher = networks.pop(f"resnet{max(spend.depths)}")
    folder = arguments.run / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return Contest(
        teacher=teacher,
        donors=networks,
        data=data,
        runtimes=runtimes(),
        shares=spend.shares,
        options=spend.house,
        search=spend.search,
        recipe=spend.recipe,
        pruners=pruners(teacher, data, folder, spend),
        folder=folder,
        seed=seed,
    )


@dataclass(frozen=True)
class Run:
    """What came out for one seed."""

    judged: Judged
    results: Mapping[str, Mapping[str, object]]
    unlabelled: Mapping[str, Mapping[str, object]]
    ranked: Mapping[str, object] | None
    minutes: Mapping[str, float]


def run(one: Contest, spend: Scale) -> Run:
    """Ours, the rivals, and all their figures."""
    minutes: dict[str, float] = {}
    clock = time.monotonic()

    def passed(what: str) -> None:
        nonlocal clock
        minutes[what] = round((time.monotonic() - clock) / 60, 2)
        clock = time.monotonic()
        print(f"{what}: {minutes[what]} minutes", flush=True)

    house = one.house(one.data, "house")
    entries, results = one.ours(house, OURS, one.targets())
    entries = [alone(entry) for entry in entries]
    ranked = one.ranked(house)
    passed("ours")
    unlabelled: dict[str, dict[str, object]] = {}
    if spend.parts:
        blind = one.house(without_labels(one.data), "unlabelled")
        own, unlabelled = one.ours(blind, UNLABELLED, one.targets()[: len(one.limits)])
        entries += own
        passed(UNLABELLED)
        for name in PARTS:
            strategy = RandomSelection() if name == "random choice" else None
            smaller, targets = part(house, name, one.seed), one.targets()[: len(one.limits)]
            own, _ = one.ours(smaller, f"{PART}{name}", targets, strategy)
            entries += own
            passed(f"{PART}{name}")
    entries += one.files(one.rivals())
    passed("rivals")
    answers, labels = one.answers(entries), one.labels
    right = {entry: answer == labels for entry, answer in answers.items()}
    passed("answers")
    judged = Judged(right, one.latencies(entries))
    passed("latencies")
    return Run(judged, results, unlabelled, ranked, minutes)


def alone(entry: Entry) -> Entry:
    """Files of targets in float32 alone are a method of their own."""
    return replace(entry, method=FLOAT) if entry.network.endswith("-float32") else entry


def verdicts(
    limits: Sequence[tuple[str, float]],
    table: Sequence[Row],
    plain: Sequence[Row],
    runs: Sequence[Run],
) -> list[dict[str, object]]:
    """The bars, as measured; one that nothing was made for is missed."""
    found: list[dict[str, object]] = []

    def bar(what: str, value: float | None, least: float) -> None:
        met = value is not None and value >= least
        found.append({"what": what, "is": value, "at least": least, "met": met})

    def row(rows: Sequence[Row], target: str, method: str) -> Row | None:
        own = (one for one in rows if one.target == target and one.method == method)
        return next(own, None)

    def ahead(one: Row | None, other: Row | None) -> float | None:
        return None if one is None or other is None else round(one.top1 - other.top1, 3)

    names = [named(runtime, share) for runtime, share in limits]
    for name in names:
        rival = best_rival(table, name)
        who = "no rival keeps it" if rival is None else f"{rival.method}, {rival.network}"
        what = f"{name}: points above the best rival ({who})"
        bar(what, ahead(row(table, name, OURS), rival), -0.1)
    for share in CLEAR:
        name = named(ORT, share, alone=True)
        rival = best_rival(plain, name)
        if rival is not None:
            what = f"{name}: points above the best in float32 ({rival.method}, {rival.network})"
            bar(what, ahead(row(plain, name, FLOAT), rival), 0.3)
    asked = [result for one in runs for result in one.results.values()]
    bar("targets met, as measured when shipped", sum(bool(r["met"]) for r in asked), len(asked))
    own = [row(table, name, OURS) for name in names]
    bar(
        "limits kept, measured once more beside all",
        sum(r is not None and r.met for r in own),
        len(own),
    )
    if any(one.method == UNLABELLED for one in table):
        for name in names:
            blind, seeing = row(table, name, UNLABELLED), row(table, name, OURS)
            bar(f"{name}: points from withheld labels", ahead(blind, seeing), -0.5)
    return found


def won_by_training(runs: Sequence[Run]) -> dict[str, float]:
    """Donor -> points that the recipe wins it, in ONNX Runtime's float32, the mean of seeds."""
    won: dict[str, list[float]] = {}
    for one in runs:
        right = {
            (entry.method, entry.network): float(answers.mean())
            for entry, answers in one.judged.right.items()
            if entry.runtime == ORT and entry.precision == "float32"
        }
        for (method, name), after in right.items():
            if method == RETRAINED:
                before = right[AS_IT_IS, name]
                won.setdefault(name, []).append(100 * (after - before))
    return {name: round(fmean(points), 3) for name, points in won.items()}


def concluded(contests: Sequence[Contest], runs: Sequence[Run], spend: Scale) -> dict[str, object]:
    """Print the table and the bars; the figures of all seeds."""
    seeds, limits = [one.judged for one in runs], contests[0].limits
    table = rows(seeds, limits, OURS)
    plain = rows(seeds, [limit for limit in limits if limit[0] == ORT], FLOAT)
    show([*table, *plain])
    bars = verdicts(limits, table, plain, runs)
    for bar in bars:
        print(f"{'met' if bar['met'] else 'MISSED':6} {bar['what']}: {bar['is']}")
    won = won_by_training(runs)
    print("points that the recipe wins donors:", won)
    return {
        "rows": [asdict(row) for row in (*table, *plain)],
        "bars": bars,
        "points that the recipe wins donors": won,
        "results": [dict(one.results) for one in runs],
        "ranked by losses of blocks": [one.ranked for one in runs],
        "minutes": [dict(one.minutes) for one in runs],
        "seeds": [one.seed for one in contests],
        "recipe": spend.recipe.as_record(),
        "search": dict(spend.search),
        "house": asdict(spend.house),
        "images": len(contests[0].data.train),
        "runtimes": {name: device.key for name, device in contests[0].runtimes.items()},
    }


def main() -> None:
    """Run everything, print the table, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--run", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--epochs", type=float, default=0.75, help="retraining")
    parser.add_argument("--house-epochs", type=float, default=0.75, help="distillation")
    parser.add_argument("--blocks", type=int, default=24, help="teacher's and donors' each")
    parser.add_argument("--contenders", type=int, default=4, help="of ours, trained per target")
    parser.add_argument("--no-parts", action="store_true", help="ours and the rivals only")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=2, help="0, 1, ...")
    parser.add_argument("--name", help="of the result file; with --quick, none is written without")
    arguments = parser.parse_args()
    spend = scale(arguments)
    data = load(arguments.data, spend.images)
    numbers = range(1 if arguments.quick else arguments.seeds)
    contests = [contest(arguments, spend, data, seed) for seed in numbers]
    runs = [run(one, spend) for one in contests]
    figures = concluded(contests, runs, spend) | {
        "unlabelled": [dict(one.unlabelled) for one in runs],
        "threads": torch.get_num_threads(),
    }
    if arguments.name or not arguments.quick:
        name = arguments.name or "compress_cifar10"
        print("written:", write_result(name, figures, seed=0))


if __name__ == "__main__":
    main()
