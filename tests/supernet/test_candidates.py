"""A supernet's candidates: latencies at places with tables, devices, or both."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tailorbird.errors import SpaceError
from tailorbird.estimate.latency_files import UNCOVERED_MS, read_costs
from tailorbird.estimate.measured_table import MeasuredTable, counted_layers
from tailorbird.fit.bench import bench_at
from tailorbird.fit.candidates import estimates, latency_at
from tailorbird.measure.counts import count
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Silent
from tailorbird.runfolder import RunFolder
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.candidates import SubnetOptions, SupernetCandidates
from tailorbird.supernet.counts import macs
from tailorbird.supernet.network import with_classes
from tailorbird.targets import Place
from tests.fakes import FakeDevice, FakeExporter
from tests.supernet.tiny import stripes, tiny_supernet

TABLES = Path(os.environ.get("TAILORBIRD_DATA", "../shared/data")) / "ofa" / "latency_tables"


def candidates_in(tmp_path, **options):
    net = tiny_supernet(tmp_path, **options).eval()
    return SupernetCandidates(
        net,
        stripes(),
        weights="w",
        evaluate=lambda genomes: 0.02 * genomes.sum(axis=1) + 0.5,
        calibration=lambda device: iter([torch.rand(6, 3, 12, 12)]),
        folder=tmp_path / "fit",
        options=SubnetOptions(subnets=14, checks=6),
        stage=RunFolder(tmp_path).stage,
        progress=Silent(),
    )


def bench_for(candidates, place):
    return bench_at(candidates, place, FakeExporter(), Silent())


def test_layers_are_timed_once_and_whole_networks_correct_their_sums(tmp_path):
    candidates = candidates_in(tmp_path, resolutions=(8, 12))
    place = Place(name="box", device=FakeDevice(base_ms=0.05))
    bench = bench_for(candidates, place)
    candidates.prepare()
    base = candidates.open(place, bench)
    checks = candidates.checks(place, ())
    assert len(checks) == 6 and not candidates.checks(place, checks[:1])
    timed = bench.measure({candidates.label(k): partial(candidates.network, k) for k in checks})
    candidates.learn(place, {k: timed[candidates.label(k)].median_ms for k in checks})
    assert candidates.note(place).startswith("against 6 whole networks")
    others = [tuple(g) for g in candidates.space.sample(9, np.random.default_rng(1)).tolist()]
    whole = bench.measure({candidates.label(k): partial(candidates.network, k) for k in others})
    assert estimates(candidates, place, others) == pytest.approx(
        [whole[candidates.label(k)].median_ms for k in others], rel=0.1
    )
    known = Latencies(tmp_path / "fit" / "latency", "fake").known
    assert base == known[candidates.label(candidates.reference)].median_ms
    named = [candidates.named(label) for label in known]
    assert {key for key in named if key is not None} == {*checks, *others} - {candidates.reference}

    class Silenced(FakeDevice):
        def measure(self, models):
            raise AssertionError("timed again")

    again = Place(name="box", device=Silenced())
    assert candidates.open(again, bench_for(candidates, again)) == base


def test_resolutions_that_a_table_lacks_spoil_no_correction(tmp_path):
    candidates = candidates_in(tmp_path, resolutions=(8, 12))
    device, space = FakeDevice(base_ms=0.05), candidates.architectures
    cost = macs(space).sum

    def table(genomes):
        known = 0.01 + cost(genomes) / 1e6 * device.ms_per_mmac
        return np.where(genomes[:, 0] == 0, UNCOVERED_MS, known)

    place = Place(name="box", table=Path("box.yaml"), device=device)
    candidates._tables[latency_at(place)] = MeasuredTable(table, counted_layers(space))
    genomes = candidates.space.sample(24, np.random.default_rng(0))
    keys = [tuple(genome) for genome in genomes.tolist()]
    bench = bench_for(candidates, place)
    timed = bench.measure({candidates.label(k): partial(candidates.network, k) for k in keys})
    measured = np.array([timed[candidates.label(k)].median_ms for k in keys])
    candidates.learn(place, dict(zip(keys, measured.tolist(), strict=True)))
    covered = genomes[:, 0] == 1
    whole = len(np.unique(genomes[covered], axis=0))
    assert f"against {whole} whole networks" in candidates.note(place)
    found = estimates(candidates, place, keys)
    assert found[covered] == pytest.approx(measured[covered], rel=0.1)
    assert (found[~covered] > UNCOVERED_MS / 2).all()


def test_what_is_estimated_of_size_and_memory_is_near_what_is_counted(tmp_path):
    candidates = candidates_in(tmp_path, resolutions=(8, 12))
    genomes = candidates.space.sample(12, np.random.default_rng(0))
    found = candidates.cost(genomes)
    for row, genome in enumerate(genomes):
        network = candidates.network(tuple(genome.tolist()))
        counted = count(network.module, network.input_shape).as_metrics()
        assert found["macs"][row] == counted["macs"] and found["params"][row] == counted["params"]
        assert found["size_mb"][row] == pytest.approx(counted["size_mb"], rel=0.1)
        assert 0.5 < found["peak_memory_mb"][row] / counted["peak_memory_mb"] < 2  # corrected later


def test_quality_is_asked_for_after_it_was_learned(tmp_path):
    candidates = candidates_in(tmp_path, resolutions=(8,))
    genomes = candidates.space.sample(4, np.random.default_rng(0))
    with pytest.raises(SpaceError, match="nothing has been learned yet"):
        candidates.quality(genomes)
    candidates.prepare()
    assert candidates.quality(genomes) == pytest.approx(0.02 * genomes.sum(axis=1) + 0.5, abs=0.05)


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
