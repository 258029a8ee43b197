"""Photographs of flowers: an EfficientNet-Lite2 at several limits, Tailorbird beside its rivals.

    python bench/real_photos.py --data ../shared/data            # hours on a CPU, minutes on a GPU
    python bench/real_photos.py --data ../shared/data --quick    # some minutes, tells nothing

Without a GPU, within two hours of two cores:

    python bench/real_photos.py --data ../shared/data --tuning 2 --epochs 0.5 \\
        --house-epochs 0.25 --blocks 8 --contenders 2

Teacher: EfficientNet-Lite2 with ImageNet weights (packages of the extra ``bench``), fine-tuned to
the five kinds of flowers at 128 pixels; donors: Lite0 and Lite1, fine-tuned alike. Limits and
rivals are those of `compress_cifar10.py`, without FastNAS, which knows nothing of these networks'
padding, and without parts of the house. There are 736 test images, so a difference has a standard
error of about 0.8 points: this shows the way, it decides nothing.

Stops and continues: what is trained, asked and measured is kept in ``--run``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import tailorbird as tb
from compress_cifar10 import (
    QUICK_SEARCH,
    QUICK_SHARES,
    SHARES,
    Scale,
    concluded,
    first,
    run,
    runtimes,
)
from contest import Contest, Search
from efficientnet_lite import lite
from peers import Peer, torch_pruning
from record import write_result
from tailorbird.data.images import ImageData
from tailorbird.data.sources import folder
from tailorbird.report.terminal import terminal
from tailorbird.train.fit import fit
from tailorbird.train.recipe import Recipe

SIDE = 128
CLASSES = 5
TEACHER, DONORS = 2, (0, 1)


def photographs(root: Path) -> ImageData:
    """Flowers, the folder ``val`` as test images.

    No network has seen the validation images: they choose, and are held out of all training.
    """
    data = folder(
        root / "flowers",
        image_size=SIDE,
        normalisation=tb.Normalisation((127 / 255,) * 3, (128 / 255,) * 3),
        validation=0.1,
        flip=True,
    )
    return replace(data, holdout=data.validation)


def tuned(number: int, data: ImageData, run_folder: Path, recipe: Recipe, seed: int) -> nn.Module:
    """Fine-tuned to the photographs; continues."""
    return fit(
        lite(number, classes=CLASSES),
        data,
        recipe=recipe,
        seed=seed,
        checkpoint=run_folder / f"lite{number}",
        progress=terminal(),
    ).module


def pruning(
    teacher: nn.Module, steps: int
) -> Callable[[Callable[[nn.Module], float], float], Peer]:
    """torch-pruning, which leaves the head whole."""

    def within(latency: Callable[[nn.Module], float], limit: float) -> Peer:
        return torch_pruning(
            teacher,
            torch.zeros(1, 3, SIDE, SIDE),
            latency,
            limit,
            ignore=lambda network: [network.get_submodule("_fc")],
            steps=steps,
        )

    return within


def contest(arguments: argparse.Namespace, spend: Scale, data: ImageData, seed: int) -> Contest:
    """One seed's, in a folder of its own."""
    home = arguments.run / f"seed-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        epochs=0.2 if arguments.quick else arguments.tuning,
        batch_size=32,
        learning_rate=0.01,
        ce_weight=1.0,
    )
    networks = {
        number: tuned(number, data, home / "tuned", recipe, seed) for number in (*DONORS, TEACHER)
    }
    return Contest(
        teacher=networks[TEACHER],
        donors={f"lite{number}": networks[number] for number in DONORS},
        data=data,
        runtimes=runtimes(),
        shares=spend.shares,
        options=spend.house,
        search=spend.search,
        recipe=spend.recipe,
        pruners={"torch-pruning": pruning(networks[TEACHER], spend.bisections)},
        folder=home,
        seed=seed,
    )


def main() -> None:
    """Run everything, print the table, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--run", type=Path, default=Path("runs/photos"))
    parser.add_argument("--tuning", type=float, default=8.0, help="epochs of the fine-tuning")
    parser.add_argument("--epochs", type=float, default=8.0, help="retraining")
    parser.add_argument("--house-epochs", type=float, default=2.0, help="distillation")
    parser.add_argument("--blocks", type=int, default=24, help="teacher's and donors' each")
    parser.add_argument("--contenders", type=int, default=4, help="of ours, trained per target")
    parser.add_argument("--seeds", type=int, default=1, help="0, 1, ...")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    data, quick = photographs(arguments.data), arguments.quick
    if quick:
        data = first(data, 96)
    few = 4 if quick else arguments.blocks
    spend = Scale(
        tb.HouseOptions(
            teacher_blocks=few,
            donor_blocks=few,
            pruned=few // 3,
            recall=0.7,
            donor_recall=0.7,
            epochs=0.3 if quick else arguments.house_epochs,
            batch_size=32,
        ),
        Recipe(epochs=0.3 if quick else arguments.epochs, batch_size=32),
        bisections=2 if quick else 8,
        shares=QUICK_SHARES if quick else SHARES,
        search=QUICK_SEARCH if quick else Search(contenders=arguments.contenders),
        parts=False,
    )
    contests = [contest(arguments, spend, data, seed) for seed in range(arguments.seeds)]
    runs = [run(one, spend) for one in contests]
    figures = concluded(contests, runs, spend)
    if not quick:
        print("written:", write_result("real_photos", figures, seed=0))


if __name__ == "__main__":
    main()
