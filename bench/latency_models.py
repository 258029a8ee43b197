"""Latency models learned from measurements: 5,000 subnets on 9 device settings, 10 seeds.

    python bench/latency_models.py architecture --data ../shared/data    # 7 minutes on one core
    python bench/latency_models.py transfer --data ../shared/data        # 1 minute
    python bench/latency_models.py plot

``architecture``: from the architecture alone, 10 to 500 samples. ``transfer``: from the devices of
all other GPUs (no batch size of the new GPU is known), 5 to 20 samples. Both against plain ridge:
alone on the architecture's numbers (strong from few samples) and on one-hot genes (strong from
500), in transfer on the other GPUs' measured log latencies.
The data don't say which width multiplier the subnets have; features are those of multiplier 1.0.
Errors are against single timings, noise and late outliers included: no model gets below them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from record import RESULTS, write_result
from tailorbird.estimate.learned_latency import LatencyModel, LayerFeatures
from tailorbird.estimate.regression import regress
from tailorbird.estimate.transfer import DeviceFeatures, choose
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import load_space

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Prediction = tuple[Floats, Floats | None, float | None]

SIZES = (10, 20, 50, 100, 500)
TRANSFER_SIZES = (5, 10, 20)
SEEDS = 10
KNOWN_SAMPLES = 500
CANDIDATES = 1000
PICTURE = Path(__file__).parents[1] / "docs" / "img" / "latency_models.png"
STATED = {
    "architecture, ridge, titan_xp_64, rank from 20/50/100": [0.76, 0.91, 0.97],
    "transfer, ridge, 20 samples, batch 32 and 64: rank, error": [0.99, 0.035],
    "transfer, ridge, 20 samples, 2080ti_1: rank, error": [0.64, 0.10],
}
"""Yardsticks given beforehand; the ridge of this file is run next to them."""


class Measured:
    """The measured subnets.

    Attributes:
        genomes: (n, genes).
        ms: setting -> (n,) measured latencies.
        numbers: (n, 46) kernels, expand ratios (0 where a block is skipped), depths, resolution.
    """

    def __init__(self, data: Path) -> None:
        table = pq.read_table(data / "ofa" / "mbv3_measured_latencies.parquet").to_pydict()
        self.space = load_space("ofa-mbv3-w1.0")
        keys = ("ks", "e", "d", "r")
        rows = zip(*(table[key] for key in keys), strict=True)
        self.genomes: Genomes = self.space.genomes(
            [dict(zip(keys, row, strict=True)) for row in rows]
        )
        self.ms = {
            name.removesuffix("_ms"): np.array(values)
            for name, values in table.items()
            if name.endswith("_ms")
        }
        depths = np.array(table["d"])
        active = (np.arange(4) < depths[:, :, None]).reshape(len(depths), 20)
        kernels, expands = np.array(table["ks"]) * active, np.array(table["e"]) * active
        self.numbers = np.column_stack([kernels, expands, depths, table["r"]]).astype(np.float64)


def gpu(setting: str) -> str:
    return setting.rpartition("_")[0]


def judge(
    measured: Floats, train: Rows, predict: Callable[[Rows, Floats], Prediction]
) -> dict[str, float]:
    """Rank correlation and mean relative error on all rows that weren't used."""
    ms, std, stated = predict(train, measured[train])
    rest = np.delete(np.arange(len(measured)), train)
    truth, away = measured[rest], ms[rest] - measured[rest]
    result = {
        "rank": float(spearmanr(ms[rest], truth).statistic),
        "error": float(np.mean(np.abs(away) / truth)),
        "median_error": float(np.median(np.abs(away) / truth)),
    }
    if std is not None and stated is not None:
        result["stated_error"] = stated
        result["within_1_std"] = float(np.mean(np.abs(away) <= std[rest]))
        result["within_2_std"] = float(np.mean(np.abs(away) <= 2 * std[rest]))
    return result


def mean_over(runs: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure, and the spread of rank and error over the seeds."""
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    for name in ("rank", "error"):
        means[f"{name}_spread"] = float(np.std([run[name] for run in runs]))
    return means


def ridge(inputs: Floats, *, scale: bool) -> Callable[[Rows, Floats], Prediction]:
    """Ridge on log latency, its strength chosen by leave-one-out."""

    def predict(train: Rows, ms: Floats) -> Prediction:
        spread = inputs[train].std(axis=0)
        scaled = inputs / np.where(spread > 0, spread, 1) if scale else inputs
        model = RidgeCV(np.logspace(-3, 3, 13)).fit(scaled[train], np.log(ms))
        return np.exp(model.predict(scaled)), None, None

    return predict


def architecture(measured: Measured) -> dict[str, object]:
    """Curves from the architecture alone."""
    features = LayerFeatures(measured.space)
    inputs = features(measured.genomes)
    one_hot = inputs[:, features.groups[0].columns :]

    def ours(train: Rows, ms: Floats) -> Prediction:
        model = regress(inputs[train], ms, groups=features.groups)
        return (*model.predict(inputs), model.error)

    methods = {
        "ridge, numbers": ridge(measured.numbers, scale=False),
        "ridge, one-hot": ridge(one_hot, scale=False),
        "ours": ours,
    }
    curves: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for setting, ms in measured.ms.items():
        began = perf_counter()
        curves[setting] = {name: {} for name in methods}
        for size in SIZES:
            trains = [
                np.random.default_rng(seed).permutation(len(ms))[:size] for seed in range(SEEDS)
            ]
            for name, predict in methods.items():
                runs = [judge(ms, train, predict) for train in trains]
                curves[setting][name][str(size)] = mean_over(runs)
        show(setting, curves[setting], perf_counter() - began)
    return {"stated_yardsticks": STATED, "seeds": SEEDS, "curves": curves}


def transfer(measured: Measured) -> dict[str, object]:
    """Leave one GPU out: its three batch sizes are unseen."""
    features = LayerFeatures(measured.space)
    models = {}
    for setting, ms in measured.ms.items():
        rows = np.random.default_rng(1234).permutation(len(ms))[:KNOWN_SAMPLES]
        models[setting] = LatencyModel.fit(measured.genomes[rows], ms[rows], features=features)
    curves: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    designs: dict[str, list[Rows]] = {}
    for setting, ms in measured.ms.items():
        began = perf_counter()
        names = [other for other in measured.ms if gpu(other) != gpu(setting)]
        known = DeviceFeatures({n: models[n].latency_ms for n in names}, architecture=features)
        inputs = known(measured.genomes)
        logs = np.log(np.column_stack([measured.ms[name] for name in names]))

        def ours(
            train: Rows, ms: Floats, inputs: Floats = inputs, known: DeviceFeatures = known
        ) -> Prediction:
            model = regress(inputs[train], ms, groups=known.groups)
            return (*model.predict(inputs), model.error)

        orders = [np.random.default_rng(seed).permutation(len(ms)) for seed in range(SEEDS)]
        if gpu(setting) not in designs:
            designs[gpu(setting)] = [
                order[:CANDIDATES][
                    choose(
                        known,
                        measured.genomes[order[:CANDIDATES]],
                        max(TRANSFER_SIZES),
                        rng=np.random.default_rng(0),
                    )
                ]
                for order in orders
            ]
        chosen = designs[gpu(setting)]
        plans = {
            "ridge, random": (ridge(logs, scale=True), orders),
            "ours, random": (ours, orders),
            "ours, chosen": (ours, chosen),
        }
        curves[setting] = {}
        for name, (predict, trains) in plans.items():
            curves[setting][name] = {
                str(size): mean_over([judge(ms, rows[:size], predict) for rows in trains])
                for size in TRANSFER_SIZES
            }
        show(setting, curves[setting], perf_counter() - began)
    return {
        "stated_yardsticks": STATED,
        "seeds": SEEDS,
        "known_devices_samples": KNOWN_SAMPLES,
        "candidates": CANDIDATES,
        "curves": curves,
    }


def show(setting: str, curves: Mapping[str, Mapping[str, Mapping[str, float]]], s: float) -> None:
    """One line per method: rank / error (%) at each size."""
    print(f"{setting} ({s:.0f} s)")
    for name, by_size in curves.items():
        cells = [f"{n}: {f['rank']:.3f}/{100 * f['error']:.1f}" for n, f in by_size.items()]
        honest = [
            f"{100 * f['stated_error']:.1f} ({100 * f['within_1_std']:.0f}, "
            f"{100 * f['within_2_std']:.0f})"
            for f in by_size.values()
            if "stated_error" in f
        ]
        print(f"  {name:15}", *cells, *(["stated", *honest] if honest else []), flush=True)


def behind(
    curves: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], ours: str
) -> list[str]:
    """Where a yardstick is better than ours in rank or error, by more than rounding."""
    return [
        f"{setting}, {size} samples, {figure}: {by[ours][size][figure]:.4f} against {name} "
        f"{by[name][size][figure]:.4f}"
        for setting, by in curves.items()
        for name in by
        if name.startswith("ridge")
        for size in by[name]
        for figure, sign in (("rank", 1), ("error", -1))
        if sign * (by[ours][size][figure] - by[name][size][figure]) < -0.0005
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("architecture", "transfer", "plot"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    if arguments.part == "plot":
        plot()
        return
    measured = Measured(arguments.data)
    began = perf_counter()
    if arguments.part == "architecture":
        figures, ours = architecture(measured), "ours"
    else:
        figures, ours = transfer(measured), "ours, chosen"
    curves = figures["curves"]
    assert isinstance(curves, dict)
    worse = behind(curves, ours)
    figures["behind"] = worse
    figures["seconds"] = perf_counter() - began
    print("behind the yardstick:", *(worse or ["nowhere"]), sep="\n  ")
    print(write_result(f"latency_{arguments.part}", figures, seed=0))


def plot() -> None:
    """Error over measurements on a new GPU, mean over GPUs, one panel per batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    alone, moved = (
        json.loads((RESULTS / f"latency_{part}.json").read_text())["figures"]["curves"]
        for part in ("architecture", "transfer")
    )
    lines = (
        (alone, "ridge, numbers", "0.65", ":", "linear model of the architecture"),
        (moved, "ridge, random", "0.45", "--", "linear model of other GPUs' latencies"),
        (alone, "ours", "C0", "-", "Tailorbird, the architecture alone"),
        (moved, "ours, chosen", "C3", "-", "Tailorbird, other GPUs known too"),
    )
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharey=True)
    for axis, batch in zip(axes, (1, 32, 64), strict=True):
        settings = [setting for setting in alone if setting.endswith(f"_{batch}")]
        for curves, name, colour, style, label in lines:
            sizes = curves[settings[0]][name]
            errors = [
                100 * mean(curves[setting][name][size]["error"] for setting in settings)
                for size in sizes
            ]
            numbers = [int(size) for size in sizes]
            axis.plot(numbers, errors, style, color=colour, marker=".", label=label)
        axis.set(xscale="log", ylim=(0, None), xlabel="networks measured on the new GPU")
        axis.set_title(f"batch {batch}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean error of a latency, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


if __name__ == "__main__":
    main()
