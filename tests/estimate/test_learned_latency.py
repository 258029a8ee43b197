import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr

from tailorbird.errors import ConfigError, SpaceError, StoreError
from tailorbird.estimate.learned_latency import LatencyModel, LayerFeatures
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.counts import macs

SPACE = load_space("ofa-mbv3-w1.0")
FEATURES = LayerFeatures(SPACE)
MACS = macs(SPACE)


def device(genomes, rng=None, *, noise=0.0, late=0.0):
    """A device that is bound by launches or by MACs, with noise and late outliers."""
    launches = 0.2 * (1 + genomes[:, 1:6].sum(axis=1))
    ms = 2.0 + np.hypot(launches, MACS.sum(genomes) / 2e7)
    if rng is None:
        return ms
    factor = np.where(rng.random(len(ms)) < late, 1.5, 1.0)
    return ms * factor * np.exp(noise * rng.standard_normal(len(ms)))


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    genomes = SPACE.space.sample(30, rng)
    ms = device(genomes, rng, noise=0.02)
    return genomes, ms, LatencyModel.fit(genomes, ms, features=FEATURES)


def test_thirty_samples_of_a_two_regime_device_rank_and_price_unseen_architectures(samples):
    unseen = SPACE.space.sample(500, np.random.default_rng(1))
    ms, std = samples[2].predict(unseen)
    truth = device(unseen)
    assert spearmanr(ms, truth).statistic > 0.98
    assert np.mean(np.abs(ms / truth - 1)) < 0.03
    timed = device(unseen, np.random.default_rng(2), noise=0.02)
    assert 0.5 < np.mean(np.abs(ms - timed) < std) < 0.95


def test_stated_error_is_near_the_true_error(samples):
    unseen = SPACE.space.sample(500, np.random.default_rng(3))
    timed = device(unseen, np.random.default_rng(4), noise=0.02)
    true = np.mean(np.abs(samples[2].latency_ms(unseen) / timed - 1))
    assert true / 2 < samples[2].error < true * 2


def least_squares(genomes, values, unseen):
    """Ridge regression on the same features, all samples counting the same."""
    known = FEATURES(genomes)
    centre, scale = known.mean(axis=0), np.maximum(known.std(axis=0), 1e-9)
    inputs = (known - centre) / scale
    gram = inputs @ inputs.T / inputs.shape[1] + 0.01 * np.eye(len(inputs))
    weights = inputs.T @ np.linalg.solve(gram, values - values.mean()) / inputs.shape[1]
    return values.mean() + (FEATURES(unseen) - centre) / scale @ weights


def test_late_outliers_do_not_pull_the_model():
    rng = np.random.default_rng(5)
    genomes, unseen = SPACE.space.sample(60, rng), SPACE.space.sample(300, rng)
    ms = device(genomes, rng, noise=0.01, late=0.1)
    assert np.sum(ms > 1.3 * device(genomes)) >= 6
    predicted = LatencyModel.fit(genomes, ms, features=FEATURES).latency_ms(unseen)
    assert abs(np.mean(predicted / device(unseen)) - 1) < 0.01
    pulled = least_squares(genomes, np.log(ms), unseen)  # a normal's short tails
    assert np.mean(np.exp(pulled) / device(unseen)) - 1 > 0.04


def test_order_of_samples_does_not_matter(samples):
    genomes, ms, model = samples
    again = LatencyModel.fit(genomes[::-1], ms[::-1], features=FEATURES)
    np.testing.assert_array_equal(again.latency_ms(genomes), model.latency_ms(genomes))


def test_timings_of_one_architecture_are_averaged(samples):
    genomes, ms, _ = samples
    twice = LatencyModel.fit(
        np.concatenate([genomes, genomes]), np.concatenate([0.9 * ms, 1.1 * ms]), features=FEATURES
    )
    assert len(twice.regression.alpha) == len(genomes)
    assert np.mean(np.abs(twice.latency_ms(genomes) / ms - 1)) < 0.02


def test_chunks_are_harmless(samples):
    many = SPACE.space.sample(5000, np.random.default_rng(6))
    whole = samples[2].predict(many)
    np.testing.assert_allclose(whole[0][-3:], samples[2].predict(many[-3:])[0])


def test_features_of_every_space_hold_all_macs():
    for name in ("ofa-resnet50d", "ofa-proxyless-w1.3", "compofa-mbv3-w1.0"):
        space = load_space(name)
        genomes = space.space.sample(50, np.random.default_rng(0))
        inputs = LayerFeatures(space)(genomes)
        total = np.expm1(inputs[:, 0]) + np.expm1(inputs[:, 1])
        np.testing.assert_allclose(total, macs(space).sum(genomes), rtol=1e-9)
        assert np.isfinite(inputs).all()
        assert inputs.shape[1] == sum(group.columns for group in LayerFeatures(space).groups)


def test_a_saved_model_predicts_the_same(samples, tmp_path):
    genomes, _, model = samples
    model.save(tmp_path / "titan.safetensors")
    loaded = LatencyModel.load(tmp_path / "titan.safetensors", features=LayerFeatures(SPACE))
    for there, here in zip(loaded.predict(genomes), model.predict(genomes), strict=True):
        np.testing.assert_array_equal(there, here)
    assert loaded.error == model.error


def test_other_features_are_refused(samples, tmp_path):
    samples[2].save(tmp_path / "model")
    other = LayerFeatures(load_space("ofa-mbv3-w1.2"))
    with pytest.raises(ConfigError, match=r"expected features layers\(ofa-mbv3-w1\.0.*got .*w1\.2"):
        LatencyModel.load(tmp_path / "model", features=other)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.write_bytes(b"not a model"), "can't read"),
        (lambda path: path.unlink(), "can't read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "can't read"),
        (lambda path: save_file(load_file(path), path), "'tailorbird'"),
        (
            lambda path: save_file(
                load_file(path) | {"alpha": np.full(30, np.nan)}, path, metadata=_metadata(path)
            ),
            "alpha: expected finite",
        ),
        (
            lambda path: save_file(
                load_file(path) | {"inputs": np.zeros((3, 3))}, path, metadata=_metadata(path)
            ),
            r"inputs: expected finite float64 \(30, 168\), got \(3, 3\)",
        ),
    ],
)
def test_a_damaged_file_is_one_clear_error(samples, tmp_path, spoil, text):
    path = tmp_path / "model.safetensors"
    samples[2].save(path)
    spoil(path)
    with pytest.raises(StoreError, match=text):
        LatencyModel.load(path, features=FEATURES)


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("ms", "texts"),
    [
        ([1.0, 2.0], ["at least 3 different architectures, got 2"]),
        ([1.0, np.nan, 2.0], ["positive milliseconds, got 1 of 3", "row 1, nan"]),
        ([1.0, 2.0, -4.0], ["row 2, -4.0"]),
        ([0.0, np.inf], ["2 problems", "at least 3", "2 of 2 that are not"]),
    ],
)
def test_bad_latencies_are_named_all_at_once(ms, texts):
    genomes = SPACE.space.sample(len(ms), np.random.default_rng(0))
    with pytest.raises(ConfigError) as caught:
        LatencyModel.fit(genomes, ms, features=FEATURES)
    assert all(text in str(caught.value) for text in texts)


def test_three_timings_of_one_architecture_are_not_three_samples():
    genomes = SPACE.space.sample(1, np.random.default_rng(0)).repeat(3, axis=0)
    with pytest.raises(ConfigError, match="at least 3 different architectures, got 1"):
        LatencyModel.fit(genomes, [1.0, 2.0, 3.0], features=FEATURES)


def test_ill_shaped_input_is_refused(samples):
    genomes, ms, model = samples
    with pytest.raises(ConfigError, match=r"got \(30, 46\) and \(29,\)"):
        LatencyModel.fit(genomes, ms[1:], features=FEATURES)
    with pytest.raises(SpaceError, match=r"expected shape \(n, 46\), got \(30, 45\)"):
        LatencyModel.fit(genomes[:, 1:], ms, features=FEATURES)
    with pytest.raises(SpaceError, match="outside the space"):
        model.predict(genomes + 25)


@pytest.mark.data
def test_measured_gpu_from_twenty_samples():
    root = Path(os.environ.get("TAILORBIRD_DATA", Path(__file__).parents[2] / "../shared/data"))
    path = root / "ofa" / "mbv3_measured_latencies.parquet"
    if not path.exists():
        pytest.skip(f"real data missing: no {path.name} in TAILORBIRD_DATA/ofa ({root})")
    table = pq.read_table(path).slice(0, 1000).to_pylist()
    genomes = SPACE.genomes([{key: row[key] for key in ("ks", "e", "d", "r")} for row in table])
    ms = np.array([row["titan_xp_64_ms"] for row in table])
    model = LatencyModel.fit(genomes[:20], ms[:20], features=FEATURES)
    predicted = model.latency_ms(genomes[20:])
    assert spearmanr(predicted, ms[20:]).statistic > 0.98
    assert np.mean(np.abs(predicted / ms[20:] - 1)) < 0.05
