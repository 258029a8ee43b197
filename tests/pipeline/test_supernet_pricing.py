"""Latencies of a supernet's networks on one device."""

import os
from pathlib import Path

import numpy as np
import pytest

from tailorbird.pipeline import supernet_pricing
from tailorbird.pipeline.supernet_pricing import UNCOVERED_MS, SupernetPricing, read_costs
from tailorbird.progress import Silent
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.counts import macs
from tailorbird.supernet.network import with_classes
from tailorbird.targets import Place
from tests.fakes import FakeDevice
from tests.pipeline import makers
from tests.supernet.tiny import tiny_supernet

TABLES = Path(os.environ.get("TAILORBIRD_DATA", "../shared/data")) / "ofa" / "latency_tables"


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
        Place(name="box", table=Path("box.yaml"), device=device),
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


@pytest.mark.data
def test_a_published_table_serves_a_supernet_of_other_classes():
    path = TABLES / "note10"
    if not path.is_dir():
        pytest.skip(f"no latency tables at {path}; set TAILORBIRD_DATA")
    whole = load_space("compofa-mbv3-w1.2", resolutions=[160, 224])
    genomes = whole.space.sample(20, np.random.default_rng(0))
    published = read_costs(path, whole)(genomes)
    own = read_costs(path, with_classes(whole, 10))(genomes)
    assert (own == published).all()
    assert (published > 5).all()
