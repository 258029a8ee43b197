"""A linear model of block qualities, and when it is taken."""

import numpy as np
import pytest

from tailorbird.errors import SpaceError
from tailorbird.estimate.block_quality import LEAST_WEIGHT, learn, stages_for


def made_up(weights, *, points=24, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    losses = rng.uniform(size=(points, len(weights)))
    return losses, -losses @ np.array(weights) + noise * rng.standard_normal(points)


def test_weights_of_stages_are_found_and_rank_better():
    model = learn(*made_up([4.0, 1.0, 1.0]))
    assert model.better and model.tau > 0.9 > model.tau_of_sums
    assert model.weights[0] > 2 * model.weights[1:].max()
    assert model.weights.mean() == pytest.approx(1.0)
    assert "24 trained candidates are ranked with Kendall's tau" in str(model)


def test_where_sums_are_right_they_are_kept():
    model = learn(*made_up([1.0, 1.0, 1.0]))
    assert model.tau_of_sums == 1.0 and not model.better


def test_noise_does_not_make_a_loss_a_gain():
    for seed in range(5):
        model = learn(*made_up([1.0, 0.0, 0.0, 0.0], points=12, noise=0.3, seed=seed))
        assert (model.weights >= LEAST_WEIGHT / 2).all()


def test_where_losses_say_nothing_sums_stay():
    losses, _ = made_up([1.0, 1.0])
    model = learn(losses, losses.sum(axis=1))  # the more is lost, the better
    assert model.weights.tolist() == [1.0, 1.0] and not model.better


@pytest.mark.parametrize(("points", "stages"), [(5, 2), (24, 1), (8, 3)])
def test_too_few_networks_tell_nothing(points, stages):
    assert learn(*made_up([1.0] * stages, points=points)) is None
    assert stages_for(points) >= 1
    assert learn(np.ones((9, 2)), np.ones(9)) is None, "all are alike"


def test_shapes_have_to_agree():
    with pytest.raises(SpaceError, match=r"\(n, stages\) and \(n,\), got \(3,\) and \(3,\)"):
        learn(np.ones(3), np.ones(3))
