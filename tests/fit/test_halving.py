"""Contenders that are trained in rounds: who stays, what it costs, and what a kill changes."""

import itertools
import math

import pytest
from torch import nn

from tailorbird.errors import ExportError
from tailorbird.fit.candidates import Judgement, Made, Network
from tailorbird.fit.choose import Chooser
from tailorbird.fit.halving import Halving, rounds_of, trainings
from tailorbird.fit.ledger import Ledger
from tailorbird.fit.pools import Standing
from tailorbird.search.baselines import Exhaustive
from tailorbird.targets import Place, Target
from tests.fakes import Told
from tests.fit.makers import Sums, Times

BOX, PHONE = Place(name="box"), Place(name="phone")
INT8 = BOX.at("int8")
SHAPE = (1, 100)


class Student(nn.Module):
    def __init__(self, key, share):
        super().__init__()
        self.key, self.share = key, share


class Killed(KeyboardInterrupt):
    """Stands for the process's end."""


class Learners(Sums):
    """Even widths win much by training, odd ones little; what is trained lies on a disk."""

    epochs = 7.0
    minutes = None

    def __init__(self, disk=None, *, dies_at=None):
        super().__init__()
        self.disk = {} if disk is None else disk
        self.calls, self.trained, self.events, self.dies_at = [], 0.0, 0, dies_at
        self.observed = []
        self.hurried = 1.0

    def wins(self, key):
        return 20.0 if key[0] % 2 == 0 else 1.0

    def observe(self, trained):
        self.observed = list(trained)

    def event(self):
        self.events += 1
        if self.events == self.dies_at:
            raise Killed

    def train(self, names, *, pause=None):
        assert len(set(names.values())) == len(names)
        goal = 1.0 if pause is None else pause.at
        self.calls.append((dict(names), goal))
        for key in names:
            self.event()
            self.trained += max(0.0, goal - self.disk.get(key, 0.0))
            self.disk[key] = max(goal, self.disk.get(key, 0.0))
        return {
            key: Made(
                module=Student(key, self.disk[key]),
                input_shape=SHAPE,
                before=None,
                epochs=self.hurried * self.disk[key] * self.epochs,
            )
            for key in names
        }

    def weigh(self, network, images=None, *, trained=False):
        assert trained, "on the images for those that were trained apart"
        self.event()
        key, share = network.module.key, network.module.share
        gain = share * self.wins(key)
        return Judgement(float(key[0] + 2.5 * key[1] + gain), 0.5 + 0.01 * gain)


def target(name="one", place=BOX, **limits):
    return Target(name, place, limits or {"latency_ms": 20.0})


def raced(candidates, targets, path, *, contenders=4, told=None, chooser=None):
    """Settle, choose contenders and race them; the chooser and the winners."""
    if chooser is None:
        chooser = Chooser(
            candidates,
            Exhaustive(),
            proposals=4,
            searches=3,
            seed=0,
            progress=told or Told(),
            contenders=contenders,
        )
        for place in dict.fromkeys(one.place for one in targets):
            chooser.pools.open(place, Times(candidates))
        chooser.settle(targets)
    ledger = Ledger(path / "trained.json")
    halving = Halving(candidates, chooser, ledger, rounds_of(contenders), told or Told())
    fields = {one.name: (one, chooser.field(one)) for one in targets}
    return chooser, halving.run(fields)


def test_rounds_cost_about_the_same_and_double_the_training():
    for contenders in (2, 3, 4, 8):
        shares = [1.0 if one is None else one.at for one in rounds_of(contenders)]
        steps = [b - a for a, b in itertools.pairwise([0.0, *shares])]
        assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(steps))
        spent = [one.spent for one in rounds_of(contenders)[:-1]]
        assert spent == [pytest.approx((n + 1) / len(shares)) for n in range(len(spent))]
    assert trainings(1) == 1.0
    assert trainings(4) == pytest.approx(4 / 7 + 2 * 2 / 7 + 4 / 7)


def test_the_one_that_becomes_best_is_kept_and_the_budget_is_told_and_kept(tmp_path):
    candidates, told = Learners(), Told()
    one = target()
    chooser, winners = raced(candidates, [one], tmp_path, told=told)
    first = chooser.choose(target("other"))
    assert first.key[0] % 2 == 1, "as they are, another one is best"
    won = winners["one"]
    assert won.choice.key[0] % 2 == 0 and won.made.module.share == 1.0
    assert won.choice.figures["latency_ms"] <= 20.0
    sizes = [len(names) for names, _ in candidates.calls]
    assert sizes == [4, 2, 1]
    assert [goal for _, goal in candidates.calls] == [pytest.approx(s) for s in (1 / 7, 3 / 7, 1)]
    assert "training 4 candidates of one target in 3 rounds, 12 epochs in all at most" in told
    assert "4 to epoch 1, 2 to epoch 3, 1 to epoch 7" in told
    assert 7 * candidates.trained == pytest.approx(12)
    assert candidates.calls[-1][0] == {won.choice.key: "one"}


def test_minutes_are_told_and_rounds_tell_the_epochs_that_were_made_in_them(tmp_path):
    candidates, told = Learners(), Told()
    candidates.minutes, candidates.hurried = 90.0, 0.5
    chooser, _ = raced(candidates, [target()], tmp_path, told=told)
    assert "12 epochs, and 90 minutes in all at most" in told
    made = [kept.epochs for kept in chooser.aim(target()).rounds]
    assert made == [pytest.approx(0.5), pytest.approx(1.5)]
    assert "after 0.5 epochs" in told
    again, _ = raced(Learners(candidates.disk), [target()], tmp_path)
    assert [kept.epochs for kept in again.aim(target()).rounds] == made, "as it was written down"


def test_each_round_is_kept_for_the_report(tmp_path):
    candidates, told = Learners(), Told()
    chooser, winners = raced(candidates, [target()], tmp_path, told=told)
    first, second = chooser.aim(target()).rounds
    assert (first.epochs, second.epochs) == (pytest.approx(1), pytest.approx(3))
    assert [one.number for one in first.contenders] == [1, 2, 3, 4]
    stayed = [one.name for one in first.contenders if one.stayed]
    assert stayed == [one.name for one in second.contenders] and len(stayed) == 2
    [last] = [one for one in second.contenders if one.stayed]
    assert last.name == winners["one"].choice.name
    assert all(one.accuracy > one.before == 0.5 for one in first.contenders)
    assert f"going on with #{last.number}" in told
    observed = [(candidates.label(one.key), one.share) for one in candidates.observed]
    names = [(one.name, share) for kept, share in ((first, 1 / 7), (second, 3 / 7))
             for one in kept.contenders]  # fmt: skip
    assert sorted(observed) == sorted(names)


def test_contenders_differ_and_some_use_the_limit(tmp_path):
    candidates = Learners()
    chooser, _ = raced(candidates, [target()], tmp_path, contenders=3)
    field = chooser.field(target("another"))
    assert len({one.key for one in field}) == len(field) == 3
    pool = chooser.pools["box"].candidates
    assert all(pool[one.key] <= 20.0 for one in field)
    assert max(one.figures["latency_ms"] for one in field) >= 0.95 * 0.98 * 20.0


def field_of(candidates, keys, *, contenders):
    """Keys of the contenders among candidates that were measured."""
    chooser = Chooser(
        candidates,
        Exhaustive(),
        proposals=1,
        searches=1,
        seed=0,
        progress=Told(),
        contenders=contenders,
    )
    chooser.pools.open(BOX, Times(candidates))
    chooser.pools.measure("box", keys)
    return [one.key for one in chooser.field(target())]


def test_kinds_that_can_not_be_compared_take_turns_near_the_limit():
    class TwoKinds(Learners):
        def kind(self, key):
            return "own" if key[1] == 0 else ""

    worse, better = [(18, 0), (17, 0), (8, 0)], [(width, 1) for width in (15, 14, 13, 12, 9, 5)]
    field = field_of(TwoKinds(), [*worse, *better], contenders=6)
    assert field[:3] == [(18, 0), (15, 1), (17, 0)], "the best as they are"
    assert field[3:5] == [(14, 1), (13, 1)], "of each kind two or more, near the limit"
    assert field[5] == (12, 1) or field[5] == (8, 0)


def test_of_kinds_with_as_few_the_better_as_it_is_comes_first():
    class ThreeKinds(Learners):
        def kind(self, key):
            return "" if key[0] == 18 else ("a", "b")[key[1]]

    keys = [(18, 0), (17, 0), (15, 1)]
    assert field_of(ThreeKinds(), keys, contenders=2) == [(18, 0), (15, 1)]


def test_contenders_of_all_targets_train_together_and_equal_ones_once(tmp_path):
    candidates = Learners()
    targets = [target("a"), target("b", latency_ms=21.0), target("free", latency_ms=50.0)]
    chooser, winners = raced(candidates, targets, tmp_path)
    names, _ = candidates.calls[0]
    assert len(names) < 9, "some are of both"
    assert any(" #" in name and ", " in name for name in names.values())
    assert names[candidates.reference] == "free", "it has no rival, and trains along"
    assert chooser.aim(targets[2]).rounds == ()
    assert winners["free"].choice.key == candidates.reference
    assert {"a", "b", "free"} == winners.keys()


@pytest.mark.parametrize("dies_at", range(1, 14))
def test_a_kill_inside_or_between_rounds_changes_nothing(tmp_path, dies_at):
    whole = Learners()
    chooser, winners = raced(whole, [target()], tmp_path / "whole")
    assert whole.events == 13
    disk = {}
    with pytest.raises(Killed):
        raced(Learners(disk, dies_at=dies_at), [target()], tmp_path / "cut")
    again = Learners(disk)
    spent = sum(disk.values())
    resumed, others = raced(again, [target()], tmp_path / "cut")
    assert others["one"].choice == winners["one"].choice
    assert resumed.aim(target()) == chooser.aim(target())
    assert spent + again.trained == pytest.approx(whole.trained), "nothing is trained twice"
    entries = [list(Ledger(tmp_path / one / "trained.json")) for one in ("whole", "cut")]
    assert entries[0] == entries[1]


def test_after_a_miss_the_one_trained_furthest_comes_first_and_goes_on(tmp_path):
    candidates, one = Learners(), target()
    chooser, winners = raced(candidates, [one], tmp_path)
    won = winners["one"].choice
    pool = dict(chooser.pools["box"].candidates)
    chooser.miss(one, won, slower=1.0)
    before = candidates.trained
    chooser.settle([one])
    chooser, winners = raced(candidates, [one], tmp_path, chooser=chooser)
    runner_up = winners["one"].choice
    second = chooser.aim(one).rounds[1]
    assert [c.name for c in second.contenders if not c.stayed] == [runner_up.name]
    assert candidates.trained - before == pytest.approx(4 / 7), "from where it was left"
    assert chooser.pools["box"].candidates == pool, "nothing was searched for"
    chooser.miss(one, runner_up, slower=2.0)
    chooser.settle([one])
    third = chooser.field(one)
    assert all(c.figures["latency_ms"] < 10 for c in third), "others, as no trained one is so fast"


class Graded(Learners):
    """Accuracy is quality by the best one's; half of what it lacks is won by training."""

    closes = 0.5

    def judge(self, keys):
        return [Judgement(self.accuracy(key), self.accuracy(key)) for key in keys]

    def accuracy(self, key, share=0.0):
        base = (key[0] + 2.5 * key[1]) / 41.5
        return base + share * self.closes * (1 - base)

    def weigh(self, network, images=None, *, trained=False):
        found = self.accuracy(network.module.key, network.module.share)
        return Judgement(found, found)


def test_with_a_limit_on_accuracy_the_fastest_that_keeps_it_is_left(tmp_path):
    candidates, one = Graded(), target(accuracy=0.6)
    chooser, winners = raced(candidates, [one], tmp_path)
    won = winners["one"].choice
    pool = chooser.pools["box"].candidates
    keep = [key for key in pool if candidates.accuracy(key, 1.0) >= 0.6]
    assert won.figures["latency_ms"] == min(pool[key] for key in keep)
    assert won.accuracy < 0.6, "it relies on its training"


def test_with_a_limit_on_accuracy_those_that_may_keep_it_go_first_the_fastest_in_front():
    candidates = Graded()
    chooser = Chooser(candidates, Exhaustive(), proposals=1, searches=1, seed=0, progress=Told())
    chooser.pools.open(BOX, Times(candidates))
    found = {10: 0.5, 12: 0.3, 14: 0.55, 16: 0.4}  # a quarter of what was lacking is to come
    chooser.pools.measure("box", [(width, 0) for width in found])
    chooser.judged.judge([(width, 0) for width in found])
    standings = [
        Standing(place="box", key=(width, 0), share=0.5, quality=0.0, accuracy=accuracy)
        for width, accuracy in found.items()
    ]
    order = chooser.order(target(accuracy=0.6), standings[::-1])
    assert [one.key[0] for one in order] == [10, 14, 16, 12]
    plain = chooser.order(target(), standings[::-1])
    assert [one.key[0] for one in plain] == [10, 12, 14, 16], "of equals, the faster one"


class Files:
    """Files lose more once they are trained; one can't be made then."""

    def __init__(self, broken=()):
        self.judged, self.broken = [], broken

    def judge(self, place, key, plain, trained=None):
        self.judged.append((key, trained is not None))
        if trained is not None and key in self.broken:
            raise ExportError("an operator is unknown")
        loses = 1.0 if trained is None else 2.0
        return Judgement(plain.quality - loses, plain.accuracy - 0.01 * loses)


@pytest.mark.parametrize("breaks", [False, True])
def test_files_are_judged_again_once_they_are_trained(tmp_path, breaks):
    candidates, files, told = Learners(), Files(), Told()
    chooser = Chooser(
        candidates,
        Exhaustive(),
        proposals=4,
        searches=3,
        seed=0,
        progress=told,
        places=lambda _: [BOX, INT8],
        files=files,
        contenders=4,
    )
    chooser.pools.open(BOX, Times(candidates))
    chooser.pools.open(INT8, Times(candidates, speed=2.0))
    one = target()
    chooser.settle([one])
    field = chooser.field(one)
    quick = [c for c in field if c.precision == "int8"]
    assert quick and len({c.key for c in field}) == len(field)
    if breaks:
        files.broken = [c.key for c in quick]
    chooser, winners = raced(candidates, [one], tmp_path, chooser=chooser, told=told)
    standings = {s.key: s for s in chooser.aim(one).standings if s.place == "box int8"}
    assert standings
    for key, standing in standings.items():
        plain = candidates.weigh(Network(Student(key, standing.share), SHAPE), trained=True)
        assert standing.quality == pytest.approx(plain.quality - (1.0 if breaks else 2.0))
    assert sum(trained for _, trained in files.judged) >= len(quick)
    assert winners["one"].choice in field
    assert any("an operator is unknown" in line for line in told.lines) == breaks


def test_a_network_whose_answers_are_no_numbers_is_the_first_to_go(tmp_path):
    class Broken(Learners):
        def weigh(self, network, images=None, *, trained=False):
            found = super().weigh(network, trained=trained)
            return Judgement(math.nan, 0.5) if network.module.key == worst else found

    worst = raced(Learners(), [target()], tmp_path / "a")[1]["one"].choice.key
    chooser, winners = raced(Broken(), [target()], tmp_path / "b")
    first, _ = chooser.aim(target()).rounds
    [dropped] = [one for one in first.contenders if one.name == Sums().label(worst)]
    assert not dropped.stayed and dropped.accuracy == 0.0
    assert winners["one"].choice.key != worst
    assert worst not in {one.key for one in chooser.candidates.observed}
    assert len(Ledger(tmp_path / "b" / "trained.json")) == 6, "and it can be read again"


def test_a_damaged_ledger_is_begun_anew(tmp_path):
    path = tmp_path / "trained.json"
    path.write_text("{")
    assert len(Ledger(path)) == 0
