"""What building a model house costs: distillation, scoring, memory, tracing, timing of blocks.

Run: ``OMP_NUM_THREADS=1 python bench/house_cost.py`` (about 4 minutes on an idle core; ``--quick``:
under one). The house is drawn from the trained CIFAR-10 ResNet-56, donors ResNet-20/32/44; images
are random pixels, since values don't matter for time, and accuracies only have to agree. Bars:
distilling m alternatives together costs at most 1.15x the sum of their own steps plus one teacher
pass; scoring with kept prefixes is at least 1.5x faster than whole networks, same accuracies;
distillation stays within its memory budget; all blocks of EfficientNet-B2 within 10 s.

What is compared takes turns, and medians are taken. Bars on ratios are judged on processor time,
which other processes on the machine disturb little; wall time stands beside it.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cifar_resnet import trained
from record import write_result
from tailorbird.data.images import IMAGENET, ImageData, Split, TensorSplit
from tailorbird.export.exporters import OnnxExporter
from tailorbird.fit.bench import time_networks
from tailorbird.fit.candidates import Network
from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.surgery import induce
from tailorbird.graph.trace import LayerGraph, trace
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.build import sample_house
from tailorbird.house.bunches import plan_bunches
from tailorbird.house.distil import Bunch, Distillation, distil
from tailorbird.house.options import HouseOptions
from tailorbird.house.score import score_accuracy
from tailorbird.house.store import HouseStore
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.train.precision import autocast, compute_device, lay_out, resolve

SHAPE = (3, 32, 32)
BATCH = 128
Clock = tuple[float, float]
"""Processor seconds (wall seconds on a GPU), wall seconds."""


def timed(work: Callable[[], object]) -> Clock:
    """How long ``work`` takes, with what it queued on a GPU."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return (wall if cuda else cpu), wall


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Clock]:
    """Median times of pieces of work that take turns, after one untimed turn each."""
    times: dict[str, list[Clock]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            spent = timed(work)
            if turn:
                times[name].append(spent)
    return {k: (median(t[0] for t in v), median(t[1] for t in v)) for k, v in times.items()}


def random_split(images: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return TensorSplit(pixels, labels, IMAGENET, crop_padding=4, flip=True)


def setting(root: Path, quick: bool, seed: int) -> tuple[LayerGraph, Sample, ImageData]:
    """The traced teacher, a house of alternatives, and images."""
    teacher = trace(trained(56, root), SHAPE)
    donors = {f"resnet{depth}": trace(trained(depth, root), SHAPE) for depth in (20, 32, 44)}
    data = ImageData(
        train=random_split(4 * BATCH, seed),
        validation=random_split(256 if quick else 1024, seed + 1),
        test=None,
        classes=None,
        normalisation=IMAGENET,
        input_shape=SHAPE,
        labelled=True,
        name="random pixels",
    )
    options = HouseOptions(
        teacher_blocks=24, donor_blocks=24, pruned=0 if quick else 12, recall=0.35
    )
    return teacher, sample_house(teacher, donors, data, options, seed=seed), data


def distillation(
    teacher: LayerGraph, sample: Sample, data: ImageData, m: int, rounds: int
) -> dict[str, float]:
    """Steps of m alternatives together, batch and teacher included, against each on its own."""
    device = compute_device()
    trainable = [a for a in sample.alternatives if a.trainable]
    chosen = [trainable[i * len(trainable) // m] for i in range(m)]
    with tempfile.TemporaryDirectory() as folder:
        store, options = HouseStore(Path(folder)), HouseOptions(batch_size=BATCH)
    job = Distillation(teacher, sample, data, options, 0, store, device)
    bunch = Bunch(job, chosen, job.clock())
    bunch.open()
    walk = itertools.chain.from_iterable(
        data.train.batches(
            BATCH, generator=torch.Generator().manual_seed(epoch), augment=True, device=device
        )
        for epoch in itertools.count()
    )
    images, _ = next(walk)
    seen = bunch.ask(images)
    network = copy.deepcopy(teacher.module).to(device)
    lay_out(network, torch.zeros(2, *SHAPE, device=device))
    teacher_format = resolve("auto", device, network)
    works: dict[str, Callable[[], object]] = {
        "together": lambda: bunch.make(next(walk)[0], None),
        "teacher": lambda: forward(network, images, device, teacher_format),
    }
    for trainee in bunch.trainees:
        ends = seen[trainee.block.input], seen[trainee.block.output]
        works[trainee.record.name] = own_step(job.enlist(trainee.record).state.module, *ends)
    times = interleaved(works, rounds)
    whole = times.pop("together")
    alone, alone_wall = (sum(t[i] for t in times.values()) for i in (0, 1))
    return {
        "alternatives": m,
        "together_s": whole[0],
        "sum_of_parts_s": alone,
        "teacher_s": times["teacher"][0],
        "ratio": whole[0] / alone,
        "ratio_wall": whole[1] / alone_wall,
    }


@torch.no_grad()
def forward(module: fx.GraphModule, images: Tensor, device: torch.device, precision: str) -> Tensor:
    with autocast(device, precision):
        logits: Tensor = module(images)
    return logits


def own_step(module: nn.Module, entering: Tensor, target: Tensor) -> Callable[[], None]:
    """A plain training step of one module, as anyone would write it."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.001, momentum=0.9, nesterov=True)
    module.train()
    precision = resolve("auto", entering.device, module)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(entering.device, precision):
            output = module(entering)
        loss = F.mse_loss(output.float(), target.float())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def scoring(
    teacher: LayerGraph, sample: Sample, data: ImageData, wanted: int, rounds: int
) -> dict[str, object]:
    """Scores with kept prefixes against each induced network run whole on the same images."""
    names = [a.name for a in sample.alternatives]
    names = [names[i * len(names) // wanted] for i in range(min(wanted, len(names)))]
    chosen = tuple(a for a in sample.alternatives if a.name in names)
    part = replace(sample, alternatives=chosen)
    device = compute_device()
    cached: dict[str, float] = {}
    whole: dict[str, float] = {}

    def with_prefixes() -> None:
        with tempfile.TemporaryDirectory() as folder:
            scores = score_accuracy(
                teacher, part, sample.modules, data.validation, store=HouseStore(Path(folder))
            )
        cached.update({name: row["accuracy_loss"] for name, row in scores.items()})

    def run_whole() -> None:
        base = right(teacher.module, data.validation, device)
        for a in chosen:
            network = induce(teacher, {sample.blocks[a.block]: sample.modules[a.name]})
            found = right(network, data.validation, device)
            whole[a.name] = (base - found) / len(data.validation)

    times = interleaved({"cached": with_prefixes, "whole": run_whole}, rounds)
    return {
        "alternatives": len(chosen),
        "images": len(data.validation),
        "cached_s": times["cached"][0],
        "whole_s": times["whole"][0],
        "speed_up": times["whole"][0] / times["cached"][0],
        "speed_up_wall": times["whole"][1] / times["cached"][1],
        "largest_difference": max(abs(cached[name] - whole[name]) for name in cached),
    }


@torch.inference_mode()
def right(network: fx.GraphModule, split: Split, device: torch.device) -> int:
    """Images of the split whose label the network gives."""
    network = copy.deepcopy(network).to(device)
    lay_out(network, torch.zeros(2, *SHAPE, device=device))
    precision = resolve("auto", device, network)
    total = 0
    for images, labels in split.batches(256, device=device):
        assert labels is not None
        total += int((forward(network, images, device, precision).argmax(1) == labels).sum())
    return total


def memory_here(
    root: Path, budget: int, precision: str, quick: bool, seed: int
) -> dict[str, float]:
    """Peak of one distillation over what this process held before; to be run in a fresh process."""
    teacher, sample, data = setting(root, True, seed)
    if quick:
        sample = replace(sample, alternatives=sample.alternatives[::3])
    options = HouseOptions(batch_size=BATCH, memory_mb=budget, epochs=0.5, precision=precision)
    smallest = min((a for a in sample.alternatives if a.trainable), key=lambda a: a.macs)
    with tempfile.TemporaryDirectory() as folder:  # loads what torch loads on first use
        one, small = replace(sample, alternatives=(smallest,)), replace(options, batch_size=2)
        few = replace(data, train=random_split(4, 0), validation=random_split(4, 0))
        distil(teacher, one, few, small, seed=0, store=HouseStore(Path(folder)))
    trainable: list[Alternative] = [a for a in sample.alternatives if a.trainable]
    bunches = len(plan_bunches(teacher, sample, trainable, options, device=compute_device()))
    figures = {"budget_mb": float(budget), "bunches": bunches, "alternatives": len(trainable)}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    base = status("VmRSS")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with tempfile.TemporaryDirectory() as folder:
        distil(teacher, sample, data, options, seed=0, store=HouseStore(Path(folder)))
    figures |= {"base_mb": base, "resident_mb": status("VmHWM") - base}
    if torch.cuda.is_available():
        figures["gpu_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return figures


def status(key: str) -> float:
    """A figure of this process in 10^6 bytes, as Linux tells it."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {key}; this benchmark needs Linux")
    return int(found[1]) * 1024 / 1e6


def memory(arguments: argparse.Namespace, budget: int, precision: str) -> dict[str, object]:
    """`memory_here` in a fresh process."""
    command = [sys.executable, __file__, "--data", str(arguments.data)]
    command += ["--memory", str(budget), "--precision", precision]
    command += ["--seed", str(arguments.seed)] + ["--quick"] * arguments.quick
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, object] = json.loads(answer.stdout.splitlines()[-1])
    peak = figures.get("gpu_mb", figures["resident_mb"])
    assert isinstance(peak, float)
    return {"precision": precision, **figures, "peak_mb": peak, "share": peak / budget}


def blocks_of_efficientnet() -> dict[str, object]:
    """Seconds to trace EfficientNet-B2 and to enumerate all its blocks."""
    network = timm.create_model("efficientnet_b2", pretrained=False).eval()
    shape = (3, 256, 256)
    graphs: list[LayerGraph] = []
    tracing = timed(lambda: graphs.append(trace(network, shape)))[1]
    found: list[int] = []
    listing = timed(lambda: found.append(len(enumerate_blocks(graphs[0]))))[1]
    layers = len(graphs[0].layers)
    return {"layers": layers, "blocks": found[0], "trace_s": tracing, "enumerate_s": listing}


def block_timing(sample: Sample, wanted: int) -> dict[str, float]:
    """Seconds per distinct structure, exported and timed in ONNX Runtime."""
    structures = {
        a.structure: Network(sample.modules[a.name], sample.blocks[a.block].in_shape)
        for a in sample.alternatives
    }
    some = list(structures.values())[:wanted]
    spent = timed(lambda: time_networks(some, OnnxRuntime(threads=1), OnnxExporter()))[1]
    return {"structures": len(some), "seconds": spent, "seconds_each": spent / len(some)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="auto", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    if arguments.memory is not None:
        peak = memory_here(
            arguments.data, arguments.memory, arguments.precision, quick, arguments.seed
        )
        print(json.dumps(peak))
        return
    teacher, sample, data = setting(arguments.data, quick, arguments.seed)
    counts, rounds = ((1, 4), 3) if quick else ((1, 4, 16, 48), 5)
    steps = [distillation(teacher, sample, data, m, rounds) for m in counts]
    scores = scoring(teacher, sample, data, 16 if quick else 32, 1 if quick else 2)
    budgets = (300,) if quick else (300, 1200)
    formats = ("auto",) if quick else ("float32", "bfloat16")
    peaks = [memory(arguments, budget, name) for budget in budgets for name in formats]
    efficientnet = blocks_of_efficientnet()
    timing = block_timing(sample, 8 if quick else 48)
    table = verdicts(steps, scores, peaks, efficientnet)
    width = max(len(name) for name, *_ in table)
    for name, figure, bar, met in table:
        print(f"{name:{width}}  {figure:>8}  {bar:>9}  {'met' if met else 'MISSED'}")
    print(f"exported and timed: {timing['seconds_each']:.2f} s a block")
    figures: dict[str, object] = {
        "threads": torch.get_num_threads(),
        "device": str(compute_device()),
        "batch": BATCH,
        "format": resolve("auto", compute_device(), teacher.module),
        "distillation": steps,
        "scoring": scores,
        "memory": peaks,
        "efficientnet_b2": efficientnet,
        "block_timing": timing,
        "met": {f"{name} {bar}": met for name, _, bar, met in table},
    }
    if not quick:
        print(write_result("house_cost", figures, seed=arguments.seed))


def verdicts(
    steps: Sequence[Mapping[str, float]],
    scores: Mapping[str, object],
    peaks: Sequence[Mapping[str, object]],
    efficientnet: Mapping[str, object],
) -> list[tuple[str, str, str, bool]]:
    """Name, figure, bar, and whether it is met."""
    table = []
    for row in steps:
        name = f"distil {row['alternatives']:.0f} together / sum of parts"
        table.append((name, f"{row['ratio']:.3f}", "<= 1.15", row["ratio"] <= 1.15))
    speed, apart = scores["speed_up"], scores["largest_difference"]
    assert isinstance(speed, float)
    assert isinstance(apart, float)
    table.append(("score with prefixes, times faster", f"{speed:.2f}", ">= 1.5", speed >= 1.5))
    table.append(("scores: largest difference", f"{apart:.5f}", "0", apart == 0))
    for peak in peaks:
        share, budget = peak["share"], peak["budget_mb"]
        assert isinstance(share, float)
        name = f"distillation memory / {budget:.0f} MB, {peak['precision']}"
        table.append((name, f"{share:.2f}", "<= 1", share <= 1))
    spent = [efficientnet[key] for key in ("trace_s", "enumerate_s")]
    seconds = sum(value for value in spent if isinstance(value, float))
    table.append(
        ("trace and enumerate efficientnet_b2, s", f"{seconds:.2f}", "<= 10", seconds <= 10)
    )
    return table


if __name__ == "__main__":
    main()
