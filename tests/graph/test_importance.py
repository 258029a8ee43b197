import pytest
import torch
from torch import fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.channels import analyse
from tailorbird.graph.importance import magnitude_scores, prune_interior

from .channel_zoo import SHAPE, ZOO, body, images


def _wide():
    """Two hidden groups of 32 and one of 6 channels."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(),
        nn.Conv2d(32, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    return fx.symbolic_trace(net).eval()


def _widths(module):
    return [module.get_submodule(name).out_channels for name in ("0", "2", "4", "6")]


def test_magnitude_gives_dead_channels_nothing_and_compares_layers():
    module = _wide()
    module.get_submodule("0").weight.data[5] = 0
    module.get_submodule("2").weight.data[:, 5] = 0
    scores = magnitude_scores(module, SHAPE)
    assert scores[1][5] == 0 and (scores[1] > 0).sum() == 31
    module.get_submodule("0").weight.data *= 100  # a scale that the next layer would undo
    torch.testing.assert_close(magnitude_scores(module, SHAPE)[1], scores[1])


def test_the_lowest_go_ranked_over_the_whole_block():
    module = _wide()
    scores = {1: torch.arange(32.0), 2: 1000 + torch.arange(32.0), 3: torch.zeros(6)}
    narrow = prune_interior(module, SHAPE, ratio=0.25, scores=scores)
    assert _widths(narrow) == [16, 32, 6, 4]  # the narrow group stays, the second ranks higher
    torch.testing.assert_close(
        narrow.get_submodule("0").weight, module.get_submodule("0").weight[16:]
    )


@pytest.mark.parametrize(
    ("ratio", "options", "first"),
    [
        (0.0, {}, 32),
        (0.05, {}, 32),  # 29 kept: the nearest multiple is 32
        (0.08, {}, 24),  # 27 kept
        (0.08, {"multiple": 1}, 26),  # the narrow group counts too: 6 of 70 go
        (0.5, {}, 4),  # nothing left: the floor
        (0.5, {"floor": 12}, 12),
        (0.5, {"floor": 99}, 32),
    ],
)
def test_rounding_and_floor(ratio, options, first):
    scores = {1: torch.arange(32.0), 2: 1000 + torch.arange(32.0), 3: 2000 + torch.zeros(6)}
    assert (
        _widths(prune_interior(_wide(), SHAPE, ratio=ratio, scores=scores, **options))[0] == first
    )


def test_a_position_of_several_channels_counts_as_those():
    """Six groups of four channels: eight channels are two of them."""
    net = nn.Sequential(
        nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 3, groups=6), nn.Conv2d(24, 4, 1)
    )  # fmt: skip
    module = fx.symbolic_trace(net).eval()
    [group] = [g for g in analyse(module, SHAPE).groups if g.interior]
    assert (group.size, group.span) == (6, 4)
    scores = {group.index: torch.tensor([6.0, 1.0, 5.0, 2.0, 4.0, 3.0])}
    narrow = prune_interior(module, SHAPE, ratio=0.5, scores=scores, floor=1)
    middle = narrow.get_submodule("1")
    assert (middle.in_channels, middle.groups) == (16, 4)  # three are left: up to two pairs
    kept = [*range(4), *range(8, 12), *range(16, 24)]
    assert torch.equal(middle.weight, module.get_submodule("1").weight[kept])


def test_widths_are_never_above_the_original():
    module = fx.symbolic_trace(nn.Sequential(nn.Conv2d(8, 13, 1), nn.Conv2d(13, 4, 1)))
    narrow = prune_interior(module, SHAPE, ratio=0.05, scores=magnitude_scores(module, SHAPE))
    assert narrow.get_submodule("0").out_channels == 13


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_interface_widths_stay(kind, ratio):
    module = body(kind)
    narrow = prune_interior(
        module, SHAPE, ratio=ratio, scores=magnitude_scores(module, SHAPE), multiple=2, floor=1
    )
    assert narrow(images()).shape == module(images()).shape


def test_errors():
    module = _wide()
    with pytest.raises(GraphError, match="expected 0 <= ratio < 1"):
        prune_interior(module, SHAPE, ratio=1.0, scores={})
    with pytest.raises(GraphError, match=r"scores: missing .* groups \[1, 2\]"):
        prune_interior(module, SHAPE, ratio=0.5, scores={})
