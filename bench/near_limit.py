"""Limits near a student's latency, on a quiet and on a busy machine: what is said, and how often
it is wrong.

    python bench/near_limit.py

A convolutional network and a narrower one are exported and measured beside each other by ONNX
Runtime with one thread. Their true ratio is that of many quiet sessions. Limits are set a little
below and above it, and each trial asks for a word in two ways: by one session, as the first edition
did, and by sessions repeated until an interval of confidence is clear of the limit (at most eight).
Two processes that multiply matrices make the machine busy.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn

from busy_search import PEERS, busy
from record import write_result
from tailorbird.export.onnx import export_onnx
from tailorbird.fit.sessions import MOST, word
from tailorbird.measure.devices.onnxruntime import OnnxRuntime

SHAPE = (3, 40, 40)
OFF = (0.95, 0.97, 0.99, 1.01, 1.03, 1.05)
"""Limits as multiples of the true ratio."""


def network(width: int) -> nn.Module:
    """Five convolutions of 3x3, about a millisecond on one core."""
    layers: list[nn.Module] = [nn.Conv2d(SHAPE[0], width, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def ratios(device: OnnxRuntime, files: Sequence[Path], sessions: int) -> list[float]:
    """The student's latency over the teacher's, session by session."""
    found = [device.measure(files) for _ in range(sessions)]
    return [student.median_ms / teacher.median_ms for teacher, student in found]


def words(trials: Sequence[Sequence[float]], limit: float) -> dict[str, object]:
    """What trials say of a limit: by their first session, and by as many as it takes."""
    single = Counter(word(found[:1], limit, 1) for found in trials)
    repeated: Counter[str] = Counter()
    needed = []
    for found in trials:
        said, number = "undecided", 0
        while said == "undecided" and number < len(found):
            number += 1
            said = word(found[:number], limit, len(found))
        repeated[said] += 1
        needed.append(number)
    return {
        "one session": dict(single),
        "repeated": dict(repeated),
        "sessions": sum(needed) / len(needed),
    }


def wrong(said: dict[str, object], way: str, *, kept: bool) -> int:
    """Trials whose word is the opposite of the truth."""
    counts = said[way]
    assert isinstance(counts, dict)
    return int(counts.get("over" if kept else "met", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = OnnxRuntime(threads=1)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        files = [
            export_onnx(network(width).eval(), SHAPE, Path(folder) / f"{width}.onnx")
            for width in (32, 24)
        ]
        base = device.measure(files)
        true = median(ratios(device, files, 5 * MOST))
        figures: dict[str, object] = {
            "teacher_ms": base[0].median_ms,
            "true_ratio": true,
            "trials": arguments.trials,
            "sessions_at_most": MOST,
        }
        for name, peers in (("quiet", 0), (f"beside {PEERS} busy processes", PEERS)):
            with busy(peers):
                trials = [ratios(device, files, MOST) for _ in range(arguments.trials)]
            every = [ratio for found in trials for ratio in found]
            said = {f"{off:g}x the true ratio": words(trials, off * true) for off in OFF}
            figures[name] = {
                "ratios": {"least": min(every), "median": median(every), "most": max(every)},
                "limits": said,
                "wrong words": {
                    way: sum(
                        wrong(one, way, kept=off > 1)
                        for off, one in zip(OFF, said.values(), strict=True)
                    )
                    for way in ("one session", "repeated")
                },
                "of": arguments.trials * len(OFF),
            }
            print(name, json.dumps(figures[name], indent=1), flush=True)
    figures["load_at_the_end"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(write_result("near_limit", figures, seed=arguments.seed))


if __name__ == "__main__":
    main()
