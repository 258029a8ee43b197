"""Blocks that become one convolution: which, how close, and what is refused."""

from collections import Counter

import pytest
import timm
import torch

from tailorbird.graph.linearise import linear_forms
from tailorbird.graph.serial import is_storable
from tailorbird.graph.surgery import extract, induce
from tailorbird.graph.trace import trace
from tailorbird.house.activations import Activations
from tailorbird.house.merge import MOST, add_merged, mergeable, merged
from tailorbird.house.sample import Collector
from tests.graph.linear_nets import Branches, Inverted, Net, lived

from .makers import seeded, teacher

IMAGES = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def timm_net(name, **arguments):
    return lived(seeded(timm.create_model, model_name=name, num_classes=5, **arguments))


@pytest.fixture(scope="module")
def mobile():
    return trace(timm_net("mobilenetv2_035"), (3, 32, 32))


@pytest.fixture(scope="module")
def merges(mobile):
    return mergeable(mobile)


def seen(channels=3, size=32):
    return Activations(IMAGES[:, :channels, :size, :size], limit=0)


def error(graph, merge, module):
    """Squared error over the mean square, as distillation counts it."""
    x = seen(*graph.input_shape[:2]).at(graph, [merge.block.input])[merge.block.input]
    with torch.no_grad():
        wanted = extract(graph, merge.block)(x)
        return float((module(x) - wanted).square().mean() / wanted.square().mean())


def test_every_inverted_residual_is_found_on_the_graph_with_its_shortcut(mobile, merges):
    found = {merge.block.key: merge for merge in merges}
    maps = [layer.name for layer in mobile.layers if layer.name.endswith("_conv_pwl")]
    maps = [name for name in maps if mobile.layer(name).shape[1] > 1]
    assert len(maps) > 8
    for name in maps:
        first, norm = name.replace("pwl", "pw"), name.replace("conv_pwl", "bn3")
        ends = [norm, *(node.name for node in mobile.nodes[norm].users if "add" in node.name)]
        # The second operand of a residual add is an earlier block's output.
        joined = [end for end in ends if f"{first}..{end}" in found]
        assert len(joined) == 1, name
        merge = found[f"{first}..{joined[0]}"]
        assert len(merge.straightened) == 2
        module = merged(mobile, merge, seen()).convolution.module()
        assert isinstance(module.conv, torch.nn.Conv2d)
        assert module.conv.kernel_size == (3, 3)
        assert is_storable(module)
        residual = mobile.layer(joined[0]).kind == "add"
        assert residual == (merge.block.in_shape == merge.block.out_shape)


def test_activations_as_lines_begin_far_closer_than_without_them(mobile, merges):
    merges = [m for m in merges if m.straightened][:4]
    fitted = [error(mobile, m, merged(mobile, m, seen()).convolution.module()) for m in merges]
    plain = []
    for merge in merges:
        ((_, form),) = linear_forms(mobile, [merge.block])
        plain.append(error(mobile, merge, form.convolution.module()))
    assert max(fitted) < 0.3
    assert all(10 * close < far for close, far in zip(fitted, plain, strict=True))


def test_what_computes_the_same_everywhere_is_taken_as_it_is():
    graph = trace(lived(Net(Branches())), (3, 16, 16))
    collector = Collector({})
    add_merged(collector, graph, seen=seen(3, 16))
    (same,) = [a for a in collector.alternatives if a.variant == "merged"]
    assert same.as_is
    assert not same.trainable
    assert same.origin == "teacher"
    block = collector.blocks[same.block]
    whole = induce(graph, {block: collector.modules[same.name]})
    x = IMAGES[:4, :, :16, :16]
    with torch.no_grad():
        torch.testing.assert_close(whole(x), graph.module(x), atol=1e-5, rtol=1e-4)
    assert same.macs < block.macs


def test_what_differs_at_borders_or_inside_is_distilled():
    graph = trace(lived(Net(Inverted(act=torch.nn.Identity))), (3, 16, 16))
    collector = Collector({})
    add_merged(collector, graph, seen=seen(3, 16))
    assert {a.variant for a in collector.alternatives} >= {"merged"}
    padded = [a for a in collector.alternatives if "layers_3" in str(collector.blocks[a.block])]
    assert padded
    assert all(a.trainable for a in padded)
    graph = trace(lived(Net(Inverted())), (3, 16, 16))
    collector = Collector({})
    add_merged(collector, graph, seen=seen(3, 16))
    assert collector.alternatives
    assert all(a.trainable for a in collector.alternatives)
    before = len(collector.alternatives)
    add_merged(collector, graph, seen=seen(3, 16))
    assert len(collector.alternatives) == before


def test_kernels_of_basic_blocks_grow_and_no_first_activation_goes():
    graph = teacher()
    merges = mergeable(graph)
    assert {m.variant for m in merges} == {"merged without activations"}
    for merge in merges:
        assert merge.share <= MOST
        assert graph.layer(merge.block.nodes[0]).kind in ("conv", "norm")
        assert merge.block.output not in merge.straightened
    adds = [layer.name for layer in graph.layers if layer.kind == "add"]
    assert {m.block.output for m in merges} == set(adds)
    without = mergeable(graph, stem=False)
    assert 0 < len(without) < len(merges)
    assert all(m.block.input != graph.layers[0].name for m in without)


def test_what_can_not_be_merged_is_counted_by_its_reason():
    graph = trace(timm_net("mobilenetv3_small_050"), (3, 32, 32))
    rejections = Counter()
    found = mergeable(graph, rejections=rejections)
    assert rejections["merging: a layer of kind pool"] > 0  # of squeeze-and-excitation
    assert all("_se_" not in " ".join(merge.block.nodes) for merge in found)
    assert all(reason.startswith("merging: ") for reason in rejections)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 4, "depths": (1, 1), "num_heads": (2, 4)},
        ),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
        ("densenet121", {"growth_rate": 4, "block_config": (2, 2)}),
    ],
)
def test_networks_of_any_kind_are_looked_through(name, arguments):
    graph = trace(seeded(timm.create_model, model_name=name, **arguments).eval(), (3, 32, 32))
    collector = Collector({})
    add_merged(collector, graph, seen=seen())
    for alternative in collector.alternatives:
        block = collector.blocks[alternative.block]
        given = collector.modules[alternative.name](torch.zeros(1, *block.in_shape))
        assert given.shape[1:] == block.out_shape
