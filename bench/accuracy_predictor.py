"""Accuracy predictors: rank correlation and calibration over the number of measured pairs.

Run: ``python bench/accuracy_predictor.py``. Data: 1,265 subnets of the once-for-all MobileNetV3
with measured ImageNet top-1; 265 are held out, 10 splits, ours and the yardsticks on the same ones.
Bars: mean Kendall tau above 0.80 / 0.86 / 0.90 / 0.92 / 0.94 (ridge and SVR on one-hot genes) from
50 / 100 / 250 / 500 / 1,000 pairs. Also timed: the two published networks on one core.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from time import process_time

import matplotlib
import numpy as np
from scipy.stats import kendalltau
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from threadpoolctl import threadpool_limits

from record import write_result
from tailorbird.estimate.accuracy_predictor import OfaPredictor
from tailorbird.estimate.features import architecture_features
from tailorbird.estimate.predictor_files import read_pairs
from tailorbird.estimate.train_predictor import fit
from tailorbird.family import Floats
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace, load_space

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("TAILORBIRD_DATA", ROOT / "../shared/data")) / "ofa"
PICTURE = ROOT / "docs" / "img" / "accuracy_predictor.png"
BARS = {50: 0.80, 100: 0.86, 250: 0.90, 500: 0.92, 1000: 0.94}
SUBNETS = "mbv3_w1.0_evaluated_subnets.jsonl"
HELD_OUT = 265
OURS = "Tailorbird"


def svr() -> TransformedTargetRegressor:
    """SVR with the penalty that did best here, its targets scaled."""
    return TransformedTargetRegressor(SVR(C=10, epsilon=0.05), transformer=StandardScaler())


def yardsticks(one_hot: Floats, figures: Floats) -> dict[str, tuple[Callable[[], object], Floats]]:
    """Name -> what makes the regressor, and its inputs. The last shows what the features give."""
    alphas = np.logspace(-3, 3, 13)
    return {
        "ridge, one-hot": (lambda: Ridge(alpha=1.0), one_hot),
        "SVR, one-hot": (svr, one_hot),
        "ridge, our features": (
            lambda: make_pipeline(StandardScaler(), RidgeCV(alphas=alphas)),
            np.concatenate([one_hot, figures], axis=1),
        ),
    }


def one_split(
    genomes: Genomes, accuracies: Floats, *, pairs: int, seed: int
) -> dict[str, dict[str, float]]:
    """Figures of every method on one split."""
    order = np.random.default_rng(seed).permutation(len(genomes))
    held, train = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + pairs]
    features = architecture_features(load_space("ofa-mbv3-w1.0"))
    began = process_time()
    predictor = fit(genomes[train], accuracies[train], features, seed=seed)
    seconds = process_time() - began
    found = asdict(predictor.report(genomes[held], accuracies[held]))
    del found["pairs"]
    known = {tuple(row) for row in genomes[train].tolist()}
    new = held[[tuple(row) not in known for row in genomes[held].tolist()]]
    rows = {OURS: found | {"fit_cpu_s": seconds}}
    rows[OURS]["kendall_tau_of_new"] = predictor.report(genomes[new], accuracies[new]).kendall_tau
    groups = features(genomes)
    for name, (make, inputs) in yardsticks(groups["genes"], groups["figures"]).items():
        model = make()
        model.fit(inputs[train], accuracies[train])  # type: ignore[attr-defined]  # regressors fit
        predicted = model.predict(inputs[held])  # type: ignore[attr-defined]  # and predict
        rows[name] = {
            "kendall_tau": float(kendalltau(predicted, accuracies[held]).statistic),
            "mae": float(np.abs(predicted - accuracies[held]).mean()),
        }
    return rows


def curve(splits: int) -> list[dict[str, object]]:
    """Mean and spread over the splits of every method at every number of pairs."""
    genomes, accuracies = read_pairs(DATA / SUBNETS, load_space("ofa-mbv3-w1.0"))
    rows: list[dict[str, object]] = []
    for pairs, bar in BARS.items():
        found = [one_split(genomes, accuracies, pairs=pairs, seed=seed) for seed in range(splits)]
        for method in found[0]:
            figures = {key: [split[method][key] for split in found] for key in found[0][method]}
            rows.append(
                {"pairs": pairs, "method": method, "bar": bar, "splits": splits}
                | {key: round(float(np.mean(values)), 4) for key, values in figures.items()}
                | {"kendall_tau_spread": round(float(np.std(figures["kendall_tau"], ddof=1)), 4)}
            )
            print(rows[-1], flush=True)
    return rows


def timing(repeats: int) -> list[dict[str, object]]:
    """Milliseconds per 1,000 genomes, one thread: processor time, so that others don't count."""
    rows: list[dict[str, object]] = []
    subnets = load_space("ofa-mbv3-w1.0")
    pairs = read_pairs(DATA / SUBNETS, subnets)
    trained = fit(pairs[0][:1000], pairs[1][:1000], architecture_features(subnets))
    predictors: list[tuple[str, ArchitectureSpace, Callable[[Genomes], object]]] = [
        ("trained on 1,000 pairs, mean", subnets, trained),
        ("trained on 1,000 pairs, mean and std", subnets, trained.predict),
    ]
    for space_name, file in (
        ("ofa-mbv3-w1.2", "mbv3_accuracy_predictor"),
        ("ofa-resnet50d", "resnet50d_accuracy_predictor"),
    ):
        space = load_space(space_name)
        published = OfaPredictor.from_file(DATA / f"{file}.safetensors", space)
        predictors.append((f"published, {space_name}", space, published))
    for name, space, predict in predictors:
        for batch in (1, 100, 500, 1000, 5000):
            genomes = space.space.sample(batch, np.random.default_rng(0))
            seconds = []
            for _ in range(repeats):
                began = process_time()
                predict(genomes)
                seconds.append(process_time() - began)
            per_thousand = {"best": min(seconds), "median": float(np.median(seconds))}
            rows.append(
                {"predictor": name, "batch": batch}
                | {f"ms_per_1000_{k}": round(1e6 * s / batch, 3) for k, s in per_thousand.items()}
            )
            print(rows[-1], flush=True)
    return rows


def draw(rows: list[Mapping[str, object]], path: Path) -> None:
    """Rank correlation over pairs, and the calibration of ours."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for method, colour, mark in (
        (OURS, "#d55e00", "o"),
        ("ridge, our features", "#e69f00", "P"),
        ("SVR, one-hot", "#0072b2", "s"),
        ("ridge, one-hot", "#009e73", "^"),
    ):
        points = [row for row in rows if row["method"] == method]
        sizes, tau, spread = (
            np.array([row[key] for row in points], dtype=np.float64)
            for key in ("pairs", "kendall_tau", "kendall_tau_spread")
        )
        left.errorbar(sizes, tau, spread, c=colour, marker=mark, label=method, capsize=2)
    ours = [row for row in rows if row["method"] == OURS]
    left.set_ylabel(f"Kendall tau on {HELD_OUT} held-out subnets")
    left.legend(fontsize=8, loc="lower right")
    for key, ideal, colour in (
        ("within_1_std", 68.3, "#0072b2"),
        ("within_2_std", 95.4, "#d55e00"),
    ):
        share = [100 * float(str(row[key])) for row in ours]
        label = f"within {key[7]} standard deviation{'s' if key[7] == '2' else ''}"
        right.plot([row["pairs"] for row in ours], share, c=colour, marker="o", label=label)
        right.axhline(ideal, color=colour, linestyle="--", linewidth=1)
    right.set_ylim(50, 100)
    right.set_ylabel("share of held-out subnets, % (dashed: ideal)")
    right.legend(fontsize=8, loc="center right")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(list(BARS), [f"{size:,}" for size in BARS])
        axes.minorticks_off()
        axes.set_xlabel("subnets with measured accuracy")
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run all, write the JSON and the picture, and say whether the bars are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=30)
    given = parser.parse_args()
    with threadpool_limits(1):
        rows = curve(given.splits)
        times = timing(given.repeats)
    ours = [row for row in rows if row["method"] == OURS]
    kept = all(float(str(row["kendall_tau"])) > float(str(row["bar"])) for row in ours)
    best = all(
        float(str(mine["kendall_tau"])) > float(str(row["kendall_tau"]))
        for mine in ours
        for row in rows
        if row["pairs"] == mine["pairs"] and str(row["method"]).endswith("one-hot")
    )
    figures = {"held_out": HELD_OUT, "bars_kept": kept, "above_yardsticks": best, "rows": rows}
    print(f"bars kept: {kept}; above ridge and SVR: {best}")
    write_result("accuracy_predictor", figures | {"timing": times}, seed=0)
    draw([*rows], PICTURE)


if __name__ == "__main__":
    main()
