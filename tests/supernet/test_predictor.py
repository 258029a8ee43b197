"""Learning accuracy from the evaluated subnets of a space."""

import numpy as np
import pytest

from tailorbird.errors import ConfigError
from tailorbird.supernet.predictor import learn, sampled
from tests.supernet.tiny import tiny_space


def test_the_fewest_subnets_are_enough(tmp_path):
    space = tiny_space(tmp_path)
    genomes = sampled(space, 8, seed=0)
    learned = learn(space, genomes, 0.5 + 0.01 * genomes.sum(axis=1), seed=0)
    assert len(learned.genomes) == 8 and learned.held_out.pairs == 2


def test_one_subnet_that_differs_is_enough_and_held_out_says_what_it_can(tmp_path):
    space = tiny_space(tmp_path)
    genomes = sampled(space, 10, seed=0)
    for odd in range(len(genomes)):
        accuracies = np.ones(10)
        accuracies[odd] = 0.5
        learned = learn(space, genomes, accuracies, seed=0)
        found = learned.predict(genomes)
        assert found.argmin() == odd
        assert "10 subnets; 2 held out" in str(learned)


def test_equal_accuracies_are_told(tmp_path):
    space = tiny_space(tmp_path)
    genomes = sampled(space, 10, seed=0)
    with pytest.raises(ConfigError, match=r"all 10 subnets classify 50.00 % right, so that"):
        learn(space, genomes, np.full(10, 0.5), seed=0)


def test_a_space_with_fewer_members_than_asked_for_gives_all(tmp_path):
    space = tiny_space(tmp_path, "bottleneck", resolutions=(8,))
    genomes = sampled(space, 10_000, seed=0)
    assert len(genomes) == space.space.size < 10_000
