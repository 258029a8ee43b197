"""Searching, measuring whole networks, and searching again."""

import shutil
from dataclasses import replace

import pytest

from tailorbird.errors import InfeasibleError
from tailorbird.family import AdditiveProblem
from tailorbird.pipeline import ModelHouse, pricing
from tailorbird.pipeline import choose as choosing
from tailorbird.pipeline.choose import choose, judge_module
from tailorbird.progress import Silent
from tailorbird.search import exact
from tailorbird.targets import Target
from tests.fakes import FakeDevice

from .makers import job, stub_exports

NOISY = FakeDevice(base_ms=0.001, noise=0.1)
TARGETS = (
    Target("edge", NOISY, {"latency": "0.5x"}),
    Target("next", NOISY, {"latency": "0.7x", "params": "0.97x"}),
)


@pytest.fixture(autouse=True)
def stubbed(monkeypatch):
    stub_exports(monkeypatch.setattr)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stub_exports(patch.setattr)
        folder = tmp_path_factory.mktemp("built") / "run"
        open_house(folder)
        return folder


def open_house(folder):
    asked = job(folder)
    return ModelHouse.build(
        asked.teacher, donors=asked.donors, data=asked.data, run=folder, options=asked.options
    )


def search(folder):
    students = open_house(folder).fit(TARGETS, until="search")
    return [(s.result.replaced, s.result.measured) for s in students]


class Killed(BaseException):
    """Stands for the process's end."""


def test_a_search_killed_between_measurements_ends_the_same(built, tmp_path, monkeypatch):
    monkeypatch.setattr(pricing, "CHUNK", 1)
    shutil.copytree(built, tmp_path / "whole")
    timed = []
    time = pricing.Pricing._time
    monkeypatch.setattr(
        pricing.Pricing, "_time", lambda own, part: timed.append(part) or time(own, part)
    )
    expected = search(tmp_path / "whole")
    total = len(timed)
    assert total > 8
    for stop in range(1, total, max(1, total // 4)):
        shutil.copytree(built, tmp_path / str(stop))
        timed.clear()

        def dying(own, part, stop=stop):
            if len(timed) == stop:
                raise Killed
            timed.append(part)
            return time(own, part)

        monkeypatch.setattr(pricing.Pricing, "_time", dying)
        with pytest.raises(Killed):
            search(tmp_path / str(stop))
        monkeypatch.setattr(
            pricing.Pricing, "_time", lambda own, part: timed.append(part) or time(own, part)
        )
        assert search(tmp_path / str(stop)) == expected, stop
        assert len(timed) == total, "something was measured twice"


def chosen(house, target, **changes):
    arguments = {"rounds": 3, "candidates": 4, "seed": 0, "progress": Silent()}
    prices = house.pricing(target)
    return choose(target, prices, house.data.validation, **{**arguments, **changes}), prices


def test_the_choice_is_the_solver_s_where_costs_do_add_up(built, tmp_path):
    shutil.copytree(built, tmp_path / "run")
    target = Target("edge", FakeDevice(base_ms=0.0, key="exact"), {"latency": "0.5x"})
    choice, prices = chosen(open_house(tmp_path / "run"), target, candidates=1)
    problem: AdditiveProblem = prices.isolated
    best = exact.solve(problem, {"latency_ms": 0.98 * choice.limits["latency_ms"]})[0]
    assert choice.predicted_loss == pytest.approx(best.loss)
    assert choice.figures["latency_ms"] == pytest.approx(best.cost["latency_ms"], rel=1e-3)
    assert choice.annealing_gap >= -1e-9
    assert choice.figures["latency_ms"] <= choice.limits["latency_ms"]


@pytest.mark.parametrize("labelled", [True, False])
def test_each_network_judged_runs_once_and_gives_its_accuracy(
    built, tmp_path, monkeypatch, labelled
):
    shutil.copytree(built, tmp_path / "run")
    house = open_house(tmp_path / "run")
    target = Target("edge", FakeDevice(base_ms=0.0, key="exact"), {"latency": "0.5x"})
    split = house.data.validation if labelled else replace(house.data.validation, labels=None)
    ran = []
    logits = choosing.logits
    monkeypatch.setattr(
        choosing, "logits", lambda module, *a, **k: ran.append(module) or logits(module, *a, **k)
    )
    prices = house.pricing(target)
    choice = choose(target, prices, split, rounds=3, candidates=4, seed=0, progress=Silent())
    assert 2 <= len(ran) <= 5, "the teacher and up to four candidates"
    chosen_one = prices.family.induce(choice.names)
    expected = judge_module(chosen_one, house.house.teacher, split)
    assert choice.accuracy == expected


def test_limits_that_cannot_be_met_carry_the_lowest_figures(built, tmp_path):
    shutil.copytree(built, tmp_path / "run")
    target = Target("never", FakeDevice(), {"latency_ms": 1e-6, "params": 5.0})
    with pytest.raises(InfeasibleError) as caught:
        chosen(open_house(tmp_path / "run"), target)
    assert caught.value.target == "never"
    assert caught.value.limits == {"latency_ms": 1e-6, "params": 5.0}
    assert caught.value.lowest.keys() == {"latency_ms", "params"}
    assert all(value > 5 or name != "params" for name, value in caught.value.lowest.items())


def test_a_limit_just_above_the_lowest_figure_is_met_without_the_margin(built, tmp_path):
    shutil.copytree(built, tmp_path / "run")
    device = FakeDevice(base_ms=0.0, key="exact")
    house = open_house(tmp_path / "run")
    problem = house.pricing(Target("any", device, {"latency": "1x"})).isolated
    limit = 1.01 * exact.lowest(problem, "latency_ms")
    choice, _ = chosen(house, Target("tight", device, {"latency_ms": limit}))
    assert 0.99 * limit < choice.figures["latency_ms"] <= limit
    with pytest.raises(InfeasibleError, match="no candidate of this house meets"):
        chosen(house, Target("tight", device, {"latency_ms": limit}), scale=0.95)
