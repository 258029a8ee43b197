import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from tailorbird.errors import GraphError
from tailorbird.graph.channels import analyse, prune
from tailorbird.graph.importance import magnitude_scores
from tailorbird.graph.masks import ChannelMask, cut_masks, interface_masks, masked

from .channel_zoo import SHAPE, ZOO, Residual, SqueezeExcite, body, images


def graph_of(*parts, nested=True):
    """The parts one after another, each a submodule."""
    root, graph = nn.Module(), fx.Graph()
    node = graph.placeholder("x")
    for position, part in enumerate(parts):
        root.add_module(f"part{position}", part)
        node = graph.call_module(f"part{position}", (node,))
    graph.output(node)
    return fx.GraphModule(root, graph).eval()


def masks_in(module):
    return [m for m in module.modules() if isinstance(m, ChannelMask)]


def keeping(count, of=8):
    return (torch.arange(of) < count).float()


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ZOO)
def test_masked_equals_the_narrow_body_at_its_old_width(kind):
    module = body(kind)
    channels = analyse(module, SHAPE)
    scores = magnitude_scores(module, SHAPE)
    in_mask, out_mask = interface_masks(
        module, SHAPE, ratio=0.4, scores=scores, multiple=2, floor=2
    )
    off = {p for p, on in zip(channels.input, in_mask, strict=True) if not on}
    off |= {p for p, on in zip(channels.output, out_mask, strict=True) if not on}
    wide = masked(module, in_mask, out_mask, in_shape=SHAPE)
    keep = {
        g.index: [p for p in range(g.size) if (g.index, p) not in off]
        for g in channels.groups
        if any(g.index == group for group, _ in off)
    }
    narrow = prune(module, SHAPE, keep)
    x, got = images(), wide(images())
    close(got[:, out_mask.bool()], narrow(x[:, in_mask.bool()]))
    assert not got[:, ~out_mask.bool()].any()


def test_interior_masks_are_cut_for_real():
    student = graph_of(
        nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), ChannelMask(keeping(16, of=32)),
        nn.ReLU(), nn.Conv2d(32, 4, 1),
    )  # fmt: skip
    cut = cut_masks(student, SHAPE)
    assert cut.part0.out_channels == cut.part1.num_features == cut.part4.in_channels == 16
    assert not masks_in(cut)
    close(cut(images()), student(images()))
    assert student.part0.out_channels == 32 and len(masks_in(student)) == 1


def test_masks_at_both_sides_of_a_seam_inside_nested_blocks():
    first = masked(body(Residual), None, keeping(4), in_shape=SHAPE)
    student = graph_of(nn.Conv2d(8, 8, 1), first, nn.Conv2d(8, 4, 1))
    cut = cut_masks(student, SHAPE, multiple=4)
    close(cut(images()), student(images()))
    assert cut.part2.in_channels == cut.part0.out_channels == cut.part1.b.out_channels == 4
    assert not masks_in(cut)


def test_a_stream_is_cut_only_if_all_blocks_agree():
    first = masked(body(Residual), None, keeping(4), in_shape=SHAPE)
    second = body(Residual, seed=1)  # reads what the first zeroes, but writes it again
    student = graph_of(nn.Conv2d(8, 8, 1), first, second, nn.Conv2d(8, 4, 1))
    cut = cut_masks(student, SHAPE, multiple=4)
    close(cut(images()), student(images()))
    assert cut.part3.in_channels == 8 and masks_in(cut)
    agreeing = masked(second, keeping(4), keeping(4), in_shape=SHAPE)
    student = graph_of(nn.Conv2d(8, 8, 1), first, agreeing, nn.Conv2d(8, 4, 1))
    cut = cut_masks(student, SHAPE, multiple=4)
    close(cut(images()), student(images()))
    assert cut.part3.in_channels == 4 and not masks_in(cut)


def test_sharers_outside_the_block_keep_their_channels():
    """The masked tensor also feeds a layer that did not agree."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (
                nn.Conv2d(8, 16, 1),
                nn.Conv2d(16, 4, 1),
                nn.Conv2d(16, 4, 1),
            )
            self.mask = ChannelMask(keeping(8, of=16))

        def forward(self, x):
            x = self.stem(x)
            return self.a(self.mask(x)) + self.b(x)

    class Leaf(fx.Tracer):
        def is_leaf_module(self, m, name):
            return isinstance(m, ChannelMask) or super().is_leaf_module(m, name)

    net = Outer()
    student = fx.GraphModule(net, Leaf().trace(net)).eval()
    cut = cut_masks(student, SHAPE)
    close(cut(images()), student(images()))
    assert cut.stem.out_channels == 16
    assert not masks_in(cut)  # folded into the weights that read it
    assert not cut.a.weight[:, 8:].any() and cut.b.weight[:, 8:].any()


def test_batch_norm_behind_a_mask_keeps_the_channel():
    """Batch norm turns zero into its bias, so removing the channel would change the output."""
    norm = nn.BatchNorm2d(16)
    nn.init.normal_(norm.bias)
    student = graph_of(
        nn.Conv2d(8, 16, 1), nn.ReLU(), ChannelMask(keeping(8, of=16)), norm, nn.Conv2d(16, 4, 1)
    )
    cut = cut_masks(student, SHAPE)
    close(cut(images()), student(images()))
    assert cut.part4.in_channels == 16 and len(masks_in(cut)) == 1


def test_widths_stay_a_multiple():
    """Of 16 masked channels only 11 may go; 8 of them do, and 24 stay."""
    wide, half = keeping(16, of=32), torch.ones(32)
    half[21:] = 0
    net = {"stem": nn.Conv2d(8, 32, 1), "a": nn.Conv2d(32, 4, 1), "b": nn.Conv2d(32, 4, 1)}
    root, graph = nn.Module(), fx.Graph()
    for name, part in {**net, "all": ChannelMask(wide), "some": ChannelMask(half)}.items():
        root.add_module(name, part)
    stem = graph.call_module("stem", (graph.placeholder("x"),))
    ends = [
        graph.call_module(name, (graph.call_module(mask, (stem,)),))
        for name, mask in (("a", "all"), ("b", "some"))
    ]
    graph.output(graph.call_function(torch.add, tuple(ends)))
    student = fx.GraphModule(root, graph).eval()
    cut = cut_masks(student, SHAPE)
    close(cut(images()), student(images()))
    assert cut.stem.out_channels == 24
    assert cut_masks(student, SHAPE, multiple=1).stem.out_channels == 21


def test_masks_on_input_and_output_of_the_network_stay_correct():
    student = masked(body(SqueezeExcite), keeping(4), keeping(6), in_shape=SHAPE)
    close(cut_masks(student, SHAPE)(images()), student(images()))


def test_student_without_masks_is_copied():
    student = body(Residual)
    cut = cut_masks(student, SHAPE)
    assert torch.equal(cut(images()), student(images()))
    assert cut.a.weight is not student.a.weight


def test_mask_survives_state_dict_and_training():
    module = masked(body(Residual), keeping(4), None, in_shape=SHAPE).train()
    other = masked(body(Residual, seed=3), keeping(6), None, in_shape=SHAPE)
    other.load_state_dict(module.state_dict())
    close(other.eval()(images()), copy.deepcopy(module).eval()(images()))
    F.relu(module(images())).sum().backward()
    assert not module.a.weight.grad[:, 4:].any() and module.a.weight.grad[:, :4].any()


def test_errors():
    with pytest.raises(GraphError, match="in_mask: expected 8 channels, got 5"):
        masked(body(Residual), torch.ones(5), in_shape=SHAPE)
    for bad in (torch.zeros(4), torch.ones(2, 2), torch.tensor([0.5, 1])):
        with pytest.raises(GraphError, match="expected a vector of zeros and ones"):
            ChannelMask(bad)
