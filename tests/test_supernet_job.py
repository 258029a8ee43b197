"""Schemes and samplers by name, phases scaled and changed, grey images in three channels."""

import pytest
import torch

from tailorbird.config.sections import Faults
from tailorbird.config.supernet_data import classes_in, in_colour
from tailorbird.config.supernet_schemes import SAMPLERS, SCHEMES, scheme
from tailorbird.data.images import ImageData, Normalisation, TensorSplit
from tailorbird.errors import DataError
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.samplers import Region


@pytest.fixture(scope="module")
def space():
    return load_space("cifar-mbv3-w0.25")


def made(raw, space, sampler=None):
    faults = Faults({})
    named = scheme(faults, raw, sampler, space)
    assert faults.found == []
    assert named is not None
    return named


@pytest.mark.parametrize("kind", SCHEMES)
def test_every_scheme_is_made_with_every_sampler_and_again_from_what_is_stored(kind, space):
    for sampler in (None, *SAMPLERS):
        named = made({"kind": kind, "epochs": 20}, space, sampler)
        assert named.scheme.name == kind
        assert named.scheme.epochs == pytest.approx(20)
        again = made(dict(named.plain), space, named.sampler)
        assert again.scheme.record() == named.scheme.record()
        names = [one.name for one in again.scheme.plan(space, 2).samplers]
        assert names == [one.name for one in named.scheme.plan(space, 2).samplers]
        assert sampler is None or all(name.startswith(sampler.split("-")[0]) for name in names)


def test_phases_are_scaled_then_changed_or_left_out(space):
    raw = {
        "kind": "progressive-shrinking",
        "epochs": 48,
        "learning_rate": 0.1,
        "phases": {"kernel": None, "depth-1": {"epochs": 3, "networks": 5}},
    }
    phases = {phase.name: phase for phase in made(raw, space).scheme.phases}
    assert list(phases) == ["teacher", "depth-1", "depth-2", "expand-1", "expand-2"]
    assert phases["teacher"].learning_rate == 0.1
    assert phases["teacher"].epochs == pytest.approx(48 * 180 / 480)
    assert (phases["depth-1"].epochs, phases["depth-1"].networks) == (3, 5)


def test_phases_follow_the_space():
    for kind in ("progressive-shrinking", "compofa"):
        phases = made(kind, load_space("cifar-resnet50d-w0.25")).scheme.phases
        assert all("ks" not in (phase.opens or {}) for phase in phases)


def test_sandwich_with_balanced_draws_between(space):
    sampler = SAMPLERS["sandwich-macs-balanced"](Region.whole(space), 3)
    assert sampler.name == "sandwich(macs-balanced(2, 6))"


def images(channels, classes=None):
    norm = Normalisation((0.5,) * channels, (0.25,) * channels)
    pixels = torch.arange(4 * channels * 4).reshape(4, channels, 2, 2).to(torch.uint8)
    split = TensorSplit(pixels, torch.tensor([0, 1, 2, 1]), norm)
    return ImageData(
        train=split,
        validation=split,
        test=None,
        classes=classes,
        normalisation=norm,
        input_shape=(channels, 2, 2),
        labelled=True,
        name="made",
    )


def test_grey_images_get_three_equal_channels():
    grey = images(1)
    colour = in_colour(grey)
    assert colour.input_shape == (3, 2, 2)
    [(before, _)], [(after, _)] = grey.train.batches(4), colour.train.batches(4)
    assert torch.equal(after, before.expand(4, 3, 2, 2))
    assert colour.test is None
    assert in_colour(colour) is colour
    with pytest.raises(DataError, match="'made' has images of 2 channels, and the spaces take 3"):
        in_colour(images(2))


def test_classes_are_those_named_else_those_of_the_labels():
    assert classes_in(images(3)) == 3
    assert classes_in(images(3, classes=("a", "b", "c", "d"))) == 4
