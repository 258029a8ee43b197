"""Autograd functions with a backward of their own; the proof of gradients finds the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from tailorbird.errors import GraphError
from tailorbird.graph.proof import prove
from tailorbird.graph.trace import trace

from .storing_nets import (
    SHAPE,
    Apply,
    Hard,
    Rounded,
    Silenced,
    Straight,
    around,
    hard,
    straight,
    swish,
)


def gradients(module, count):
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count))
    module.zero_grad()
    torch.nn.functional.cross_entropy(module(images), torch.arange(count)).backward()
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    "make", [lambda: around(Apply(straight)), lambda: around(Apply(hard)), Rounded]
)
@pytest.mark.parametrize("training", [False, True])
def test_an_own_backward_is_kept(make, training):
    network = make().eval()
    module = copy.deepcopy(trace(network, SHAPE).module)
    kept = [n.target for n in module.graph.nodes if n.op == "call_function"]
    assert any(getattr(target, "__name__", "") in {"Straight", "Hard"} for target in kept)
    for count in (1, 4):
        wanted, given = (gradients(m.train(training), count) for m in (network, module))
        assert wanted.keys() == given.keys()
        for name, gradient in wanted.items():
            assert gradient.abs().sum() > 0
            assert torch.allclose(gradient, given[name])


def test_a_backward_like_its_forwards_is_looked_into():
    graph = trace(around(Apply(swish)), SHAPE)
    assert [layer.kind for layer in graph.layers[3:5]] == ["activation", "multiply"]


def test_apply_is_as_it_was_after_tracing():
    apply = Function.apply
    trace(around(Apply(straight)), SHAPE)
    assert Function.apply == apply
    assert Straight.apply.__func__ is Hard.apply.__func__ is apply.__func__


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_looked_into(reentrant):
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return checkpoint(self.conv, x, use_reentrant=reentrant)

    called = [n.target for n in trace(around(Body()), SHAPE).module.graph.nodes]
    assert "2.conv" in called


class InPlace(Function):
    """Writes into its input, which its own backward knows of."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.clamp_(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_function_that_cannot_be_looked_into_is_kept():
    network = around(Apply(lambda x: InPlace.apply(x + 1)))
    graph = trace(network, SHAPE)
    assert [layer.kind for layer in graph.layers if layer.name == "in_place"] == ["other"]


def test_a_lost_gradient_is_found_and_the_ways_out_hold():
    network = around(Silenced())
    with pytest.raises(GraphError, match=r"the gradient of .* differs .* mark the module .* leaf"):
        trace(network, SHAPE, ways=["torch.fx"])
    for graph in (trace(network, SHAPE, leaves=["2"]), trace(network, SHAPE)):
        wanted, given = gradients(network.eval(), 2), gradients(copy.deepcopy(graph.module), 2)
        assert wanted["2.one.weight"] is given["2.one.weight"] is None
        assert torch.allclose(wanted["0.weight"], given["0.weight"])
    assert graph.read_by == "torch.export"


def test_weights_without_a_gradient_may_get_one():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            with torch.no_grad():
                x = self.body(x).relu()
            return self.head(x.mean((2, 3)))

    assert trace(Frozen(), SHAPE).output == "head"


def test_values_are_compared_at_the_batch_that_is_given():
    class Three(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3)) if len(x) < 3 else x.amax((1, 2, 3))

    graph = fx.Graph()
    graph.output(graph.call_method("mean", (graph.placeholder("x"), (1, 2, 3))))
    traced = fx.GraphModule(nn.Module(), graph)
    prove(Three(), traced, Three(), torch.rand(2, *SHAPE))
    with pytest.raises(GraphError, match=r"differs from Three by up to .* on 3 images.* leaf"):
        prove(Three(), traced, Three(), torch.rand(3, *SHAPE))
