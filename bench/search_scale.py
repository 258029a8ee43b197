"""Search at scale: 400 alternatives and 10 limits, exact time and the gap of annealing.

Run: ``python bench/search_scale.py``. Bars: all 10 exact searches within 2 s together; annealing
within 1 % of the optimum's score at each limit.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np

from record import write_result
from tailorbird.errors import InfeasibleError
from tailorbird.family import AdditiveProblem
from tailorbird.search import exact
from tailorbird.search.annealing import anneal, greedy, score
from tailorbird.search.random import select
from tailorbird.search.selection import Selection

METRICS = ("latency_ms", "macs", "params", "size_mb", "peak_memory_mb")
SHARES = (0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3)


def house(alternatives: int, layers: int, *, seed: int) -> AdditiveProblem:
    """A problem shaped like a model house: eight alternatives a block, blocks are layer runs."""
    rng = np.random.default_rng(seed)
    m = len(METRICS)
    cost = rng.gamma(2.0, 1.0, (layers, 1)) * rng.uniform(0.5, 1.5, (layers, m))
    blocks = alternatives // 8
    start = rng.integers(0, layers - 2, blocks)
    length = np.minimum(rng.integers(1, int(0.3 * layers) + 1, blocks), layers - start)
    which = rng.integers(0, blocks, alternatives)
    place = np.arange(layers)
    covers = (place >= start[which, None]) & (place < (start + length)[which, None])
    share = rng.uniform(-0.05, 0.95, alternatives)
    noise = rng.uniform(0.9, 1.1, (alternatives, m))
    return AdditiveProblem(
        loss=rng.lognormal(-4.5, 1.0, alternatives) * np.maximum(share, 0.02) * length[which] / 10,
        saving=(covers @ cost) * share[:, None] * noise,
        base=cost.sum(axis=0),
        covers=covers,
        metrics=METRICS,
    )


def one_problem(problem: AdditiveProblem, metrics: tuple[str, ...], seed: int) -> dict[str, object]:
    """Figures of one problem under the ten limits on ``metrics``."""
    base = dict(zip(METRICS, problem.base.tolist(), strict=True))
    limits = [{metric: share * base[metric] for metric in metrics} for share in SHARES]
    began = perf_counter()
    optima = [_optimum(problem, bound) for bound in limits]
    exact_s = perf_counter() - began
    rows: list[dict[str, object]] = []
    for share, bound, best in zip(SHARES, limits, optima, strict=True):
        if isinstance(best, InfeasibleError):
            rows.append({"share": share, "infeasible": best.lowest})
            continue
        began = perf_counter()
        found = anneal(problem, bound, seed=seed)
        rows.append(
            {
                "share": share,
                "optimum_loss": best.loss,
                "annealing_loss": found.loss,
                "annealing_gap": found.loss - best.loss,
                "annealing_s": perf_counter() - began,
                "score_ratio": score(problem, found.chosen, bound)
                / score(problem, best.chosen, bound),
                "greedy_loss": greedy(problem, bound).loss,
                "random_loss": select(problem, bound, seed=seed).loss,
            }
        )
    return {"exact_s": exact_s, "rows": rows}


def _optimum(problem: AdditiveProblem, limits: dict[str, float]) -> Selection | InfeasibleError:
    try:
        return exact.solve(problem, limits)[0]
    except InfeasibleError as error:
        return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=3)
    arguments = parser.parse_args()
    figures: dict[str, object] = {"alternatives": 400, "layers": 150, "limits": len(SHARES)}
    worst_s, worst_ratio = 0.0, 1.0
    for number in range(arguments.problems):
        problem = house(400, 150, seed=arguments.seed + number)
        for metrics in (("latency_ms",), METRICS):
            result = one_problem(problem, metrics, arguments.seed)
            figures[f"problem {number}, {len(metrics)} metrics limited"] = result
            seconds, rows = result["exact_s"], result["rows"]
            assert isinstance(seconds, float) and isinstance(rows, list)
            ratios = [row["score_ratio"] for row in rows if "score_ratio" in row]
            worst_s, worst_ratio = max(worst_s, seconds), max(worst_ratio, *ratios)
            print(
                f"problem {number}, {len(metrics)} metrics: exact {seconds:.2f} s for {len(rows)} "
                f"targets, annealing at most {100 * (max(ratios) - 1):.2f} % over the optimum"
            )
    figures["worst_exact_s"], figures["worst_score_ratio"] = worst_s, worst_ratio
    figures["met"] = {"exact < 2 s": worst_s < 2, "annealing within 1 %": worst_ratio <= 1.01}
    print(write_result("search_scale", figures, seed=arguments.seed))


if __name__ == "__main__":
    main()
