"""Latencies of a supernet's networks on one device."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird.config.measured_fleet import FleetDevice
from tailorbird.pipeline import supernet_pricing
from tailorbird.pipeline.supernet_pricing import UNCOVERED_MS, SupernetPricing
from tailorbird.progress import Silent
from tailorbird.supernet.counts import macs
from tests.fakes import FakeDevice
from tests.pipeline import makers
from tests.supernet.tiny import tiny_supernet


def test_resolutions_that_a_table_lacks_spoil_no_correction(tmp_path, monkeypatch):
    net = tiny_supernet(tmp_path, resolutions=(8, 12)).eval()
    device = FakeDevice(base_ms=0.05)
    cost = macs(net.architectures).sum

    def table(genomes):
        known = 0.01 + cost(genomes) / 1e6 * device.ms_per_mmac
        return np.where(genomes[:, 0] == 0, UNCOVERED_MS, known)

    monkeypatch.setattr(supernet_pricing, "read_costs", lambda *_: table)
    monkeypatch.setattr(supernet_pricing, "export_many", makers.export_many)
    genomes = net.architectures.space.sample(24, np.random.default_rng(0))
    covered = genomes[:, 0] == 1
    pricing = SupernetPricing(
        "box",
        FleetDevice(table=Path("box.yaml"), device=device),
        net,
        folder=tmp_path / "fit",
        checks=genomes,
        progress=Silent(),
    )
    assert pricing.check is not None and pricing.check.networks == len(
        np.unique(genomes[covered], axis=0)
    )
    measured = pricing.measure(genomes)
    assert pricing.latency_ms(genomes)[covered] == pytest.approx(measured[covered], rel=0.1)
    assert (pricing.latency_ms(genomes)[~covered] > UNCOVERED_MS / 2).all()
