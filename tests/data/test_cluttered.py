"""The harder set that is made from scikit-learn's digits."""

from __future__ import annotations

import pytest
import torch

from tailorbird.data.cluttered import cluttered_digits
from tailorbird.errors import DataError

FEW = 60


def test_the_same_seed_gives_the_same_scenes():
    one, same, other = (cluttered_digits(seed=seed, scenes=FEW) for seed in (3, 3, 4))
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint


def test_global_randomness_is_left_as_found():
    before = torch.random.get_rng_state()
    cluttered_digits(scenes=FEW)
    assert torch.equal(before, torch.random.get_rng_state())


def test_scenes_hold_more_than_the_digit():
    bare, full = (
        cluttered_digits(pieces=pieces, scenes=FEW).train.images.float() for pieces in (0, 4)
    )
    assert full.mean() > 1.2 * bare.mean()


def test_all_that_is_wrong_is_told():
    with pytest.raises(DataError, match=r"for validation, got 0 of 60.*image_size of 16.*got 8"):
        cluttered_digits(scenes=60, validation=0.0, image_size=8)
