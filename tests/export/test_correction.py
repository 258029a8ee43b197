"""Biases that make up for rounded weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tailorbird.export.correction import correct_biases, inputs_of, means
from tailorbird.export.onnx import export_onnx
from tailorbird.export.quantise import answers, minmax, prepared, quantised, watched


class _Line(nn.Module):
    """Every kind of product that carries a bias, on positive images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 1, groups=4),
            nn.ReLU(),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Line().eval()
        images = torch.rand(64, 3, 16, 16).numpy()
    path = export_onnx(network, (3, 16, 16), tmp_path_factory.mktemp("correction") / "m.onnx")
    model = prepared(path)
    # One weight of each channel is large, so that rounding the others costs much.
    for entry in model.graph.initializer:
        if entry.name.endswith("weight"):
            values = onnx.numpy_helper.to_array(entry).copy()
            values.reshape(len(values), -1)[:, 0] *= 40
            entry.CopyFrom(onnx.numpy_helper.from_array(values, entry.name))
    return model, images, quantised(model, minmax(model, images))


def correct(rounded, model, images):
    seen = watched(model, images, inputs_of(model))
    correct_biases(rounded, model, means(model, rounded, seen))


def test_means_of_outputs_are_those_of_the_network(case):
    model, images, plain = case
    corrected = onnx.ModelProto()
    corrected.CopyFrom(plain)
    correct(corrected, model, images)
    expected = answers(model, images)
    before = np.abs((answers(plain, images) - expected).mean(0))
    after = np.abs((answers(corrected, images) - expected).mean(0))
    assert after.max() < 0.2 * before.max()


def test_only_biases_change(case):
    model, images, plain = case
    corrected = onnx.ModelProto()
    corrected.CopyFrom(plain)
    correct(corrected, model, images)
    assert corrected.graph.node == plain.graph.node
    changed = {
        ours.name
        for ours, own in zip(corrected.graph.initializer, plain.graph.initializer, strict=True)
        if ours != own
    }
    assert changed
    assert all("bias" in name for name in changed)


def test_a_layer_in_float32_is_left_alone(case):
    model, images, _ = case
    names = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    kept = quantised(model, minmax(model, images), kept=names)
    before = kept.SerializeToString(deterministic=True)
    correct(kept, model, images)
    assert kept.SerializeToString(deterministic=True) == before
