"""Normalisation and softmax inside the shipped file."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from tailorbird.data.images import Normalisation
from tailorbird.export.bundle import load_student, save_student
from tailorbird.export.delivered import about, as_given, delivered
from tailorbird.export.options import ExportOptions
from tailorbird.fit.candidates import Network
from tailorbird.targets import Place
from tests.fakes import FakeDevice
from tests.fit.makers import shipping_to
from tests.fit.test_ship import SHAPE, Watched, made, told
from tests.house.makers import images, teacher

SCALE = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def test_the_network_itself_where_nothing_is_to_be_added():
    network = nn.Identity()
    assert delivered(network, SCALE, ExportOptions()) is network
    plain = torch.rand(2, 3, 4, 4)
    assert as_given(plain, SCALE, ExportOptions(softmax=True)) is plain


def test_images_as_loaded_give_what_normalised_ones_gave():
    options = ExportOptions(normalise=True)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    pixels = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    expected = network(SCALE(pixels))
    given = as_given(SCALE(pixels), SCALE, options)
    torch.testing.assert_close(given, pixels / 255)
    torch.testing.assert_close(delivered(network, SCALE, options)(pixels / 255), expected)
    both = delivered(network, SCALE, ExportOptions(normalise=True, softmax=True))
    torch.testing.assert_close(both(pixels / 255), expected.softmax(1))


def test_what_is_left_to_do_outside_stands_in_the_file():
    plain, inside = about(SCALE, ExportOptions()), about(SCALE, ExportOptions(normalise=True))
    assert json.loads(plain["tailorbird.mean"]) == [0.4, 0.5, 0.6]
    assert json.loads(inside["tailorbird.mean"]) == [0, 0, 0]
    assert json.loads(inside["tailorbird.std"]) == [1, 1, 1]
    assert json.loads(inside["tailorbird.normalised_inside"])["std"] == [0.2, 0.25, 0.3]
    assert plain.keys() == {"tailorbird.mean", "tailorbird.std"}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A student's file with both inside, what was measured with it, and the student."""
    folder, student = tmp_path_factory.mktemp("run"), made(teacher().module)
    options = ExportOptions(normalise=True, softmax=True)
    reference = Network(student.module, SHAPE)
    shipping = shipping_to(folder, Watched(), reference, images(), options=options)
    path = shipping.deliver(student, "edge", key=(1,), place=Place(device=FakeDevice())).path
    return path, student, shipping


def test_a_shipped_file_normalises_and_answers_with_probabilities(shipped):
    path, student, _ = shipped
    session = onnxruntime.InferenceSession(str(path))
    assert [output.name for output in session.get_outputs()] == ["probabilities"]
    assert told(path)["tailorbird.output"] == "probabilities"
    assert json.loads(told(path)["tailorbird.mean"]) == [0.0]
    pixels = torch.rand(1, *SHAPE)
    (found,) = session.run(None, {"image": pixels.numpy()})
    with torch.no_grad():
        expected = student.module.eval()(images().normalisation(pixels)).softmax(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    verdict = json.loads((path.parent / "verify.json").read_text())
    assert verdict["passed"] and verdict["top1_agreement"] == 1


def test_the_bundle_stays_without_and_says_so(shipped, tmp_path):
    _, student, shipping = shipped
    save_student(
        student.module, tmp_path, classes=None, normalisation=images().normalisation,
        input_shape=SHAPE, metrics={}, options=shipping.options,
    )  # fmt: skip
    described = json.loads((tmp_path / "student.json").read_text())
    assert described["extra"]["file"] == {"normalise": True, "softmax": True}
    again = load_student(tmp_path)
    assert again.normalisation == images().normalisation
    normalised = torch.randn(2, *SHAPE)
    torch.testing.assert_close(again.module.eval()(normalised), student.module.eval()(normalised))


def test_options_that_are_not_set_change_no_request():
    assert ExportOptions().asked() == {"opset": None, "dynamic_batch": False}
