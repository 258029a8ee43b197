"""Blocks as one convolution: where nothing is left out, it computes what the block computes."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tailorbird.errors import GraphError
from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.linearise import affine_of, linear_forms
from tailorbird.graph.surgery import extract
from tailorbird.graph.trace import trace

from .linear_nets import Branches, Inverted, Net, lived


def whole_body(graph, channels=6):
    """The block between the two activations of `Net`."""
    found = [
        block
        for block in enumerate_blocks(graph)
        if graph.layer(block.input).kind == "activation"
        and graph.layer(block.output).shape[0] == channels
        and graph.layer(block.output).kind in ("add", "norm", "conv")
    ]
    return max(found, key=lambda block: len(block.nodes))


def form_of(body, **arguments):
    graph = trace(lived(Net(body)), (3, 7, 8))
    block = whole_body(graph)
    ((_, form),) = linear_forms(graph, [block], **arguments)
    return graph, block, form


def both(graph, block, form):
    x = torch.rand(2, *block.in_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return extract(graph, block)(x), form.convolution.module()(x)


def test_parallel_branches_with_their_norms_are_one_convolution_exactly():
    graph, block, form = form_of(Branches())
    assert (form.exact, form.convolution.borders, form.joined) == (True, True, 2)
    assert form.convolution.weight.shape == (6, 6, 3, 3)
    torch.testing.assert_close(*both(graph, block, form), atol=1e-5, rtol=1e-4)


def test_a_shortcut_is_the_centre_of_the_kernel():
    graph, block, form = form_of(Inverted(act=nn.Identity))
    assert form.exact
    expected, given = both(graph, block, form)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(given[inside], expected[inside], atol=1e-5, rtol=1e-4)
    assert not form.convolution.borders  # the first norm's shift is not there in the padding
    assert not torch.allclose(given, expected, atol=1e-3)


def test_activations_inside_are_left_out_or_taken_as_lines():
    graph, block, form = form_of(Inverted())
    assert (form.joined, len(form.straightened), form.exact) == (3, 2, False)
    plain = form_of(Inverted(act=nn.Identity))[2]
    torch.testing.assert_close(form.convolution.weight, plain.convolution.weight)
    half = {name: (torch.full((18,), 0.5), torch.zeros(18)) for name in form.straightened}
    ((_, lines),) = linear_forms(graph, [block], lines=half)
    centre = torch.eye(6, dtype=torch.float64)
    given, full = (f.convolution.weight.clone() for f in (lines, form))
    given[:, :, 1, 1] -= centre
    full[:, :, 1, 1] -= centre
    torch.testing.assert_close(given, full / 4)


class Excited(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())


class Computed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.weight = nn.Conv2d(6, 6, 1), nn.Parameter(torch.zeros(6, 6, 1, 1))

    def forward(self, x):
        return F.conv2d(self.a(x), self.weight * 2)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (Excited(), "a layer of kind pool"),
        (Computed(), "a layer of kind conv"),
        (nn.Sequential(nn.Conv2d(6, 6, 1), nn.Softmax(1), nn.Conv2d(6, 6, 1)), "a softmax"),
        (nn.Sequential(nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 1)), "a GroupNorm"),
        (nn.Sequential(nn.GELU(), nn.Conv2d(6, 6, 1)), "an activation before the first conv"),
        (
            nn.Sequential(
                nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False), nn.Conv2d(6, 6, 1)
            ),
            "a BatchNorm2d",
        ),
    ],
)
def test_what_is_not_linear_is_named(body, words):
    with pytest.raises(GraphError, match=words):
        form_of(body)


def test_a_norm_with_an_activation_inside_is_found_by_what_it_answers():
    make = timm.layers.BatchNormAct2d
    (scale, shift), straight = affine_of(lived(make(5)), 5)
    assert not straight
    norm = lived(make(5, apply_act=False))
    same, straight = affine_of(norm, 5)
    assert straight
    torch.testing.assert_close(torch.stack(same), torch.stack((scale, shift)))
    x = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(3))
    line = x * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(norm(x), line.float().detach(), atol=1e-5, rtol=1e-5)
