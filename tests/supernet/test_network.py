"""The supernet against the original code's answers, and against its own space's data."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tailorbird.errors import DataError, SpaceError
from tailorbird.measure.counts import count
from tailorbird.supernet.architecture import SPACES, ArchitectureSpace, load_space
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.extract import extract
from tailorbird.supernet.network import Supernet, build_supernet, resize, with_classes
from tailorbird.supernet.ofa_checkpoint import load_official

DATA = Path(os.environ.get("TAILORBIRD_DATA", Path(__file__).parents[2] / "../shared/data")) / "ofa"
CIFAR = [n for n in SPACES if n.startswith("cifar-") and "vit" not in n and "-s2-" not in n]
GOLDENS = {
    "ofa-mbv3-w1.0": ("ofa_mbv3_w1.0", 1.65),
    "ofa-mbv3-w1.2": ("ofa_mbv3_w1.2", 1.65),
    "ofa-proxyless-w1.3": ("ofa_proxyless_w1.3", 1.5),
    "ofa-resnet50d": ("ofa_resnet50d", 1.3),
}


def supernet(name="compofa-mbv3-w1.0", seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    space = load_space(name, resolutions=options.pop("resolutions", [32, 48]))
    return build_supernet(space, generator=generator, **options)


def golden_file(name):
    path = DATA / "goldens" / name
    if not path.exists():
        pytest.skip(f"real data missing: no file ofa/goldens/{name} in TAILORBIRD_DATA")
    return path.read_text()


def golden_weights(shapes, gain):
    """The recipe of the golden weights, see the data's own README."""
    weights = {}
    for name, shape in shapes.items():
        last = name.rpartition(".")[2]
        drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if last == "num_batches_tracked":
            value = np.zeros(())
        elif last == "running_var":
            value = 1 + 0.1 * np.abs(drawn)
        elif last.endswith("_matrix"):
            value = np.eye(len(drawn)) + 0.05 * drawn
        elif last == "weight" and len(shape) == 1:
            value = 1 + 0.1 * drawn
        elif len(shape) == 1:
            value = 0.05 * drawn
        else:
            value = gain * drawn / np.sqrt(np.prod(shape[1:]))
        weights[name] = torch.as_tensor(value.astype(np.float32))
    return weights


def own_counts(module, resolution):
    """MACs and parameters of a plain network, from its layers as they run."""
    total = 0

    def count(layer, _inputs, output):
        nonlocal total
        per_output = layer.weight[0].numel()
        total += per_output * output[0].numel()

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.zeros(1, 3, resolution, resolution))
    return total, sum(p.numel() for p in module.parameters())


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDENS)
def test_golden_subnets(name):
    file, gain = GOLDENS[name]
    shapes = json.loads(golden_file(f"{file}.state_dict_shapes.json"))
    rows = [json.loads(line) for line in golden_file(f"{file}.jsonl").splitlines()]
    net = build_supernet(load_space(name), generator=torch.Generator().manual_seed(0)).eval()
    assert {n: list(t.shape) for n, t in net.state_dict().items()} == shapes
    load_official(net, golden_weights(shapes, gain))
    genomes = net.architectures.genomes([{**row["config"], "r": row["resolution"]} for row in rows])
    for row, genome in zip(rows, genomes, strict=True):
        side = row["resolution"]
        images = np.random.default_rng(side).standard_normal((2, 3, side, side))
        images = torch.from_numpy(images.astype(np.float32))
        net.activate(genome)
        alone = extract(net, genome)
        with torch.no_grad():
            answers = net(images)
            assert torch.equal(alone(images), answers)
        expected = np.array(row["logits"])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(answers[:, :16], expected, rtol=1e-3, atol=1e-4 * scale)
        counted = own_counts(alone, side)
        assert counted == (macs(net.architectures).sum(genome[None])[0], row["params"])
        assert counted[0] == pytest.approx(row["macs"], rel=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_every_space_builds_runs_and_counts_as_its_data_says(name):
    net = supernet(name, classes=7, resolutions=[32, 64]).eval()
    space = net.architectures
    genomes = space.space.sample(2, np.random.default_rng(1))
    genomes = np.concatenate([genomes, [net.largest(), net.smallest()]])
    for genome in genomes:
        net.activate(genome)
        side = net.resolution(genome)
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
        alone = extract(net, genome)
        with torch.no_grad():
            answers = net(images)
            assert answers.shape == (2, 7)
            assert answers.isfinite().all()
            assert torch.equal(alone(images), answers)
        figures = macs(space).sum(genome[None])[0], params(space).sum(genome[None])[0]
        if "vit" in name:  # attention's products are no layers of their own
            counted = count(alone, (3, side, side))
            assert (counted.macs, counted.params) == figures
        else:
            assert own_counts(alone, side) == figures


def test_narrower_networks_use_the_leading_weights_of_wider_ones():
    net = supernet("ofa-mbv3-w1.0")
    genome = net.smallest()
    net.activate(genome)
    net(torch.zeros(2, 3, 32, 32)).sum().backward()
    block = net.get_submodule("blocks.2.conv")
    expand = block.get_parameter("inverted_bottleneck.conv.conv.weight")
    assert expand.grad[72:].abs().sum() == 0  # 3 of 6 times 24 channels
    assert block.get_parameter("depth_conv.conv.5to3_matrix").grad is not None
    assert net.get_submodule("blocks.4").get_parameter(
        "conv.point_linear.bn.bn.weight"
    ).grad is None  # fmt: skip


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, same, other = supernet(), supernet(), supernet(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [net.get_parameter("first_conv.conv.weight") for net in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    tensors = first.state_dict()
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert weights[0].std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)


def test_kernel_transforms_start_as_the_identity():
    net = supernet("ofa-mbv3-w1.0")
    matrix = net.get_parameter("blocks.1.conv.depth_conv.conv.7to5_matrix")
    assert torch.equal(matrix, torch.eye(25))


def test_activate_refuses_what_lies_outside_and_keeps_its_own_copy():
    net = supernet()
    genome = net.smallest()
    net.activate(genome)
    genome[0] = 1
    assert net.active[0] == 0
    genome[0] = 9
    with pytest.raises(SpaceError, match="1 genomes lie outside the space; first: row 0, r=9"):
        net.activate(genome)
    assert net.active[0] == 0
    with pytest.raises(SpaceError, match=r"expected shape \(n, 6\)"):
        net.activate(genome[:2])


def test_bad_arguments():
    net = supernet()
    with pytest.raises(DataError, match=r"expected shape \(n, 3, height, width\), got \(3, 32, 32"):
        net(torch.zeros(3, 32, 32))
    with pytest.raises(SpaceError, match="classes: expected 1 or more, got 0"):
        supernet(classes=0)
    with pytest.raises(SpaceError, match="dropout: expected a probability from 0 to below 1"):
        supernet(dropout=1.0)


def changed(space: ArchitectureSpace, slot: int, **changes) -> ArchitectureSpace:
    """The space with the first shape of a slot changed."""
    slots = list(space.slots)
    variants = dict(slots[slot].variants)
    first = next(iter(variants))
    variants[first] = replace(variants[first], **changes)
    slots[slot] = replace(slots[slot], variants=variants)
    return replace(space, slots=tuple(slots))


def test_a_slot_that_no_module_can_serve_is_named():
    space = load_space("compofa-mbv3-w1.0", resolutions=[32, 48])
    with pytest.raises(SpaceError, match=r"slot blocks\.1: expected one value .* of stride"):
        Supernet(changed(space, 2, stride=1))
    everywhere = load_space("compofa-mbv3-w1.0", resolutions=[32])
    with pytest.raises(SpaceError, match="slot first_conv: no module for kind 'attention'"):
        Supernet(changed(everywhere, 0, kind="attention"))


def test_classes_are_counted():
    space = load_space("compofa-mbv3-w1.0", resolutions=[32])
    ten = with_classes(space, 10)
    genome = np.zeros((1, 6), dtype=np.int64)
    assert (params(space).sum(genome) - params(ten).sum(genome))[0] == 990 * 1281


def test_resize_keeps_what_fits_and_averages_when_it_shrinks():
    images = torch.zeros(1, 1, 4, 4)
    images[:, :, ::2] = 1.0  # stripes one pixel wide
    assert resize(images, 4) is images
    assert resize(images, 2)[0, 0, :, 0].tolist() == pytest.approx([0.5, 0.5], abs=0.1)


@pytest.mark.parametrize("name", CIFAR)
def test_32_pixel_spaces_end_in_maps_of_4_pixels_and_narrow_with_their_width(name):
    space = load_space(name)
    layers = space.layers(np.zeros(len(space.space.choices), dtype=np.int64))
    sizes = [(shape.in_size, shape.out_size) for label, shape in layers if "blocks" in label]
    assert sizes[0][0] == 32
    assert sizes[-1][1] == 4
    assert dict(layers)["classifier"].out_channels == 10
    full = load_space(f"{name.rpartition('-w')[0]}-w1.0")
    share = params(space).sum(np.zeros((1, len(full.space.choices)), dtype=np.int64))
    assert share <= params(full).sum(np.zeros((1, len(full.space.choices)), dtype=np.int64))
    if name.endswith("w0.25"):
        widest = [
            max(shape.out_channels for shape in slot.variants.values() if shape is not None)
            for own in (space, full)
            for slot in own.slots
            if slot.name.startswith("blocks.")
        ]
        narrow, wide = np.split(np.array(widest), 2)
        assert (narrow <= np.maximum(0.25 * wide * 1.7, 8)).all()
        assert (narrow >= 0.25 * wide * 0.9).all()
