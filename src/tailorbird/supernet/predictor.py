"""Which subnets are evaluated, and the accuracy predictor that is learned from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError
from tailorbird.estimate.features import architecture_features
from tailorbird.estimate.train_predictor import HeldOut, TrainedPredictor, fit
from tailorbird.family import Floats
from tailorbird.report.words import percent
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import MacsBalanced, Region

HELD_OUT = 0.2
"""Share of the evaluated subnets that tells how good the predictor is."""

_DRAWS = 20


@dataclass(frozen=True, eq=False)
class Learned:
    """A predictor learned from all evaluated subnets, and how good it is.

    Args:
        predictor: genomes to accuracies.
        genomes: (n, genes) what it learned from; the smallest and the largest network first.
        held_out: figures of one that learned from the other 80 %, on the 20 %.
    """

    predictor: TrainedPredictor
    genomes: Genomes
    held_out: HeldOut

    def predict(self, genomes: Genomes) -> Floats:
        """Predicted accuracies (n,) of genomes (n, genes)."""
        return self.predictor(genomes)

    def __str__(self) -> str:
        of = self.held_out
        return (
            f"{len(self.genomes)} subnets; {of.pairs} held out: Kendall tau {of.kendall_tau:.2f}, "
            f"mean error {100 * of.mae:.2f} %, {100 * of.within_2_std:.0f} % within two deviations"
        )


def sampled(space: ArchitectureSpace, count: int, *, seed: int) -> Genomes:
    """Distinct genomes (at most ``count``, genes): smallest, largest, then balanced over MACs.

    Uniform genes would hardly ever give networks at the ends, where tight and loose limits lie.
    Small spaces may have fewer than ``count``.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> sampled(load_space("compofa-mbv3-w1.0"), 50, seed=0).shape
        (50, 6)
    """
    region = Region.whole(space)
    sampler = MacsBalanced(region, count)
    rng = np.random.default_rng([seed, 0x5B])
    found = np.stack([region.smallest, region.largest])
    for step in range(_DRAWS):
        more = np.concatenate([found, sampler.sample(step, rng)])
        _, first = np.unique(more, axis=0, return_index=True)
        found = more[np.sort(first)]
        if len(found) >= min(count, space.space.size):
            break
    chosen: Genomes = found[:count]
    return chosen


def learn(space: ArchitectureSpace, genomes: Genomes, accuracies: Floats, *, seed: int) -> Learned:
    """Learn accuracy from evaluated subnets, a fifth of them held out to see how well.

    Raises:
        ConfigError: when all accuracies are equal, or there are fewer than seven.
    """
    if len(genomes) and bool((accuracies == accuracies[0]).all()):
        raise ConfigError(
            f"accuracy predictor: all {len(genomes)} subnets classify {percent(accuracies[0])} % "
            "right, so that none can be preferred; train the supernet longer, or judge on more or "
            "harder images"
        )
    features = architecture_features(space)
    held, rest = _divided(accuracies, np.random.default_rng([seed, 0x9D]))
    try:
        whole = fit(genomes, accuracies, features, seed=seed)
        part = fit(genomes[rest], accuracies[rest], features, seed=seed)
    except ConfigError as error:
        raise ConfigError(
            [f"accuracy predictor: {problem}" for problem in error.problems]
        ) from error
    return Learned(whole, genomes, part.report(genomes[held], accuracies[held]))


def _divided(
    accuracies: Floats, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows held out, and the rest, in which not all accuracies are equal."""
    rows = rng.permutation(len(accuracies))
    held, rest = np.split(rows, [max(2, round(HELD_OUT * len(rows)))])
    others = np.flatnonzero(accuracies[held] != accuracies[rest[0]]) if len(rest) else rest
    if len(others) and bool((accuracies[rest] == accuracies[rest[0]]).all()):
        held[others[0]], rest[0] = rest[0], held[others[0]]
    return np.sort(held), np.sort(rest)
