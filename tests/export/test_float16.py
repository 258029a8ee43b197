import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tailorbird.device import ONNX
from tailorbird.export.exporters import exporter_for
from tailorbird.export.options import ExportOptions
from tailorbird.measure.answering import run_onnx
from tests.export.networks import Convolutional, transformer

EXPORTER = exporter_for(ONNX, "float16")


@pytest.fixture
def images():
    return torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def write(network, path, *, batch=1, **options):
    EXPORTER.final(
        network,
        (1, 8, 8),
        path,
        options=ExportOptions(**options),
        metadata={"tailorbird.target": "gpu"},
        batch=batch,
    )
    return onnx.load(path)


@pytest.mark.parametrize("make", [Convolutional, transformer])
def test_weights_are_float16_and_the_ends_float32(make, images, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, path = make().eval(), tmp_path / "m.onnx"
    model = write(network, path, batch=4)
    weights = [one for one in model.graph.initializer if len(one.dims) > 1 and "weight" in one.name]
    assert weights
    assert {one.data_type for one in weights} == {onnx.TensorProto.FLOAT16}
    ends = [*model.graph.input, *model.graph.output]
    assert [value.name for value in ends] == ["image", "logits"]
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}
    assert EXPORTER.metadata_of(path) == {"tailorbird.target": "gpu"}
    parity = EXPORTER.verify(network, path, images)
    assert parity.passed
    assert 0 < parity.max_difference < parity.tolerance / 5


def test_an_open_batch_stays_open(images, tmp_path):
    network = Convolutional().eval()
    model = write(network, tmp_path / "m.onnx", dynamic_batch=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert EXPORTER.verify(network, tmp_path / "m.onnx", images).passed


def test_what_overflows_does_not_pass(images, tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 5)).eval()
    with torch.no_grad():
        network[1].weight *= 1e6
        network[2].weight /= 1e6
    write(network, tmp_path / "m.onnx")
    assert not EXPORTER.verify(network, tmp_path / "m.onnx", images).passed


def test_files_that_are_only_timed_are_float16_too(images, tmp_path):
    network = Convolutional().eval()
    [path] = EXPORTER.quick([(network, (1, 8, 8))], tmp_path, ["timed"], batch=2)
    kinds = {one.data_type for one in onnx.load(path).graph.initializer if len(one.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(path, images.numpy()), network(images), atol=2e-2)
