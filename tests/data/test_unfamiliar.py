"""Images that networks have not memorised: made out of validation images, or held out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tailorbird.data.images import Normalisation, TensorSplit
from tailorbird.data.sources import digits
from tailorbird.data.unfamiliar import scored_on, scoring_split, unfamiliar
from tailorbird.testing import check_split

HALF = Normalisation((0.5,), (0.25,))


def flat(count=40, side=16):
    """Image i has the one grey level i."""
    levels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return TensorSplit(levels.expand(-1, 1, side, side).contiguous(), torch.arange(count), HALF)


def test_they_are_a_split_like_others_without_labels():
    made = unfamiliar(flat(), HALF, share=1.0, pasted=(0.25, 0.5))
    check_split(made)
    assert (len(made), made.labels) == (40, None)


def test_each_is_a_part_of_itself_below_a_rectangle_of_one_other_if_asked_for():
    plain = unfamiliar(flat(), HALF, share=1.0).images.flatten(1)
    assert [set(image.tolist()) for image in plain] == [{own} for own in range(40)]
    pixels = unfamiliar(flat(), HALF, share=1.0, pasted=(0.25, 0.5)).images.flatten(1)
    partners = []
    for own, image in enumerate(pixels):
        (other,) = set(image.tolist()) - {own}
        assert 0.2 < float((image == other).double().mean()) < 0.55
        partners.append(other)
    assert sorted(partners) == list(range(40))


def test_parts_are_scaled_up_and_nothing_is_mirrored():
    ramp = (torch.arange(64) * 4 / 255).expand(6, 1, 64, 64)
    plain = Normalisation.identity(1)
    pixels = unfamiliar(TensorSplit(ramp, None, plain), plain, share=1.0).images.float() / 255
    steps = (pixels[..., 1:] - pixels[..., :-1]).flatten(1).median(1).values
    assert (steps > 0).all(), "dark stays left"
    assert (steps < 0.95 * 4 / 255).all(), "a part fills the image"


def test_a_seed_decides_and_no_global_state_is_touched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    split = TensorSplit(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), None, HALF)
    first, again, other = (
        unfamiliar(split, HALF, share=0.5, seed=seed).images for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_a_tenth_is_changed_and_the_rest_is_as_it_was():
    data = digits(image_size=8)
    made = unfamiliar(data.validation, data.normalisation)
    same = (made.images == data.validation.images).flatten(1).all(1)
    assert 216 - 22 <= int(same.sum()) <= 216 - 20  # a part of an empty corner may be equal
    assert torch.equal(made.images[same], data.validation.images[same])


def test_images_that_are_no_bytes_stay_as_they_are():
    values = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    made = unfamiliar(TensorSplit(values, None, Normalisation.identity(1)), HALF)
    assert made.images.dtype == torch.float32
    images, _ = next(iter(made.batches(8)))
    assert images.min() >= values.min() - 1e-5
    assert images.max() <= values.max() + 1e-5


def test_memory_bounds_their_number():
    assert len(unfamiliar(flat(), HALF, memory_mb=0)) == 2


@pytest.mark.parametrize("labelled", [True, False])
def test_a_holdout_scores_as_it_is_and_chooses_where_it_has_labels(labelled):
    data = digits(image_size=8, holdout=0.1)
    assert data.size == {"train": 1099, "validation": 196, "test": 359, "holdout": 143}
    apart = data.holdout if labelled else replace(data.holdout, labels=None)
    data = replace(data, holdout=apart)
    assert scoring_split(data) is apart
    assert data.choosing is (apart if labelled else data.validation)
    assert scored_on(data) == "143 holdout images, which no network was trained on"


def test_a_holdout_leaves_the_fingerprint_and_has_its_own():
    data = digits(image_size=8)
    with_one = replace(data, holdout=data.test)
    assert with_one.fingerprint == data.fingerprint
    assert len(with_one.held_out) == 16
    assert (data.held_out, replace(data, holdout=data.validation).held_out) == ("", "validation")
