"""The device, with pages that the tests play."""

import gc
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tailorbird.config.targets import load_targets
from tailorbird.device import ONNX
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.measure.devices.browser.device import Browser
from tailorbird.measure.guarded import judged_at_most
from tests.measure.browser.pages import Page, asked, request


@pytest.fixture
def browser(package, capsys):
    device = Browser(package=package, runs=17, label="phone", wait_s=20)
    yield device
    device.close()


@pytest.fixture
def page(browser):
    return Page(browser.url)


def request_fails(url):
    with pytest.raises(OSError):
        request(url)
    return True


def times(task, ms=2.0):
    return {"rounds_ms": [[[ms] * burst for burst in task["bursts"]] for _ in task["files"]]}


def test_a_page_times_files_in_an_order_that_the_seed_gives(browser, page, files):
    tasks = []
    for _ in range(2):
        with asked(lambda: browser.measure(files)) as answer:
            turn, task = page.work()
            tasks.append(task)
            assert [page.get(turn, "file", n) for n in range(4)] == [f.read_bytes() for f in files]
            assert page.input(turn, task, 1).shape == (1, 16, 16, 16)
            assert np.std(page.input(turn, task, 1)) == pytest.approx(1, abs=0.1)
            said = times(task)
            said["rounds_ms"][2] = [[3.0] * burst for burst in task["bursts"]]
            page.done(turn, said)
            found = answer()
        assert [one.median_ms for one in found] == [2.0, 2.0, 3.0, 2.0]
        assert {(one.runs, one.warmup) for one in found} == {(17, 10)}
    first, second = tasks
    assert first["bursts"] == [5, 5, 5, 2]
    assert [sorted(turn) for turn in first["turns"]] == [[0, 1, 2, 3]] * 4
    assert len({tuple(turn) for turn in first["turns"]}) > 1
    assert first == second
    assert (first["threads"], first["provider"], first["module"]) == (1, "wasm", "ort.wasm.min.mjs")


def test_a_session_that_drifted_is_held_once_more(browser, files):
    device = replace(browser, runs=30)
    page = Page(device.url)
    with asked(lambda: device.measure(files[:1])) as answer:
        for end in (9.0, 1.0):
            rounds = [[one] * 5 for one in (1, 1, 1, 1, end, end)]
            page.done(page.work()[0], {"rounds_ms": [rounds]})
        assert answer()[0].drift == 0
    device.close()


def test_files_of_many_bytes_are_measured_in_groups(browser, page, files):
    with asked(lambda: browser.measure(files, group_bytes=1)) as answer:
        for number in range(4):
            turn, task = page.work()
            assert task["files"] == [files[number].name]
            page.done(turn, times(task, 1.0 + number))
        assert [one.median_ms for one in answer()] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"rounds_ms": None},
        {"rounds_ms": []},
        {"rounds_ms": [[[1.0] * 5] * 3]},
        {"rounds_ms": [[[1.0] * 5] * 2, [[1.0] * 5] * 2]},
        {"rounds_ms": [[[1.0] * 5] * 3, [[1.0] * 5, [1.0] * 5, [1.0] * 4]]},
        {"rounds_ms": [[[1.0] * 5] * 3, [[1.0] * 5, [1.0] * 5, [0.0] * 5]]},
        {"rounds_ms": [[[1.0] * 5] * 3, [[1.0] * 5, [1.0] * 5, [float("nan")] * 5]]},
        {"rounds_ms": [[[1.0] * 5] * 3, [["fast"] * 5] * 3]},
        {"rounds_ms": [[[1.0] * 5] * 5] * 2},
        {"fault": "words alone"},
    ],
)
def test_times_that_were_not_asked_for_are_refused(browser, page, files, answer):
    with asked(lambda: browser.measure(files[:2])) as found:
        page.done(page.work()[0], answer)
        with pytest.raises(MeasurementError, match="2 files: the page did not answer with times"):
            found()


def test_what_the_page_says_of_a_file_is_told(browser, page, files):
    words = r"two.onnx: onnxruntime-web can't run it: no kernel for \[31m X$"
    with asked(lambda: browser.measure(files)) as answer:
        page.done(page.work()[0], {"fault": {"file": 2, "text": "no kernel\nfor\x1b[31m X"}})
        with pytest.raises(MeasurementError, match=words):
            answer()
    with asked(lambda: browser.run(files[3], np.zeros((1, 16, 16, 16), np.float32))) as answer:
        page.done(page.work()[0], {"fault": {"file": 0, "text": "RangeError: Out of memory"}})
        with pytest.raises(ExportError, match=r"eight.onnx: .* the browser's memory is too small"):
            answer()


def network(path, shape, *, weight=None):
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    given = [value("x", TensorProto.FLOAT, shape)]
    held = []
    if weight is not None:
        held = [numpy_helper.from_array(weight, "w")]
        nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", given, [value("y", TensorProto.FLOAT, shape)], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path, save_as_external_data=weight is not None, size_threshold=0)
    return path


@pytest.mark.parametrize(
    ("shape", "images", "batches", "answered"),
    [((None, 3), 5, 64, [5]), ((2, 3), 5, 2, [6]), ((2, 3), 4, 2, [4])],
)
def test_images_are_run_in_the_batch_that_the_file_has(
    browser, page, tmp_path, shape, images, batches, answered
):
    path = network(tmp_path / "m.onnx", shape)
    given = np.arange(images * 3, dtype=np.float32).reshape(images, 3)
    with asked(lambda: browser.run(path, given)) as answer:
        turn, task = page.work()
        assert task["batch"] == batches
        assert [len(page.input(turn, task, n)) for n in range(len(task["inputs"]))] == answered
        for number in range(len(answered)):
            page.output(turn, number, page.input(turn, task, number)[:, :2] + 1)
        page.done(turn, {"outputs": len(answered)})
        np.testing.assert_array_equal(answer(), given[:, :2] + 1)


def test_many_images_are_sent_in_parts(browser, page, tmp_path):
    path = network(tmp_path / "m.onnx", (None, 3, 100, 100))
    given = np.random.default_rng(0).random((70, 3, 100, 100), dtype=np.float32)
    with asked(lambda: browser.run(path, given)) as answer:
        turn, task = page.work()
        assert [shape[0] for shape in task["inputs"]] == [64, 6]
        for number in (1, 0):
            page.output(turn, number, page.input(turn, task, number).mean(axis=(1, 2, 3))[:, None])
        page.done(turn, {"outputs": 2})
        np.testing.assert_allclose(answer()[:, 0], given.mean(axis=(1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("rows", [[], [2], [1], [1, 2]])
def test_answers_without_a_row_for_each_image_are_refused(browser, page, tmp_path, rows):
    path = network(tmp_path / "m.onnx", (None, 3, 1000, 400))
    with asked(lambda: browser.run(path, np.zeros((2, 3, 1000, 400), np.float32))) as answer:
        turn, task = page.work()
        assert [shape[0] for shape in task["inputs"]] == [1, 1]
        for number, count in enumerate(rows):
            page.output(turn, number, np.zeros((count, 2)))
        page.done(turn, {"outputs": 2})
        with pytest.raises(MeasurementError, match="did not answer with a row for each image"):
            answer()


def test_work_goes_to_the_page_that_is_opened_next(browser, files):
    first = Page(browser.url)
    with asked(lambda: browser.measure(files)) as answer:
        turn, _ = first.work()
        first.bye()
        second = Page(browser.url)
        again, task = second.work()
        assert first.done(turn, {"rounds_ms": []}) == {"state": "over"}
        assert first.next() == {"state": "elsewhere"}
        second.done(again, times(task))
        assert len(answer()) == 4


def test_nobody_opens_the_page(package, files):
    device = Browser(package=package, wait_s=0.2)
    for call in (
        device.describe,
        lambda: device.measure(files),
        lambda: device.run(files[1], np.zeros((1, 16, 16, 16), np.float32)),
    ):
        with pytest.raises(MeasurementError) as error:
            call()
        assert f"open {device.url} on the device" in str(error.value)
    device.close()


def test_threads_need_a_page_with_shared_memory(package, files):
    device = Browser(package=package, threads=2, wait_s=20)
    page = Page(device.url, isolated=False)
    page.next()
    words = r"2 threads need SharedArrayBuffer, which Testbrowser 1 does not give.*threads: 1"
    with pytest.raises(MeasurementError, match=words):
        device.measure(files)
    page.bye()
    Page(device.url).next()
    assert device.describe().cores == 4
    device.close()


def test_it_says_what_the_page_says_of_itself(browser):
    page = Page(browser.url, agent="Browser\n5", memory_gb=8)
    page.next()
    found = browser.describe()
    assert (found.machine, found.system) == ("phone, Testphone, about 8 GB", "Browser 5")
    assert (found.version, found.cores) == ("1.30.0", 4)
    assert found.runtime == "onnxruntime-web wasm"


def test_only_the_pages_and_the_runtime_are_served(browser):
    for name in ("", "page.js", "worker.js", "style.css", "ort/ort.wasm.min.mjs"):
        assert request(browser.url + name)[0] == 200
    assert request(browser.url + "ort/ort-wasm-simd-threaded.wasm")[2].headers["Content-Type"] == (
        "application/wasm"
    )
    for name in ("ort/ort.js", "ort/secret.txt", "ort/package.json", "device.py"):
        assert request(browser.url + name)[0] == 404


def test_the_address_is_told_once_and_drawn_where_others_reach_it(package, capsys):
    with_phone = Browser(package=package, host="0.0.0.0", label="phone")
    assert capsys.readouterr().err == ""
    assert with_phone.url == with_phone.url
    said = capsys.readouterr().err
    assert said.count(with_phone.url) == 1
    assert "browser device phone: open this page there" in said
    assert "█" in said
    with_phone.close()
    here = Browser(package=package)
    assert here.url.startswith("http://127.0.0.1:")
    assert "█" not in capsys.readouterr().err
    here.close()


def test_it_stops_with_its_last_user(package):
    device = Browser(package=package)
    port = int(device.url.split(":")[2].split("/")[0])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    del device
    gc.collect()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_it_serves_again_after_close(browser, files):
    before = browser.url
    browser.close()
    assert request_fails(before)
    assert browser.url not in {before, ""}
    page = Page(browser.url)
    with asked(lambda: browser.measure(files)) as answer:
        turn, task = page.work()
        page.done(turn, times(task))
        assert len(answer()) == 4


def test_who_waits_is_let_go_at_close(browser, page, files):
    with asked(lambda: browser.measure(files)) as answer:
        page.work()
        browser.close()
        with pytest.raises(MeasurementError, match="measure of 4 files: its page is served no mor"):
            answer()


def test_many_threads_are_served_once(package, capsys):
    device = Browser(package=package)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: device.url, range(8)))
    assert len(found) == 1
    assert capsys.readouterr().err.count("open this page") == 1
    device.close()


def test_its_key_tells_settings_apart(package):
    keys = [
        Browser(package=package, **given).key
        for given in ({}, {"threads": 2}, {"label": "phone"}, {"host": "0.0.0.0"})
    ]
    assert len(set(keys)) == 4
    assert keys[2] == "browser, onnxruntime-web 1.30.0, wasm, 1 thread, phone"
    assert keys[3].endswith("2 threads, any device") or keys[3].endswith("1 thread, any device")
    device = Browser(package=package)
    assert (device.precisions, device.format) == (("float32", "int8"), ONNX)
    assert judged_at_most(device) == 1000
    (package / "dist" / "ort.webgpu.min.mjs").write_text("")
    assert Browser(package=package, provider="webgpu").precisions == ("float32", "float16")


def test_a_job_names_it_by_its_kind(package, tmp_path):
    path = tmp_path / "targets.yaml"
    path.write_text(
        "targets: [{name: web, limits: {latency_ms: 9}, device: {kind: browser, "
        f"package: {package}, label: phone, host: 0.0.0.0, threads: 4}}}}]"
    )
    (target,) = load_targets(path)
    assert isinstance(target.device, Browser)
    assert (target.device.host, target.device.threads) == ("0.0.0.0", 4)
    assert target.device.key == "browser, onnxruntime-web 1.30.0, wasm, 4 threads, phone"
    path.write_text("targets: [{name: web, limits: {latency_ms: 9}, device: {kind: browser, "
                    f"package: {package}, provider: webgl, port: 70000}}}}]")  # fmt: skip
    with pytest.raises(ConfigError, match=r"targets\[0\].device.*one of wasm, webgpu"):
        load_targets(path)


def test_files_that_no_browser_is_given(browser, files, tmp_path):
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"\xff" * 300)
    outside = network(tmp_path / "outside.onnx", (1, 3), weight=np.ones(3, np.float32))
    large = network(tmp_path / "large.onnx", (1, 5000, 5000))
    odd = network(tmp_path / "odd.onnx", (1, "height", 3))
    with pytest.raises(MeasurementError) as error:
        browser.measure([files[0], noise, outside, large, odd, tmp_path / "absent.onnx"])
    text = str(error.value)
    assert "noise.onnx: it is no whole ONNX file" in text
    assert "outside.onnx: its weights lie in another file" in text
    assert "large.onnx: its input has 25,000,000 elements" in text
    assert "odd.onnx: only the batch dimension may be open, the input is [1, 'height', 3]" in text
    assert "absent.onnx: there is no such file" in text
    assert str(files[0]) not in text
    with pytest.raises(ExportError, match=r"expected one or more images of shape \(16, 16, 16\)"):
        browser.run(files[1], np.zeros((1, 3, 16, 16), np.float32))


def test_all_wrong_arguments_are_listed(package, tmp_path):
    with pytest.raises(ConfigError) as error:
        Browser(
            package=package, threads=0, port=-1, runs=0, images=0, warmup=-1, seconds=0,
            wait_s=float("inf"), host="", label="a\nb", provider="webnn",
            certificate=tmp_path / "none.pem",
        )  # fmt: skip
    assert len(error.value.problems) == 11
    absent, wrong = tmp_path / "none.pem", tmp_path / "wrong.pem"
    with pytest.raises(ConfigError, match=r"there is no file .*none.pem"):
        Browser(package=package, certificate=absent, certificate_key=absent)
    wrong.write_text("no certificate")
    device = Browser(package=package, certificate=wrong, certificate_key=wrong)
    with pytest.raises(MeasurementError, match=r"its key can't be used: .*give PEM files"):
        device.describe()


def test_what_to_install_is_told(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"onnxruntime-web is not installed; run 'npm install onn"
    ):
        Browser()
    below = tmp_path / "node_modules" / "onnxruntime-web"
    below.parent.mkdir()
    below.symlink_to(package)
    inner = tmp_path / "jobs"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert "onnxruntime-web 1.30.0" in Browser().key
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho {tmp_path}/everywhere\n")
    npm.chmod(0o755)
    below.parent.rename(tmp_path / "everywhere")
    assert "onnxruntime-web 1.30.0" in Browser().key
    about = tmp_path / "other" / "package.json"
    about.parent.mkdir()
    for content, words in (
        ("no json", "holds no readable package.json"),
        (json.dumps({"name": "left-pad", "version": "1.0.0"}), "is no onnxruntime-web"),
        (json.dumps({"name": "onnxruntime-web", "version": "1.30.0"}), "has no dist/ort.wasm.min"),
    ):
        about.write_text(content)
        with pytest.raises(ConfigError, match=rf"{words}.*; run 'npm install onnxruntime-web'"):
            Browser(package=about.parent)
