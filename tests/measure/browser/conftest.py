import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from torch import nn

from tailorbird.export.onnx import export_many

INSTALLED = Path(__file__).parents[2] / "web" / "node_modules" / "onnxruntime-web"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--use-webgpu-adapter=swiftshader",  # on the processor
    "--host-resolver-rules=MAP elsewhere.test 127.0.0.1, MAP 192.0.2.7 127.0.0.1",
]


def convolutions(depth, width=16):
    return nn.Sequential(*[nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)])


@pytest.fixture(scope="package")
def files(tmp_path_factory):
    """Four files of rising work."""
    folder = tmp_path_factory.mktemp("models")
    modules = [(nn.Identity(), (4,)), *[(convolutions(n), (16, 16, 16)) for n in (1, 2, 8)]]
    return export_many(modules, folder, ["none", "one", "two", "eight"])


@pytest.fixture(scope="package")
def package(tmp_path_factory):
    """A folder that looks like onnxruntime-web, for pages that are played."""
    folder = tmp_path_factory.mktemp("package") / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.30.0"}')
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm", "ort.js", "secret.txt"):
        (folder / "dist" / name).write_text(name)
    return folder


class Chromium:
    """One browser without a window; tabs come and go."""

    def __init__(self, program, folder):
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        where = folder / "DevToolsActivePort"
        self.until(lambda: where.is_file() and where.read_text().count("\n"))
        self._port = where.read_text().split()[0]

    def open(self, url):
        return json.loads(self._ask(f"new?{url}", "PUT"))["id"]

    def close(self, tab):
        self._ask(f"close/{tab}")

    def title(self, tab):
        (found,) = [one["title"] for one in json.loads(self._ask("list")) if one["id"] == tab]
        return found

    def quit(self):
        self._process.terminate()
        self._process.wait(20)

    def until(self, true):
        for _ in range(600):
            if true():
                return
            time.sleep(0.05)
        raise AssertionError("it did not come to it")

    def _ask(self, what, method="GET"):
        url = f"http://127.0.0.1:{self._port}/json/{what}"
        with urllib.request.urlopen(urllib.request.Request(url, method=method)) as response:
            return response.read()


@pytest.fixture(scope="package")
def installed():
    if not (INSTALLED / "package.json").is_file():
        pytest.skip("onnxruntime-web is not installed: npm install --prefix tests/web")
    return INSTALLED


@pytest.fixture(scope="package")
def chromium(tmp_path_factory):
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    browser = Chromium(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()
