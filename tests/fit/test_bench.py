"""Timing at one place: sessions scaled to the reference, figures kept."""

from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch

from tailorbird.device import Latency
from tailorbird.fit.bench import Bench
from tailorbird.fit.candidates import Network
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Silent
from tests.fakes import FakeDevice, FakeExporter


def network(width):
    return Network(torch.nn.Conv2d(3, width, 3), (3, 16, 16))


NETWORKS = {f"w{width}": partial(network, width) for width in (4, 8, 12, 16, 20)}


@dataclass
class Drifting:
    """A machine that runs half as fast again in each further session."""

    key: str = "drifting"
    exact: FakeDevice = field(default_factory=FakeDevice)
    speeds: list[float] = field(default_factory=list)

    def measure(self, models):
        self.speeds.append(1.5 ** len(self.speeds))
        return [
            replace(one, median_ms=one.median_ms * self.speeds[-1])
            for one in self.exact.measure(models)
        ]


def bench(device, folder):
    return Bench(
        device,
        partial(network, 32),
        name="reference",
        store=Latencies(folder, device.key),
        exporter=FakeExporter(),
        progress=Silent(),
    )


def test_sessions_are_scaled_to_the_reference_in_each(tmp_path):
    steady = bench(FakeDevice(), tmp_path)
    expected = steady.measure(NETWORKS)
    device = Drifting()
    first = bench(device, tmp_path)
    assert first.reference_ms == steady.reference_ms  # the first session runs at full speed
    first.measure(dict(list(NETWORKS.items())[:1]))
    found = bench(device, tmp_path).measure(NETWORKS, together=2)
    assert len(device.speeds) == 4
    for name, latency in found.items():
        assert latency.median_ms == pytest.approx(expected[name].median_ms, rel=1e-9), name


def test_what_is_known_is_not_built_again(tmp_path):
    bench(FakeDevice(), tmp_path).measure(NETWORKS)

    def refuse():
        raise AssertionError("built again")

    again = bench(FakeDevice(), tmp_path).measure(dict.fromkeys(NETWORKS, refuse))
    assert again.keys() == NETWORKS.keys()


def test_latencies_are_kept_apart_by_device_and_damage_is_measured_anew(tmp_path):
    one = {"k": Latency(median_ms=1.5, spread_ms=0.1, runs=7, warmup=2)}
    Latencies(tmp_path, "cpu/1").add(one)
    assert Latencies(tmp_path, "cpu/1").known == one
    assert Latencies(tmp_path, "cpu/2").known == {}
    [path] = tmp_path.iterdir()
    for damaged in ("{", "[]", '{"device": "cpu/1", "latencies": {"k": 3}}'):
        path.write_text(damaged)
        assert Latencies(tmp_path, "cpu/1").known == {}
