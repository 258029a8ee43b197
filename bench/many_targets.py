"""Search for many limits: all at once beside the original, the paper's strategies, and the optimum.

    python bench/many_targets.py --data ../shared/data            # about 40 minutes on 2 cores
    python bench/many_targets.py --data ../shared/data --quick    # 2 seeds, about 5 minutes

Parts, each in one run on one machine, nothing else running:

original    ten Note10 limits, the original single-target search (bench/original_search.py) against
            all-at-once: wall time, predicted accuracy at every limit
fleet       10 and 500 limits; 1,000 limits on four devices at once
strategies  independent, top-down, bottom-up for 1 to 10 limits with 22, 63 and 100 warm
            generations: MobileNetV3 on the Note10 and the Jetson, ResNet50D within MACs; random
            search and NSGA-II beside them
optimum     the gap to the best there is: CompOFA by enumeration, synthetic model houses by the
            exact solver
growth      time and memory as limits, population and genes grow

The predictors' scale is their own: it is not ImageNet top-1.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pyarrow.parquet
from safetensors.torch import load_file

from original_search import EvolutionFinder, MobileNetAccuracy, MobileNetLatency
from record import RESULTS, write_result
from search_scale import house
from tailorbird.estimate.accuracy_predictor import OfaPredictor
from tailorbird.estimate.latency_table import compile_table, read_table
from tailorbird.estimate.learned_latency import LatencyModel, LayerFeatures
from tailorbird.estimate.predicted import PredictedFamily, Predictor
from tailorbird.family import AdditiveProblem, Floats
from tailorbird.search import exact
from tailorbird.search.baselines import Exhaustive, RandomSearch
from tailorbird.search.evolution import BottomUp, Independent, TopDown
from tailorbird.search.many_targets import AllAtOnce
from tailorbird.search.nsga2 import Nsga2
from tailorbird.search.strategy import Limits, SearchResult, Strategy
from tailorbird.space import Choice, Genomes, Space
from tailorbird.supernet.architecture import ArchitectureSpace, load_space
from tailorbird.supernet.counts import macs

NOTE10 = tuple(float(limit) for limit in range(15, 65, 5))
COUNTS = (1, 2, 3, 4, 5, 10)
WARM = (22, 63, 100)
GPUS = ("titan_xp_64_ms", "titan_rtx_32_ms")


@dataclass(frozen=True)
class Data:
    """The real tables and predictors."""

    root: Path

    def mobilenet(self, table: str) -> tuple[ArchitectureSpace, PredictedFamily]:
        """MobileNetV3 w1.2 with one device's table."""
        read = read_table(self.root / "latency_tables" / table)
        space = load_space("ofa-mbv3-w1.2", resolutions=read.resolutions)
        return space, self.family(space, {"latency_ms": compile_table(read, space).sum})

    def family(self, space: ArchitectureSpace, costs: Mapping[str, Predictor]) -> PredictedFamily:
        """The official accuracy predictor with ``costs``."""
        resnet = space.name == "ofa-resnet50d"
        name = "resnet50d" if resnet else "mbv3"
        predictor = OfaPredictor.from_file(
            self.root / f"{name}_accuracy_predictor.safetensors", space
        )
        return PredictedFamily(space=space.space, predictor=predictor.predict, costs=costs)

    def resnet(self) -> tuple[ArchitectureSpace, PredictedFamily]:
        """ResNet50D within MACs."""
        space = load_space("ofa-resnet50d")
        return space, self.family(space, {"macs": macs(space).sum})

    def compofa(self) -> tuple[ArchitectureSpace, PredictedFamily]:
        """CompOFA with fixed kernels on the Note10."""
        read = read_table(self.root / "latency_tables" / "note10")
        space = load_space("compofa-mbv3-w1.2", resolutions=read.resolutions)
        return space, self.family(space, {"latency_ms": compile_table(read, space).sum})

    def four_devices(self) -> PredictedFamily:
        """Two devices by their tables, two by models learned from 500 measured pairs each."""
        space, note10 = self.mobilenet("note10")
        jetson = compile_table(read_table(self.root / "latency_tables" / "jetson_cpu"), space)
        rows = pyarrow.parquet.read_table(self.root / "mbv3_measured_latencies.parquet").to_pylist()
        features = LayerFeatures(space)
        costs: dict[str, Predictor] = {
            "latency_ms@note10": note10.costs["latency_ms"],
            "latency_ms@jetson": jetson.sum,
        }
        known = [row for row in rows if row["r"] in space.space.choices[0].values][:500]
        genomes = space.genomes(known)
        for name in GPUS:
            measured = np.array([row[name] for row in known])
            model = LatencyModel.fit(genomes, measured, features=features)
            costs[f"latency_ms@{name.removesuffix('_ms')}"] = model.latency_ms
        return replace(note10, costs=costs)


def limited(metric: str, bounds: Sequence[float] | Floats) -> list[Limits]:
    """One limit each."""
    return [{metric: float(bound)} for bound in bounds]


def accuracies(result: SearchResult) -> list[float]:
    """Predicted accuracy at each limit."""
    return [winner.quality for winner in result.winners]


def summary(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Mean, standard deviation and worst over seeds (rows), for each limit (column)."""
    table = np.array(rows)
    spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
    return {
        "mean": table.mean(axis=0).round(5).tolist(),
        "std": spread.round(5).tolist(),
        "worst": table.min(axis=0).round(5).tolist(),
        "best": table.max(axis=0).round(5).tolist(),
    }


def time_of(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of seconds."""
    return {
        "mean": round(mean(values), 4),
        "std": round(stdev(values) if len(values) > 1 else 0.0, 4),
    }


def against_original(data: Data, seeds: Sequence[int]) -> dict[str, object]:
    """Ten searches of the original for each seed, and all ten limits at once."""
    space, family = data.mobilenet("note10")
    table = read_table(data.root / "latency_tables" / "note10")
    entries: dict[int, dict[str, float]] = {}
    for key, value in table.entries.items():
        resolution, _, rest = key.partition("/")
        entries.setdefault(int(resolution), {})[rest] = value
    latency = MobileNetLatency(entries)
    accuracy = MobileNetAccuracy(load_file(data.root / "mbv3_accuracy_predictor.safetensors"))
    sizes = [int(str(value)) for value in space.space.choices[0].values]
    limits = limited("latency_ms", NOTE10)
    AllAtOnce().search(family, limits, seed=999)  # the first call loads libraries
    theirs: list[list[float]] = []
    ours: list[list[float]] = []
    times: dict[str, list[float]] = {"original": [], "all-at-once": []}
    for seed in seeds:
        result = AllAtOnce().search(family, limits, seed=seed)
        ours.append(accuracies(result))
        times["all-at-once"].append(result.seconds)
        began = time.perf_counter()
        theirs.append(
            [
                EvolutionFinder(latency, accuracy, sizes, bound, seed=seed).run()[0]
                for bound in NOTE10
            ]
        )
        times["original"].append(time.perf_counter() - began)
        print(f"seed {seed}: {times['original'][-1]:.1f} s, {result.seconds:.3f} s", flush=True)
    gain = (np.mean(ours, axis=0) - np.mean(theirs, axis=0)).round(5)
    return {
        "limits_ms": NOTE10,
        "original": {"accuracy": summary(theirs), "seconds": time_of(times["original"])},
        "all-at-once": {
            "accuracy": summary(ours),
            "seconds": time_of(times["all-at-once"]),
            "evaluations": result.evaluations,
        },
        "speed_up": round(mean(times["original"]) / mean(times["all-at-once"]), 1),
        "mean_gain": gain.tolist(),
        "least_gain": float(gain.min()),
    }


def fleet(data: Data, seeds: Sequence[int]) -> dict[str, object]:
    """How little more limits and devices cost."""
    _, family = data.mobilenet("note10")
    four = data.four_devices()
    figures: dict[str, object] = {}
    ten = limited("latency_ms", NOTE10)
    for name, searched, limits in (
        ("10 limits", family, ten),
        ("500 limits", family, limited("latency_ms", np.linspace(15, 60, 500))),
        ("1000 limits on 4 devices", four, spread_over_devices(four, 250)),
    ):
        AllAtOnce().search(searched, limits, seed=999)
        runs = [AllAtOnce().search(searched, limits, seed=seed) for seed in seeds]
        figures[name] = {
            "seconds": time_of([run.seconds for run in runs]),
            "evaluations": mean(run.evaluations for run in runs),
            "mean_accuracy": round(mean(mean(accuracies(run)) for run in runs), 5),
        }
        print(name, figures[name], flush=True)
    seconds = {name: row["seconds"]["mean"] for name, row in figures.items()}  # type: ignore[index]  # rows are made above
    figures["500 limits over 10"] = round(seconds["500 limits"] / seconds["10 limits"], 2)
    return figures


def spread_over_devices(family: PredictedFamily, each: int) -> list[Limits]:
    """``each`` limits for every latency, from the lowest few percent of random members up."""
    costs = family.cost(family.space.sample(2000, np.random.default_rng(0)))
    return [
        {metric: float(bound)}
        for metric, values in costs.items()
        for bound in np.linspace(np.quantile(values, 0.05), values.max(), each)
    ]


def strategies(data: Data, seeds: Sequence[int]) -> dict[str, object]:
    """The paper's table: time and accuracy of its strategies, for growing numbers of limits."""
    _, resnet = data.resnet()
    scenes: dict[str, tuple[PredictedFamily, str, Sequence[float]]] = {
        "mobilenet-v3, note10": (data.mobilenet("note10")[1], "latency_ms", NOTE10),
        "mobilenet-v3, jetson": (
            jetson := data.mobilenet("jetson_cpu")[1],
            "latency_ms",
            reach(jetson, "latency_ms", 10),
        ),
        "resnet50d, macs": (resnet, "macs", reach(resnet, "macs", 10)),
    }
    figures: dict[str, object] = {}
    for scene, (family, metric, bounds) in scenes.items():
        rows: dict[str, object] = {"limits": [float(bound) for bound in bounds]}
        for name, strategy in _contenders().items():
            counts = COUNTS if name in _PAPER else (10,)
            rows[name] = {
                str(count): _repeated(family, strategy, limited(metric, bounds[:count]), seeds)
                for count in counts
            }
            print(scene, name, {k: v["seconds"]["mean"] for k, v in rows[name].items()}, flush=True)  # type: ignore[attr-defined]  # as built above
        figures[scene] = rows
    return figures


_PAPER = ("vanilla", *(f"{way}, {warm}" for way in ("top-down", "bottom-up") for warm in WARM))


def _contenders() -> dict[str, Strategy]:
    found: dict[str, Strategy] = {"vanilla": Independent()}
    for warm in WARM:
        found[f"top-down, {warm}"] = TopDown(warm_generations=warm)
        found[f"bottom-up, {warm}"] = BottomUp(warm_generations=warm)
    found["all-at-once"] = AllAtOnce()
    found["random, 50,000"] = RandomSearch()
    found["nsga2"] = Nsga2()
    return found


def _repeated(
    family: PredictedFamily, strategy: Strategy, limits: Sequence[Limits], seeds: Sequence[int]
) -> dict[str, object]:
    runs = [strategy.search(family, limits, seed=seed) for seed in seeds]
    return {
        "seconds": time_of([run.seconds for run in runs]),
        "evaluations": mean(run.evaluations for run in runs),
        "accuracy": summary([accuracies(run) for run in runs]),
    }


def reach(family: PredictedFamily, metric: str, count: int) -> list[float]:
    """Limits at even quantiles of random members: 5 % to 95 %."""
    values = family.cost(family.space.sample(5000, np.random.default_rng(0)))[metric]
    return np.quantile(values, np.linspace(0.05, 0.95, count)).round(4).tolist()  # type: ignore[no-any-return]  # numpy


@dataclass(frozen=True)
class HouseShaped:
    """An additive problem as a family: one gene per distinct set of layers, 0 keeps them."""

    problem: AdditiveProblem

    def __post_init__(self) -> None:
        keys, which = np.unique(self.problem.covers, axis=0, return_inverse=True)
        members = [np.flatnonzero(which.ravel() == key) for key in range(len(keys))]
        clash = keys.astype(int) @ keys.astype(int).T > 0
        np.fill_diagonal(clash, False)
        choices = tuple(
            Choice(f"block{key}", (-1, *rows.tolist())) for key, rows in enumerate(members)
        )
        object.__setattr__(self, "space", Space(choices, clash))
        width = max(map(len, members)) + 1
        table = np.full((len(members), width), -1)
        for key, rows in enumerate(members):
            table[key, 1 : len(rows) + 1] = rows
        object.__setattr__(self, "_rows", table)

    def cost(self, genomes: Genomes) -> dict[str, Floats]:
        """Additive costs."""
        total = self.problem.base - self._sum(self.problem.saving, genomes)
        return dict(zip(self.problem.metrics, total.T, strict=True))

    def quality(self, genomes: Genomes) -> Floats:
        """Minus the additive loss."""
        return -self._sum(self.problem.loss[:, None], genomes)[:, 0]

    def _sum(self, values: Floats, genomes: Genomes) -> Floats:
        padded = np.concatenate([values, np.zeros((1, values.shape[1]))])
        rows = self._rows[np.arange(genomes.shape[1]), genomes]  # type: ignore[attr-defined]  # set above
        return np.asarray(padded[rows].sum(axis=1))


def optimum(data: Data, seeds: Sequence[int]) -> dict[str, object]:
    """Gaps to what enumeration or the exact solver proves best."""
    _, family = data.compofa()
    limits = limited("latency_ms", np.linspace(14, 60, 47))
    best = Exhaustive().search(family, limits, seed=0)
    contenders: dict[str, Strategy] = {
        "all-at-once": AllAtOnce(),
        "vanilla": Independent(),
        "top-down, 22": TopDown(),
        "bottom-up, 22": BottomUp(),
        "random, 50,000": RandomSearch(),
    }
    enumerated: dict[str, object] = {
        "members": family.space.size,
        "limits": len(limits),
        "exhaustive_seconds": round(best.seconds, 3),
    }
    for name, strategy in contenders.items():
        few = seeds if name == "all-at-once" else seeds[:2]
        enumerated[name] = _gaps(
            [strategy.search(family, limits, seed=seed) for seed in few], accuracies(best)
        )
    houses: dict[str, object] = {}
    gaps: dict[str, list[SearchResult]] = {name: [] for name in contenders}
    wanted: list[float] = []
    for seed in seeds[:3]:
        problem = house(100, 60, seed=seed)
        shaped = HouseShaped(problem)
        low, whole = exact.lowest(problem, "latency_ms"), float(problem.base[0])
        bounds = limited("latency_ms", [low + s * (whole - low) for s in (0.8, 0.6, 0.4, 0.2)])
        wanted += [-exact.solve(problem, one)[0].loss for one in bounds]
        for name, strategy in contenders.items():
            gaps[name].append(strategy.search(shaped, bounds, seed=seed))  # type: ignore[arg-type]  # space is set in post-init
    for name, results in gaps.items():
        found = [quality for result in results for quality in accuracies(result)]
        gap = np.array(wanted) - found
        houses[name] = {
            "optimal": int((gap < 1e-9).sum()),
            "of": len(gap),
            "mean_gap": round(float(gap.mean()), 5),
            "worst_gap": round(float(gap.max()), 5),
            "seconds": time_of([result.seconds for result in results]),
        }
    print(enumerated, houses, flush=True)
    return {"compofa": enumerated, "houses of 100 alternatives": houses}


def _gaps(results: Sequence[SearchResult], best: Sequence[float]) -> dict[str, object]:
    gap = np.array(best) - np.array([accuracies(result) for result in results])
    return {
        "optimal": int((gap < 1e-9).sum()),
        "of": gap.size,
        "mean_gap": round(float(gap.mean()), 6),
        "worst_gap": round(float(gap.max()), 6),
        "seconds": time_of([result.seconds for result in results]),
    }


def growth(data: Data) -> dict[str, object]:
    """Seconds and peak memory of all-at-once as one thing grows."""
    _, family = data.mobilenet("note10")
    _, resnet = data.resnet()
    _, compofa = data.compofa()
    ten = limited("latency_ms", NOTE10)
    figures: dict[str, object] = {
        "limits": {
            k: _cost(AllAtOnce(), family, limited("latency_ms", np.linspace(15, 60, k)))
            for k in (1, 3, 10, 30, 100, 300, 1000)
        },
        "children": {
            n: _cost(AllAtOnce(children=n, evaluated=n // 3), family, ten)
            for n in (300, 600, 1200, 2400, 4800)
        },
        "genes": {
            len(one.space.choices): _cost(AllAtOnce(), one, limited(metric, reach(one, metric, 10)))
            for one, metric in ((compofa, "latency_ms"), (resnet, "macs"), (family, "latency_ms"))
        },
        "independent, limits": {
            k: _cost(Independent(), family, limited("latency_ms", np.linspace(15, 60, k)))
            for k in (1, 3, 10)
        },
    }
    print(figures, flush=True)
    return figures


def _cost(
    strategy: Strategy, family: PredictedFamily, limits: Sequence[Limits]
) -> dict[str, float]:
    seconds = [strategy.search(family, limits, seed=seed).seconds for seed in range(3)]
    tracemalloc.start()
    strategy.search(family, limits, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": round(float(np.median(seconds)), 4), "peak_mb": round(peak / 1e6, 2)}


def main() -> None:
    """Run the parts asked for and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default="original,fleet,strategies,optimum,growth")
    parser.add_argument("--name", default=None, help="of the result file")
    arguments = parser.parse_args()
    data = Data(arguments.data / "ofa")
    seeds = range(2 if arguments.quick else arguments.seeds)
    parts: dict[str, Callable[[], dict[str, object]]] = {
        "original": lambda: against_original(data, seeds),
        "fleet": lambda: fleet(data, seeds),
        "strategies": lambda: strategies(data, seeds),
        "optimum": lambda: optimum(data, seeds),
        "growth": lambda: growth(data),
    }
    result = arguments.name or ("many_targets_quick" if arguments.quick else "many_targets")
    figures: dict[str, object] = {"seeds": len(seeds)}
    written = RESULTS / f"{result}.json"
    if written.exists() and set(arguments.parts.split(",")) != set(parts):
        figures = json.loads(written.read_text())["figures"]  # the other parts stay
    for name in arguments.parts.split(","):
        began = time.perf_counter()
        figures[name] = parts[name]()
        figures[f"minutes of {name}"] = round((time.perf_counter() - began) / 60, 1)
        print("written:", write_result(result, figures, seed=0))


if __name__ == "__main__":
    main()
