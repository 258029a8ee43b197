"""The yardstick: single-target evolutionary search as the Once-for-All authors run it.

Their algorithm, written anew: one search per limit, population 100, 500 generations, the best
quarter become parents, half of the children by mutation (p = 0.1), half by crossover; children over
the limit are drawn again. Architectures are plain Python lists, handled one at a time; latencies
are looked up layer by layer in the table's dictionary; only the predictor sees batches. Their last
generation's children are never looked at, and neither are they here.

Source: Cai et al. 2020, "Once-for-all", section 3.4; published figures: mean predicted accuracy
0.7849 to 0.8477 at 15 to 60 ms on the Note10, 5.5 to 10.1 s a limit.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Architecture = dict[str, list[int]]
KERNELS, EXPANDS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
STAGES, SLOTS = 5, 20
WIDTHS = (32, 48, 96, 136, 192)
STRIDES, SQUEEZE, SWISH = (2, 2, 2, 1, 2), (0, 1, 0, 1, 1), (0, 0, 1, 1, 1)


@dataclass(frozen=True)
class MobileNetLatency:
    """Latency of one MobileNetV3 w1.2 architecture in ms: a sum of table entries."""

    entries: Mapping[int, Mapping[str, float]]

    def __call__(self, architecture: Architecture) -> float:
        size = architecture["r"][0]
        table = self.entries[size]
        half = (size + 1) // 2
        total = table[f"Conv-input:{size}x{size}x3-output:{half}x{half}x24"]
        size, width = half, 24
        total += table[_block(size, size, width, width, width, 3, 1, 0, 0)]
        for stage in range(STAGES):
            for position in range(architecture["d"][stage]):
                slot = 4 * stage + position
                stride = STRIDES[stage] if position == 0 else 1
                after = (size + stride - 1) // stride
                total += table[
                    _block(
                        size,
                        after,
                        width,
                        WIDTHS[stage],
                        width * architecture["e"][slot],
                        architecture["ks"][slot],
                        stride,
                        SQUEEZE[stage],
                        SWISH[stage],
                    )
                ]
                size, width = after, WIDTHS[stage]
        total += table[f"Conv_1-input:{size}x{size}x192-output:{size}x{size}x1152"]
        total += table[f"AvgPool2D-input:{size}x{size}x1152-output:1x1x1152"]
        total += table["Conv_2-input:1x1x1152-output:1x1x1536"]
        return total + table["Logits-input:1x1x1536-output:1000"]


def _block(
    before: int,
    after: int,
    inputs: int,
    outputs: int,
    middle: int,
    kernel: int,
    stride: int,
    squeeze: int,
    swish: int,
) -> str:
    skip = int(stride == 1 and inputs == outputs)
    return (
        f"expanded_conv-input:{before}x{before}x{inputs}-output:{after}x{after}x{outputs}-"
        f"expand:{middle}-kernel:{kernel}-stride:{stride}-idskip:{skip}-se:{squeeze}-hs:{swish}"
    )


class MobileNetAccuracy:
    """The published predictor in torch; each architecture is encoded on its own, then one batch."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        layers: list[nn.Module] = []
        for number in (0, 2, 4, 6):
            outputs, inputs = weights[f"{number}.weight"].shape
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1]).eval()
        self.network.load_state_dict(dict(weights))

    def __call__(self, architectures: Sequence[Architecture]) -> npt.NDArray[np.float64]:
        features = [self.encode(architecture) for architecture in architectures]
        with torch.no_grad():
            answer: torch.Tensor = self.network(torch.tensor(features))
        return np.asarray(answer[:, 0].double())

    @staticmethod
    def encode(architecture: Architecture) -> list[float]:
        """128 zeros and ones: kernels and expand ratios slot by slot, then the resolution."""
        kernels, expands = [0.0] * 60, [0.0] * 60
        for stage in range(STAGES):
            for position in range(architecture["d"][stage]):
                slot = 4 * stage + position
                kernels[3 * slot + KERNELS.index(architecture["ks"][slot])] = 1.0
                expands[3 * slot + EXPANDS.index(architecture["e"][slot])] = 1.0
        sizes = [0.0] * 8
        sizes[(architecture["r"][0] - 112) // 16] = 1.0
        return kernels + expands + sizes


@dataclass
class EvolutionFinder:
    """One search within one latency limit.

    Args:
        latency: of one architecture, in ms.
        accuracies: predicted accuracies of a list of architectures.
        resolutions: input sizes to choose from.
    """

    latency: Callable[[Architecture], float]
    accuracies: Callable[[Sequence[Architecture]], npt.NDArray[np.float64]]
    resolutions: Sequence[int]
    limit_ms: float
    seed: int
    population: int = 100
    generations: int = 500
    rate: float = 0.1
    parents: float = 0.25
    evaluations: int = field(default=0, init=False)

    def run(self) -> tuple[float, Architecture, float]:
        """Best predicted accuracy found, its architecture and its latency in ms."""
        rng = random.Random(self.seed)
        members = self._judged(
            [self._until_within(lambda: self._draw(rng)) for _ in range(self.population)]
        )
        best = members[0]
        for _ in range(self.generations):
            members.sort(key=lambda member: member[0], reverse=True)
            members = members[: round(self.parents * self.population)]
            best = max(best, members[0], key=lambda member: member[0])
            children = [
                self._child([member[1] for member in members], rng, mutated=number % 2 == 0)
                for number in range(self.population)
            ]
            members += self._judged(children)
        return best

    def _child(
        self, parents: Sequence[Architecture], rng: random.Random, *, mutated: bool
    ) -> tuple[Architecture, float]:
        left, right = rng.choice(parents), rng.choice(parents)
        if mutated:
            return self._until_within(lambda: self._mutant(left, rng))
        return self._until_within(lambda: self._cross(left, right, rng))

    def _judged(
        self, found: Sequence[tuple[Architecture, float]]
    ) -> list[tuple[float, Architecture, float]]:
        self.evaluations += len(found)
        figures = self.accuracies([architecture for architecture, _ in found])
        return [(float(a), *pair) for a, pair in zip(figures, found, strict=True)]

    def _until_within(self, make: Callable[[], Architecture]) -> tuple[Architecture, float]:
        while True:
            architecture = make()
            latency = self.latency(architecture)
            if latency <= self.limit_ms:
                return architecture, latency

    def _draw(self, rng: random.Random) -> Architecture:
        return {
            "ks": [rng.choice(KERNELS) for _ in range(SLOTS)],
            "e": [rng.choice(EXPANDS) for _ in range(SLOTS)],
            "d": [rng.choice(DEPTHS) for _ in range(STAGES)],
            "r": [rng.choice(self.resolutions)],
        }

    def _mutant(self, parent: Architecture, rng: random.Random) -> Architecture:
        child = copy.deepcopy(parent)
        if rng.random() < self.rate:
            child["r"][0] = rng.choice(self.resolutions)
        for slot in range(SLOTS):
            if rng.random() < self.rate:
                child["ks"][slot] = rng.choice(KERNELS)
                child["e"][slot] = rng.choice(EXPANDS)
        for stage in range(STAGES):
            if rng.random() < self.rate:
                child["d"][stage] = rng.choice(DEPTHS)
        return child

    def _cross(self, left: Architecture, right: Architecture, rng: random.Random) -> Architecture:
        child = copy.deepcopy(left)
        for key, values in child.items():
            for position in range(len(values)):
                values[position] = rng.choice((left[key][position], right[key][position]))
        return child
