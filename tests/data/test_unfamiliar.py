"""Images that networks have not memorised: made out of validation images, or held out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tailorbird.data.images import Normalisation, TensorSplit
from tailorbird.data.sources import digits
from tailorbird.data.unfamiliar import blended, compared_on, comparing
from tailorbird.task import CLASSIFICATION
from tailorbird.testing import check_split
from tests.test_task import Counting

HALF = Normalisation((0.5,), (0.25,))


def flat(count=40, side=16):
    """Image i has the one grey level i."""
    levels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return TensorSplit(levels.expand(-1, 1, side, side).contiguous(), torch.arange(count), HALF)


def says_nothing(split):
    raise AssertionError("nobody is asked")


def test_each_is_the_stronger_one_above_others_and_keeps_its_label():
    made = blended(flat(), HALF, pairings=3)
    check_split(made)
    assert len(made) == 120
    partners = []
    for own, image in zip(made.labels.tolist(), made.images, strict=True):
        (level,) = set(image.flatten().tolist())
        partners.append(round((level - 0.6 * own) / 0.4))
        assert abs(0.6 * own + 0.4 * partners[-1] - level) <= 1.3
    pairs = set(zip(made.labels.tolist(), partners, strict=True))
    assert len(pairs) > 100, "another one each time"
    assert made.labels.tolist() == 3 * list(range(40))


def test_the_teacher_says_what_is_right_where_no_labels_are():
    asked = []

    def answer(split):
        asked.append(split)
        return torch.arange(len(split)) % 3

    split = replace(flat(), labels=None)
    made = blended(split, HALF, answer=answer, pairings=2)
    assert made.labels.tolist() == 2 * [n % 3 for n in range(40)]
    (plain,) = asked
    assert torch.equal(plain.images, split.images), "of images as they are"
    assert blended(split, HALF).labels is None


def test_a_seed_decides_and_no_global_state_is_touched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (blended(flat(), HALF, seed=seed).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_images_that_are_no_bytes_stay_as_they_are():
    values = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    made = blended(TensorSplit(values, None, Normalisation.identity(1)), HALF)
    assert made.images.dtype == torch.float32
    images, _ = next(iter(made.batches(8)))
    assert images.min() >= values.min() - 1e-5
    assert images.max() <= values.max() + 1e-5


def test_memory_and_a_number_bound_how_many_there_are():
    assert len(blended(flat(), HALF, memory_mb=0)) == 2
    assert len(blended(flat(), HALF, most=100)) == 80, "each twice"
    made = blended(flat(), HALF, most=30)
    assert len(made) == 30
    assert made.labels.tolist() == [n * 40 // 30 for n in range(30)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_meet_whom_there_is(count):
    made = blended(flat(count), HALF)
    assert len(made) == max(1, count - 1) * count
    assert made.labels.tolist() == max(1, count - 1) * list(range(count))


def test_networks_compare_on_a_holdout_with_labels_and_on_blends_else():
    data = digits(image_size=8, holdout=0.1)
    assert data.size == {"train": 1099, "validation": 196, "test": 359, "holdout": 143}
    assert comparing(data, CLASSIFICATION, says_nothing) is data.holdout
    assert compared_on(data) == "143 holdout images, which no network was trained on"
    told = replace(data, holdout=replace(data.holdout, labels=None))
    for one in (replace(data, holdout=None), told):
        made = comparing(one, CLASSIFICATION, says_nothing)
        assert len(made) == 4 * 196
        assert torch.equal(made.labels[:196], data.validation.labels)
        assert compared_on(one).startswith("196 validation images, two laid over each other")
    assert len(comparing(told, CLASSIFICATION, says_nothing, pairings=1)) == 196


def test_other_tasks_compare_on_what_there_is():
    data = digits(image_size=8)
    assert comparing(data, Counting(), says_nothing) is data.validation


@pytest.mark.parametrize("labelled", [True, False])
def test_a_holdout_scores_as_it_is_and_chooses_where_it_has_labels(labelled):
    data = digits(image_size=8, holdout=0.1)
    apart = data.holdout if labelled else replace(data.holdout, labels=None)
    data = replace(data, holdout=apart)
    assert data.scoring is apart
    assert data.choosing is (apart if labelled else data.validation)
    assert replace(data, holdout=None).scoring is data.validation


def test_a_holdout_leaves_the_fingerprint_and_has_its_own():
    data = digits(image_size=8)
    with_one = replace(data, holdout=data.test)
    assert with_one.fingerprint == data.fingerprint
    assert len(with_one.held_out) == 16
    assert (data.held_out, replace(data, holdout=data.validation).held_out) == ("", "validation")
