import pytest
import torch

from tailorbird.demo import digits_net, narrow_net
from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.trace import trace


@pytest.mark.parametrize("make", [digits_net, narrow_net])
def test_demo_networks_run_trace_and_hold_blocks(make):
    model = make(width=8, depth=2)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    graph = trace(model, (1, 16, 16))
    assert len(enumerate_blocks(graph)) > 10


def test_the_donor_is_smaller():
    size = [sum(p.numel() for p in model.parameters()) for model in (narrow_net(), digits_net())]
    assert size[0] < size[1] / 4
