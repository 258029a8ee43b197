import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.errors import SpaceError
from tailorbird.estimate.additive import FLOOR, RELATIVE_ERROR, correct


def problem(seed, n=6, k=4):
    rng = np.random.default_rng(seed)
    isolated = rng.normal(0.5, 0.4, n)
    chosen = (rng.random((k, n)) < 0.5).astype(float)
    chosen[:, 0] = 1  # no network without a replacement
    truth = isolated * rng.normal(1, 0.2, n)
    return isolated, chosen, truth


def test_without_measurements_the_prior_is_returned_as_a_copy():
    isolated = np.array([1.0, -0.2])
    found = correct(isolated, np.zeros((0, 2)), np.zeros(0), noise=0.1)
    assert (found == isolated).all()
    assert found is not isolated


@given(st.integers(0, 10_000))
def test_exact_where_the_noise_vanishes(seed):
    isolated, chosen, truth = problem(seed)
    found = correct(isolated, chosen, chosen @ truth, noise=1e-7)
    assert chosen @ found == pytest.approx(chosen @ truth, abs=1e-4)


@given(st.integers(0, 10_000))
def test_prior_where_the_noise_drowns_all(seed):
    isolated, chosen, _ = problem(seed)
    found = correct(isolated, chosen, chosen @ isolated + 1.0, noise=1e6)
    assert found == pytest.approx(isolated, abs=1e-2)


@given(st.integers(0, 10_000), st.floats(0.01, 0.5))
def test_equals_the_gaussian_posterior_mean(seed, noise):
    isolated, chosen, truth = problem(seed)
    measured = chosen @ truth
    scale = np.abs(isolated)
    variance = np.maximum(RELATIVE_ERROR * scale, FLOOR * max(scale.max(), noise)) ** 2
    precision = np.diag(1 / variance) + chosen.T @ chosen / noise**2
    posterior = np.linalg.solve(precision, isolated / variance + chosen.T @ measured / noise**2)
    found = correct(isolated, chosen, measured, noise=noise)
    assert found == pytest.approx(posterior, rel=1e-5, abs=1e-7)


def test_alternatives_never_measured_keep_their_prior():
    isolated = np.array([1.0, 2.0, 3.0])
    found = correct(isolated, np.array([[1.0, 0, 0]]), np.array([0.5]), noise=0.01)
    assert (found[1:] == isolated[1:]).all()
    assert 0.5 <= found[0] < 0.55


def test_shapes_that_disagree():
    with pytest.raises(SpaceError, match=r"chosen: expected shape \(2, 3\), got \(3, 2\)"):
        correct(np.zeros(3), np.zeros((3, 2)), np.zeros(2), noise=0.1)
