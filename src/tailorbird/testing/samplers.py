"""What every sampler of subnets keeps to."""

from __future__ import annotations

import json

import numpy as np

from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace, load_space
from tailorbird.supernet.samplers import Keeper, Region, Sampler, SamplerOf, observer

_COUNT, _STEPS = 5, 12


def check_sampler(make: SamplerOf, space: ArchitectureSpace | None = None) -> None:
    """Draws lie in the region, follow from the generator, and go on exactly from a stored state.

    Args:
        make: region and number of subnets to a fresh sampler.
        space: that subnets are drawn from; a space of the package where ``None``.

    Raises:
        AssertionError: naming what it does not keep to.
    """
    space = space or load_space("ofa-mbv3-w1.0")
    for region in (Region.whole(space), Region.opened(space, {"d": 2})):
        _draws(make, region)
        _goes_on(make, region)


def _draws(make: SamplerOf, region: Region) -> None:
    sampler, space = make(region, _COUNT), region.architectures.space
    assert isinstance(sampler.name, str) and sampler.name, "name: expected text"
    drawn = sampler.sample(3, np.random.default_rng(1))
    assert drawn.shape == (_COUNT, len(space.choices)), f"expected {_COUNT} genomes: {drawn.shape}"
    space.validate(drawn)
    below = (drawn < region.floor) & space.active(drawn)
    assert not below.any(), "expected genomes of the region, some lie below its floor"
    again = make(region, _COUNT).sample(3, np.random.default_rng(1))
    assert (again == drawn).all(), "equal generators: expected equal draws"
    other = sampler.sample(3, np.random.default_rng(2))
    assert (other != drawn).any(), "other generators: expected other draws"


def _goes_on(make: SamplerOf, region: Region) -> None:
    """A sampler that was stored after half of the steps draws what one draws that was not."""
    whole, first = make(region, _COUNT), make(region, _COUNT)
    expected = [_step(whole, number) for number in range(_STEPS)]
    found = [_step(first, number) for number in range(_STEPS // 2)]
    second = make(region, _COUNT)
    if isinstance(first, Keeper):
        memory = first.state()
        assert isinstance(second, Keeper)
        plain = {k: v for k, v in memory.items() if not hasattr(v, "shape")}
        assert json.loads(json.dumps(plain)) == plain, "state: expected JSON values and tensors"
        second.restore(memory)
    found += [_step(second, number) for number in range(_STEPS // 2, _STEPS)]
    same = all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert same, "restored: expected the draws of a sampler that was never interrupted"


def _step(sampler: Sampler, number: int) -> Genomes:
    drawn = sampler.sample(number, np.random.default_rng(number))
    if (tell := observer(sampler)) is not None:
        tell(drawn, np.linspace(1.0, 2.0, len(drawn)))
    return drawn
