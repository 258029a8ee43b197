import numpy as np
import pytest

from tailorbird.errors import ConfigError
from tailorbird.estimate.regression import Group, regress

INPUTS = np.random.default_rng(0).normal(size=(20, 3))
MS = np.exp(1 + INPUTS @ [0.3, 0.1, 0.0] + 0.05 * np.sin(3 * INPUTS[:, 0]))
GROUPS = (Group(1, 0.3), Group(2, 0.1))


def test_leave_one_out_equals_refitting_without_the_sample():
    model = regress(INPUTS, MS, groups=GROUPS)
    covariance = model.factor @ model.factor.T
    target = covariance @ model.alpha
    np.testing.assert_allclose(target, np.log(MS) - model.middle, atol=1e-9)
    for row in (0, 7):
        rest = np.delete(np.arange(len(target)), row)
        without = np.linalg.solve(covariance[np.ix_(rest, rest)], target[rest])
        assert model.residuals[row] == pytest.approx(target[row] - covariance[row, rest] @ without)


def test_units_of_features_and_latencies_do_not_matter():
    model = regress(INPUTS, MS, groups=GROUPS)
    scaled = regress(5 + 1000 * INPUTS, 60 * MS, groups=GROUPS)
    for one, other in zip(
        model.predict(INPUTS[:5]), scaled.predict(5 + 1000 * INPUTS[:5]), strict=True
    ):
        np.testing.assert_allclose(60 * one, other, rtol=1e-3)


def test_columns_that_never_vary_are_harmless_and_far_away_it_is_less_sure():
    inputs = np.column_stack([np.ones(5), np.arange(5.0)])
    model = regress(inputs, 2.0 + np.arange(5))
    ms, std = model.predict(np.array([[9.0, 2.0]]))
    assert np.isfinite(ms).all()
    assert std > model.predict(inputs)[1][2]


def test_means_of_many_timings_count_more():
    inputs = np.zeros((4, 1))
    rare = regress(inputs, [1.0, 1.0, 1.0, 1.2])
    often = regress(inputs, [1.0, 1.0, 1.0, 1.2], repeats=[1, 1, 1, 50])
    assert often.predict(inputs)[0][0] > rare.predict(inputs)[0][0]


def test_arguments_that_can_not_be():
    with pytest.raises(ConfigError, match="groups: expected 2 columns together"):
        regress(np.ones((3, 2)), [1.0, 2.0, 3.0], groups=(Group(3, 0.3),))
    with pytest.raises(ConfigError, match="features: 1 values are not finite"):
        regress(np.array([[1.0], [np.nan], [2.0]]), [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="repeats: expected positive numbers"):
        regress(np.ones((3, 1)), [1.0, 2.0, 3.0], repeats=[1, 0, 2])
    with pytest.raises(ConfigError, match=r"expected features .* got \(3,\), \(3,\) and \(3,\)"):
        regress(np.ones(3), [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match=r"expected shape \(n, 3\) as in fitting, got \(2, 2\)"):
        regress(INPUTS, MS, groups=GROUPS).predict(np.zeros((2, 2)))
