"""Fitting one trained supernet to 1, 5 and 20 targets: what it costs, and what comes out.

    OMP_NUM_THREADS=1 python bench/supernet_fit.py --work runs/supernet-training/cpu-3

Takes a supernet that `supernet_training.py` left in its work folder, and fits it to latency limits
on this machine's ONNX Runtime (one thread, batch 1), spread evenly from 0.45 to 0.95 of the full
network's latency, each number of targets in a run folder of its own and from nothing. Run it on a
quiet machine: it measures latencies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from record import write_result
from supernet_training import SCALES, Bench, cases, load
from tailorbird.config.run_data import load_data_file, read_data
from tailorbird.config.targets import load_targets
from tailorbird.data.images import ImageData
from tailorbird.pipeline.supernet_fit import FitOptions, fit_run
from tailorbird.pipeline.supernet_import import import_supernet
from tailorbird.pipeline.supernet_run import evaluate_subnets, open_run
from tailorbird.report.record import RunReport
from tailorbird.report.terminal import terminal
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.counts import macs

COUNTS = (1, 5, 20)
LOOSEST, TIGHTEST = 0.95, 0.45
SUBNETS, IMAGES = 100, 1000


def weights(data: Path, work: Path, name: str, scale_name: str) -> tuple[Path, str]:
    """The trained supernet's weights as a file, and its space."""
    scale = SCALES[scale_name]
    (case,) = [case for case in cases(scale, range(8)) if case.name == name]
    path = work / f"{name}.safetensors"
    if not path.exists():
        bench = Bench(scale, load(data), work, torch.device("cpu"))
        scheme = case.make(bench.epochs(case), bench.space(case))
        trained = bench.train(bench.fresh(case), scheme, case)  # at its end already
        state = trained.supernet.state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, str(path))
    return path, scale.coupled if case.coupled else scale.space


def described(data: Path, folder: Path) -> Path:
    """A data file for CIFAR-10, as the training benchmark reads it."""
    lines = [
        "data:",
        "  kind: parquet",
        f"  files: {json.dumps(str((data / 'cifar10').resolve()))}",
        "  validation: 0.05",
        "  crop_padding: 4",
        "  flip: true",
        "  normalisation: {mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616]}",
    ]
    path = folder / "data.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def fleet(count: int, folder: Path) -> Path:
    """One device with so many limits."""
    step = (LOOSEST - TIGHTEST) / max(1, count - 1)
    shares = [LOOSEST - step * number for number in range(count)] if count > 1 else [0.7]
    limits = ", ".join(f"{share:.3f}x" for share in shares)
    path = folder / f"fleet-{count}.yaml"
    path.write_text(
        "devices:\n  - name: cpu\n    runtime: onnxruntime\n    threads: 1\n"
        f"    limits: [{limits}]\n"
    )
    return path


def fitted(run: Path, data: ImageData, wanted: Path) -> dict[str, object]:
    """Fit and say what it took and gave."""
    begun = time.perf_counter()
    opened, progress = open_run(run, data, seed=0), terminal()
    fit_run(
        opened,
        load_targets(wanted),
        options=FitOptions(subnets=SUBNETS, images=IMAGES),
        evaluate=lambda genomes: evaluate_subnets(
            opened, genomes, images=IMAGES, progress=progress
        ),
        progress=progress,
    )
    seconds = time.perf_counter() - begun
    report = RunReport.load(run / "report.json")
    full = float(macs(opened.architectures).sum(opened.supernet.largest()[None])[0])
    return {
        "targets": len(report.targets),
        "met": sum(target.met for target in report.targets),
        "seconds": round(seconds, 1),
        "stages": {stage.name: round(60 * stage.minutes, 1) for stage in report.stages},
        "details": {stage.name: stage.detail for stage in report.stages if stage.detail},
        "full_macs": full,
        "students": [
            {
                "limit_ms": target.limits.get("latency_ms"),
                "measured_ms": target.measured.get("latency_ms"),
                "full_ms": target.measured.get("teacher_latency_ms"),
                "met": target.met,
                "top1": None if target.accuracy is None else round(100 * target.accuracy, 2),
                "macs": target.measured.get("macs"),
                "reason": target.reason,
            }
            for target in report.targets
        ],
    }


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/supernet-training/cpu-3"))
    parser.add_argument("--case", default="DepS-equal-images-0")
    parser.add_argument("--scale", choices=sorted(SCALES), default="cpu")
    arguments = parser.parse_args()
    file, space = weights(arguments.data, arguments.work, arguments.case, arguments.scale)
    file_of_data = described(arguments.data, arguments.work)
    data = read_data(load_data_file(file_of_data), seed=0, folder=arguments.work)
    rows = []
    for count in COUNTS:
        run = arguments.work / f"fit-{count}"
        shutil.rmtree(run, ignore_errors=True)
        import_supernet(file, run, space=load_space(space), data=data)
        rows.append(fitted(run, data, fleet(count, arguments.work)))
        print({k: v for k, v in rows[-1].items() if k != "students"}, flush=True)
    figures = {
        "case": arguments.case,
        "space": space,
        "subnets": SUBNETS,
        "images": IMAGES,
        "threads": torch.get_num_threads(),
        "runs": rows,
    }
    print("written:", write_result("supernet_fit", figures, seed=0))


if __name__ == "__main__":
    main()
