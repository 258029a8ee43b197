"""CIFAR-10: on which images scores tell most about the loss on test images.

    python bench/unseen_scores.py --data ../shared/data             # some minutes on a GPU
    python bench/unseen_scores.py --data ../shared/data --images 1000 --test 5000 --every 3

ResNet-56 with residual branches left out, with stages of its donors stitched in, and whole donors:
none of them trained further. And networks that were trained apart: the four as they are published,
which have seen the validation images, and some of them, whole and with branches left out, at three
times of a training that spares these images.

Each is compared with the ResNet-56 on validation images; on the same strongly cropped, and with
CutMix on top; on two of them laid over each other, as networks that were trained are compared; on
half of the test images, which stand for a holdout, and on the other half. What counts is how well
each of the others ranks the networks as these last ones do, which nobody has seen.

Stops and continues: what is trained, and what is known of a network, is kept in ``--run``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

import tailorbird as tb
from cifar_resnet import DEPTHS, CifarResNet, trained
from compress_cifar10 import load
from record import write_result
from tailorbird.data.images import ImageData, Split, TensorSplit, spaced
from tailorbird.data.unfamiliar import blended
from tailorbird.graph.surgery import induce
from tailorbird.graph.trace import trace
from tailorbird.house.activations import Activations
from tailorbird.house.donors import add_donor_stages
from tailorbird.house.ranking import Loss, losses_on, rank_correlation
from tailorbird.house.sample import Collector
from tailorbird.house.wholes import add_wholes
from tailorbird.report.terminal import terminal
from tailorbird.train.clock import Pause
from tailorbird.train.mixing import Mixer
from tailorbird.train.precision import compute_device
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain_all

SHAPE = (3, 32, 32)
STAGES = ("layer1", "layer2", "layer3")
TEST = "test"
NEAR = 0.1
"""Networks that lose less than this of the accuracy are those that choices are between."""

TOGETHER = 8
"""Networks judged with one pass of the teacher; what a kill can lose."""


def part(split: Split | None, count: int) -> TensorSplit:
    """So many images of a split, evenly spaced."""
    assert isinstance(split, TensorSplit)
    return split.take(spaced(len(split), count))


def every_other(split: TensorSplit, first: int) -> TensorSplit:
    """Half of the images, from the first or the second one on."""
    return split.take(torch.arange(first, len(split), 2))


class Through(nn.Module):
    """Lets what comes through as it is: a residual block without its branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def cropped(split: TensorSplit, *, mixed: bool = False) -> TensorSplit:
    """A part of each image scaled up; with a piece of another one on top."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        crop = v2.RandomResizedCrop(SHAPE[1:], scale=(0.5, 0.9), antialias=True)
        images = torch.stack([crop(image) for image in split.images])
    if mixed:
        mixer = Mixer(mixup=0.0, cutmix=1.0, classes=10)
        pairs = enumerate(torch.split(images.float(), 2))
        images = torch.cat([mixer(pair, None, seed=number)[0] for number, pair in pairs])
    return replace(split, images=images.round().to(torch.uint8), labels=None)


def thinned(depth: int, root: Path, blocks: tuple[int, int, int]) -> CifarResNet:
    """A published network with so many blocks in each stage, spread evenly, the first kept."""
    network = trained(depth, root)
    for name, count in zip(STAGES, blocks, strict=True):
        leave_out(network, name, all_but(count - 1, len(getattr(network, name)) - 1))
    return network.eval()


def all_but(kept: int, last: int) -> list[int]:
    """Blocks 1 to ``last`` without so many of them, evenly spread."""
    spread = {round(1 + i * (last - 1) / max(1, kept - 1)) for i in range(kept)}
    return [number for number in range(1, last + 1) if number not in spread]


def leave_out(network: CifarResNet, stage: str, blocks: Iterable[int]) -> None:
    """Leave blocks of a stage out, in place."""
    for block in blocks:
        getattr(network, stage)[block] = Through()


def apart(data: ImageData, root: Path, kept: Path, epochs: float) -> dict[str, nn.Module]:
    """Networks as they are published, and others at three times of their training."""
    found: dict[str, nn.Module] = {f"published {d}": trained(d, root) for d in DEPTHS}
    fresh = {
        "32": trained(32, root),
        "20": trained(20, root),
        "56 to 5, 7, 8": thinned(56, root, (5, 7, 8)),
        "44 to 6, 7, 7": thinned(44, root, (6, 7, 7)),
        "56 to 3, 4, 4": thinned(56, root, (3, 4, 4)),
    }
    for share in (1 / 3, 2 / 3, 1.0):
        done = retrain_all(
            [
                Assignment(name=name, student=network, checkpoint=kept / name.replace(", ", "-"))
                for name, network in fresh.items()
            ],
            trained(max(DEPTHS), root),
            data,
            recipe=Recipe(epochs=epochs, keep="last"),
            seed=0,
            progress=terminal(),
            pause=None if share == 1.0 else Pause(at=share, spent=share),
        )
        found |= {
            f"{name}, after {share:.2f} of {epochs:g} epochs": one.module
            for name, one in zip(fresh, done, strict=True)
        }
    return found


def left_out(teacher: CifarResNet) -> dict[str, nn.Module]:
    """Every other branch left out alone; in each stage all but 6, 4 and 3, spread or first."""
    found: dict[str, nn.Module] = {}
    for name in STAGES:
        last = len(getattr(teacher, name)) - 1
        wanted = {f"{name} without {i}": [i] for i in range(1, last + 1, 2)}
        for kept in (6, 4, 3):
            wanted[f"{name}, {kept} spread"] = all_but(kept, last)
            wanted[f"{name}, first {kept}"] = list(range(kept + 1, last + 1))
        for title, blocks in wanted.items():
            network = copy.deepcopy(teacher)
            leave_out(network, name, blocks)
            found[title] = network.eval()
    return found


def stitched(teacher: nn.Module, data: ImageData, root: Path) -> dict[str, nn.Module]:
    """Donors' stages in the teacher's place, maps fitted, not trained; whole donors; networks with
    fewer branches.
    """
    graph = trace(teacher, SHAPE)
    donors = {f"resnet{d}": trace(trained(d, root), SHAPE) for d in DEPTHS if d < max(DEPTHS)}
    collector, options = Collector({}), tb.HouseOptions()
    images, _ = next(iter(data.train.batches(64, generator=torch.Generator().manual_seed(0))))
    seen = Activations(images, limit=2**30)
    add_donor_stages(collector, graph, donors, seen=seen, options=options)
    add_wholes(collector, graph, donors, seen=seen, options=options)
    sample = collector.sample()
    return {
        f"{a.origin} {a.variant}: {a.block}": induce(
            graph, {sample.blocks[a.block]: sample.modules[a.name]}
        )
        for a in sample.alternatives
    }


def judge_all(
    networks: Mapping[str, nn.Module],
    kinds: Mapping[str, Callable[[], Split]],
    teacher: nn.Module,
    kept: Path,
) -> dict[str, dict[str, Loss]]:
    """Kind of images -> network -> what it loses there, continuing from what is kept."""
    found: dict[str, dict[str, Loss]] = {}
    for kind, make in kinds.items():
        path = kept / f"{kind}.json"
        stored = json.loads(path.read_text()) if path.exists() else {}
        found[kind] = {name: Loss(**figures) for name, figures in stored.items()}
        left = [name for name in networks if name not in stored]
        split = make() if left else None
        for start in range(0, len(left), TOGETHER):
            assert split is not None
            some = {name: networks[name] for name in left[start : start + TOGETHER]}
            found[kind] |= losses_on(split, teacher, some, device=compute_device())
            kept.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({n: asdict(one) for n, one in found[kind].items()}))
            print(f"{kind}: {len(found[kind])} of {len(networks)} networks", flush=True)
    return found


def correlations(
    found: Mapping[str, Mapping[str, Loss]], groups: Mapping[str, Collection[str]]
) -> list[dict[str, object]]:
    """Spearman's correlation of what is lost on each kind of images with losses on test images."""
    tested = found[TEST]
    return [
        {
            "networks": group,
            "count": len(names),
            "scored on": kind,
            "by": by,
            **{
                f"with {to} on test": rank_correlation(
                    {name: getattr(found[kind][name], by) for name in names},
                    {name: getattr(tested[name], to) for name in names},
                )
                for to in ("divergence", "accuracy")
            },
        }
        for group, names in groups.items()
        for kind in found
        for by in ("divergence", "accuracy")
    ]


def main() -> None:
    """Judge all, print the table, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--run", type=Path, default=Path("runs/unseen-scores"))
    parser.add_argument("--images", type=int, default=2500, help="validation images")
    parser.add_argument("--test", type=int, default=10_000, help="test images, both halves")
    parser.add_argument("--epochs", type=float, default=3.0, help="of what is trained")
    parser.add_argument("--every", type=int, default=1, help="only every nth that is not trained")
    asked = parser.parse_args()
    data = load(asked.data, None)
    teacher = trained(max(DEPTHS), asked.data)
    plain, tests = part(data.validation, asked.images), part(data.test, asked.test)
    kinds: dict[str, Callable[[], Split]] = {
        "validation": lambda: plain,
        "cropped": lambda: cropped(plain),
        "cropped and mixed": lambda: cropped(plain, mixed=True),
        "two over each other": lambda: blended(plain, data.normalisation),
        "holdout": lambda: every_other(tests, 0),
        TEST: lambda: every_other(tests, 1),
    }
    fresh = {**left_out(teacher), **stitched(teacher, data, asked.data)}
    fresh = dict(list(fresh.items())[:: asked.every])
    others = apart(data, asked.data, asked.run / f"trained-{asked.epochs:g}", asked.epochs)
    kept = asked.run / f"{asked.images}-{asked.test}"
    found = judge_all({**others, **fresh}, kinds, teacher, kept)
    others.pop(f"published {max(DEPTHS)}")  # which loses nothing
    near = [name for name in fresh if found[TEST][name].accuracy < NEAR]
    groups = {"not trained": list(fresh), "not trained, near": near, "trained apart": list(others)}
    rows = correlations(found, groups)
    for row in rows:
        print("  ".join(f"{v:6.3f}" if isinstance(v, float) else f"{v!s:20}" for v in row.values()))
    figures = {
        "images": asked.images,
        "test images": asked.test,
        "epochs": asked.epochs,
        "correlations": rows,
        "networks": {
            name: {kind: asdict(one[name]) for kind, one in found.items()} for name in found[TEST]
        },
    }
    print(write_result("unseen_scores", figures, seed=0))


if __name__ == "__main__":
    main()
