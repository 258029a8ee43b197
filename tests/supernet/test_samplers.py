from functools import partial

import numpy as np
import pytest

from tailorbird.errors import ConfigError, SpaceError
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.counts import macs
from tailorbird.supernet.samplers import MacsBalanced, Region, Sandwich, Uniform
from tailorbird.testing import check_sampler

MBV3 = load_space("ofa-mbv3-w1.0")
SAMPLERS = {
    "uniform": Uniform,
    "sandwich": Sandwich,
    "macs-balanced": MacsBalanced,
    "sandwich of macs-balanced": partial(Sandwich, between=partial(MacsBalanced, ranges=4)),
}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_the_contract_is_kept(make):
    check_sampler(make)


def test_a_sampler_that_breaks_the_contract_is_found():
    class Same(Uniform):
        def sample(self, step, rng):
            return super().sample(step, np.random.default_rng(0))

    class Outside(Uniform):
        def sample(self, step, rng):
            return MBV3.space.sample(5, rng)

    with pytest.raises(AssertionError, match="other generators: expected other draws"):
        check_sampler(Same)
    with pytest.raises(AssertionError, match="some lie below its floor"):
        check_sampler(Outside)


def test_uniform_reaches_every_open_value_equally_and_no_other():
    region = Region.opened(MBV3, {"d": 2})
    drawn = Uniform(region, 3000).sample(0, rng())
    names = [choice.name for choice in MBV3.space.choices]
    depths = drawn[:, names.index("d3")]
    assert set(depths) == {1, 2}
    assert abs(depths.mean() - 1.5) < 0.05
    kernels = drawn[:, names.index("k1_1")]
    assert set(kernels) == {2}


def test_the_sandwich_begins_with_the_smallest_of_the_region():
    region = Region.opened(MBV3, {"ks": None, "d": None})
    drawn = Sandwich(region, 3).sample(0, rng())
    assert (drawn[0] == region.smallest).all()
    assert Sandwich(region, 1).sample(0, rng()).shape[0] == 1
    names = [choice.name for choice in MBV3.space.choices]
    assert drawn[0, names.index("e1_1")] == 2  # expand isn't open yet


def test_ranges_of_macs_have_equal_chances_where_uniform_genes_leave_the_ends_out():
    space = load_space("ofa-mbv3-w1.0", resolutions=[192, 224])
    region = Region.whole(space)
    balanced = MacsBalanced(region, 1200, ranges=6)
    shares = np.bincount(balanced.bucket(balanced.sample(0, rng())), minlength=6) / 1200
    assert np.abs(shares - 1 / 6).max() < 0.05
    uniform = np.bincount(balanced.bucket(Uniform(region, 1200).sample(0, rng())), minlength=6)
    assert uniform[[0, 5]].sum() < 30
    resolutions = balanced.sample(0, rng())[:, 0]
    assert abs(resolutions.mean() - 0.5) < 0.07


def test_buckets_follow_macs_at_the_largest_resolution():
    space = load_space("compofa-mbv3-w1.0", resolutions=[160, 224])
    sampler = MacsBalanced(Region.whole(space), 1, ranges=5)
    genomes = space.space.sample(300, rng())
    at_largest = genomes.copy()
    at_largest[:, 0] = 1
    cost = macs(space).sum(at_largest)
    low, high = macs(space).sum(np.array([[1, 0, 0, 0, 0, 0], [1, 2, 2, 2, 2, 2]]))
    expected = np.minimum((cost - low) / (high - low) * 5, 4).astype(int)
    assert (sampler.bucket(genomes) == expected).mean() > 0.99


def test_ranges_without_any_network_are_left_out():
    space = load_space("compofa-mbv3-w1.0", resolutions=[160])
    sampler = MacsBalanced(
        Region.whole(space), 200, ranges=4, cost=lambda g: (g.sum(axis=1) > 5) * 1.0
    )
    assert sampler.buckets.tolist() == [0, 3]
    found = sampler.bucket(sampler.sample(0, rng()))
    assert set(found) == {0, 3}
    assert 60 < (found == 0).sum() < 140


def test_regions_say_what_is_wrong():
    with pytest.raises(ConfigError, match="kinds of genes among ks, e, d, r, got w"):
        Region.opened(MBV3, {"w": 2})
    with pytest.raises(ConfigError, match=r"1 value or more of each kind, got \{'d': 0\}"):
        Region.opened(MBV3, {"d": 0})
    with pytest.raises(SpaceError, match="floor: expected 46 indices"):
        Region(MBV3, np.zeros(3, dtype=np.int64))
    with pytest.raises(ConfigError, match="1 subnet per step or more, got 0"):
        Uniform(Region.whole(MBV3), 0)
    with pytest.raises(ConfigError, match="ranges: expected 1 or more, got 0"):
        MacsBalanced(Region.whole(MBV3), 1, ranges=0)


def test_fixed_kinds_stay_at_their_largest():
    drawn = Uniform(Region.whole(MBV3, fixed=("ks",)), 50).sample(0, rng())
    found = MBV3.architectures(drawn)
    names = [choice.name for choice in MBV3.space.choices]
    assert {one["ks"][0] for one in found} == {7}
    assert set(drawn[:, names.index("e1_1")]) == {0, 1, 2}
