"""Schemes and samplers by name, phases scaled and changed, grey images in three channels."""

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tailorbird.config.schemes import SAMPLERS, SCHEMES, scheme
from tailorbird.config.schemes import sampler as read_sampler
from tailorbird.config.sections import Faults, as_written
from tailorbird.data.colour import in_colour
from tailorbird.data.images import ImageData, Normalisation, TensorSplit, classes_in
from tailorbird.errors import DataError
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.samplers import Region


@pytest.fixture(scope="module")
def space():
    return load_space("cifar-mbv3-w0.25")


def told(raw, space, sampler=None, base=Path("/nowhere")):
    faults = Faults({})
    drawn = read_sampler(faults, ("sampler",), sampler, base=base)
    return scheme(faults, raw, drawn, space, base=base), faults.found


def made(raw, space, sampler=None, base=Path("/nowhere")):
    named, found = told(raw, space, sampler, base)
    assert found == []
    assert named is not None
    return named


@pytest.mark.parametrize("kind", SCHEMES)
def test_every_scheme_is_made_with_every_sampler_and_again_from_what_is_stored(kind, space):
    for sampler in (None, *SAMPLERS):
        named = made({"kind": kind, "epochs": 20}, space, sampler)
        assert named.scheme.name == kind
        assert named.scheme.epochs == pytest.approx(20)
        again = made(as_written(named), space, sampler)
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


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder with a module in which a user has a scheme and samplers of their own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_schemes.py").write_text(
        textwrap.dedent(
            """
            from tailorbird.supernet.samplers import Sandwich, Uniform
            from tailorbird.supernet.schemes.deps import DepS

            class Third(Uniform):
                def __init__(self, region, count, *, third=3):
                    super().__init__(region, count)
                    self.third = third
                @property
                def name(self):
                    return f"third({self.third})"

            def short(*, epochs=4.0, sampler=Sandwich):
                return DepS(epochs=epochs, ramp_epochs=0.5, sampler=sampler, name="short")

            def fixed(epochs=4.0):
                return short(epochs=epochs)

            def mute(region, count):
                return object()

            def none():
                return None
            """
        )
    )
    yield tmp_path
    sys.modules.pop("my_schemes", None)


def test_a_scheme_and_a_sampler_of_one_s_own(space, beside):
    raw = {"kind": "my_schemes:short", "arguments": {"epochs": 6.0}}
    sampler = {"kind": "my_schemes:Third", "arguments": {"third": 5}}
    named = made(raw, space, sampler, beside)
    assert (named.scheme.name, named.scheme.epochs) == ("short", 6.0)
    assert [one.name for one in named.scheme.plan(space, 2).samplers] == ["third(5)"]
    assert as_written(named) == raw
    assert made("my_schemes:fixed", space, None, beside).scheme.epochs == 4.0
    # One's own sampler goes with every scheme there is.
    for kind in SCHEMES:
        named = made(kind, space, "my_schemes:Third", beside)
        names = {one.name for one in named.scheme.plan(space, 2).samplers}
        assert names == {"third(3)"}


@pytest.mark.parametrize(
    ("raw", "sampler", "says"),
    [
        ("my_schemes:shorter", None, "'my_schemes' has no 'shorter'; near matches: short"),
        ("my_schemes2:short", None, "can't import 'my_schemes2'"),
        ("my_schemes:none", None, "expected a scheme with name, epochs, decays_largest_only, pl"),
        (
            {"kind": "my_schemes:short", "arguments": {"epoks": 1}},
            None,
            "calling it with {'epoks': 1} failed: TypeError",
        ),
        (
            {"kind": "my_schemes:short", "epochs": 1},
            None,
            "scheme.epochs: unknown key; known: kind",
        ),
        (
            {"kind": "my_schemes:short", "arguments": {"epochs": 0}},
            None,
            "scheme.epochs: expected a number above 0, got 0",
        ),
        ("my_schemes:fixed", "sandwich", "my_schemes:fixed takes no sampler, and one is given"),
        (
            "deps",
            "my_schemes:Thrid",
            "sampler: my_schemes:Thrid: 'my_schemes' has no 'Thrid'; near",
        ),
        ("deps", "my_schemes:mute", "my_schemes:mute: expected a sampler with name, sample, got"),
        ("deps", {"kind": "my_schemes:Third", "third": 5}, "sampler.third: unknown key"),
        ("deps", {"kind": "spread"}, 'unknown sampler "spread"; known: uniform'),
        ("deps", 5, "unknown sampler 5"),
    ],
)
def test_faults_of_a_scheme_or_sampler_of_one_s_own(space, beside, raw, sampler, says):
    _, found = told(raw, space, sampler, beside)
    assert found and says in "\n".join(found)


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
