"""Code that asks for types, lengths and whole numbers, or writes to slices, is traced."""

import builtins
import sys

import pytest
import torch
from torch import Tensor, nn

from tailorbird.graph.passes import assign
from tailorbird.graph.serial import from_spec, to_spec
from tailorbird.graph.trace import trace
from tests.graph import answer_nets
from tests.graph.answer_nets import NETS


def values_and_gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    images = images.clone().requires_grad_()
    output = model(images)
    wanted = [images, *(p for p in model.parameters() if p.requires_grad)]
    return [output, *torch.autograd.grad(output.square().sum(), wanted, materialize_grads=True)]


@pytest.mark.parametrize("name", NETS)
def test_values_and_gradients_equal_the_network_for_any_batch(name: str) -> None:
    torch.manual_seed(0)
    model = NETS[name]().eval()
    graph = trace(model, (3, 6, 6))
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 6, 6)
        found, expected = (values_and_gradients(m, images) for m in (graph.module, model))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert sum(g.abs().sum() for g in found[2:]).isclose(
            sum(g.abs().sum() for g in expected[2:])
        )


@pytest.mark.parametrize("name", ["Sizes", "Masks", "Nested"])
def test_what_was_read_so_is_stored(name: str) -> None:
    graph = trace(NETS[name]().eval(), (3, 6, 6))
    images = torch.randn(3, 3, 6, 6)
    stored = from_spec(to_spec(graph.module))
    stored.load_state_dict(graph.module.state_dict())
    assert torch.equal(stored.eval()(images), graph.module(images))


def test_nothing_is_left_behind() -> None:
    script, size = torch.jit.ScriptFunction.__call__, torch.zeros
    trace(NETS["Types"]().eval(), (3, 6, 6))
    assert torch.jit.ScriptFunction.__call__ is script
    assert torch.zeros is size
    for module in (answer_nets, sys.modules[__name__]):
        assert not {"int", "len", "type"} & vars(module).keys()
    assert isinstance(3, builtins.int)


def test_assign_leaves_its_input_as_it_is() -> None:
    x = torch.zeros(2, 3)
    y = assign(x, (slice(None), 1), torch.ones(2))
    assert x.sum() == 0
    assert y.tolist() == [[0, 1, 0], [0, 1, 0]]
