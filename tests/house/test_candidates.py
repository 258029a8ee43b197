"""A house's candidates: estimated, corrected by what is measured, judged, chosen from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from tailorbird.errors import ConfigError, InfeasibleError
from tailorbird.fit.bench import bench_at
from tailorbird.fit.candidates import Network, Trained
from tailorbird.fit.choose import Chooser
from tailorbird.fit.judge import Judge
from tailorbird.house.candidates import CHANGED, OWN, HouseCandidates
from tailorbird.pipeline import ModelHouse
from tailorbird.progress import Silent
from tailorbird.search import exact
from tailorbird.search.additive import Annealing, Exact
from tailorbird.targets import Place, Target
from tailorbird.task import CLASSIFICATION
from tailorbird.train.evaluate import accuracy, agreement, logits
from tailorbird.train.recipe import Recipe
from tests.fakes import FakeDevice, FakeExporter, Told
from tests.house.makers import same
from tests.pipeline.makers import job

NOISY = FakeDevice(base_ms=0.001, noise=0.1)
ADDITIVE = FakeDevice(base_ms=0.0, key="exact")


@pytest.fixture
def run(with_house):
    return with_house()


def open_house(folder):
    asked = job(folder)
    return ModelHouse.build(
        asked.teacher,
        donors=asked.donors,
        data=asked.data,
        run=folder,
        options=asked.options,
        exporter=FakeExporter(),
    )


def candidates_of(house, split=None, data=None):
    data = data or (house.data if split is None else replace(house.data, validation=split))
    return HouseCandidates(
        house.house,
        data,
        folder=house.folder.path / "retrain",
        recipe=Recipe(),
        seed=0,
        progress=Silent(),
    )


def chooser_for(candidates, device, *, strategy=None, proposals=4):
    """A chooser whose place is open."""
    place = Place(name=device.key, device=device)
    timing = bench_at(candidates, place, FakeExporter(), Silent())
    chooser = Chooser(
        candidates,
        strategy or Exact(),
        proposals=proposals,
        searches=3,
        seed=0,
        progress=Silent(),
    )
    chooser.pools.open(place, timing)
    return chooser


def chosen(candidates, target, **changes):
    chooser = chooser_for(candidates, target.device, **changes)
    chooser.settle([target])
    return chooser.choose(target), chooser


def test_the_choice_is_the_solver_s_where_costs_do_add_up(run):
    candidates = candidates_of(open_house(run))
    target = Target("edge", ADDITIVE, {"latency": "0.5x"})
    plain = candidates_of(open_house(run))
    chooser_for(plain, ADDITIVE)
    choice, _ = chosen(candidates, target, proposals=1)
    metric = "latency_ms@exact"
    best = exact.solve(plain.problem, {metric: 0.98 * choice.limits["latency_ms"]})[0]
    names = candidates.family.names(choice.key)
    assert names == tuple(sorted(candidates.family.alternatives[i].name for i in best.chosen))
    assert choice.figures["latency_ms"] == pytest.approx(best.cost[metric], rel=1e-3)
    assert choice.figures["latency_ms"] <= choice.limits["latency_ms"]


def test_annealing_can_be_asked_for_and_is_never_better_than_the_proof(run):
    candidates = candidates_of(open_house(run))
    chooser_for(candidates, ADDITIVE)
    limits = [{"latency_ms@exact": share * 0.19} for share in (0.4, 0.6, 0.9)]
    proven = Exact().search(candidates, limits, seed=0).winners
    walked = Annealing(steps=300, restarts=2).search(candidates, limits, seed=0).winners
    assert all(a.quality <= b.quality + 1e-9 for a, b in zip(walked, proven, strict=True))
    target = Target("edge", ADDITIVE, {"latency": "0.5x"})
    choice, _ = chosen(candidates, target, strategy=Annealing(steps=300, restarts=2))
    assert choice.figures["latency_ms"] <= choice.limits["latency_ms"]


@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_judged_is_the_induced_network_s_accuracy(run, labelled):
    house = open_house(run)
    split = house.data.validation if labelled else replace(house.data.validation, labels=None)
    candidates = candidates_of(house, split)
    choice, _ = chosen(candidates, Target("edge", ADDITIVE, {"latency": "0.5x"}))
    network = replace(candidates.network(choice.key), module=candidates._induced(choice.key))
    judge = Judge(
        replace(house.data, validation=split, test=None),
        candidates.network(candidates.reference),
    )
    assert choice.accuracy == judge.accuracy(network)


@pytest.mark.parametrize("apart", ["nothing", "unlabelled", "labelled"])
@pytest.mark.parametrize("rank_by", ["divergence", "accuracy_loss", "distillation"])
def test_quality_is_of_what_needs_no_labels_and_accuracy_of_labels(run, apart, rank_by):
    house = open_house(run)
    data, teacher = house.data, house.house.teacher.module
    test = data.test if apart == "labelled" else replace(data.test, labels=None)
    data = replace(data, holdout=None if apart == "nothing" else test)
    candidates = candidates_of(house, data=data)
    candidates.house = replace(candidates.house, rank_by=rank_by)
    key = tuple(candidates.family.of_names([candidates.family.alternatives[0].name]).tolist())
    whole, found = candidates.judge([candidates.reference, key])
    network = candidates._induced(key)
    chosen_by = test if apart == "labelled" else data.validation
    assert found.accuracy == accuracy(network, chosen_by)
    seen = data.validation if apart == "nothing" else test
    if rank_by == "accuracy_loss":
        right = accuracy(network, seen) if seen.labelled else agreement(network, teacher, seen)
        assert found.quality == right
    else:
        told, known = logits(network, seen), logits(teacher, seen)
        assert found.quality == pytest.approx(-float(CLASSIFICATION.distil(told, known)))
        assert whole.quality == pytest.approx(0.0, abs=1e-6)
    assert candidates.weigh(candidates.network(key), 10**6).accuracy == found.accuracy


@pytest.mark.parametrize("labelled", [True, False])
def test_what_was_trained_is_weighed_on_images_that_nobody_knows_better(run, labelled):
    house = open_house(run)
    split = house.data.validation if labelled else replace(house.data.validation, labels=None)
    candidates = candidates_of(house, split)
    key = tuple(candidates.family.of_names([candidates.family.alternatives[0].name]).tolist())
    network = candidates.network(key)
    found, plain = (candidates.weigh(network, trained=trained) for trained in (True, False))
    images = candidates.comparing
    assert len(images) == 4 * len(split)
    if labelled:
        assert torch.equal(images.labels[: len(split)], split.labels)
    else:
        right = logits(house.house.teacher.module, split).argmax(1)
        assert torch.equal(images.labels[: len(split)], right)
    assert found.quality == accuracy(network.module, images)
    assert found.accuracy == plain.accuracy
    assert plain.quality != found.quality
    seen = candidates_of(house, data=replace(house.data, holdout=house.data.validation))
    assert seen.weigh(network, trained=True) == seen.weigh(network)


def test_alternatives_are_added_up_by_the_score_that_is_asked_for(run):
    candidates = candidates_of(open_house(run))
    candidates.house = replace(candidates.house, rank_by="distillation")
    name = candidates.family.alternatives[0].name
    key = candidates.family.of_names([name])[None]
    assert candidates.quality(key)[0] == -candidates.house.scores[name]["distillation"]


def test_limits_that_cannot_be_met_carry_the_lowest_figures(run):
    target = Target("never", FakeDevice(), {"latency_ms": 1e-6, "params": 5.0})
    with pytest.raises(InfeasibleError) as caught:
        chosen(candidates_of(open_house(run)), target)
    assert caught.value.target == "never"
    assert caught.value.limits == {"latency_ms": 1e-6, "params": 5.0}
    assert caught.value.lowest.keys() == {"latency_ms", "params"}
    assert all(value > 5 or name != "params" for name, value in caught.value.lowest.items())


def test_a_limit_just_above_the_lowest_figure_is_met_without_the_margin(run):
    candidates = candidates_of(open_house(run))
    chooser_for(candidates, ADDITIVE)
    limit = 1.01 * exact.lowest(candidates.problem, "latency_ms@exact")
    target = Target("tight", ADDITIVE, {"latency_ms": limit})
    choice, chooser = chosen(candidates, target)
    assert 0.99 * limit < choice.figures["latency_ms"] <= limit
    chooser.miss(target, choice, slower=1.05)
    with pytest.raises(InfeasibleError, match=r"no candidate of this house meets .* asked for\)"):
        chooser.choose(target)


class Killed(KeyboardInterrupt):
    """Stands for the process's end."""


class Counting(FakeDevice):
    """Ends the process in its session number ``last``; tells what it was asked."""

    def __init__(self, last=None):
        super().__init__(
            base_ms=0.001, noise=0.1, key="counting"
        )  # not what the house was timed on
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "last", last)

    def measure(self, models):
        if self.last is not None and len(self.asked) == self.last:
            raise Killed
        self.asked.append(len(models))
        return super().measure(models)


def test_a_search_killed_between_measurements_ends_the_same(with_house):
    def search(folder, device):
        targets = (
            Target("edge", device, {"latency": "0.5x"}),
            Target("next", device, {"latency": "0.7x", "params": "0.97x"}),
        )
        students = open_house(folder).fit(targets, contenders=1, until="search")
        return [(s.result.replaced, s.result.measured) for s in students]

    whole = Counting()
    expected = search(with_house("whole"), whole)
    assert len(whole.asked) > 4
    for stop in (1, len(whole.asked) // 2):
        folder = with_house(str(stop))
        first, second = Counting(stop), Counting()
        with pytest.raises(Killed):
            search(folder, first)
        assert search(folder, second) == expected, stop
        both = sum(first.asked) + sum(second.asked)
        assert both == sum(whole.asked) + 1, "more than the device's trial was measured twice"


def whole_donor(candidates):
    """The candidate that is the donor as it is."""
    [name] = [a.name for a in candidates.house.choices if a.as_is and a.variant == "whole"]
    return tuple(candidates.family.of_names([name]).tolist()), name


def test_a_donor_as_it_is_is_a_candidate_like_any_other(run):
    house = open_house(run)
    candidates = candidates_of(house)
    key, name = whole_donor(candidates)
    donor = house.donors["narrow"].module
    images, _ = next(iter(house.data.validation.batches(16)))
    with torch.no_grad():
        assert torch.equal(candidates.network(key).module(images), donor(images))
    assert candidates.label(key) == f"net:{name}" and candidates.named(f"net:{name}") == key
    [(_, part)] = [one.split(" -> ") for one in candidates.parts(key)]
    assert part == f"{name} (narrow, whole)"
    judge = Judge(replace(house.data, test=None), candidates.network(candidates.reference))
    [judged] = candidates.judge([key])
    assert judged.accuracy == judge.accuracy(Network(donor, (1, 8, 8)))
    recipe = Recipe(epochs=1.0, batch_size=64, recalibrate_batches=0, keep="last")
    short = replace(candidates, recipe=recipe)
    made = short.train({key: "edge"})[key]
    assert made.before is not None and not same(made.before, made.module)
    assert same(candidates.network(key).module, made.before)


class Kept(FakeDevice):
    """The device that the house was built for; it tells how many files it is asked for."""

    def __init__(self):
        super().__init__(base_ms=0.001)
        object.__setattr__(self, "asked", [])

    def measure(self, models):
        self.asked.append(len(models))
        return super().measure(models)


def test_what_was_timed_before_distilling_is_not_timed_again(run):
    device, candidates = Kept(), candidates_of(open_house(run))
    assert candidates.house.sample.devices == (device.key,)
    pool = chooser_for(candidates, device).pools[device.key]
    assert not device.asked
    key, name = whole_donor(candidates)
    saved = candidates.family.savings[f"latency_ms@{device.key}"][name]
    assert candidates.latencies(pool.place).known[candidates.label(key)].median_ms == pytest.approx(
        pool.candidates[candidates.reference] - saved
    )


def test_losses_are_weighed_by_what_became_of_trained_candidates(run):
    candidates, told = candidates_of(open_house(run)), Told()
    candidates.progress = told
    family = candidates.family
    made = {a.name: a for a in family.alternatives}
    own, changed = ([family.alternatives[i] for i in candidates.kinds[k]] for k in (OWN, CHANGED))
    assert {a.origin for a in own} <= {"teacher", "identity"}
    assert {(a.origin, a.as_is, a.variant == "whole") for a in changed} == {("narrow", True, False)}
    blocks = [a for a in made.values() if a.origin == "narrow" and not a.as_is]
    whole = [a for a in made.values() if a.origin == "narrow" and a.variant == "whole" and a.as_is]
    for some, kind in ((own, OWN), (changed, CHANGED), (blocks, ""), (whole, "")):
        assert candidates.kind(tuple(family.of_names([some[0].name]).tolist())) == kind
    assert candidates.kind(candidates.reference) == OWN
    stages = family.stages(4)
    assert all(share.sum() == pytest.approx(1.0) for share in stages.values())
    ends = {a.name: family.blocks[a.block].nodes for a in family.alternatives}
    early = min(ends, key=lambda name: family.teacher.index[ends[name][-1]])
    assert stages[early][0] > 0 == stages[early][-1]
    keys = [tuple(g) for g in family.space.sample(200, np.random.default_rng(0)).tolist()]
    keys = [key for key in dict.fromkeys(keys) if any(key)]
    weights = np.array([4.0, 1.0, 0.1, 0.1])

    def became(key, weights=weights):
        return -sum(float(family.losses[n] * stages[n] @ weights) for n in family.names(key))

    plain = candidates.quality(np.array(keys))
    truth = [became(key) for key in keys]
    candidates.observe([Trained(key=key, share=0.5, quality=became(key)) for key in keys[:40]])
    weighed = candidates.quality(np.array(keys))
    assert kendalltau(weighed, truth).statistic > kendalltau(plain, truth).statistic
    assert candidates.problem.loss.tolist() == [
        candidates.family.losses[a.name] for a in family.alternatives
    ]
    assert "40 trained candidates are ranked with Kendall's tau" in told
    more = [Trained(key=key, share=0.2, quality=became(key, np.ones(4))) for key in keys]
    candidates.observe(more)
    assert candidates.quality(np.array(keys)) == pytest.approx(plain), "sums are right after all"
    candidates.observe([])
    candidates.observe(more[:2])
    assert candidates.quality(np.array(keys)) == pytest.approx(plain)


def test_a_place_without_a_device_is_refused(run):
    candidates = candidates_of(open_house(run))
    with pytest.raises(ConfigError, match="'phone': expected a device that measures"):
        candidates.open(Place(name="phone"), None)
