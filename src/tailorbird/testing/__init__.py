"""Contracts that parts of one's own have to keep, as functions that assert.

Each file is for one kind of part: `check_strategy`, `check_device`, `check_images`,
`check_sampler`, `check_scheme`. They need no
test framework; under pytest, the single checks make good parameters::

    @pytest.mark.parametrize("check", STRATEGY_CHECKS, ids=lambda check: check.__name__)
    def test_my_strategy(check):
        check(MyStrategy())

``import tailorbird`` does not import this package.
"""

from tailorbird.testing.devices import check_device
from tailorbird.testing.images import check_images, check_split
from tailorbird.testing.samplers import check_sampler
from tailorbird.testing.schemes import check_scheme
from tailorbird.testing.strategies import STRATEGY_CHECKS, SmallSupernet, check_strategy

__all__ = [
    "STRATEGY_CHECKS",
    "SmallSupernet",
    "check_device",
    "check_images",
    "check_sampler",
    "check_scheme",
    "check_split",
    "check_strategy",
]
