import numpy as np
import pytest

from tailorbird.errors import ConfigError
from tailorbird.estimate.learned_latency import LatencyModel, LayerFeatures
from tailorbird.estimate.transfer import DeviceFeatures, choose
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.counts import macs, params

SPACE = load_space("ofa-mbv3-w1.0")
MACS, PARAMS = macs(SPACE), params(SPACE)
LAYERS = LayerFeatures(SPACE)


def compute_bound(genomes):
    return 1.0 + MACS.sum(genomes) / 1e7


def memory_bound(genomes):
    return 2.0 + PARAMS.sum(genomes) / 1e6 + MACS.sum(genomes) / 1e8


def new_device(genomes):
    return 0.7 * compute_bound(genomes) + 1.3 * memory_bound(genomes)


KNOWN = {"server": compute_bound, "phone": memory_bound}


def random_error(features, rng, count):
    genomes = SPACE.space.sample(count, rng)
    return _error(LatencyModel.fit(genomes, new_device(genomes), features=features))


def _error(model):
    unseen = SPACE.space.sample(500, np.random.default_rng(99))
    return float(np.mean(np.abs(model.latency_ms(unseen) / new_device(unseen) - 1)))


def test_ten_chosen_measurements_of_a_new_device_suffice_and_beat_random_ones():
    features = DeviceFeatures(KNOWN, architecture=LAYERS)
    pool = SPACE.space.sample(500, np.random.default_rng(0))
    picked = pool[choose(features, pool, 10, rng=np.random.default_rng(0))]
    model = LatencyModel.fit(picked, new_device(picked), features=features)
    chosen = _error(model)
    random = [random_error(features, np.random.default_rng(seed), 10) for seed in range(5)]
    assert chosen < 0.01
    assert chosen < np.mean(random)
    assert model.error < 0.03


def test_known_devices_help_where_the_architecture_is_all_else_there_is():
    rng = np.random.default_rng(1)
    genomes = SPACE.space.sample(6, rng)
    moved = LatencyModel.fit(genomes, new_device(genomes), features=DeviceFeatures(KNOWN))
    alone = LatencyModel.fit(genomes, new_device(genomes), features=LAYERS)
    assert _error(moved) < _error(alone)


def test_each_pick_lowers_the_summed_variance_most():
    """Brute force over all candidates with the textbook posterior."""
    features = DeviceFeatures(KNOWN)
    pool = SPACE.space.sample(40, np.random.default_rng(2))
    picked = choose(features, pool, 4, rng=np.random.default_rng(0))
    inputs = features(pool)
    scaled = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    apart = ((scaled[:, None] - scaled) ** 2).mean(axis=2)
    prior = 1 + scaled @ scaled.T / 2 + 0.3 * np.exp(-apart / 2 / 1.5**2)

    def left(rows):
        some = prior[np.ix_(rows, rows)] + 0.1 * np.eye(len(rows))
        return np.trace(prior - prior[:, rows] @ np.linalg.solve(some, prior[rows]))

    taken: list[int] = []
    for row in picked.tolist():
        others = [left([*taken, other]) for other in range(len(pool)) if other not in taken]
        assert left([*taken, row]) == pytest.approx(min(others))
        taken.append(row)


def test_choice_is_nested_distinct_and_skips_duplicates():
    features = DeviceFeatures(KNOWN)
    pool = SPACE.space.sample(20, np.random.default_rng(3)).repeat(2, axis=0)
    ten = choose(features, pool, 10, rng=np.random.default_rng(0))
    five = choose(features, pool, 5, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(ten[:5], five)
    assert len(np.unique(pool[ten], axis=0)) == 10
    with pytest.raises(ConfigError, match=r"count: expected 1 to 20 .*got 21"):
        choose(features, pool, 21, rng=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="got 0"):
        choose(features, pool, 0, rng=np.random.default_rng(0))


def test_a_learned_device_is_known_to_the_next_and_models_are_saved(tmp_path):
    rng = np.random.default_rng(4)
    genomes = SPACE.space.sample(100, rng)
    learned = LatencyModel.fit(genomes, memory_bound(genomes), features=LAYERS)
    features = DeviceFeatures({"phone": learned.latency_ms}, architecture=LAYERS)
    few = SPACE.space.sample(10, rng)
    model = LatencyModel.fit(few, new_device(few), features=features)
    model.save(tmp_path / "new")
    loaded = LatencyModel.load(tmp_path / "new", features=features)
    np.testing.assert_array_equal(loaded.latency_ms(genomes), model.latency_ms(genomes))
    with pytest.raises(ConfigError, match=r"expected features devices\(phone;.*got devices\(tab"):
        LatencyModel.load(tmp_path / "new", features=DeviceFeatures({"tablet": learned.latency_ms}))


def test_no_known_device_and_a_broken_one_are_named():
    with pytest.raises(ConfigError, match="at least one device"):
        DeviceFeatures({})
    broken = {"server": compute_bound, "phone": lambda g: compute_bound(g) * np.nan}
    genomes = SPACE.space.sample(3, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="phone: 3 of 3 latencies are not positive"):
        DeviceFeatures(broken)(genomes)
