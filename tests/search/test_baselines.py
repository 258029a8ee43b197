from __future__ import annotations

import sys

import numpy as np
import pytest

from tailorbird.errors import ConfigError
from tailorbird.search.baselines import Exhaustive, RandomSearch
from tailorbird.search.nsga2 import Nsga2
from tests.search.families import Supernet


def test_random_search_judges_as_many_as_asked_for_and_no_more():
    result = RandomSearch(evaluations=1000).search(Supernet(), [{"latency_ms": 16.0}], seed=0)
    assert 1001 <= result.evaluations <= 1003  # with its start, and the winner once more


def test_random_search_ends_where_nothing_random_fits():
    family = Supernet()
    least = float(family.cost(family.space.enumerate())["latency_ms"].min())
    result = RandomSearch(evaluations=5000).search(family, [{"latency_ms": least}], seed=0)
    assert result.winners[0].cost["latency_ms"] == least
    assert result.evaluations < 200


def test_more_random_members_are_never_worse():
    few, many = (
        RandomSearch(evaluations=n).search(Supernet(), [{"latency_ms": 14.0}], seed=0)
        for n in (50, 20_000)
    )
    assert many.winners[0].quality > few.winners[0].quality


def test_a_space_too_large_to_list_is_refused():
    with pytest.raises(
        ConfigError, match=r"expected a space of at most 1,000 members, got 148,176; choose another"
    ):
        Exhaustive(most=1000).search(Supernet(), [{"latency_ms": 14.0}], seed=0)


def test_no_evaluations_are_refused():
    with pytest.raises(ConfigError, match="evaluations: expected a whole number above 0, got 0"):
        RandomSearch(evaluations=0)


def test_without_pymoo_the_way_out_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pymoo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pymoo", None)
    before = np.random.get_state()[1].copy()
    with pytest.raises(ConfigError, match=r"needs pymoo.*pip install tailorbird\[nsga2\]"):
        Nsga2().search(Supernet(), [{"latency_ms": 14.0}], seed=0)
    assert (np.random.get_state()[1] == before).all()


def test_faulty_settings_of_nsga2_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Nsga2(population=0, generations=0, rate=2.0)
    assert len(caught.value.problems) == 3
