import inspect
import pickle

import pytest

from tailorbird import errors
from tailorbird.errors import ConfigError, InfeasibleError, TailorbirdError


def test_all_have_one_root():
    kinds = [k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, Exception)]
    assert len(kinds) > 8
    assert all(issubclass(kind, TailorbirdError) for kind in kinds)


@pytest.mark.parametrize("problems", ["one thing", ["one thing"], ("one thing",)])
def test_one_problem_is_told_plainly(problems):
    error = ConfigError(problems)
    assert str(error) == "one thing"
    assert error.problems == ("one thing",)


def test_infeasible_carries_its_figures():
    lowest = {"latency_ms": 2.0}
    error = InfeasibleError("no", target="t", limits={"latency_ms": 1.0}, lowest=lowest)
    lowest["latency_ms"] = 0.0
    assert (error.target, error.limits, error.lowest) == (
        "t",
        {"latency_ms": 1.0},
        {"latency_ms": 2.0},
    )
    assert str(pickle.loads(pickle.dumps(error))) == "no"
