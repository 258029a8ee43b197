"""The figure for a whole front, against a plain loop and by hand."""

import numpy as np
import pytest

from tailorbird.errors import DataError
from tailorbird.supernet.pareto import bucket_front, mean_pareto_accuracy


def by_loops(costs, accuracies, buckets):
    low, high = costs.min(), costs.max()
    best, total = None, 0.0
    for number in range(buckets):
        inside = [
            accuracy
            for cost, accuracy in zip(costs, accuracies, strict=True)
            if min(int((cost - low) / (high - low) * buckets), buckets - 1) == number
        ]
        best = max(inside) if inside else best
        total += best
    return total / buckets


def test_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 40):
        costs, accuracies = rng.uniform(1, 9, count), rng.uniform(size=count)
        found = mean_pareto_accuracy(costs, accuracies)
        assert found == pytest.approx(by_loops(costs, accuracies, 6))


def test_front_has_the_best_of_each_range_and_of_equals_the_cheaper():
    costs = np.array([0.0, 5.0, 1.0, 10.0, 9.0, 6.0])
    accuracies = np.array([0.1, 0.4, 0.3, 0.9, 0.9, 0.2])
    assert bucket_front(costs, accuracies, buckets=2).tolist() == [2, 4]
    # In [0, 5) the best is 0.3; from 5 to 10 it is 0.9.
    assert mean_pareto_accuracy(costs, accuracies, buckets=2) == pytest.approx(0.6)


def test_an_empty_range_takes_the_next_cheaper_one():
    costs, accuracies = np.array([0.0, 3.0]), np.array([0.4, 0.7])
    assert mean_pareto_accuracy(costs, accuracies, buckets=3) == pytest.approx(
        (0.4 + 0.4 + 0.7) / 3
    )


def test_a_single_cost_is_a_flat_curve():
    same = np.array([2.0, 2.0])
    assert mean_pareto_accuracy(same, np.array([0.4, 0.7])) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("costs", "accuracies", "text"),
    [
        ([], [], "at least one subnet"),
        ([1.0, 2.0], [0.5], "shapes (2,) and (1,)"),
        ([1.0, np.nan, 3.0], [0.5, 0.5, np.inf], "2 subnets have figures that aren't finite, the"),
    ],
)
def test_bad_figures(costs, accuracies, text):
    with pytest.raises(DataError, match="Pareto") as caught:
        mean_pareto_accuracy(np.array(costs), np.array(accuracies))
    assert text in str(caught.value)
