import numpy as np
import pytest

from tailorbird.errors import SpaceError
from tailorbird.family import AdditiveProblem

GOOD = {
    "loss": np.array([0.1, -0.02]),
    "saving": np.array([[1.0, 10.0], [2.0, -5.0]]),
    "base": np.array([8.0, 100.0]),
    "covers": np.array([[True, False], [False, True]]),
    "metrics": ("latency_ms", "params"),
}


def test_costs_and_losses_add_up():
    problem = AdditiveProblem(**GOOD)
    assert problem.cost([]).tolist() == [8.0, 100.0]
    assert problem.cost([0, 1]).tolist() == [5.0, 95.0]
    assert problem.total_loss([]) == 0.0
    assert problem.total_loss([1, 0]) == pytest.approx(0.08)


def test_all_faults_at_once():
    with pytest.raises(SpaceError) as caught:
        AdditiveProblem(
            loss=np.array([0.1, np.nan]),
            saving=np.ones((3, 2)),
            base=np.ones(1),
            covers=np.ones(2, dtype=bool),
            metrics=("latency_ms", "params"),
        )
    assert str(caught.value) == (
        "ill-formed problem: saving: expected shape (2, 2), got (3, 2); base: expected shape "
        "(2,), got (1,); covers: expected shape (2, layers), got (2,); loss: holds values that "
        "are not finite"
    )
