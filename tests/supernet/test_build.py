"""Subnets on their own, recalibrated."""

import numpy as np
import pytest
import torch

from tailorbird.errors import SpaceError
from tailorbird.measure.counts import count
from tailorbird.supernet.build import build_all
from tailorbird.supernet.calibrate import recalibrate
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.extract import extract
from tests.supernet.tiny import tiny_supernet


def test_subnets_are_what_they_are_counted_at_and_are_recalibrated(tmp_path):
    net = tiny_supernet(tmp_path)
    images = [torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]
    space = net.architectures
    genomes = space.space.sample(3, np.random.default_rng(0))
    modules = build_all(net, genomes, images)
    for row, module in enumerate(modules):
        counted = count(module, (3, *[net.resolution(genomes[row])] * 2))
        assert counted.macs == macs(space).sum(genomes)[row]
        assert counted.params == params(space).sum(genomes)[row]
    [statistics] = recalibrate(net, genomes[:1], images)
    expected = extract(net, genomes[0], statistics=statistics).eval()
    assert not modules[0].training
    assert torch.equal(modules[0](images[0]), expected(images[0]))
    with pytest.raises(SpaceError, match="at least one genome to build, got none"):
        build_all(net, genomes[:0], images)
