import gc

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tailorbird.device import ONNX, Device
from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.export.onnx import export_many, export_onnx
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.measure.guarded import answering, description_of, format_of, precisions_of
from tailorbird.measure.interleave import LEAST_RUNS
from tailorbird.testing import check_device
from tests.fakes import FakeDevice


def convolutions(depth, width=16):
    return nn.Sequential(*[nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    modules = [(convolutions(depth), (16, 16, 16)) for depth in (1, 8, 2)]
    return export_many([*modules, (nn.Identity(), (4,))], folder, ["one", "eight", "two", "none"])


@pytest.mark.parametrize("device", [OnnxRuntime(), FakeDevice()])
def test_devices_keep_to_the_contract(device: Device, files):
    one, eight, two, none = files
    check_device(device, [none, one, two, eight])


def test_runs_and_warmup_are_told_and_gc_is_restored(files):
    assert gc.isenabled()
    (latency,) = OnnxRuntime(runs=7, warmup=0).measure(files[:1])
    assert (latency.runs, latency.warmup) == (7, 0)
    assert gc.isenabled()
    bounded = OnnxRuntime(runs=1000, seconds=1e-6).measure(files)
    assert {latency.runs for latency in bounded} == {LEAST_RUNS}


def test_two_threads_are_another_setting(files):
    device = OnnxRuntime(threads=2, runs=5)
    assert device.measure(files[:1])[0].median_ms > 0
    assert device.key != OnnxRuntime().key
    assert "2 threads" in device.key


def test_large_sets_are_measured_in_groups_in_order(files):
    assert len(OnnxRuntime(runs=5).measure(files, group_bytes=1)) == len(files)


def test_every_faulty_file_is_named(files, tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(files[0].read_bytes()[:500])
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"\xff" * 300)
    with pytest.raises(MeasurementError) as error:
        OnnxRuntime().measure([files[0], damaged, noise, tmp_path / "absent.onnx"])
    text = str(error.value)
    assert "damaged.onnx: CPUExecutionProvider can't load it" in text
    assert "noise.onnx: CPUExecutionProvider can't load it" in text
    assert "absent.onnx: there is no such file" in text
    assert str(files[0]) not in text


def network(path, shape, *, inputs=1, kind=TensorProto.FLOAT):
    entries = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i in range(inputs)]
    output = helper.make_tensor_value_info("y", kind, shape)
    node = helper.make_node("Identity", ["x0"], ["y"])
    graph = helper.make_graph([node], "g", entries, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((1, "height", 3), {}, "only the batch dimension may be open"),
        ((1, 2), {"inputs": 2}, "expected one input, found 2"),
        ((1, 2), {"kind": TensorProto.INT64}, "expected a float32 input"),
        ((1, 100_000, 100_000), {}, "elements, more than"),
    ],
)
def test_inputs_that_can_not_be_made_up(tmp_path, shape, options, words):
    with pytest.raises(MeasurementError, match=f"odd.onnx: .*{words}"):
        OnnxRuntime().measure([network(tmp_path / "odd.onnx", shape, **options)])


def test_an_open_batch_is_measured_at_one(tmp_path):
    path = export_onnx(convolutions(1), (16, 8, 8), tmp_path / "m.onnx", dynamic_batch=True)
    assert OnnxRuntime(runs=5).measure([path])[0].runs == 5


def test_all_wrong_arguments_are_listed():
    with pytest.raises(ConfigError) as error:
        OnnxRuntime(threads=0, provider="NoProvider", runs=0, warmup=-1, seconds=0)
    assert len(error.value.problems) == 5
    assert "'NoProvider' is not available here; choose one of" in str(error.value)
    assert "CPUExecutionProvider" in str(error.value)


def test_what_it_takes_and_what_files_answer_there(tmp_path):
    device = OnnxRuntime(threads=1, runs=15)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
    path = export_onnx(network, (3, 2, 2), tmp_path / "model.onnx")
    images = torch.rand(3, 3, 2, 2)
    with torch.no_grad():
        expected = network(images).numpy()
    np.testing.assert_allclose(device.run(path, images.numpy()), expected, atol=1e-6)
    assert (format_of(device), precisions_of(device)) == (ONNX, ("float32", "int8"))
    told = description_of(device)
    assert told.runtime == "ONNX Runtime, CPUExecutionProvider"
    assert told.version in device.key
    assert told.machine in device.key
    assert told.cores >= 1

    class Plain:
        key = "a board"

        def measure(self, models):
            return []

    assert (format_of(Plain()), precisions_of(Plain())) == (ONNX, ("float32",))
    assert (answering(Plain()), description_of(Plain())) == (None, None)


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand"])
def test_a_file_whose_values_are_absurdly_large_is_refused_unrun(tmp_path, kind):
    value = helper.make_tensor_value_info
    given = ["size"] if kind == "ConstantOfShape" else ["x", "size"]
    graph = helper.make_graph(
        [
            helper.make_node(kind, given, ["large"]),
            helper.make_node("ReduceMax", ["large"], ["y"], keepdims=0),
        ],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([10**12, 4]), "size")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(MeasurementError, match=r"value 'large' has 4,000,000,000,000 elements, mo"):
        OnnxRuntime().measure([tmp_path / "large.onnx"])
