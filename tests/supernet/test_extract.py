"""Extracted networks: what other packages make of them, and that the supernet stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tailorbird.errors import SpaceError, StoreError
from tailorbird.graph.trace import trace
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.calibrate import recalibrate
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.elastic import Elastic
from tailorbird.supernet.extract import extract
from tailorbird.supernet.network import build_supernet
from tailorbird.supernet.ofa_format import read_specialized
from tailorbird.train.checkpoint import digest

DATA = Path(os.environ.get("TAILORBIRD_DATA", Path(__file__).parents[2] / "../shared/data")) / "ofa"


def supernet(name, resolutions=(32,)):
    space = load_space(name, resolutions=resolutions)
    return build_supernet(space, classes=5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["ofa-mbv3-w1.0", "ofa-proxyless-w1.3", "ofa-resnet50d"])
def test_the_graph_package_traces_it_and_counts_the_same(name):
    net = supernet(name)
    genome = net.architectures.space.sample(1, np.random.default_rng(0))[0]
    alone = extract(net.eval(), genome)
    assert not any(isinstance(part, Elastic) for part in alone.modules())
    graph = trace(alone, (3, 32, 32))
    assert graph.macs == macs(net.architectures).sum(genome[None])[0]
    assert graph.params == params(net.architectures).sum(genome[None])[0]


def test_the_supernet_stays_as_it_is():
    net = supernet("ofa-mbv3-w1.0").eval()
    images = torch.rand(2, 3, 32, 32)
    before, answers = digest(net), net(images)
    alone = extract(net, net.smallest())
    with torch.no_grad():
        for value in alone.parameters():
            value.zero_()
    assert digest(net) == before
    assert torch.equal(net(images), answers)
    assert (net.active == net.largest()).all()


def test_it_trains_by_itself():
    net = supernet("ofa-mbv3-w1.0").train()
    alone = extract(net, net.smallest())
    assert alone.training
    alone(torch.rand(4, 3, 32, 32)).sum().backward()
    assert all(value.grad is not None for value in alone.parameters())
    assert all(value.grad is None for value in net.parameters())


def test_names_are_those_of_plain_official_layers():
    net = supernet("ofa-mbv3-w1.0")
    names = extract(net, net.smallest()).state_dict()
    assert "blocks.1.conv.inverted_bottleneck.conv.weight" in names
    assert "blocks.5.conv.depth_conv.se.fc.reduce.bias" in names
    assert "classifier.linear.weight" in names
    assert not any(name.startswith("blocks.3.") for name in names)  # depth 2 of stage 1


def test_channels_last_and_double_precision_are_kept():
    net = supernet("ofa-mbv3-w1.0").double().eval()
    alone = extract(net, net.smallest())
    net.activate(net.smallest())
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(alone(images), net(images))
    net = supernet("ofa-mbv3-w1.0").to(memory_format=torch.channels_last).eval()
    alone = extract(net, net.smallest()).to(memory_format=torch.channels_last)
    net.activate(net.smallest())
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    torch.testing.assert_close(alone(images), net(images))


def test_what_does_not_fit_is_refused():
    net = supernet("compofa-mbv3-w1.0")
    with pytest.raises(SpaceError, match="lie outside the space"):
        extract(net, net.smallest() + 7)
    images = torch.rand(2, 3, 32, 32)
    (other,) = recalibrate(net, net.largest()[None], [images])
    with pytest.raises(StoreError, match=r"statistics: of another network, .*; recalibrate"):
        extract(net, net.smallest(), statistics=other)


@pytest.mark.data
def test_official_specialised_networks_build():
    folder = DATA / "specialized"
    if not folder.exists():
        pytest.skip(f"real data missing: no folder ofa/specialized in TAILORBIRD_DATA ({DATA})")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(read_specialized(path))
        except SpaceError:
            continue  # outside every space; test_ofa_format says which and why
    assert len(found) >= 15
    for name in sorted({network["space"] for network in found}):
        architectures = [own["architecture"] for own in found if own["space"] == name]
        space = load_space(name, resolutions=[own["r"] for own in architectures])
        net = build_supernet(space, generator=torch.Generator().manual_seed(0)).eval()
        for genome in space.genomes(architectures):
            alone, side = extract(net, genome), net.resolution(genome)
            with torch.no_grad():
                assert alone(torch.zeros(1, 3, side, side)).isfinite().all()
            own = sum(value.numel() for value in alone.parameters())
            assert own == params(space).sum(genome[None])[0]
