import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from tailorbird.device import OPENVINO, Device, Runtime
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.export.exporters import exporter_for
from tailorbird.export.onnx import export_many
from tailorbird.measure.devices.openvino import OpenVino
from tailorbird.measure.guarded import description_of, format_of, precisions_of
from tailorbird.measure.openvino import (
    capabilities,
    compiled,
    hint,
    imported,
    openvino,
    read,
    settings,
    weights_of,
)
from tailorbird.testing import check_device
from tests.marks import needs_openvino

pytestmark = needs_openvino


def convolutions(depth, width=16):
    return nn.Sequential(*[nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    modules = [(convolutions(depth), (16, 16, 16)) for depth in (1, 3, 12)]
    return exporter_for(OPENVINO, "float32").quick(modules, folder, ["one", "three", "twelve"])


def images(count, *shape):
    return np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)


def test_it_keeps_to_the_contract(files):
    device: Runtime = OpenVino(runs=40)
    check_device(device, files, images=images(3, 16, 16, 16))


def test_what_it_says_of_itself():
    device: Device = OpenVino()
    assert device.key.startswith(f"openvino {openvino().__version__[:4]}")
    assert ", CPU (" in device.key
    assert ", 1 thread, precision hint f32" in device.key
    assert "2 threads" in OpenVino(threads=2).key
    assert format_of(device) == OPENVINO
    assert {"float32", "int8"} <= {*precisions_of(device)}
    told = description_of(device)
    assert told is not None
    assert told.runtime == "OpenVINO, CPU"
    assert told.version in device.key
    assert told.cores is not None


def test_two_threads_measure_and_all_runs_are_told(files):
    (latency,) = OpenVino(threads=2, runs=7, warmup=0).measure(files[:1])
    assert (latency.runs, latency.warmup) == (7, 0)
    assert OpenVino(runs=5).measure(files, group_bytes=1)[2].runs == 5


def test_all_wrong_arguments_are_listed():
    with pytest.raises(ConfigError) as error:
        OpenVino(threads=0, unit="TPU", runs=0, warmup=-1, seconds=0)
    assert len(error.value.problems) == 5
    assert "there is no unit 'TPU' here; choose one of CPU" in str(error.value)


def test_what_a_unit_is_told(files, tmp_path):
    half, full = {"FP32", "FP16"}, {"FP32"}
    (small,) = exporter_for(OPENVINO, "float16").quick([(nn.Linear(4, 4), (4,))], tmp_path, ["m"])
    for file, able, told in (
        (files[0], half, "f32"),
        (files[0], {"FP16"}, "f16"),
        (small, half, "f16"),
        (small, full, "f32"),
    ):
        assert hint(read(file), frozenset(able)) == told
    ready = compiled(files[0], read(files[0]), unit="CPU", threads=1)
    found = [ready.get_property(name) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS")]
    assert found == [1, 1]
    assert ready.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert "NUM_STREAMS" in settings("GPU.1", 1, "f16")
    assert "FP32" in capabilities("CPU")


def damaged(file, folder):
    """Copies of a file that can't be read, and what is said of each."""
    graph, weights = file.read_bytes(), weights_of(file).read_bytes()
    made = {
        "cut": (graph[:800], weights),
        "noise": (b"\xff" * 300, weights),
        "bare": (graph, None),
        "short": (graph, weights[:-50]),
    }
    for name, (xml, rest) in made.items():
        (folder / f"{name}.xml").write_bytes(xml)
        if rest is not None:
            (folder / f"{name}.bin").write_bytes(rest)
    return [folder / f"{name}.xml" for name in made]


def test_every_faulty_file_is_named(files, tmp_path):
    bad = damaged(files[0], tmp_path)
    with pytest.raises(MeasurementError) as error:
        OpenVino().measure([files[0], *bad, tmp_path / "absent.xml"])
    text = str(error.value)
    for name in ("cut", "noise", "bare", "short"):
        assert f"{name}.xml: OpenVINO can't read it: " in text
    assert "absent.xml: there is no such file" in text
    assert str(files[0]) not in text
    for file in bad:
        with pytest.raises(ExportError, match=f"{file.name}: OpenVINO can't run it"):
            OpenVino().run(file, images(1, 16, 16, 16))


def network(path, shape, *, inputs=1, kind="f32", grows=1):
    """A file whose inputs have this shape."""
    library = openvino()
    given = [
        library.opset13.parameter(library.PartialShape(shape), getattr(library.Type, kind))
        for _ in range(inputs)
    ]
    last = library.opset13.relu(given[0]) if kind == "f32" else given[0]
    if grows > 1:
        last = library.opset13.tile(last, np.array([1, grows]))
        last = library.opset13.reduce_max(last, np.array([1]), keep_dims=True)
    library.save_model(library.Model([last], given, "odd"), path)
    return path


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ([1, -1, 3], {}, "only the batch dimension may be open"),
        ([1, 2], {"inputs": 2}, "expected one input, found 2"),
        ([1, 2], {"kind": "i64"}, "expected a float32 input, found i64"),
        ([1, 100_000, 100_000], {}, "elements, more than"),
        ([1, 4], {"grows": 10**12}, "elements, more than"),
        ("...", {}, "expected an input of known rank"),
    ],
)
def test_inputs_and_values_that_can_not_be_made_up(tmp_path, shape, options, words):
    with pytest.raises(MeasurementError, match=f"odd.xml: .*{words}"):
        OpenVino().measure([network(tmp_path / "odd.xml", shape, **options)])


@pytest.mark.parametrize("batch", [1, 4, -1])
def test_images_are_run_in_batches_of_the_files_own_size(tmp_path, batch):
    file = network(tmp_path / "m.xml", [batch, 2, 3])
    given = images(70, 2, 3)
    assert np.array_equal(OpenVino().run(file, given), given.clip(0))
    assert OpenVino(runs=5).measure([file])[0].runs == 5
    with pytest.raises(ExportError, match=r"m.xml: OpenVINO can't run it on images of shape \(5,"):
        OpenVino().run(file, images(4, 5, 3))


def test_onnx_files_are_read_too(tmp_path):
    (file,) = export_many([(nn.ReLU(), (2, 3))], tmp_path, ["m"])
    given = images(2, 2, 3)
    assert np.array_equal(OpenVino().run(file, given), given.clip(0))


def test_a_library_that_is_missing_or_damaged_is_told_with_the_way_out():
    def broken(name):
        raise OSError("libopenvino.so.2620: cannot open shared object file")

    with pytest.raises(ConfigError, match=r"nncf can't be imported: libopenvino.so.2620: .*; pip"):
        imported("nncf", broken)


WITHOUT = """
import sys
sys.modules["openvino"] = sys.modules["nncf"] = None
from pathlib import Path
from torch import nn
from tailorbird.config.targets import DEVICES, load_targets
from tailorbird.device import ONNX, OPENVINO
from tailorbird.errors import ConfigError
from tailorbird.export.exporters import exporter_for
exporter_for(ONNX, "float32").quick([(nn.ReLU(), (4,))], Path(sys.argv[1]), ["m"])
fleet = Path(sys.argv[1]) / "fleet.yaml"
for text in (
    "devices: [{name: here, limits: [0.5x]}]",
    "devices: [{name: here, kind: openvino, limits: [0.5x]}]",
):
    fleet.write_text(text)
    try:
        print(load_targets(fleet)[0].name)
    except ConfigError as error:
        print(error)
"""

SILENT = """
import logging, socket, sys
def refused(*given, **more):
    raise AssertionError("the network")
socket.socket.connect = socket.getaddrinfo = refused
kind = logging.getLoggerClass()
from pathlib import Path
from torch import nn
from tailorbird.device import OPENVINO
from tailorbird.export.exporters import exporter_for
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
exporter_for(OPENVINO, "int8").quick([(network, (3, 6, 6))], Path(sys.argv[1]), ["m"])
import nncf, nncf.telemetry.wrapper
print(type(nncf.telemetry.wrapper.telemetry).__name__, "openvino_telemetry" in sys.modules)
print(logging.getLoggerClass() is kind)
"""


def run(program, folder):
    """What a program says on both streams, in a home of its own."""
    kept = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**kept, "HOME": str(folder / "home"), "CI": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines() + done.stderr.splitlines()


def test_all_else_works_without_it(tmp_path):
    first, second = run(WITHOUT, tmp_path)
    assert first == "here-0.5x"
    assert second.endswith("pip install 'tailorbird[openvino]'")
    assert "openvino can't be imported: " in second


def test_nothing_is_sent_printed_or_left_in_anybodys_home(tmp_path):
    (tmp_path / "home").mkdir()
    assert run(SILENT, tmp_path) == ["MagicMock False", "True"]
    assert [*(tmp_path / "home").iterdir()] == []


def test_equal_settings_are_one_device():
    assert OpenVino() == replace(OpenVino(), unit="CPU")
    assert Path(OPENVINO.file).suffix == ".xml"
