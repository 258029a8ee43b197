"""Training of networks that overwrite what their backward pass needs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tailorbird.train.fit import fit
from tailorbird.train.mutation import guard_for
from tailorbird.train.recipe import Recipe
from tests.house.makers import images, seeded


class Written(nn.Module):
    """A part of the features is convolved and written back, in place or as a plain operation."""

    def __init__(self, *, in_place):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(2, 2, 3, 1, 1)
        self.head, self.in_place = nn.Linear(8, 10), in_place

    def forward(self, x):
        x = torch.relu(self.stem(x))
        if self.in_place:
            x[:, :2] = self.conv(x[:, :2])
        else:
            x = torch.cat([self.conv(x[:, :2]), x[:, 2:]], 1)
        return self.head(x.mean((2, 3)))


def trained(in_place):
    recipe = Recipe.named(
        "standard", epochs=1.0, batch_size=64, precision="float32", recalibrate_batches=0
    )
    network = seeded(lambda: Written(in_place=in_place))
    return fit(network, images(), recipe=recipe, seed=0).module.state_dict()


def test_only_networks_that_overwrite_are_guarded():
    example = torch.zeros(2, 1, 8, 8)
    assert guard_for(Written(in_place=False), example) is nullcontext
    assert guard_for(Written(in_place=True), example) is not nullcontext
    silent = nn.Flatten()  # without weights there is no backward pass at all
    assert guard_for(silent, example) is nullcontext


def test_written_in_place_it_trains_to_the_same_weights():
    plain, written = trained(in_place=False), trained(in_place=True)
    for name, weight in plain.items():
        assert torch.allclose(weight, written[name], atol=1e-5), name


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.spectral_norm])
def test_computed_weights_train_on_a_copy(norm):
    network = seeded(lambda: nn.Sequential(nn.Flatten(), norm(nn.Linear(64, 10))))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    recipe = Recipe.named(
        "standard",
        epochs=1.0,
        batch_size=64,
        precision="float32",
        ema=0.9,
        recalibrate_batches=0,
        keep="last",
    )
    after = dict(fit(network, images(), recipe=recipe, seed=0).module.named_parameters())
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())
