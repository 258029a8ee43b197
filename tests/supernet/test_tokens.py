"""The transformer supernet: everything that works for convolutions works for it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tailorbird.export.onnx import export_onnx
from tailorbird.graph.trace import trace
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.calibrate import accuracies, logits, recalibrate
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.elastic import Elastic
from tailorbird.supernet.extract import extract
from tailorbird.supernet.network import build_supernet, resize
from tailorbird.supernet.samplers import MacsBalanced, Region
from tailorbird.supernet.schemes import channels, compofa, progressive_shrinking
from tailorbird.supernet.schemes.bignas import BigNAS
from tailorbird.supernet.schemes.compofa import comp_ofa
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.schemes.progressive_shrinking import ProgressiveShrinking, scaled
from tailorbird.supernet.tokens import positions_at
from tailorbird.supernet.train import train_supernet
from tailorbird.supernet.train_state import SupernetRecipe
from tailorbird.train.checkpoint import digest
from tests.supernet.tiny import stripes, tiny_supernet

KIND = "transformer_block"
SCHEMES = {
    "deps": lambda _: DepS(epochs=2, ramp_epochs=0.5, learning_rate=0.05),
    "progressive-shrinking": lambda space: ProgressiveShrinking(
        phases=scaled(progressive_shrinking.phases_for(space), epochs=3, learning_rate=0.2)
    ),
    "bignas": lambda _: BigNAS(epochs=1, learning_rate=0.05, sampler=MacsBalanced),
    "compofa": lambda space: comp_ofa(
        phases=scaled(compofa.phases_for(space), epochs=2, learning_rate=0.2)
    ),
}


@pytest.fixture
def net(tmp_path):
    return tiny_supernet(tmp_path, KIND).eval()


def answers(module, size=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, size, size, generator=generator).to(dtype)
    with torch.no_grad():
        return module(images)


def test_every_subnet_is_its_own_network(net):
    space = net.architectures
    genomes = space.space.enumerate()
    assert len(genomes) == space.space.size == 2 * 3 * (9 + 81)
    drawn = np.random.default_rng(0).permutation(genomes)[:16]
    for genome in drawn:
        net.activate(genome)
        size = net.resolution(genome)
        alone = extract(net, genome)
        assert not any(isinstance(part, Elastic) for part in alone.modules())
        assert torch.equal(answers(alone, size), answers(net, size))
    for genome in drawn[:3]:
        size = net.resolution(genome)
        graph = trace(extract(net, genome), (3, size, size))
        assert graph.macs == macs(space).sum(genome[None])[0]
        assert graph.params == params(space).sum(genome[None])[0]
    net.activate(genome)
    alone = extract(net.double(), genome)
    assert torch.equal(answers(alone, size, torch.float64), answers(net, size, torch.float64))


def test_a_block_is_what_torch_makes_of_the_same_weights(net):
    genome = net.largest()
    genome[2] = 1  # embedding 12, which 3 heads of 4 channels fill
    block = extract(net, genome).get_submodule("blocks.0").state_dict()
    judge = nn.TransformerEncoderLayer(
        12, 3, 40, 0.0, "gelu", norm_first=True, batch_first=True, layer_norm_eps=1e-6
    ).eval()
    judge.load_state_dict(
        {
            f"{theirs}{kind}{last}": block[f"{ours}.{last}"]
            for theirs, kind, ours in (
                ("self_attn.in_proj", "_", "attention.conv.attention.qkv"),
                ("self_attn.out_proj", ".", "attention.conv.attention.projection"),
                ("linear1", ".", "mlp.conv.expand"),
                ("linear2", ".", "mlp.conv.project"),
                ("norm1", ".", "attention.conv.norm"),
                ("norm2", ".", "mlp.conv.norm"),
            )
            for last in ("weight", "bias")
        }
    )
    tokens = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    net.activate(genome)
    with torch.no_grad():
        torch.testing.assert_close(net.get_submodule("blocks.0")(tokens), judge(tokens))


def test_positions_are_interpolated_as_torch_does():
    places = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.interpolate(places, size=(6, 3), mode="bilinear")
    torch.testing.assert_close(positions_at(places, 6, 3), expected)
    assert positions_at(places, 4, 4) is places


def test_no_statistics_and_so_no_images_are_needed(net):
    genomes = np.stack([net.smallest(), net.largest(), net.largest()])
    found = recalibrate(net, genomes, iter(()))
    assert found == [{}, {}, {}]
    images = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    [mine] = logits(net, genomes, found, [images])
    for genome, own in zip(genomes, mine, strict=True):
        alone = extract(net, genome, statistics={}).eval()
        with torch.no_grad():
            torch.testing.assert_close(own, alone(resize(images, net.resolution(genome))))
    truth = mine[1].argmax(dim=1)
    assert accuracies(net, genomes, found, [(images, truth)])[1:].tolist() == [1.0, 1.0]


def test_weights_start_as_a_cut_normal_distribution_of_the_space():
    space = load_space("cifar-vit-tiny")
    first, same = (
        build_supernet(space, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert digest(first) == digest(same)
    drawn = [value.detach() for value in first.parameters() if value.ndim > 1]
    assert all(float(value.abs().max()) <= 0.04 for value in drawn)
    assert all(0.016 < float(value.std()) < 0.019 for value in drawn)  # 0.02 before the cut
    flat = {v for value in first.parameters() if value.ndim == 1 for v in value.tolist()}
    assert flat == {0.0, 1.0}


def test_sorting_leaves_the_full_network_as_it_is_and_puts_what_matters_first(net):
    full, small = net.largest(), net.smallest()
    net.activate(full)
    before = answers(net)
    net.activate(small)
    small_before = answers(net)
    closed = Region(net.architectures, full)
    channels.reorder_channels(net, channels.channel_orders(net, closed))
    net.activate(full)
    torch.testing.assert_close(answers(net), before, rtol=1e-4, atol=1e-5)
    net.activate(small)
    assert not torch.allclose(answers(net), small_before, atol=1e-3)
    inner = channels.inner_channels(net)
    assert [(one.group, len(one.widths(None))) for one in inner] == [
        (4, 3), (1, 5), (4, 3), (1, 5), (1, 3)
    ]  # fmt: skip
    for one in inner:  # heads and hidden units of two blocks, the embedding
        importance = one.reader.abs().sum(dim=0).view(-1, one.group).sum(dim=1)
        assert (importance.diff() <= 1e-5).all()


def test_widths_that_were_there_keep_their_channels(net):
    known = Region.opened(net.architectures, {"e": 2, "h": 2, "w": 2, "d": None})
    subnets = known.sample(6, np.random.default_rng(0))
    before = []
    for genome in subnets:
        net.activate(genome)
        before.append(answers(net))
    orders = channels.channel_orders(net, known)
    assert any((order != torch.arange(len(order))).any() for order in orders)
    channels.reorder_channels(net, orders)
    for genome, expected in zip(subnets, before, strict=True):
        net.activate(genome)
        torch.testing.assert_close(answers(net), expected, rtol=1e-4, atol=1e-5)


def test_blocks_can_start_as_identities_and_still_learn(net):
    channels.zero_residual_gains(net)
    tokens = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    block = net.get_submodule("blocks.0")
    assert torch.equal(block(tokens), tokens)
    net(torch.randn(2, 3, 12, 12)).sum().backward()
    learning = block.get_submodule("mlp.conv.project.linear").weight
    assert learning.grad.abs().sum() > 0


@pytest.mark.parametrize("phases", [progressive_shrinking.phases_for, compofa.phases_for])
def test_phases_open_the_whole_space_in_the_end(phases, net):
    last = phases(net.architectures)[-1]
    assert (Region.opened(net.architectures, last.opens).floor == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_scheme_trains_it(scheme, precision, tmp_path):
    net = tiny_supernet(tmp_path, KIND)
    recipe = SupernetRecipe(batch_size=18, precision=precision, ema=0.9)
    made = scheme(net.architectures)
    trained = train_supernet(net, stripes(), made, seed=0, recipe=recipe, validate_epochs=1)
    assert trained.history[-1].smallest is not None
    for before, (name, after) in zip(
        net.parameters(), trained.supernet.named_parameters(), strict=True
    ):
        assert after.isfinite().all()
        assert not torch.equal(before, after), name


@pytest.mark.filterwarnings("ignore")  # the tracing exporter is deprecated, and says much
def test_it_exports_with_positions_at_its_own_size(net, tmp_path):
    genome = net.smallest()  # 8 pixels: 2 of 3 patches a side
    alone = extract(net, genome).eval()
    assert alone.get_parameter("first.positions").shape == (1, 8, 2, 2)
    model = onnx.load(export_onnx(alone, (3, 8, 8), tmp_path / "vit.onnx", dynamic_batch=True))
    runs = onnx.reference.ReferenceEvaluator(model)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    [found] = runs.run(None, {"image": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, alone(images).numpy(), rtol=1e-4, atol=1e-5)
    torch.onnx.export(alone, (images[:1],), tmp_path / "traced.onnx", dynamo=False)
