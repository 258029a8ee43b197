"""CIFAR-10: four ways to train a supernet beside each other, and DepS without each of its parts.

    python bench/supernet_training.py --data ../shared/data              # narrow, on a CPU
    python bench/supernet_training.py --data ../shared/data --scale gpu  # wide, on a large GPU

Every scheme trains the same space (CompOFA its coupled form, where a stage's depth sets its expand
ratio) on the same images with the same optimiser, once with as many images seen as DepS ("equal
images") and once for as many multiply-accumulates ("equal cost"). Then the same sampled subnets of
each are judged: norm statistics re-estimated on training images, the best subnet of each of six
equal ranges of MACs chosen on held-out training images; the test split is read for those alone.

Stops and continues: trained supernets and figures are kept in ``--work``. Several processes may
work on one folder; the last to finish writes the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

import tailorbird as tb
from record import environment, write_result
from tailorbird.data.images import ImageData, Split
from tailorbird.data.sources import parquet
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace, load_space
from tailorbird.supernet.calibrate import Statistics, accuracies, recalibrate
from tailorbird.supernet.counts import macs
from tailorbird.supernet.network import Supernet, build_supernet
from tailorbird.supernet.pareto import mean_pareto_accuracy
from tailorbird.supernet.samplers import RESOLUTION, MacsBalanced, Region, Sampler
from tailorbird.supernet.schemes import compofa
from tailorbird.supernet.schemes.bignas import BigNAS
from tailorbird.supernet.schemes.compofa import comp_ofa
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.schemes.progressive_shrinking import (
    ProgressiveShrinking,
    phases_for,
    scaled,
)
from tailorbird.supernet.schemes.scheme import Plan, Scheme, Step
from tailorbird.supernet.train import TrainedSupernet, train_supernet
from tailorbird.supernet.train_state import SupernetRecipe
from tailorbird.train.checkpoint import Json
from tailorbird.train.precision import compute_device

BUCKETS = 6
LOOKS = 16
"""Times that a run stops to look at its smallest and its full network."""

Make = Callable[[float, ArchitectureSpace], Scheme]


@dataclass(frozen=True)
class Scale:
    """How much is spent, and on what."""

    space: str
    coupled: str
    epochs: float
    recipe: SupernetRecipe
    rate: float
    subnets: int
    chosen_on: int
    statistics_from: int = 2000
    dropout: float = 0.0


SCALES = {
    "cpu": Scale(
        space="cifar-mbv3-s2-w0.25",
        coupled="cifar-compofa-mbv3-s2-w0.25",
        epochs=3.0,
        recipe=SupernetRecipe(batch_size=64, precision="float32"),
        rate=0.1,
        subnets=36,
        chosen_on=2500,
        statistics_from=1024,
    ),
    "gpu": Scale(
        space="cifar-mbv3-w1.0",
        coupled="cifar-compofa-mbv3-w1.0",
        epochs=60.0,
        recipe=SupernetRecipe(batch_size=256),
        rate=0.2,
        subnets=120,
        chosen_on=2500,
        dropout=0.1,
    ),
}


@dataclass(frozen=True)
class Case:
    """One supernet to train."""

    method: str
    budget: str
    seed: int
    coupled: bool
    make: Make

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-{self.budget}-{self.seed}".replace(" ", "-")


def deps(epochs: float, rate: float, **parts: bool) -> DepS:
    """DepS: shrinking starts after 3/8 of the epochs, epsilon is 1 from the half on."""
    return DepS(epochs=epochs, learning_rate=rate, ramp_epochs=epochs / 8, **parts)  # type: ignore[arg-type]  # parts are its switches


def shrinking(epochs: float, rate: float, space: ArchitectureSpace) -> ProgressiveShrinking:
    """Progressive shrinking with its authors' proportions of epochs and rates."""
    phases = scaled(phases_for(space), epochs=epochs, learning_rate=rate)
    return ProgressiveShrinking(phases=phases)


def compound(epochs: float, rate: float) -> ProgressiveShrinking:
    """CompOFA with its authors' proportions."""
    return comp_ofa(phases=scaled(compofa.PHASES, epochs=epochs, learning_rate=rate))


@dataclass(frozen=True)
class Until:
    """A scheme that stops after so many steps of its plan, to be taken up again there."""

    scheme: Scheme
    steps: int

    @property
    def name(self) -> str:
        """The scheme's."""
        return self.scheme.name

    @property
    def epochs(self) -> float:
        """The whole scheme's."""
        return self.scheme.epochs

    @property
    def decays_largest_only(self) -> bool:
        """The scheme's."""
        return self.scheme.decays_largest_only

    def plan(self, architectures: ArchitectureSpace, per_epoch: int) -> Plan:
        """The first steps of the scheme's plan."""
        return First(self.scheme.plan(architectures, per_epoch), self.steps)

    def record(self) -> dict[str, Json]:
        """The scheme's settings."""
        return self.scheme.record()


@dataclass(frozen=True)
class First:
    """The first steps of a plan."""

    whole: Plan
    total: int

    @property
    def samplers(self) -> Sequence[Sampler]:
        """The whole plan's."""
        return self.whole.samplers

    def step(self, number: int, rng: np.random.Generator) -> Step:
        """The whole plan's."""
        return self.whole.step(number, rng)


ABLATIONS: Mapping[str, Mapping[str, bool]] = {
    "DepS without full warm-up": {"warm_up_full": False},
    "DepS without ramp": {"ramp": False},
    "DepS without distillation": {"distil": False},
}


def cases(scale: Scale, seeds: Sequence[int]) -> list[Case]:
    """All supernets, the most telling first."""
    rate = scale.rate
    schemes: dict[str, tuple[bool, Make]] = {
        "DepS": (False, lambda epochs, _: deps(epochs, rate)),
        "BigNAS": (False, lambda epochs, _: BigNAS(epochs=epochs, learning_rate=rate)),
        "progressive shrinking": (False, lambda epochs, space: shrinking(epochs, rate, space)),
        "CompOFA": (True, lambda epochs, _: compound(epochs, rate)),
    }
    found = []
    for seed in seeds:
        for method, (coupled, make) in schemes.items():
            found.append(Case(method, "equal images", seed, coupled, make))
    for seed in seeds:
        for method, switches in ABLATIONS.items():
            made: Make = lambda epochs, _, switches=switches: deps(epochs, rate, **switches)  # type: ignore[misc]  # noqa: E731
            found.append(Case(method, "equal images", seed, False, made))
    for seed in seeds:
        for method, (coupled, make) in schemes.items():
            if method != "DepS":
                found.append(Case(method, "equal cost", seed, coupled, make))
    return found


def planned(scheme: Scheme, space: ArchitectureSpace, per_epoch: int) -> float:
    """Multiply-accumulates per image of all steps, backward passes as two forward ones."""
    cost, total = macs(space).sum, 0.0
    plan = scheme.plan(space, per_epoch)
    for number in range(plan.total):
        step = plan.step(number, np.random.default_rng(number))
        total += 3.0 * float(cost(np.stack([member.genome for member in step.networks])).sum())
        frozen = {int(m.genome[RESOLUTION]) for m in step.networks if m.teacher == "frozen"}
        for size in frozen:
            full = space.space.sizes[None] - 1
            full[:, RESOLUTION] = size
            total += float(cost(space.space.canonical(full))[0])
    return total


def load(root: Path) -> ImageData:
    """CIFAR-10, 2,500 training images held out."""
    folder = root / "cifar10"
    return parquet(
        sorted(folder.glob("train-*.parquet")),
        test=sorted(folder.glob("test-*.parquet")),
        normalisation=tb.Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        validation=0.05,
        crop_padding=4,
        flip=True,
    )


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    scale: Scale
    data: ImageData
    work: Path
    device: torch.device

    def space(self, case: Case) -> ArchitectureSpace:
        """The case's space, with this benchmark's classes."""
        return load_space(self.scale.coupled if case.coupled else self.scale.space)

    def epochs(self, case: Case) -> float:
        """As DepS, in images or in multiply-accumulates."""
        if case.budget == "equal images":
            return self.scale.epochs
        per_epoch = 100
        whole = load_space(self.scale.space)
        wanted = planned(deps(self.scale.epochs, self.scale.rate), whole, per_epoch)
        own = planned(case.make(self.scale.epochs, self.space(case)), self.space(case), per_epoch)
        return self.scale.epochs * wanted / own

    def run(self, case: Case) -> dict[str, object]:
        """Train and judge a case, with a look at its ends now and then."""
        net, space, epochs = self.fresh(case), self.space(case), self.epochs(case)
        scheme = case.make(epochs, space)
        per_epoch = len(self.data.train) // self.scale.recipe.batch_size
        plan = scheme.plan(net.architectures, per_epoch)
        log = self.work / f"{case.name}.curve.json"
        curve: list[list[object]] = json.loads(log.read_text()) if log.exists() else []
        for point in range(len(curve) + 1, LOOKS + 1):
            stop = round(plan.total * point / LOOKS)
            trained = self.train(net, Until(scheme, stop), case)
            ends = np.stack([net.smallest(), net.largest()])
            norms = recalibrate(trained.supernet, ends, self.calibration())
            small, large = self.scores(trained.supernet, ends, norms, self.data.validation, 1000)
            phase = plan.step(stop - 1, np.random.default_rng(0)).phase
            curve.append([stop / per_epoch, phase, round(100 * large, 2), round(100 * small, 2)])
            log.write_text(json.dumps(curve), encoding="utf-8")
        trained = self.train(net, scheme, case)  # at its end already
        return {
            "method": case.method,
            "budget": case.budget,
            "seed": case.seed,
            "space": space.name,
            "epochs": round(epochs, 3),
            "seconds": round(trained.seconds, 1),
            "macs": trained.macs,
            "curve": curve,
            **self.judge(trained.supernet),
        }

    def fresh(self, case: Case) -> Supernet:
        """The untrained supernet of a case."""
        classes = self.data.classes
        return build_supernet(
            self.space(case),
            classes=len(classes) if classes else 10,
            dropout=self.scale.dropout,
            generator=torch.Generator().manual_seed(case.seed),
        )

    def train(self, net: Supernet, scheme: Scheme, case: Case) -> TrainedSupernet:
        """Train to the end of the scheme's plan, from where the folder was left."""
        return train_supernet(
            net,
            self.data,
            scheme,
            seed=case.seed,
            recipe=self.scale.recipe,
            folder=self.work / case.name,
            accept_changes=True,  # only the plan's end differs from one look to the next
            device=self.device,
        )

    def judge(self, supernet: Supernet) -> dict[str, object]:
        """Subnets of all sizes: the best of each range of MACs on held-out images, then tested."""
        space = supernet.architectures
        genomes = sampled(space, self.scale.subnets)
        cost = macs(space).sum(genomes)
        supernet = supernet.to(self.device)
        norms = recalibrate(supernet, genomes, self.calibration())
        held = self.scores(supernet, genomes, norms, self.data.validation, self.scale.chosen_on)
        edges = np.linspace(cost.min(), cost.max(), BUCKETS + 1)
        bucket = np.clip(np.searchsorted(edges, cost, side="right") - 1, 0, BUCKETS - 1)
        best = [
            max(np.flatnonzero(bucket == b).tolist(), key=lambda row: float(held[row]))
            for b in range(BUCKETS)
            if (bucket == b).any()
        ]
        rows = [0, 1, *best]  # the smallest and the full network come first
        assert self.data.test is not None
        tested = self.scores(
            supernet, genomes[rows], [norms[row] for row in rows], self.data.test, None
        )
        return {
            "smallest": round(100 * float(tested[0]), 2),
            "largest": round(100 * float(tested[1]), 2),
            "front": [
                [float(cost[row]), round(100 * float(value), 2)]
                for row, value in zip(best, tested[2:], strict=True)
            ],
            "mean_pareto": round(100 * mean_pareto_accuracy(cost[best], tested[2:]), 2),
        }

    def calibration(self) -> Iterator[Tensor]:
        """Training images for norm statistics."""
        walk = self.data.train.batches(
            256, generator=torch.Generator().manual_seed(0), drop_last=True, device=self.device
        )
        for images, _ in islice(walk, self.scale.statistics_from // 256):
            yield images

    def scores(
        self,
        supernet: Supernet,
        genomes: Genomes,
        norms: Sequence[Statistics],
        split: Split,
        most: int | None,
    ) -> np.ndarray:
        """Top-1 (n,) of the genomes on the first ``most`` images."""

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            seen = 0
            for images, labels in split.batches(250, device=self.device):
                if most is not None and seen >= most:
                    return
                assert labels is not None
                seen += len(images)
                yield images, labels

        return accuracies(supernet, genomes, norms, batches())


def sampled(space: ArchitectureSpace, count: int) -> Genomes:
    """The smallest, the full network, and as many of each range of MACs; the same for all."""
    region = Region.whole(space)
    sampler = MacsBalanced(region, count, ranges=BUCKETS)
    drawn = sampler.sample(0, np.random.default_rng(0))
    return np.concatenate([region.smallest[None], region.largest[None], drawn])


def summary(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Means over the seeds, with the spread of the mean Pareto accuracy, relative to DepS."""
    groups: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault((str(row["budget"]), str(row["method"])), []).append(row)

    def mean(group: Sequence[Mapping[str, object]], key: str) -> float:
        return statistics.fmean(float(str(row[key])) for row in group)

    reference = groups.get(("equal images", "DepS"), [])
    found = []
    for (budget, method), group in groups.items():
        entry: dict[str, object] = {"budget": budget, "method": method, "seeds": len(group)}
        for key in ("mean_pareto", "smallest", "largest", "epochs"):
            entry[key] = round(mean(group, key), 2)
        values = [float(str(row["mean_pareto"])) for row in group]
        entry["mean_pareto_range"] = [min(values), max(values)]
        # Other work on the machine only ever adds to the seconds.
        entry["seconds"] = min(float(str(row["seconds"])) for row in group)
        entry["macs"] = mean(group, "macs")
        if reference:
            entry["macs_vs_deps"] = round(mean(group, "macs") / mean(reference, "macs"), 3)
        found.append(entry)
    return found


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print the table."""
    print("| budget | method | mean Pareto | smallest | largest | cost (MACs) | seconds |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['budget']} | {row['method']} | {row['mean_pareto']:.2f} | "
            f"{row['smallest']:.2f} | {row['largest']:.2f} | {row.get('macs_vs_deps', 1):.2f}x | "
            f"{row['seconds']:.0f} |"
        )


def main() -> None:
    """Train all cases that nobody else works on; write the result when all are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/supernet-training"))
    parser.add_argument("--scale", choices=sorted(SCALES), default="cpu")
    parser.add_argument("--epochs", type=float, help="of DepS; the scale's own by default")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="cases whose name holds this text")
    parser.add_argument("--partial", action="store_true", help="write what there is so far")
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    if arguments.epochs is not None:
        scale = replace(scale, epochs=arguments.epochs)
    device = compute_device()
    wanted = cases(scale, range(arguments.seeds))
    work = arguments.work / f"{arguments.scale}-{scale.epochs:g}"
    work.mkdir(parents=True, exist_ok=True)
    bench: Bench | None = None
    for case in wanted:
        file = work / f"{case.name}.json"
        if file.exists() or arguments.partial or (arguments.only or "") not in case.name:
            continue
        try:
            with FileLock(work / f"{case.name}.lock", timeout=0):
                if bench is None:
                    bench = Bench(scale, load(arguments.data), work, device)
                row = {**bench.run(case), "environment": environment()}
                file.write_text(json.dumps(row), encoding="utf-8")
                print(case.name, row["mean_pareto"], row["smallest"], row["largest"], flush=True)
        except Timeout:
            continue  # another process has it
    files = [work / f"{case.name}.json" for case in wanted]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    table = summary(rows)
    show(table)
    if len(rows) == len(wanted) or arguments.partial:
        figures = {
            "scale": arguments.scale,
            "epochs": scale.epochs,
            "batch_size": scale.recipe.batch_size,
            "learning_rate": scale.rate,
            "threads": torch.get_num_threads(),
            "missing": len(wanted) - len(rows),
            "summary": table,
            "runs": rows,
        }
        print("written:", write_result(f"supernet_training_{arguments.scale}", figures, seed=0))


if __name__ == "__main__":
    main()
