"""The device in a real browser with the real onnxruntime-web."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tailorbird.errors import ExportError, MeasurementError
from tailorbird.measure.devices.browser.device import Browser
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.testing import check_device
from tests.measure.browser.pages import Page, asked


@pytest.fixture
def opened(chromium, installed):
    """Devices whose page is open in the browser."""
    held = []

    def make(url=lambda url: url, **settings):
        device = Browser(package=installed, wait_s=30, **{"runs": 15, **settings})
        held.append((device, chromium.open(url(device.url))))
        return device

    yield make
    for device, tab in held:
        device.close()
        chromium.close(tab)


def test_it_keeps_to_the_contract(opened, files):
    check_device(opened(runs=50), files)


def test_it_says_what_it_is(opened):
    found = opened(label="desk").describe()
    assert "Chrom" in found.system and "without" not in found.system
    assert found.machine.startswith("desk, Linux")
    assert found.cores and found.cores >= 1
    assert found.runtime == "onnxruntime-web wasm"


class Images:
    """Calibration images, one at a time."""

    def __init__(self, count):
        self._left = iter(np.random.default_rng(1).random((count, 1, 16, 16, 16), np.float32))

    def get_next(self):
        image = next(self._left, None)
        return None if image is None else {"image": image}


def test_an_int8_file_answers_as_onnx_runtime_does(opened, files, tmp_path):
    from onnxruntime.quantization import QuantFormat, quantize_static

    source, path = onnx.load(files[1]), tmp_path / "int8.onnx"
    (name,) = [one.name for one in source.graph.input]
    reader = Images(16)
    reader.get_next = lambda get=reader.get_next: (
        None if (given := get()) is None else {name: given["image"]}
    )
    quantize_static(source, path, reader, quant_format=QuantFormat.QDQ, per_channel=True)
    images = np.random.default_rng(0).random((3, 16, 16, 16), np.float32)
    wanted = OnnxRuntime().run(path, images)
    device = opened()
    found = device.run(path, images)
    assert found.dtype == np.float32
    step = float(np.abs(wanted).max()) / 127  # one step of the output's scale, where it is rounded
    assert np.abs(found - wanted).max() <= 1.01 * step
    assert np.mean(np.abs(found - wanted) > 1e-4) < 0.01
    exact = OnnxRuntime().run(files[1], images)
    assert np.abs(found - exact).max() > 0  # it was not float32 that ran
    assert device.measure([path])[0].median_ms > 0


def test_without_shared_memory_it_runs_on_one_thread(opened, files, chromium):
    def elsewhere(url):  # plain http at an address that is not this machine's own
        return url.replace("127.0.0.1", "192.0.2.7")

    device = opened(elsewhere)
    assert device.describe().system.endswith(", without SharedArrayBuffer")
    one, eight = device.measure([files[1], files[3]])
    assert one.median_ms < eight.median_ms
    images = np.random.default_rng(0).random((2, 16, 16, 16), np.float32)
    np.testing.assert_allclose(
        device.run(files[1], images), OnnxRuntime().run(files[1], images), atol=1e-4
    )
    with pytest.raises(MeasurementError, match="2 threads need SharedArrayBuffer"):
        opened(elsewhere, threads=2).measure(files)


def test_with_shared_memory_it_runs_on_two_threads(opened, files):
    device = opened(threads=2)
    assert device.measure(files[1:2])[0].median_ms > 0
    images = np.random.default_rng(0).random((2, 16, 16, 16), np.float32)
    np.testing.assert_allclose(
        device.run(files[3], images), OnnxRuntime().run(files[3], images), atol=1e-4
    )


def test_webgpu_answers_as_onnx_runtime_does(opened, files):
    device = opened(provider="webgpu")
    images = np.random.default_rng(0).random((2, 16, 16, 16), np.float32)
    try:
        found = device.run(files[1], images)
    except ExportError as error:
        if "no available backend" in str(error):
            pytest.skip("this chromium has no WebGPU")
        raise
    np.testing.assert_allclose(found, OnnxRuntime().run(files[1], images), atol=1e-4)


def test_a_page_that_is_closed_in_the_middle_and_opened_again(installed, chromium, files):
    device = Browser(package=installed, runs=4000, seconds=1.5, wait_s=30)
    tab = chromium.open(device.url)
    with asked(lambda: device.measure(files[:2])) as answer:
        chromium.until(lambda: chromium.title(tab).startswith("Timing"))
        other = Page(device.url)
        assert other.next() == {"state": "elsewhere"}
        chromium.close(tab)
        chromium.until(lambda: other.next()["state"] == "work")  # it said goodbye
        other.bye()
        tab = chromium.open(device.url)
        assert len(answer()) == 2
    chromium.until(lambda: chromium.title(tab).startswith("Ready"))
    device.close()
    chromium.until(lambda: chromium.title(tab).startswith("The computer does not answer"))
    chromium.close(tab)


def test_a_page_that_comes_second_says_so_and_goes_on_later(installed, chromium, files):
    device = Browser(package=installed, runs=15, wait_s=30)
    first = Page(device.url)
    assert first.next() == {"state": "idle"}
    tab = chromium.open(device.url)
    chromium.until(lambda: chromium.title(tab).startswith("Another page is at work"))
    first.bye()
    chromium.until(lambda: chromium.title(tab).startswith("Ready"))
    assert len(device.measure(files[:1])) == 1
    hiding = chromium.open("about:blank")
    chromium.until(lambda: chromium.title(tab).startswith("In the background"))
    chromium.close(hiding)
    chromium.close(tab)
    device.close()


# four gigabytes are all that a page can name; the first can not even be counted
@pytest.mark.parametrize("count", [10**9, 268_000_000])
def test_a_file_over_the_browsers_memory(opened, tmp_path, count):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "size"], ["large"]),
            helper.make_node("ReduceMax", ["large"], ["y"], keepdims=0),
        ],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([count, 4]), "size")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "large.onnx")
    device = opened()
    with pytest.raises(MeasurementError, match=r"large.onnx: .*memory is too small"):
        device.measure([tmp_path / "large.onnx"])
    with pytest.raises(ExportError, match=r"large.onnx: .*memory is too small"):
        device.run(tmp_path / "large.onnx", np.ones((1, 4), np.float32))


def test_a_file_that_the_browser_can_not_run(opened, files, tmp_path):
    model = onnx.load(files[1])
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    device = opened()
    with pytest.raises(MeasurementError, match=r"odd.onnx: onnxruntime-web can't run it: .*NoSuch"):
        device.measure([files[1], tmp_path / "odd.onnx"])
    assert len(device.measure(files)) == 4  # the next piece of work is not touched by it
