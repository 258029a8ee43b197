"""A search beside two busy processes: with the hold of thread counts, without, and what users did.

    python bench/busy_search.py --data ../shared/data

Two processes multiply matrices all the while, so that the cores have more to do than they can. Each
way to search is a process of its own, and they take turns:

held            as Tailorbird is: `tailorbird.threads.one_thread` around the search
not held        the same search with that hold made to do nothing
OMP_NUM_THREADS not held either, with ``OMP_NUM_THREADS=1`` set, which users had to know

Ten limits on the Note10 by all-at-once, and the same beside nothing. Times are of the search alone,
without imports; what was found has to be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median

from record import write_result

LIMITS = tuple(float(limit) for limit in range(15, 65, 5))
WAYS = ("held", "not held", "OMP_NUM_THREADS=1")
BUSY = "import numpy as np\na = np.random.default_rng(0).normal(size=(300, 300))\nwhile True: a @ a"
PEERS = 2


def search_once(data: Path, way: str, seed: int) -> dict[str, object]:
    """Seconds of one search and what it found; in this process."""
    from contextlib import nullcontext
    from inspect import unwrap

    from tailorbird.estimate.accuracy_predictor import OfaPredictor
    from tailorbird.estimate.latency_table import compile_table, read_table
    from tailorbird.estimate.predicted import PredictedFamily
    from tailorbird.search.many_targets import AllAtOnce
    from tailorbird.supernet.architecture import SlotTable, load_space
    from tailorbird.threads import one_thread

    table = read_table(data / "latency_tables" / "note10")
    space = load_space("ofa-mbv3-w1.2", resolutions=table.resolutions)
    latency = compile_table(table, space)
    predictor = OfaPredictor.from_file(data / "mbv3_accuracy_predictor.safetensors", space)
    accuracy, cost, search = OfaPredictor.predict, SlotTable.sum, AllAtOnce.search
    if way != "held":  # what the decorator put around them, taken off
        accuracy, cost, search = unwrap(accuracy), unwrap(cost), unwrap(search)
    family = PredictedFamily(
        space=space.space,
        predictor=lambda genomes: accuracy(predictor, genomes),
        costs={"latency_ms": lambda genomes: cost(latency, genomes)},
    )
    limits = [{"latency_ms": limit} for limit in LIMITS]
    with one_thread() if way == "held" else nullcontext():  # libraries are looked for once
        pass
    found = search(AllAtOnce(), family, limits, seed=seed)
    return {
        "seconds": found.seconds,
        "evaluations": found.evaluations,
        "accuracies": [winner.quality for winner in found.winners],
    }


def in_a_process(data: Path, way: str, seed: int) -> dict[str, object]:
    """`search_once` in a fresh process, its environment as the way says."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    if way == "OMP_NUM_THREADS=1":
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, __file__, "--data", str(data.parent), "--one", way, "--seed", str(seed)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return found


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that multiply matrices, one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", BUSY], env=environment) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=WAYS, help="search once this way; print JSON")
    arguments = parser.parse_args()
    data = arguments.data / "ofa"
    if arguments.one is not None:
        print(json.dumps(search_once(data, arguments.one, arguments.seed)))
        return
    figures: dict[str, object] = {"limits_ms": LIMITS, "repeats": arguments.repeats}
    for name, peers in (("beside nothing", 0), (f"beside {PEERS} busy processes", PEERS)):
        runs: dict[str, list[dict[str, object]]] = {way: [] for way in WAYS}
        with busy(peers):
            for repeat in range(arguments.repeats):
                for way in WAYS:
                    runs[way].append(in_a_process(data, way, arguments.seed + repeat))
        seconds = {way: [float(str(run["seconds"])) for run in runs[way]] for way in WAYS}
        same = all(
            runs[way][repeat]["accuracies"] == runs["held"][repeat]["accuracies"]
            for way in WAYS
            for repeat in range(arguments.repeats)
        )
        figures[name] = {
            **{way: summary(seconds[way]) for way in WAYS},
            "not held over held": round(median(seconds["not held"]) / median(seconds["held"]), 2),
            "equal accuracies": same,
        }
        print(name, json.dumps(figures[name], indent=1), flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    figures["load_at_the_end"] = load
    print(write_result("busy_search", figures, seed=arguments.seed))


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, mean and range."""
    return {
        "median_s": round(median(seconds), 3),
        "mean_s": round(mean(seconds), 3),
        "least_s": round(min(seconds), 3),
        "most_s": round(max(seconds), 3),
    }


if __name__ == "__main__":
    main()
