import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from tailorbird.errors import GraphError
from tailorbird.graph.channels import analyse, prune
from tailorbird.graph.flow import Tag
from tailorbird.graph.importance import magnitude_scores, prune_interior
from tailorbird.graph.rule_layout import reshaped
from tailorbird.graph.serial import load_module, save_module

from .channel_zoo import (
    SHAPE,
    TRACED,
    ZOO,
    BiasedHeads,
    Chain,
    Dense,
    Gated,
    Grouped,
    Heads,
    Mixed,
    Mlp,
    PaddedShortcut,
    Paths,
    Residual,
    Shared,
    Shuffled,
    body,
    images,
    zeroed,
)


def traced(*layers):
    return fx.symbolic_trace(nn.Sequential(*layers)).eval()


@pytest.mark.parametrize("kind", ZOO)
def test_pruning_equals_zeroing_what_weights_read(kind):
    """Every exact group of every body, and all of them at once."""
    module, x = body(kind), images()
    channels = analyse(module, SHAPE)
    exact = [g for g in channels.groups if g.prunable and g.exact and g.size > 1]
    assert exact
    for chosen in [*([g] for g in exact), exact]:
        keep = {g.index: sorted({0, *range(g.size // 3, g.size)} - {2, g.size - 1}) for g in chosen}
        removed = {(g.index, p) for g in chosen for p in range(g.size) if p not in keep[g.index]}
        for _, places in channels.kept:  # no layer, and no part of a tensor, may lose all
            if removed.issuperset(places):
                removed.remove(places[0])
                keep[places[0][0]].append(places[0][1])
        narrow = prune(module, SHAPE, keep)
        kept_in = [j for j, place in enumerate(channels.input) if place not in removed]
        kept_out = [j for j, place in enumerate(channels.output) if place not in removed]
        expected = zeroed(module, channels, removed)(x.clone())
        got = narrow(x[:, kept_in])
        torch.testing.assert_close(got, expected[:, kept_out], atol=1e-5, rtol=1e-5)
        before, after = (sum(p.numel() for p in m.parameters()) for m in (module, narrow))
        assert after < before


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Chain, [16]),
        (Residual, [16]),
        (Dense, [8, 16]),  # the first convolution's and the concatenation's ties
        (PaddedShortcut, [16, 16]),
        (Shared, [16]),
        (Mlp, [32]),
    ],
)
def test_interior_groups(kind, sizes):
    channels = analyse(body(kind), SHAPE)
    found = sorted(g.size for g in channels.groups if g.interior and g.prunable)
    if kind is Dense:  # input and both halves of the sum are one group; the last layer another
        assert found == [8]
    else:
        assert found == sizes


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_channels_are_found_again_in_any_reshape(data):
    """Every element of the reshaped tensor carries the channel that the tag says."""
    factors = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=5))
    cuts = data.draw(st.lists(st.booleans(), min_size=4, max_size=4))
    after = data.draw(st.lists(st.booleans(), min_size=4, max_size=4))
    before, after = ([5, *_joined(factors, joins)] for joins in (cuts, after))
    axis = data.draw(st.integers(1, len(before) - 1))
    ids = tuple(range(before[axis]))
    shape = [-1 if i == axis else 1 for i in range(len(before))]
    truth = torch.tensor(ids).reshape(shape).expand(before).reshape(after)
    try:
        found = reshaped(Tag(axis, ids, (False,) * len(ids)), before, after)
    except ValueError:
        return
    if isinstance(found, Tag):
        carried = torch.tensor(found.ids).reshape([-1] + [1] * (len(after) - found.axis - 1))
    else:
        sizes = [1] * len(after)
        for one in found.axes:
            sizes[one.at] = one.size
        carried = torch.tensor(found.ids).reshape(sizes)
    assert torch.equal(truth, carried.expand(after))


def _joined(factors, joins):
    sizes = [factors[0]]
    for factor, join in zip(factors[1:], joins, strict=False):
        if join:
            sizes[-1] *= factor
        else:
            sizes.append(factor)
    return sizes


def test_parts_of_a_tensor_are_never_empty():
    module = body(Mixed)
    stem = next(g for g in analyse(module, SHAPE).groups if "a" in g.layers)
    with pytest.raises(GraphError, match="'split' would have no channel left"):
        prune(module, SHAPE, {stem.index: range(6, 24)})


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Shuffled, [10]),  # of 16 + 8 channels, many tied by two shuffles
        (Grouped, [6, 4, 12, 6, 4]),
        (Heads, [4]),
        (BiasedHeads, [8, 4, 4]),  # the stream; heads of scores; heads of values
        (Paths, [10, 6, 12]),
    ],
)
def test_what_goes_together(kind, sizes):
    groups = [g for g in analyse(body(kind), SHAPE).groups if g.interior and g.prunable]
    assert [g.size for g in groups] == sizes


@pytest.mark.parametrize("kind", TRACED)
def test_a_narrowed_body_is_stored_and_read_back(kind, tmp_path):
    module = body(kind)
    scores = magnitude_scores(module, SHAPE)
    narrow = prune_interior(module, SHAPE, ratio=0.4, scores=scores, multiple=2, floor=1)
    save_module(narrow, tmp_path, "narrow", {})
    again, _ = load_module(tmp_path, "narrow")
    assert torch.equal(again.eval()(images()), narrow(images()))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in module.parameters())


def test_a_chunk_becomes_a_split_of_the_sizes_that_are_left():
    module = body(Gated)
    group = next(g for g in analyse(module, SHAPE).groups if "a" in g.layers)
    narrow = prune(module, SHAPE, {group.index: [1, 2, 7]})
    [call] = [n for n in narrow.graph.nodes if n.target in ("chunk", "split")]
    assert (call.target, call.args[1]) == ("split", [3, 3])


def test_bias_path_of_a_pruned_layer_goes_too():
    """The oracle by hand: convolution and batch norm silenced, ReLU behind."""
    module = traced(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    nn.init.uniform_(module.get_submodule("1").bias, 1, 2)
    silenced = copy.deepcopy(module)
    for tensor in (silenced.get_submodule("1").weight, silenced.get_submodule("1").bias):
        tensor.data[[1, 4]] = 0
    narrow = prune(module, SHAPE, {1: [0, 2, 3, 5]})
    torch.testing.assert_close(narrow(images()), silenced(images()), atol=1e-5, rtol=1e-5)
    norm = narrow.get_submodule("1")
    assert (norm.num_features, norm.running_var.shape, norm.weight.shape) == (4, (4,), (4,))
    first, last = narrow.get_submodule("0"), narrow.get_submodule("3")
    assert (first.out_channels, first.weight.shape) == (4, (4, 8, 3, 3))
    assert (last.in_channels, last.weight.shape) == (4, (2, 4, 1, 1))


def test_padding_amounts_follow():
    module = body(PaddedShortcut)
    channels = analyse(module, SHAPE)
    tied = next(g for g in channels.groups if {"stem", "b"} <= set(g.layers))
    narrow = prune(module, SHAPE, {tied.index: [p for p in range(16) if p not in (0, 9, 15)]})
    pads = [n.args[1][-2:] for n in narrow.graph.nodes if n.target is F.pad]
    assert sum(pads[0]) == 8 - sum(p not in _stem(channels, tied) for p in (0, 9, 15))


def _stem(channels, group):
    places = next(places for layer, places in channels.producers if layer == "stem")
    return {p for g, p in places if g == group.index}


def test_nothing_is_mutated():
    module = body(Residual)
    state, code = copy.deepcopy(module.state_dict()), module.code
    prune(module, SHAPE, {1: [0, 1]})
    assert module.code == code
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())


class _Odd(nn.Module):
    def forward(self, x):
        return x.flip(1)


class _Leafy(fx.Tracer):
    def is_leaf_module(self, m, name):
        return isinstance(m, _Odd) or super().is_leaf_module(m, name)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (_Odd(), "'_Odd'"),
        (nn.LocalResponseNorm(3), "'LocalResponseNorm'"),
        (nn.Softmax(1), "'Softmax'"),
    ],
)
def test_unknown_layers_pin_with_a_reason(layer, reason):
    net = nn.Sequential(nn.Conv2d(8, 16, 1), layer, nn.Conv2d(16, 3, 1))
    module = fx.GraphModule(net, _Leafy().trace(net))
    channels = analyse(module, SHAPE)
    group = next(g for g in channels.groups if "0" in g.layers)
    assert reason in group.reason
    with pytest.raises(GraphError, match=f"can't be pruned: {reason}"):
        prune(module, SHAPE, {group.index: [0]})


def test_one_parameter_in_two_layers_is_pinned():
    first, second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    second.weight = first.weight
    channels = analyse(traced(first, nn.ReLU(), second), SHAPE)
    assert all("share one parameter" in g.reason for g in channels.groups)


def test_channel_count_in_arithmetic_is_pinned():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            y = self.a(x)
            return self.b(y / y.shape[1])

    group = next(g for g in analyse(body(Scaled), SHAPE).groups if g.interior)
    assert "can't follow" in group.reason


def test_norm_over_channels_follows_but_is_not_exact():
    module = body(Mlp)
    channels = analyse(module, SHAPE)
    stream = channels.groups[channels.input[0][0]]
    assert stream.prunable and not stream.exact and stream.at_output
    narrow = prune(module, SHAPE, {stream.index: [0, 3, 5]})
    assert narrow(images(shape=(3, 6, 6))).shape == (3, 3, 6, 6)
    assert narrow.get_submodule("norm").normalized_shape == (3,)


def test_nested_graph_modules_are_followed():
    outer = nn.Sequential(nn.Conv2d(8, 8, 1), body(Residual), nn.Conv2d(8, 4, 1))
    graph = fx.Graph()
    node = graph.placeholder("x")
    for name in "012":
        node = graph.call_module(name, (node,))
    graph.output(node)
    module = fx.GraphModule(outer, graph).eval()
    channels = analyse(module, SHAPE)
    stream = next(g for g in channels.groups if "1.b" in g.layers)
    assert set(stream.layers) == {"0", "1.b"} and stream.interior
    keep = {stream.index: [1, 2, 6]}
    removed = {(stream.index, p) for p in (0, 3, 4, 5, 7)}
    expected = zeroed(module, channels, removed)(images())
    torch.testing.assert_close(prune(module, SHAPE, keep)(images()), expected, atol=1e-5, rtol=1e-5)


def test_tokens():
    module = traced(nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    channels = analyse(module, (5, 8))
    assert (channels.in_axis, channels.out_axis, len(channels.input)) == (1, 1, 8)
    hidden = next(g for g in channels.groups if g.interior)
    narrow = prune(module, (5, 8), {hidden.index: range(16)})
    expected = zeroed(module, channels, {(hidden.index, p) for p in range(16, 32)})
    x = images(shape=(5, 8))
    torch.testing.assert_close(narrow(x), expected(x), atol=1e-5, rtol=1e-5)


def test_faults_are_listed_at_once():
    module = body(Chain)
    with pytest.raises(GraphError) as caught:
        prune(module, SHAPE, {9: [0], 1: [], 2: [0, 0]})
    text = str(caught.value)
    assert "group 9: there are only 3" in text
    assert "'a' would have no channel left" in text
    assert "group 2: expected distinct positions within 0..7, got [0, 0]" in text


def test_wrong_input_shape_names_the_layer():
    with pytest.raises(GraphError, match=r"'a' can't run on inputs of shape \[\(2, 5, 6, 6\)\]"):
        analyse(body(Chain), (5, 6, 6))


class _TimmLeaves(fx.Tracer):
    def is_leaf_module(self, m, name):
        known = (
            "BatchNormAct2d",
            "SqueezeExcite",
            "LayerNorm2d",
            "DropPath",
            "LayerNorm",
            "Linear",
        )
        return type(m).__name__ in known or super().is_leaf_module(m, name)


@pytest.mark.parametrize("kind", ["resnetv2", "efficientnet", "convnext", "squeeze-excite leaf"])
def test_timm_blocks(kind):
    """Leaf modules of timm go through; one without a rule only pins."""
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
    from timm.models.convnext import ConvNeXtBlock
    from timm.models.resnetv2 import PreActBottleneck

    block = {
        "resnetv2": lambda: PreActBottleneck(
            8, 8, bottle_ratio=2.0, conv_layer=create_conv2d, norm_layer=BatchNormAct2d
        ),
        "efficientnet": lambda: InvertedResidual(8, 8, drop_path_rate=0.1),
        "convnext": lambda: ConvNeXtBlock(8, drop_path=0.1),
        "squeeze-excite leaf": lambda: InvertedResidual(8, 8, exp_ratio=2, se_layer=SqueezeExcite),
    }[kind]()
    module = fx.GraphModule(block, _TimmLeaves().trace(block)).eval()
    channels = analyse(module, SHAPE)
    inner = [g for g in channels.groups if g.interior and g.prunable and g.exact]
    if kind == "squeeze-excite leaf":
        assert any("'SqueezeExcite'" in g.reason for g in channels.groups)
        return
    assert inner
    keep = {g.index: range(1, g.size) for g in inner}
    removed = {(g.index, 0) for g in inner}
    expected = zeroed(module, channels, removed)(images())
    torch.testing.assert_close(prune(module, SHAPE, keep)(images()), expected, atol=1e-5, rtol=1e-5)
