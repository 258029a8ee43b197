"""Precision as a dimension of the search: pools of their own, one choice over all of them."""

import pytest

from tailorbird.device import Format
from tailorbird.errors import ConfigError, ExportError, InfeasibleError, MeasurementError
from tailorbird.fit.candidates import Judgement
from tailorbird.fit.choose import Chooser
from tailorbird.fit.places import places_for, precisions_for
from tailorbird.search.baselines import Exhaustive
from tailorbird.targets import Place, Target
from tests.fakes import FakeDevice, FakeExporter, Told
from tests.fit.makers import Sums, Times

BOX = Place(name="box")
INT8 = BOX.at("int8")


class Files:
    """Files in int8 lose so much of a network's quality; some can't be made."""

    def __init__(self, loses=0.0, broken=()):
        self.loses, self.broken, self.judged = loses, broken, []

    def judge(self, place, key, plain, trained=None):
        assert place.precision == "int8"
        self.judged.append(key)
        if key in self.broken:
            raise ExportError("an operator is unknown")
        return Judgement(plain.quality - self.loses, plain.accuracy - self.loses)


def target(name="one", precisions=None, **limits):
    return Target(name, BOX, limits or {"latency_ms": 20.0}, precisions=precisions)


def chooser(candidates, *, speed=2.0, files=None, told=None):
    made = Chooser(
        candidates,
        Exhaustive(),
        proposals=3,
        searches=6,
        seed=0,
        progress=told or Told(),
        places=lambda one: [
            place
            for place in (BOX, INT8)
            if place.precision in (one.precisions or ("float32", "int8"))
        ],
        files=files or Files(),
    )
    made.pools.open(BOX, Times(candidates))
    made.pools.open(INT8, Times(candidates, speed=speed))
    return made


def test_each_precision_is_searched_with_its_own_figures_and_the_best_of_all_is_taken():
    made = chooser(Sums())
    one = target()
    made.settle([one])
    choice = made.choose(one)
    assert (choice.place, choice.precision) == ("box int8", "int8")
    alone = made.choose(target("plain", precisions=("float32",)))
    assert alone.precision == "float32"
    # Twice as fast: a network of nearly twice the width, 38 beside 19.
    assert choice.key[0] > 1.8 * alone.key[0]
    assert choice.figures["latency_ms"] <= 20.0
    assert choice.limits == alone.limits == {"latency_ms": 20.0}


def test_shares_are_of_the_reference_in_float32():
    made = chooser(Sums())
    assert made.limits(target(latency="0.5x")) == {"latency_ms": 21.5}
    assert made.limits(target(precisions=("int8",), latency="0.5x")) == {"latency_ms": 21.5}


def test_what_a_file_loses_counts_and_only_the_best_are_made_files():
    candidates, files = Sums(), Files(loses=25.0)
    made, one = chooser(candidates, files=files), target()
    made.settle([one])
    choice = made.choose(one)
    assert choice.precision == "float32", "int8 allows twice the width and loses more than that"
    pool = made.pools["box int8"].candidates
    assert files.judged and len(files.judged) == len(set(files.judged)) <= len(pool)


def test_a_file_that_cannot_be_made_costs_that_candidate_only():
    candidates = Sums()
    plain = chooser(candidates)
    one = target()
    plain.settle([one])
    best = plain.choose(one).key
    told = Told()
    made = chooser(Sums(), files=Files(broken=(best,)), told=told)
    made.settle([one])
    other = made.choose(one)
    assert other.precision == "int8" and other.key != best
    assert any("is left out: an operator is unknown" in line for line in told.lines)


def test_the_reference_in_int8_is_a_candidate_and_nothing_is_searched_where_it_will_do():
    candidates = Sums()
    made, one = chooser(candidates), target(latency="0.6x")
    made.settle([one])
    choice = made.choose(one)
    assert choice.key == candidates.reference and choice.precision == "int8"
    assert all(len(pool.candidates) == 1 for pool in made.pools.values())


def test_a_precision_that_is_no_faster_is_not_taken_and_that_is_said():
    made, one = chooser(Sums(), speed=0.9), target()
    made.settle([one])
    assert made.choose(one).precision == "float32"
    assert made.notes(one) == [
        "int8 is no faster than float32 here: the full network takes 47.78 ms, 43 in float32"
    ]
    asked = target("asked", precisions=("int8",))
    made.settle([asked])
    assert made.choose(asked).precision == "int8", "who asks for it gets it"
    small = target("small", size_mb=1e-4)
    assert made.open_places(small) == ["box", "box int8"], "it saves memory all the same"


def test_sizes_follow_the_precision():
    candidates = Sums()
    made, one = chooser(candidates), target(size_mb=2e-5)
    made.settle([one])
    choice = made.choose(one)
    assert choice.precision == "int8"
    plain = candidates.network(choice.key).module.weight.numel() * 4 / 1e6
    assert choice.figures["size_mb"] == pytest.approx(plain / 4) and plain > 2e-5


def test_a_precision_that_loses_too_much_is_shut_for_that_target_only():
    made = chooser(Sums())
    one, other = target(), target("other")
    made.settle([one, other])
    assert made.choose(one).precision == "int8"
    made.shut(one, "box int8", "int8 costs 3 points")
    made.settle([one])
    assert made.choose(one).precision == "float32"
    assert made.notes(one) == ["int8 costs 3 points"]
    assert made.choose(other).precision == "int8"
    only = target("only", precisions=("int8",))
    made.shut(only, "box int8", "int8 costs 3 points")
    with pytest.raises(ExportError, match="int8 costs 3 points"):
        made.choose(only)


def test_a_precision_that_fails_on_the_device_costs_no_other():
    candidates = Sums()
    made = chooser(candidates)
    made.pools.failed["box int8"] = MeasurementError("no kernel")
    one = target()
    made.settle([one])
    assert made.choose(one).precision == "float32"
    assert made.notes(one) == ["int8: no kernel"]
    with pytest.raises(MeasurementError, match="no kernel"):
        made.choose(target("only", precisions=("int8",)))


# a limit on accuracy ------------------------------------------------------------------------------


class Graded(Sums):
    """Accuracy is quality by the best one's."""

    def judge(self, keys):
        most = self.quality_of(self.reference)
        return [Judgement(self.quality_of(key), self.quality_of(key) / most) for key in keys]

    def quality_of(self, key):
        return float(key[0] + 2.5 * key[1])


def test_the_fastest_that_is_accurate_enough_is_chosen():
    candidates = Graded()
    made, one = chooser(candidates), target(accuracy=0.6)
    made.settle([one])
    choice = made.choose(one)
    assert choice.precision == "int8" and choice.accuracy >= 0.6
    pools = [(key, ms) for pool in made.pools.values() for key, ms in pool.candidates.items()]
    good = [ms for key, ms in pools if candidates.quality_of(key) >= 0.6 * 41.5]
    assert choice.figures["latency_ms"] == min(good)
    assert (
        choice.figures["latency_ms"] < 0.7 * made.pools["box int8"].candidates[candidates.reference]
    )


def test_the_smallest_where_the_latency_is_limited_too():
    candidates = Graded()
    made, one = chooser(candidates), target(accuracy_loss=50.0, latency_ms=40.0)
    made.settle([one])
    choice = made.choose(one)
    pool = made.pools["box int8"].candidates
    good = [key for key in pool if candidates.quality_of(key) >= 0.5 * 41.5]
    assert choice.key[0] == min(key[0] for key in good)


def test_what_training_wins_is_expected_and_learned():
    class Trains(Graded):
        closes = 0.5

    made, one = chooser(Trains()), target(accuracy=0.6)
    made.settle([one])
    first = made.choose(one)
    assert first.accuracy < 0.6 <= first.accuracy + 0.5 * (1 - first.accuracy)
    made.judged.became(first.key, first.accuracy, first.accuracy)  # it won nothing
    made.dismiss(one, first)
    second = made.choose(one)
    assert second.accuracy >= 0.6
    assert made.choose(target("sure", accuracy=0.6), sure=True).key == second.key
    with pytest.raises(InfeasibleError, match=r"meets accuracy >= 0\.999"):
        made.dismiss(target("high", accuracy=0.999), made.choose(target("high", accuracy=0.999)))
        made.dismiss(target("high", accuracy=0.999), made.choose(target("high", accuracy=0.999)))
        made.choose(target("high", accuracy=0.999))


# which places a target has ------------------------------------------------------------------------


class Runs(FakeDevice):
    """A device that says what it runs."""

    precisions = ("int8", "float32", "float16")


class Exotic(FakeDevice):
    format = Format("exotic", "model.exo")


def test_a_device_that_says_nothing_runs_float32():
    one = Target("a", FakeDevice(), {"latency": "0.5x"})
    assert precisions_for(one) == ("float32",)
    assert places_for(one, FakeExporter()) == (one.place,)


def test_what_cannot_be_had_is_told_where_it_was_asked_for():
    device = Runs()
    assert precisions_for(Target("a", device, {"macs": 1e6}))[0] == "float32"
    plain = Target("a", FakeDevice(), {"macs": 1e6}, precisions=("int8",))
    with pytest.raises(ConfigError, match="'a': precision: its device runs float32, got int8"):
        places_for(plain, FakeExporter())
    odd = Target("a", Exotic(), {"macs": 1e6}, precisions=("float32",))
    with pytest.raises(ConfigError, match="exotic files in float32 are not made here"):
        places_for(odd, FakeExporter())
