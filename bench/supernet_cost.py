"""What elasticity costs: a supernet's training step beside a plain network's, and evaluation.

    OMP_NUM_THREADS=1 python bench/supernet_cost.py            # about 25 minutes on an idle core

Two comparisons, each in turns within one process, medians of the turns taken:

- a training step of the full network, as the active part of the supernet and as a plain network of
  the same layers (extracted); bar: 1.15x. Also the training loop's images per second, with data
  and bookkeeping, and the memory that a step needs.
- norm statistics and accuracy of 100 subnets in one pass over the images, beside 100 passes, each
  of which extracts a subnet, re-estimates its statistics and runs it; bar: half the time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from record import write_result
from tailorbird.data.images import ImageData, Normalisation, TensorSplit
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.calibrate import accuracies, recalibrate
from tailorbird.supernet.counts import macs
from tailorbird.supernet.extract import extract
from tailorbird.supernet.network import Supernet, build_supernet, resize
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.train import train_supernet
from tailorbird.supernet.train_state import SupernetRecipe
from tailorbird.train.norm_stats import recalibrate as recalibrate_one
from tailorbird.train.optimisers import build_optimizer
from tailorbird.train.precision import compute_device, set_layout

BATCH = 64
STEP_SPACES = ("cifar-mbv3-w0.25", "cifar-mbv3-s2-w0.25", "cifar-resnet50d-w0.25")
EVALUATION_SPACES = ("cifar-mbv3-s2-w0.25", "cifar-mbv3-w0.25", "cifar-compofa-mbv3-s2-w0.25")
SUBNETS = 100


def images(count: int) -> TensorSplit:
    """Random 32-pixel images, augmented as CIFAR is; their content doesn't matter here."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator)
    norm = Normalisation((0.5,) * 3, (0.25,) * 3)
    return TensorSplit(pixels, labels, norm, crop_padding=4, flip=True)


def supernet(name: str) -> Supernet:
    """Fresh weights."""
    generator = torch.Generator().manual_seed(0)
    return build_supernet(load_space(name), classes=10, generator=generator)


def synchronised(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes, with what it queued on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Stepper:
    """One SGD step of a network on one batch."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module.to(device).train()
        set_layout(self.module, torch.channels_last)
        self.optimizer = build_optimizer(
            "sgd", self.module, learning_rate=0.01, weight_decay=3e-5, momentum=0.9
        )
        split = images(BATCH)
        pixels, labels = next(iter(split.batches(BATCH, device=device)))
        assert labels is not None
        self.images = pixels.contiguous(memory_format=torch.channels_last)
        self.labels = labels

    def __call__(self) -> None:
        """Forward, backward, update."""
        if isinstance(self.module, Supernet):
            self.module.activate(self.module.largest())
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(self.module(self.images), self.labels))
        self.optimizer.step()


def step_times(name: str, rounds: int, device: torch.device) -> dict[str, object]:
    """Seconds of a step, elastic and plain in turns."""
    net = supernet(name)
    elastic, plain = Stepper(net, device), Stepper(extract(net, net.largest()), device)
    times: dict[str, list[float]] = {"elastic": [], "plain": []}
    for number in range(rounds + 2):
        for key, step in (("elastic", elastic), ("plain", plain)):
            taken = synchronised(step)
            if number >= 2:
                times[key].append(taken)
    own, other = median(times["elastic"]), median(times["plain"])
    used = {"elastic": memory(elastic), "plain": memory(plain)}
    return {
        "space": name,
        "macs": int(macs(net.architectures).sum(net.largest()[None])[0]),
        "elastic_ms": round(1000 * own, 2),
        "plain_ms": round(1000 * other, 2),
        "ratio": round(own / other, 3),
        "elastic_images_per_second": round(BATCH / own, 1),
        "plain_images_per_second": round(BATCH / other, 1),
        "loop_images_per_second": round(loop_speed(name), 1),
        "memory_mb": {key: round(value, 1) for key, value in used.items()},
        "memory_ratio": round(used["elastic"] / used["plain"], 3),
    }


def loop_speed(name: str) -> float:
    """Images per second of the training loop while it trains the full network alone."""
    split = images(BATCH * 12)
    data = ImageData(
        train=split,
        validation=images(4),
        test=None,
        name="random pixels",
        normalisation=split.normalisation,
        classes=tuple("abcdefghij"),
        input_shape=(3, 32, 32),
        labelled=True,
        skipped=0,
    )
    scheme = DepS(epochs=2, learning_rate=0.01, delay=0.99, ramp_epochs=0, reorder=False)
    recipe = SupernetRecipe(batch_size=BATCH, precision="float32")
    history = train_supernet(supernet(name), data, scheme, seed=0, recipe=recipe).history
    return history[0].images_per_second


def memory(step: Stepper) -> float:
    """MB that a step needs: weights, gradients, momenta, and what is kept for the backward pass."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.module(step.images)
    weights = {value.untyped_storage().data_ptr() for value in step.module.parameters()}
    activations = sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in weights)
    return (activations + 3 * sum(v.nbytes for v in step.module.parameters())) / 1e6


def evaluation(name: str, calibrated_on: int, judged_on: int, rounds: int) -> dict[str, object]:
    """Seconds for many subnets together, and one after the other, in turns."""
    net = supernet(name).eval()
    set_layout(net, torch.channels_last)  # for both ways: the faster one on this processor
    space = net.architectures
    genomes = space.space.sample(SUBNETS, np.random.default_rng(0))
    train, held = images(calibrated_on), images(judged_on)
    size = 128

    def calibration() -> Iterator[Tensor]:
        walk = train.batches(size, generator=torch.Generator().manual_seed(0), augment=True)
        for batch, _ in islice(walk, calibrated_on // size):
            yield batch.contiguous(memory_format=torch.channels_last)

    def judged() -> Iterator[tuple[Tensor, Tensor]]:
        for batch, labels in held.batches(size):
            assert labels is not None
            yield batch.contiguous(memory_format=torch.channels_last), labels

    found: dict[str, np.ndarray] = {}

    def together() -> None:
        found["together"] = accuracies(
            net, genomes, recalibrate(net, genomes, calibration()), judged()
        )

    @torch.no_grad()
    def apart() -> None:
        rights = []
        for genome in genomes:
            subnet, pixels = extract(net, genome).eval(), net.resolution(genome)
            set_layout(subnet, torch.channels_last)
            recalibrate_one(subnet, (resize(batch, pixels) for batch in calibration()))
            right = [(subnet(batch).argmax(1) == labels).sum() for batch, labels in judged()]
            rights.append(int(torch.stack(right).sum()) / judged_on)
        found["apart"] = np.array(rights)

    turns = [(synchronised(together), synchronised(apart)) for _ in range(rounds)]
    return {
        "space": name,
        "subnets": SUBNETS,
        "calibration_images": calibrated_on,
        "judged_images": judged_on,
        "together_s": round(median(turn[0] for turn in turns), 2),
        "apart_s": round(median(turn[1] for turn in turns), 2),
        "ratio": round(median(turn[0] / turn[1] for turn in turns), 3),
        "ratios": [round(turn[0] / turn[1], 3) for turn in turns],
        "largest_difference": float(np.abs(found["together"] - found["apart"]).max()),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--quick", action="store_true", help="half the images, one turn; not written"
    )
    arguments = parser.parse_args()
    device = compute_device()
    rounds = 3 if arguments.quick else arguments.rounds
    steps = []
    for name in STEP_SPACES:
        steps.append(step_times(name, rounds, device))
        print(steps[-1], flush=True)
    amount = (128, 250, 1) if arguments.quick else (256, 512, 3)
    passes = []
    for name in EVALUATION_SPACES:
        passes.append(evaluation(name, *amount))
        print(passes[-1], flush=True)
    if not arguments.quick:
        figures = {
            "batch": BATCH,
            "threads": torch.get_num_threads(),
            "steps": steps,
            "evaluation": passes,
        }
        print("written:", write_result("supernet_cost", figures, seed=0))


if __name__ == "__main__":
    main()
