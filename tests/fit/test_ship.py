"""Students' files: equal networks are converted once, and every target gets its own copy."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tailorbird.errors import ExportError
from tailorbird.export.exporters import OnnxExporter
from tailorbird.fit.candidates import Made, Network
from tailorbird.graph.trace import trace
from tailorbird.measure.answering import run_onnx
from tailorbird.targets import Place
from tests.fakes import FakeDevice
from tests.fit.makers import shipping_to as ship_to
from tests.house.makers import images, net, teacher

SHAPE = (1, 8, 8)


class Watched(OnnxExporter):
    """Notes what the exporter itself has written; files pass only where asked to."""

    def __init__(self, *, passes=True):
        super().__init__()
        self.converted, self.passes = [], passes

    def final(self, module, input_shape, path, **options):
        self.converted.append(path)
        return super().final(module, input_shape, path, **options)

    def verify(self, *given):
        found = super().verify(*given)
        return replace(found, passed=found.passed and self.passes)


def made(module):
    return Made(module=module, input_shape=SHAPE, before=None)


def shipping_to(folder, exporter):
    return ship_to(folder, exporter, Network(teacher().module, SHAPE), images())


def told(path):
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def run(path):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {"image": torch.ones(1, *SHAPE).numpy()})[0]


def test_equal_networks_are_converted_once_and_named_for_each_target(tmp_path):
    exporter, student = Watched(), made(teacher().module)
    shipping = shipping_to(tmp_path, exporter)
    first = shipping.deliver(student, "first", key=(1,)).path
    second = shipping.deliver(student, "second", key=(1,)).path
    alone = shipping_to(tmp_path / "alone", exporter)
    expected = alone.deliver(student, "second", key=(1,)).path
    assert exporter.converted == [first, expected]
    assert second.read_bytes() == expected.read_bytes()
    assert (told(first)["tailorbird.target"], told(second)["tailorbird.target"]) == (
        "first",
        "second",
    )
    verdicts = [json.loads((path.parent / "verify.json").read_text()) for path in (first, second)]
    assert verdicts[0] == verdicts[1]


def test_a_file_that_was_replaced_or_removed_is_not_copied(tmp_path):
    exporter = Watched()
    shipping = shipping_to(tmp_path, exporter)
    one, other = made(teacher().module), made(trace(net(3), SHAPE).module)
    path = shipping.deliver(one, "first", key=(1,)).path
    was = run(path)
    shipping.deliver(other, "first", key=(2,))  # another try
    second = shipping.deliver(one, "second", key=(1,)).path
    assert len(exporter.converted) == 3
    assert (run(second) == was).all() and (run(path) != was).any()
    second.unlink()
    shipping.deliver(one, "third", key=(1,))
    assert len(exporter.converted) == 4


class Runs(FakeDevice):
    """A device that tells what files answer there: ``off`` beside what they should."""

    def __init__(self, key, off=0.0):
        super().__init__(key=key)
        object.__setattr__(self, "off", off)
        object.__setattr__(self, "ran", [])

    def run(self, artifact, images):
        self.ran.append(artifact)
        return run_onnx(artifact, images) + np.float32(self.off)


def test_a_file_is_compared_where_it_will_run_once_for_each_device(tmp_path):
    exporter, student = Watched(), made(teacher().module)
    shipping = shipping_to(tmp_path, exporter)
    good, wrong = Runs("good"), Runs("wrong", off=3.0)
    shipping.deliver(student, "first", key=(1,), place=Place(device=good))
    shipping.deliver(student, "second", key=(1,), place=Place(device=good))
    assert len(good.ran) == 1 and len(exporter.converted) == 1
    with pytest.raises(ExportError, match="target 'third': the file disagrees"):
        shipping.deliver(student, "third", key=(1,), place=Place(device=wrong))
    assert len(wrong.ran) == 1
    assert not json.loads((tmp_path / "students/third/verify.json").read_text())["passed"]


def test_every_file_that_is_converted_is_compared(tmp_path):
    exporter, device, student = Watched(), Runs("good"), made(teacher().module)
    shipping = shipping_to(tmp_path, exporter)
    shipping.deliver(student, "first", key=(1,), place=Place(device=device)).path.unlink()
    shipping.deliver(student, "second", key=(1,), place=Place(device=device))
    assert len(exporter.converted) == len(device.ran) == 2


def test_a_file_that_disagrees_is_not_copied(tmp_path):
    exporter = Watched(passes=False)
    shipping = shipping_to(tmp_path, exporter)
    for name in ("first", "second"):
        with pytest.raises(ExportError, match=f"target '{name}': the file disagrees"):
            shipping.deliver(made(teacher().module), name, key=(1,))
    assert len(exporter.converted) == 2
