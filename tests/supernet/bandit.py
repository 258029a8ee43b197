"""A sampler that learns: ranges of MACs whose networks have high losses are drawn more often."""

from __future__ import annotations

import torch

from tailorbird.supernet.samplers import MacsBalanced


class Bandit:
    """Exponential weights over ranges of MACs, by a tensor that moves towards the losses told."""

    def __init__(self, region, count, *, ranges=3, pace=0.3, sharpness=2.0):
        self.region, self.count = region, count
        self.pace, self.sharpness = pace, sharpness
        self.name = f"bandit({count}, {ranges})"
        self.bucket = MacsBalanced(region, count, ranges=ranges).bucket
        self.losses = torch.zeros(ranges, dtype=torch.float64)
        self.told = []

    @property
    def probabilities(self):
        share = self.losses / self.losses.mean().clamp_min(1e-9)
        return torch.softmax(self.sharpness * share, dim=0)

    def sample(self, step, rng):
        pool = self.region.spread(64, rng)
        chances = self.probabilities.numpy()[self.bucket(pool)]
        return pool[rng.choice(len(pool), size=self.count, p=chances / chances.sum())]

    def observe(self, genomes, losses):
        self.told += [
            [genome.tolist(), float(loss)] for genome, loss in zip(genomes, losses, strict=True)
        ]
        for bucket, loss in zip(self.bucket(genomes), losses, strict=True):
            self.losses[bucket] += self.pace * (loss - self.losses[bucket])

    def state(self):
        return {"losses": self.losses, "told": self.told}

    def restore(self, state):
        self.losses, self.told = state["losses"].clone(), list(state["told"])


class Makes:
    """Makes bandits and remembers them."""

    def __init__(self):
        self.made = []

    def __call__(self, region, count):
        self.made.append(Bandit(region, count))
        return self.made[-1]
