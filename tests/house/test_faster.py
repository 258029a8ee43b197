"""What is smaller is what is faster: timed before it is distilled, by MACs where it can't be."""

from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest

from tailorbird.device import Latency
from tailorbird.errors import GraphError, MeasurementError
from tailorbird.house.build import build_house, sample_house
from tailorbird.house.faster import SLOWER, keep_faster
from tailorbird.house.sample import HEAVIER, HEAVIEST, to_be_timed
from tailorbird.house.store import HouseStore
from tailorbird.house.structures import structures_of
from tailorbird.measure.counts import count
from tailorbird.progress import Silent
from tests.fakes import Told

from .makers import OPTIONS, donors, images, same, teacher

FEW = replace(OPTIONS, teacher_blocks=4, donor_blocks=1, pruned=0)


@cache
def heavy_sample(options=OPTIONS):
    """A house whose alternatives may be heavier than their blocks; read only."""
    return sample_house(teacher(), donors(), images(), options, seed=0, rule=to_be_timed)


class Box:
    """Where the more a network has to do, the faster it is."""

    base_ms = reference_ms = 1.0

    def __init__(self):
        self.asked, self.known = [], {}

    def measure(self, networks, *, title="", together=1):
        self.asked.append(list(networks))
        return {name: self.latency(make()) for name, make in networks.items()}

    def latency(self, network):
        macs = count(network.module, network.input_shape).macs
        return Latency(median_ms=1e6 / (1 + macs), spread_ms=0.0, runs=1, warmup=0)


class Coarse(Box):
    """Where what has a little less to do is as fast."""

    def latency(self, network):
        macs = count(network.module, network.input_shape).macs
        return Latency(median_ms=1.0 + macs // 20_000, spread_ms=0.0, runs=1, warmup=0)


class Broken(Box):
    def measure(self, networks, *, title="", together=1):
        raise MeasurementError("it fell off the table")


def macs_of(sample, names):
    """Pairs of MACs of alternatives and of their blocks."""
    known = {a.name: a for a in sample.alternatives}
    return [(known[name].macs, sample.blocks[known[name].block].macs) for name in names]


def lighter(sample):
    """Names of alternatives of fewer MACs than their block."""
    blocks = sample.blocks
    return {a.name for a in sample.alternatives if a.macs < blocks[a.block].macs}


def names(sample):
    return {a.name for a in sample.alternatives}


def test_candidates_to_be_timed_may_be_heavier_within_bounds():
    sample = heavy_sample()
    pairs = macs_of(sample, names(sample))
    heavy = [pair for pair in pairs if pair[0] >= pair[1]]
    assert heavy and all(own <= HEAVIEST * block for own, block in pairs)
    assert HEAVIER not in sample.rejections
    drawn = [a for a in sample.alternatives if a.origin == "narrow" and not a.as_is]
    assert len(drawn) <= 2 * OPTIONS.donor_blocks + OPTIONS.pruned * 2 + 3  # and three stages


def test_what_is_faster_is_kept_whatever_its_macs_and_the_rest_is_counted():
    sample, timing = heavy_sample(), Box()
    left = keep_faster(teacher(), replace(sample, pending=True), {"box": lambda: timing})
    assert (left.pending, left.devices) == (False, ("box",))
    [asked] = timing.asked
    structures = structures_of(teacher(), sample, sample.modules)
    assert sorted(asked) == sorted(structures.networks)  # each structure once, in one call
    blocks = sample.blocks
    kept = {a.name for a in sample.alternatives if a.macs > blocks[a.block].macs}
    assert kept and names(left) == kept
    gone = names(sample) - names(left)
    assert left.rejections - sample.rejections == {SLOWER: len(gone)}
    assert left.modules.keys() == names(left)


def test_one_device_is_enough_and_where_one_fails_macs_decide_for_it():
    sample, told = heavy_sample(), Told()
    fast = names(keep_faster(teacher(), sample, {"box": Box}))
    light = lighter(sample)
    both = keep_faster(teacher(), sample, {"lost": Broken, "box": Box}, told)
    assert names(both) == fast | light and both.devices == ("box",)
    assert "lost: what has fewer MACs is taken as smaller, timing failed: it fell off" in told
    none = keep_faster(teacher(), sample, {"lost": Broken}, told)
    assert names(none) == light == names(keep_faster(teacher(), sample, {}))
    assert none.devices == () and none.rejections[HEAVIER] == len(sample.alternatives) - len(light)


class Stopped(BaseException):
    """The build got as far as is looked at."""


@contextmanager
def until_distilled(name):
    if name == "distil":
        raise Stopped
    yield


def build(folder, timings):
    with pytest.raises(Stopped):
        build_house(
            teacher(),
            donors(),
            images(),
            FEW,
            seed=0,
            store=HouseStore(folder),
            stage=until_distilled,
            timings=timings,
            progress=Silent(),
        )
    return HouseStore(folder).load_sample()


class Killed(BaseException):
    """Stands for the process's end."""


def test_a_house_killed_while_candidates_are_timed_goes_on_with_the_same(tmp_path):
    def dies():
        raise Killed

    with pytest.raises(Killed):
        build(tmp_path, {"box": dies})
    half = HouseStore(tmp_path).load_sample()
    assert half.pending and names(half) == names(heavy_sample(FEW))
    found = build(tmp_path, {"box": Coarse})
    expected = keep_faster(teacher(), heavy_sample(FEW), {"box": Coarse})
    assert found.record() == expected.record()
    assert names(found) < names(half)
    assert all(same(found.modules[name], expected.modules[name]) for name in names(found))
    stored = {path.name.partition(".")[0] for path in (tmp_path / "initial").iterdir()}
    assert stored == names(found)
    again = build(tmp_path, {"other": dies})  # a house that stands is not asked about again
    assert again.record() == found.record()


class Slow(Box):
    """On which everything takes the same."""

    def latency(self, network):
        return Latency(median_ms=1.0, spread_ms=0.0, runs=1, warmup=0)


def test_a_house_in_which_nothing_is_faster_says_so(tmp_path):
    reason = rf"the house stays empty: .*{SLOWER} \(\d+\)"
    with pytest.raises(GraphError, match=reason):
        build(tmp_path, {"box": Slow})
