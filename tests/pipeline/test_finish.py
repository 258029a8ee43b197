"""Students' files: equal networks are converted once, and every target gets its own copy."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch

from tailorbird.errors import ExportError
from tailorbird.export.options import ExportOptions
from tailorbird.graph.trace import trace
from tailorbird.pipeline import finish
from tailorbird.pipeline.finish import Shipping
from tests.house.makers import images, net, teacher


@pytest.fixture
def converted(monkeypatch):
    """Paths that the exporter itself has written."""
    paths = []
    real = finish.export_onnx

    def export(module, shape, path, **options):
        paths.append(path)
        return real(module, shape, path, **options)

    monkeypatch.setattr(finish, "export_onnx", export)
    return paths


def told(path):
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def run(path):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {"image": torch.ones(1, 1, 8, 8).numpy()})[0]


def test_equal_networks_are_converted_once_and_named_for_each_target(tmp_path, converted):
    shipping = Shipping(images(), tmp_path, ExportOptions())
    module, shape = teacher().module, (1, 8, 8)
    first, parity = shipping.deliver(module, "first", network="a", input_shape=shape)
    second, again = shipping.deliver(module, "second", network="a", input_shape=shape)
    alone = Shipping(images(), tmp_path / "alone", ExportOptions())
    expected, _ = alone.deliver(module, "second", network="a", input_shape=shape)
    assert converted == [first, expected]
    assert second.read_bytes() == expected.read_bytes()
    assert (told(first)["tailorbird.target"], told(second)["tailorbird.target"]) == (
        "first",
        "second",
    )
    assert again == parity
    verdicts = [json.loads((path.parent / "verify.json").read_text()) for path in (first, second)]
    assert verdicts[0] == verdicts[1]


def test_a_file_that_was_replaced_or_removed_is_not_copied(tmp_path, converted):
    shipping = Shipping(images(), tmp_path, ExportOptions())
    shape = (1, 8, 8)
    one, other = teacher().module, trace(net(3), shape).module
    path, _ = shipping.deliver(one, "first", network="one", input_shape=shape)
    was = run(path)
    shipping.deliver(other, "first", network="other", input_shape=shape)  # another try
    second, _ = shipping.deliver(one, "second", network="one", input_shape=shape)
    assert len(converted) == 3
    assert (run(second) == was).all() and (run(path) != was).any()
    second.unlink()
    shipping.deliver(one, "third", network="one", input_shape=shape)
    assert len(converted) == 4


def test_a_file_that_disagrees_is_not_copied(tmp_path, converted, monkeypatch):
    shipping = Shipping(images(), tmp_path, ExportOptions())
    real = finish.verify
    monkeypatch.setattr(finish, "verify", lambda *given: replace(real(*given), passed=False))
    for name in ("first", "second"):
        with pytest.raises(ExportError, match=f"target '{name}': the ONNX file disagrees"):
            shipping.deliver(teacher().module, name, network="a", input_shape=(1, 8, 8))
    assert len(converted) == 2
