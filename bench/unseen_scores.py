"""CIFAR-10: on which images scores tell most about the loss on test images.

    python bench/unseen_scores.py --data ../shared/data             # a minute on a GPU
    python bench/unseen_scores.py --data ../shared/data --images 200 --test 600 --every 2

ResNet-56 with residual branches left out, with stages of its donors stitched in, and whole donors:
none of them trained further. Each is compared with the ResNet-56 on validation images, which all
of these networks have been trained on; on the same with a tenth of them cropped, as a house scores
by default; on the same, all cropped, and with CutMix on top; and on test images, which nobody has
seen. What counts is how well each of the others ranks the networks as the last does.

Stops and continues: what is known of a network is kept in ``--run``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import tailorbird as tb
from cifar_resnet import DEPTHS, CifarResNet, trained
from record import write_result
from tailorbird.data.images import ImageData, Split, TensorSplit, spaced
from tailorbird.data.sources import parquet
from tailorbird.data.unfamiliar import unfamiliar
from tailorbird.graph.surgery import induce
from tailorbird.graph.trace import trace
from tailorbird.house.activations import Activations
from tailorbird.house.donors import add_donor_stages
from tailorbird.house.ranking import Loss, losses_on, rank_correlation
from tailorbird.house.sample import Collector
from tailorbird.house.wholes import add_wholes
from tailorbird.train.precision import compute_device

SHAPE = (3, 32, 32)
TEST = "test"
NEAR = 0.1
"""Networks that lose less than this of the accuracy are those that choices are between."""

TOGETHER = 8
"""Networks judged with one pass of the teacher; what a kill can lose."""


def load(root: Path) -> ImageData:
    """CIFAR-10 with the normalisation that the networks were trained with."""
    folder = root / "cifar10"
    return parquet(
        sorted(folder.glob("train-*.parquet")),
        test=sorted(folder.glob("test-*.parquet")),
        normalisation=tb.Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        validation=0.05,
    )


def part(split: Split | None, count: int) -> TensorSplit:
    """So many images of a split, evenly spaced."""
    assert isinstance(split, TensorSplit)
    return split.take(spaced(len(split), count))


class Through(nn.Module):
    """Lets what comes through as it is: a residual block without its branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def left_out(teacher: CifarResNet) -> dict[str, nn.Module]:
    """Every other branch left out alone; in each stage all but 6, 4 and 3, spread or first."""
    found: dict[str, nn.Module] = {}
    for name in ("layer1", "layer2", "layer3"):
        last = len(getattr(teacher, name)) - 1
        wanted = {f"{name} without {i}": [i] for i in range(1, last + 1, 2)}
        for kept in (6, 4, 3):
            spread = {round(1 + i * (last - 1) / (kept - 1)) for i in range(kept)}
            wanted[f"{name}, {kept} spread"] = [i for i in range(1, last + 1) if i not in spread]
            wanted[f"{name}, first {kept}"] = list(range(kept + 1, last + 1))
        for title, blocks in wanted.items():
            network = copy.deepcopy(teacher)
            for block in blocks:
                getattr(network, name)[block] = Through()
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


def correlations(found: Mapping[str, Mapping[str, Loss]]) -> list[dict[str, object]]:
    """Spearman's correlation of scores on each kind of images with losses on test images."""
    tested = found[TEST]
    groups: dict[str, list[str]] = {
        "all": list(tested),
        "near": [name for name, one in tested.items() if one.accuracy < NEAR],
    }
    rows: list[dict[str, object]] = []
    for group, names in groups.items():
        for kind in found:
            scores = {name: found[kind][name].divergence for name in names}
            rows.append(
                {
                    "networks": group,
                    "count": len(names),
                    "scored on": kind,
                    "with divergence on test": rank_correlation(
                        scores, {name: tested[name].divergence for name in names}
                    ),
                    "with accuracy lost on test": rank_correlation(
                        scores, {name: tested[name].accuracy for name in names}
                    ),
                }
            )
    return rows


def main() -> None:
    """Judge all, print the table, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--run", type=Path, default=Path("runs/unseen-scores"))
    parser.add_argument("--images", type=int, default=2500, help="validation images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--every", type=int, default=1, help="only every nth network")
    asked = parser.parse_args()
    data = load(asked.data)
    teacher = trained(max(DEPTHS), asked.data)
    plain = part(data.validation, asked.images)
    kinds: dict[str, Callable[[], Split]] = {
        "validation": lambda: plain,
        "a tenth cropped": lambda: unfamiliar(plain, data.normalisation),
        "cropped": lambda: unfamiliar(plain, data.normalisation, share=1.0),
        "cropped and mixed": lambda: unfamiliar(
            plain, data.normalisation, share=1.0, pasted=(0.25, 0.5)
        ),
        TEST: lambda: part(data.test, asked.test),
    }
    networks = {**left_out(teacher), **stitched(teacher, data, asked.data)}
    networks = dict(list(networks.items())[:: asked.every])
    kept = asked.run / f"{asked.images}-{asked.test}"
    rows = correlations(judge_all(networks, kinds, teacher, kept))
    for row in rows:
        print("  ".join(f"{v:.3f}" if isinstance(v, float) else f"{v!s:12}" for v in row.values()))
    figures = {"images": asked.images, "test images": asked.test, "correlations": rows}
    print(write_result("unseen_scores", figures, seed=0))


if __name__ == "__main__":
    main()
