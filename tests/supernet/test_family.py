"""A supernet as a family: costs are counted, members are built recalibrated."""

import numpy as np
import pytest
import torch

from tailorbird.errors import SpaceError
from tailorbird.measure.counts import count
from tailorbird.supernet.calibrate import recalibrate
from tailorbird.supernet.extract import extract
from tailorbird.supernet.family import SupernetFamily, build_all
from tests.supernet.tiny import tiny_supernet


def test_members_cost_what_they_are_counted_at_and_are_recalibrated(tmp_path):
    net = tiny_supernet(tmp_path)
    images = [torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]
    family = SupernetFamily(
        net,
        predictor=lambda genomes: genomes.sum(axis=1) / 10,
        costs={"latency_ms@a": lambda genomes: 1.0 + genomes[:, 0]},
        calibration=lambda: iter(images),
    )
    genomes = family.space.sample(3, np.random.default_rng(0))
    costs = family.cost(genomes)
    assert sorted(costs) == ["latency_ms@a", "macs", "params"]
    for row, module in enumerate(build_all(net, genomes, images)):
        counted = count(module, (3, *[net.resolution(genomes[row])] * 2))
        assert (counted.macs, counted.params) == (costs["macs"][row], costs["params"][row])
    [statistics] = recalibrate(net, genomes[:1], images)
    expected = extract(net, genomes[0], statistics=statistics).eval()
    built = family.build(genomes[0])
    assert not built.training
    assert torch.equal(built(images[0]), expected(images[0]))
    with pytest.raises(SpaceError, match="at least one genome to build, got none"):
        build_all(net, genomes[:0], images)
