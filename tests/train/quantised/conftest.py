"""Networks that are quantised in more than one format."""

import pytest
import torch
from torch import fx

from tailorbird.data.digits import digits
from tailorbird.train.fit import fit
from tailorbird.train.recipe import Recipe
from tests.train.quantised.makers import Net, rebuilt, stretch


@pytest.fixture(scope="session")
def data():
    return digits(image_size=8)


@pytest.fixture(scope="session")
def student(data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    recipe = Recipe.named(
        "standard", epochs=6, learning_rate=0.1, batch_size=64, precision="float32"
    )
    return fx.symbolic_trace(
        fit(net, data, recipe=recipe, seed=0, device=torch.device("cpu")).module
    )


@pytest.fixture(scope="session")
def images(data):
    return data.test.sample(256)


@pytest.fixture(scope="session")
def hurt(student):
    """The same function, hard to say in int8."""
    return fx.symbolic_trace(stretch(rebuilt(student)).eval())
