"""A house's candidates: estimated, corrected by what is measured, judged, chosen from."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from tailorbird.errors import ConfigError, InfeasibleError
from tailorbird.fit.bench import bench_at
from tailorbird.fit.candidates import Trained
from tailorbird.fit.choose import Chooser
from tailorbird.fit.judge import Judge
from tailorbird.house.candidates import HouseCandidates
from tailorbird.pipeline import ModelHouse
from tailorbird.progress import Silent
from tailorbird.search import exact
from tailorbird.search.additive import Annealing, Exact
from tailorbird.targets import Place, Target
from tailorbird.train.recipe import Recipe
from tests.fakes import FakeDevice, FakeExporter, Told
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


def candidates_of(house, split=None):
    data = house.data if split is None else replace(house.data, validation=split)
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
        super().__init__(base_ms=0.001, noise=0.1)
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
    for stop in range(1, len(whole.asked) - 1):
        folder = with_house(str(stop))
        first, second = Counting(stop), Counting()
        with pytest.raises(Killed):
            search(folder, first)
        assert search(folder, second) == expected, stop
        both = sum(first.asked) + sum(second.asked)
        assert both == sum(whole.asked) + 1, "more than the device's trial was measured twice"


def test_losses_are_weighed_by_what_became_of_trained_candidates(run):
    candidates, told = candidates_of(open_house(run)), Told()
    candidates.progress = told
    family = candidates.family
    own = {family.alternatives[index].name for index in candidates.kinds["own"]}
    donors = {a.name for a in family.alternatives if a.origin == "narrow"}
    assert own and own.isdisjoint(donors)
    one, other = (tuple(family.of_names([min(some)]).tolist()) for some in (own, donors))
    assert (candidates.kind(one), candidates.kind(other)) == ("own", "")
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
