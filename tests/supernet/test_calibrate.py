"""Statistics of many subnets at once, against each subnet extracted and recalibrated alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tailorbird.errors import DataError, StoreError
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.calibrate import accuracies, logits, recalibrate
from tailorbird.supernet.extract import extract
from tailorbird.supernet.network import build_supernet, resize
from tailorbird.supernet.shortcuts import Residual
from tailorbird.train import norm_stats
from tailorbird.train.checkpoint import digest


def supernet(name):
    space = load_space(name, resolutions=[32, 40])
    generator = torch.Generator().manual_seed(0)
    return build_supernet(space, classes=5, dropout=0.5, generator=generator)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 40, 40, generator=generator) for _ in range(2)]


def alone(net, genome, batches):
    network = extract(net, genome).eval()
    size = net.resolution(genome)
    norm_stats.recalibrate(network, [resize(images, size) for images in batches])
    return network


@pytest.mark.parametrize("name", ["compofa-mbv3-w1.0", "ofa-mbv3-w1.0", "ofa-resnet50d"])
def test_the_same_as_each_subnet_alone(name, batches):
    net = supernet(name).train()
    genomes = net.architectures.space.sample(2, np.random.default_rng(0))
    genomes = np.concatenate([genomes, genomes[:1], [net.largest()]])  # one of them twice
    before, active = digest(net), net.active
    found = recalibrate(net, genomes, batches)
    (answers,) = logits(net, genomes, found, batches[:1])
    assert digest(net) == before
    assert (net.active == active).all()
    assert all(part.training for part in net.modules())
    assert all(part.momentum == 0.1 for part in net.modules() if isinstance(part, nn.BatchNorm2d))
    for genome, statistics, mine in zip(genomes, found, answers, strict=True):
        expected = alone(net, genome, batches)
        buffers = dict(expected.named_buffers())
        assert statistics.keys() == buffers.keys()
        for key, value in buffers.items():
            torch.testing.assert_close(statistics[key], value, rtol=1e-3, atol=1e-4)
        images = resize(batches[0], net.resolution(genome))
        calibrated = extract(net, genome, statistics=statistics).eval()
        with torch.no_grad():
            torch.testing.assert_close(mine, calibrated(images), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(mine, expected(images), rtol=1e-3, atol=1e-3)


def test_large_tensors_are_worked_on_in_parts(batches):
    net = supernet("ofa-mbv3-w1.0")
    genomes = net.architectures.space.sample(2, np.random.default_rng(0))
    found = recalibrate(net, genomes, batches)
    (expected,) = logits(net, genomes, found, batches[:1])
    sizes = []
    module = net.slots()[0][1]
    module.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    (answers,) = logits(net, genomes, found, batches[:1])
    whole = sizes.copy()
    (answers,) = logits(net, genomes, found, batches[:1], large=40_000)
    assert set(whole) == {4} and set(sizes[len(whole) :]) == {2}
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)
    del sizes[:]
    next(logits(net, genomes, found, batches[:1], large=1))  # no fewer than an image
    assert set(sizes) == {1}


def test_norms_look_at_the_whole_of_a_batch_that_is_large():
    net = supernet("compofa-mbv3-w1.0")
    smallest = net.smallest()[None]
    images = torch.rand(300, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    sizes = []
    net.slots()[0][1].register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    found = recalibrate(net, smallest, [images])
    assert sizes == [300]
    next(logits(net, smallest, found, [images]))
    assert sizes == [300, 150, 150]


def test_layers_after_the_same_path_run_once(batches):
    net = supernet("compofa-mbv3-w1.0")
    genomes = np.zeros((3, 6), dtype=np.int64)
    genomes[1:, 5] = 1, 2  # only the last stage differs
    runs = []
    for slot, module in net.slots():
        inner = module.conv if isinstance(module, Residual) else module
        inner.register_forward_hook(lambda *_, name=slot.name: runs.append(name))
    found = recalibrate(net, genomes, batches[:1])
    assert runs.count("first_conv") == 1
    assert runs.count("blocks.14") == 1
    assert runs.count("blocks.17") == 3
    name = "blocks.1.conv.depth_conv.bn.running_mean"
    assert found[0][name] is found[2][name]
    runs.clear()
    list(logits(net, genomes, found, batches))
    assert runs.count("first_conv") == 2  # once per batch
    assert runs.count("classifier") == 6
    other = recalibrate(net, genomes[1:2], batches[1:])
    runs.clear()
    list(logits(net, genomes[:2], [found[0], other[0]], batches))
    assert runs.count("blocks.14") == 4  # unlike statistics are never shared


def test_accuracies_count_what_the_logits_say(batches):
    net = supernet("compofa-mbv3-w1.0")
    genomes = net.architectures.space.sample(3, np.random.default_rng(0))
    found = recalibrate(net, genomes, batches)
    truth = torch.cat(list(logits(net, genomes, found, batches)), dim=1)[1].argmax(dim=1)
    labelled = [(images, truth[4 * i : 4 * i + 4]) for i, images in enumerate(batches)]
    shares = accuracies(net, genomes, found, labelled)
    assert shares.shape == (3,)
    assert shares[1] == 1.0
    wrong = [(images, (labels + 1) % 5) for images, labels in labelled]
    assert accuracies(net, genomes, found, wrong)[1] == 0.0


def test_bad_input_leaves_the_supernet_as_it_was(batches):
    net = supernet("compofa-mbv3-w1.0")
    genomes = np.stack([net.smallest(), net.largest()])
    before = digest(net)
    with pytest.raises(DataError, match="no batch to estimate them from"):
        recalibrate(net, genomes, [])
    with pytest.raises(DataError, match="batches of 2 images or more, got one of 1; drop"):
        recalibrate(net, genomes, [batches[0], batches[0][:1]])
    assert digest(net) == before
    assert net.training
    found = recalibrate(net, genomes, batches)
    with pytest.raises(StoreError, match="expected one per genome, 2; got 1"):
        list(logits(net, genomes, found[:1], batches))
    with pytest.raises(StoreError, match=r"statistics of row 0: .* they are of another genome"):
        list(logits(net, genomes, found[::-1], batches))
    with pytest.raises(DataError, match="no image to classify"):
        accuracies(net, genomes, found, [])
