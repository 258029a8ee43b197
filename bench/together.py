"""Small networks trained beside each other against one after the other.

Run: ``python bench/together.py`` on a GPU (some minutes), ``--device cpu`` on a CPU. Alternatives
are those of a house of the CIFAR-10 ResNet-56, donors ResNet-20/32/44; students are two each of
these four. Images are random pixels, since values don't matter for time.

*Distilling* compares whole steps, teacher included: 64 alternatives in turn with all of torch's
threads, and beside each other as `tailorbird.house.distil` does: on a CPU a worker per thread, on a
GPU recorded on streams. Bars: at most 0.5 of the time in turn on a GPU, 1.0 on a CPU, where in turn
on one thread stands beside it. *Students*, on a GPU only, are whole short trainings, recording and
validation included: 8 beside each other should come to at least 3 times the images per second in
turn. On a CPU Tailorbird trains them in turn, so that each ends as it would alone. What is compared
takes turns, and the median of the turns' ratios is taken.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from cifar_resnet import DEPTHS, trained
from house_cost import random_split, setting
from record import write_result
from tailorbird.data.images import ImageData
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Sample
from tailorbird.house.distil import Bunch, Distillation
from tailorbird.house.options import HouseOptions
from tailorbird.house.store import HouseStore
from tailorbird.train.beside import Beside, Crew
from tailorbird.train.losses import CrossEntropy, Term
from tailorbird.train.losses import Distillation as FromTeacher
from tailorbird.train.precision import compute_device, reproducible
from tailorbird.train.recipe import Recipe
from tailorbird.train.recorded import CudaGraphs, Streams
from tailorbird.train.retrain import Assignment
from tailorbird.train.students import train


def company(device: torch.device, said: list[str]) -> Beside:
    """What makes steps beside each other on a device; ``said`` gets what it has to tell."""
    if device.type == "cuda":
        return Streams(CudaGraphs(device), said.append)
    return Crew(torch.get_num_threads(), 1)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of work, with what it asked of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def turns(
    works: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, object]:
    """Seconds of pieces of work in turns; the median of each one's share of the first's."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in sorted(works, reverse=bool(number % 2)):
            times[name].append(seconds(works[name], device))
    first = next(iter(works))
    ratios = {
        name: median(mine / its for mine, its in zip(times[name], times[first], strict=True))
        for name in works
    }
    return {"seconds": times, "ratios": ratios}


def one_threaded(work: Callable[[], object]) -> Callable[[], None]:
    """The same work on one of torch's threads."""

    def held() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            work()
        finally:
            torch.set_num_threads(before)

    return held


def distilling(
    house: tuple[LayerGraph, Sample, ImageData],
    device: torch.device,
    *,
    wanted: int,
    batch: int,
    rounds: int,
    steps: int,
) -> dict[str, object]:
    """Steps of alternatives in turn and together."""
    teacher, sample, data = house
    able = [a for a in sample.alternatives if a.trainable]
    chosen = [able[i * len(able) // wanted] for i in range(min(wanted, len(able)))]
    said: list[str] = []
    images = next(iter(data.train.batches(batch, device=device)))[0]

    def bunch(beside: Callable[[], Beside]) -> Callable[[], None]:
        options = HouseOptions(batch_size=batch)
        with tempfile.TemporaryDirectory() as folder:
            store = HouseStore(Path(folder))
        job = Distillation(teacher, sample, data, options, 0, store, device, beside=beside)
        made = Bunch(job, chosen, job.clock())
        made.open()

        def work() -> None:
            for _ in range(steps):
                made.make(images, None)

        for _ in range(4 if made.beside.records else 1):  # written twice, recorded, replayed
            made.make(images, None)
        return work

    with reproducible(device):
        alone = bunch(Crew)
        works: dict[str, Callable[[], object]] = {"in turn": alone}
        if device.type == "cpu":
            works["in turn, one thread"] = one_threaded(alone)
        works["together"] = bunch(lambda: company(device, said))
        times = turns(works, device, rounds)
    structures = len({a.structure for a in chosen})
    shape = {"alternatives": len(chosen), "structures": structures, "steps": steps}
    return {**shape, "batch": batch, **times, "as_written": said}


def students(
    teacher: LayerGraph,
    data: ImageData,
    root: Path,
    device: torch.device,
    *,
    count: int,
    batch: int,
    rounds: int,
    steps: int,
) -> dict[str, object]:
    """Whole short trainings of students in turn and together."""
    networks = {depth: trained(depth, root) for depth in DEPTHS}
    some = itertools.islice(itertools.cycle(networks.items()), count)
    assignments = [
        Assignment(name=f"{number}: resnet{depth}", student=copy.deepcopy(network))
        for number, (depth, network) in enumerate(some)
    ]
    terms: list[Term] = [CrossEntropy(), FromTeacher(temperature=2.0)]
    per_epoch = max(1, len(data.train) // batch)
    recipe = Recipe(
        epochs=steps / per_epoch, batch_size=batch, learning_rate=1e-3, recalibrate_batches=0
    )
    said: list[str] = []

    def work(beside: Callable[[], Beside]) -> Callable[[], object]:
        return lambda: train(
            assignments,
            data,
            terms=lambda _: terms,
            recipe=recipe,
            seed=0,
            teacher=teacher.module,
            device=device,
            beside=beside(),
        )

    works = {"in turn": work(Crew), "together": work(lambda: company(device, said))}
    works["in turn"]()  # chooses kernels, fills caches
    shape = {"students": count, "steps": steps, "batch": batch}
    return {**shape, **turns(works, device, rounds), "as_written": sorted(set(said))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: what there is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128, help="images of a distillation step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny, not written down")
    arguments = parser.parse_args()
    device, quick, rounds = compute_device(arguments.device), arguments.quick, arguments.rounds
    on_gpu = device.type == "cuda"
    teacher, sample, data = setting(arguments.data, True, arguments.seed)
    distilled = distilling(
        (teacher, sample, data),
        device,
        wanted=4 if quick else 64,
        batch=16 if quick else arguments.batch,
        rounds=rounds,
        steps=20 if on_gpu else 1,
    )
    share, bar = _share(distilled), 0.5 if on_gpu else 1.0
    met = {f"distil together / in turn <= {bar}": share <= bar}
    print(f"distilling {distilled['alternatives']} together / in turn: {share:.3f} (bar {bar})")
    figures: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "distilling": distilled,
        "met": met,
    }
    if on_gpu or quick:
        batch, count, steps = (16, 2, 4) if quick else (256, 8, 300)
        few = replace(data, train=random_split(20 * batch, 2), validation=random_split(batch, 3))
        figures["students"] = trained_on = students(
            teacher,
            few,
            arguments.data,
            device,
            count=count,
            batch=batch,
            rounds=rounds,
            steps=steps,
        )
        speed_up = 1 / _share(trained_on)
        print(f"{count} students, images per second together / in turn: {speed_up:.2f} (bar 3)")
        met["students' images per second >= 3 times"] = speed_up >= 3
        print(*_list(trained_on["as_written"]), sep="\n")
    print(*_list(distilled["as_written"]), sep="\n")
    if not quick:
        name = f"together_{'gpu' if on_gpu else 'cpu'}"
        print(write_result(name, figures, seed=arguments.seed))


def _share(figures: Mapping[str, object]) -> float:
    ratios = figures["ratios"]
    assert isinstance(ratios, dict)
    return float(ratios["together"])


def _list(lines: object) -> list[str]:
    assert isinstance(lines, list)
    return lines


if __name__ == "__main__":
    main()
