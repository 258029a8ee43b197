"""Tables measured layer by layer: each layer once, sums against whole networks, corrections."""

import numpy as np
import pytest
import torch

from tailorbird.errors import MeasurementError, SpaceError
from tailorbird.estimate.measured_table import (
    BATCH,
    compile_measured,
    measure_layers,
)
from tailorbird.export.exporters import OnnxExporter
from tailorbird.fit.bench import Bench
from tailorbird.fit.candidates import Network
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Silent
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.counts import macs
from tailorbird.supernet.layers import distinct_layers, layer_key, single_layers
from tests.fakes import FakeDevice
from tests.supernet.tiny import tiny_supernet


class Counting(FakeDevice):
    """Notes how many files it timed in each session; fails in one session if asked to."""

    def measure(self, models):
        sessions.append(len(models))
        if len(sessions) == fail_at[0]:
            raise MeasurementError("gone")
        return super().measure(models)


sessions: list[int] = []
fail_at = [0]


@pytest.fixture(autouse=True)
def _fresh():
    sessions.clear()
    fail_at[0] = 0


def timed():
    """Layers timed so far: the reference takes part in every session."""
    return sum(sessions) - len(sessions)


def measured(net, folder, device):
    bench = Bench(
        device,
        lambda: Network(torch.nn.Conv2d(3, 8, 3), (3, 8, 8)),
        name="reference",
        store=Latencies(folder, device.key),
        exporter=OnnxExporter(),
        progress=Silent(),
    )
    return measure_layers(net.architectures, lambda shapes: single_layers(net, shapes), bench)


def test_each_layer_is_timed_once_and_their_macs_add_up_to_the_networks(tmp_path):
    net = tiny_supernet(tmp_path, resolutions=(8, 10))
    space = net.architectures
    device = Counting(base_ms=1e-6, ms_per_mmac=1e6)
    ms = measured(net, tmp_path / "layers", device)
    assert timed() == len(distinct_layers(space))
    every = space.space.enumerate()
    estimated = compile_measured(space, ms).latency_ms(every)
    np.testing.assert_allclose(estimated, macs(space).sum(every), rtol=1e-9)
    # What is known is not measured again; what is of another device, or damaged, is.
    assert measured(net, tmp_path / "layers", device) == ms
    assert timed() == len(ms)
    [path] = (tmp_path / "layers").iterdir()
    path.write_text("{")
    assert measured(net, tmp_path / "layers", device) == ms
    assert timed() == 2 * len(ms)


def test_a_run_that_stops_keeps_the_batches_before(tmp_path):
    net = tiny_supernet(tmp_path, resolutions=(8, 10, 12, 14))
    count = len(distinct_layers(net.architectures))
    assert count > BATCH
    fail_at[0] = 3
    with pytest.raises(MeasurementError, match="gone"):
        measured(net, tmp_path / "layers", Counting())
    measured(net, tmp_path / "layers", Counting())
    assert sessions == [1, 1 + BATCH, 1 + count - BATCH, 1 + count - BATCH]


@pytest.mark.parametrize("kind", ["mbconv", "bottleneck"])
def test_a_single_layer_is_the_layer_of_the_network(tmp_path, kind):
    net = tiny_supernet(tmp_path, kind)
    wanted = distinct_layers(net.architectures)
    found = list(single_layers(net, wanted))
    assert {layer.shape for layer in found} == set(wanted) and len(found) == len(wanted)
    for layer in found:
        if layer.shape.kind != "linear":
            size = layer.shape.in_size
            assert layer.input_shape == (layer.shape.in_channels, size, size)
    assert len({layer_key(shape) for shape in wanted}) == len(wanted)


def made_up(space, seed=0):
    rng = np.random.default_rng(seed)
    return {shape: float(rng.uniform(0.05, 0.5)) for shape in distinct_layers(space)}


def test_the_cost_of_calls_and_a_slower_context_are_learned_from_a_dozen_networks():
    space = load_space("ofa-mbv3-w1.0", resolutions=[128, 224])
    table = compile_measured(space, made_up(space))
    rng = np.random.default_rng(1)
    whole, other = space.space.sample(12, rng), space.space.sample(200, rng)

    def truth(genomes):
        return 1.1 * table.sums(genomes) - 0.05 * table.counts(genomes) + 0.06

    noisy = truth(whole) * (1 + 0.005 * rng.standard_normal(12))
    corrected = table.corrected(whole, noisy)
    off = np.abs(corrected.table.latency_ms(other) / truth(other) - 1)
    assert off.mean() < 0.01 < np.abs(table.latency_ms(other) / truth(other) - 1).mean() / 5
    check = corrected.check
    assert check.networks == 12 and check.before.mape > 0.05 > 5 * check.after.mape
    assert check.after.kendall_tau >= check.before.kendall_tau
    # Told on networks that were left out: about what it is on others.
    assert 0.3 * off.mean() < check.after.mape < 5 * off.mean() + 0.01


def test_three_networks_move_the_table_no_further_than_they_can_tell():
    space = load_space("compofa-mbv3-w1.0")
    table = compile_measured(space, made_up(space))
    whole = space.space.sample(3, np.random.default_rng(2))
    corrected = table.corrected(whole, 1.2 * table.latency_ms(whole)).table
    other = space.space.sample(50, np.random.default_rng(3))
    assert np.abs(corrected.latency_ms(other) / (1.2 * table.latency_ms(other)) - 1).max() < 0.1


def test_what_can_not_be_corrected_by_is_told():
    space = load_space("compofa-mbv3-w1.0")
    ms = made_up(space)
    table = compile_measured(space, ms)
    genomes = space.space.sample(3, np.random.default_rng(0))
    with pytest.raises(SpaceError, match="expected 3 or more with a latency each, got 2 and 2"):
        table.corrected(genomes[:2], [1.0, 2.0])
    with pytest.raises(SpaceError, match="expected latencies above 0"):
        table.corrected(genomes, [1.0, np.nan, 2.0])
    ms.pop(distinct_layers(space)[5])
    with pytest.raises(SpaceError, match="1 layers of compofa-mbv3"):
        compile_measured(space, ms)
