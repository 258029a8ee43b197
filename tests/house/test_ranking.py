import copy

import pytest
import torch

from tailorbird.errors import ConfigError
from tailorbird.house.ranking import losses_on, rank_correlation
from tailorbird.train.evaluate import accuracy, agreement

from .makers import images, net


def disturbed(amount):
    network = copy.deepcopy(net())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(network.head.weight.shape, generator=generator)
        network.head.weight += amount * noise
    return network


@pytest.mark.parametrize("labelled", [True, False])
def test_losses_grow_with_what_is_disturbed(labelled):
    split, teacher = images(labelled=labelled).validation, net()
    amounts = {"none": 0.0, "some": 0.1, "more": 1.0}
    found = losses_on(split, teacher, {name: disturbed(a) for name, a in amounts.items()})
    divergences = {name: one.divergence for name, one in found.items()}
    assert divergences["none"] == pytest.approx(0.0, abs=1e-6)
    assert rank_correlation(divergences, amounts) == pytest.approx(1.0)
    whole = accuracy(teacher, split) if labelled else 1.0
    more = disturbed(1.0)
    kept = accuracy(more, split) if labelled else agreement(more, teacher, split)
    assert found["more"].accuracy == pytest.approx(whole - kept)


def test_what_can_t_be_ranked_is_refused():
    three = {"a": 1.0, "b": 2.0, "c": 3.0}
    for losses in ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0, "d": 3.0}):
        with pytest.raises(ConfigError, match="of the same three networks or more"):
            rank_correlation(three, losses)
    with pytest.raises(ConfigError, match="all networks are equal"):
        rank_correlation(three, dict.fromkeys(three, 1.0))
