import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

from tailorbird.errors import MeasurementError
from tailorbird.measure.devices.browser.address import qr_code, url_of
from tailorbird.measure.devices.browser.desk import Desk, Work
from tailorbird.measure.devices.browser.server import MOST_CONNECTIONS, WORDS_BYTES, Server
from tests.measure.browser.pages import Page, asked, request


@pytest.fixture(scope="module")
def desk():
    return Desk(poll_s=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("served")
    for name, text in (("index.html", "<p>"), ("a.wasm", "wasm"), ("other.txt", "no")):
        (found / name).write_text(text)
    return found


@pytest.fixture(scope="module")
def server(desk, folder):
    files = {"index.html": folder / "index.html", "ort/a.wasm": folder / "a.wasm"}
    found = Server(desk, files, host="127.0.0.1", port=0)
    yield found
    found.close()


@pytest.fixture(scope="module")
def root(server):
    return f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def url(root, server):
    return f"{root}{server.token}/"


@pytest.fixture
def page(url):
    opened = Page(url)
    yield opened
    opened.bye()


def test_files_come_with_the_headers_that_give_shared_memory(url):
    for name, kind in (("", "text/html; charset=utf-8"), ("ort/a.wasm", "application/wasm")):
        status, _, response = request(url + name)
        assert status == 200
        assert response.headers["Content-Type"] == kind
        assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Access-Control-Allow-Origin"] is None
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "'wasm-unsafe-eval'" in policy
        assert "unsafe-inline" not in policy and "'unsafe-eval'" not in policy


def test_nothing_is_there_without_the_token(root, server):
    wrong = server.token[:-1] + ("a" if server.token[-1] != "a" else "b")
    for path in ("", "index.html", f"{wrong}/", f"{server.token}", "%C3%A9/", f"x/{server.token}/"):
        assert request(root + path)[0] == 404
        assert request(root + path, b"{}")[0] == 404


@pytest.mark.parametrize(
    "path", ["other.txt", "../other.txt", "ort/", "ort/%2e%2e/other.txt", "work", "next"]
)
def test_only_what_is_in_the_table_is_served(url, path):
    status, body, _ = request(url + path)
    assert (status, body) == (404, b"not found")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": "localhost:1234"}, 200),  # a forwarded port
        ({"Host": "192.168.0.9"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_names_and_pages_from_elsewhere_are_refused(url, headers, status):
    assert request(url, headers=headers)[0] == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[1]", 400),
        (b"[" * 100_000, 400),
        (b"{}", 400),
        (json.dumps({"page": "me", "agent": "a"}).encode(), 400),
    ],
)
def test_a_page_that_says_nonsense_is_refused(url, body, status):
    assert request(url + "next", body)[0] == status


@pytest.mark.parametrize(
    "facts",
    [{"cores": 0}, {"cores": "many"}, {"agent": "x" * 500}, {"memory_gb": -1}, {"page": "../x"}],
)
def test_a_hello_is_bounded(url, facts):
    page = Page(url, **facts)
    assert request(url + "next", json.dumps(page.hello).encode())[0] == 400


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Transfer-Encoding: chunked", b"411"),
        (f"Content-Length: {WORDS_BYTES + 1}", b"413"),
        (f"Content-Length: {'9' * 5000}", b"413"),
        ("Content-Length: -1", b"411"),
    ],
)
def test_a_body_of_unknown_or_absurd_length_is_refused_unread(server, header, status):
    head = f"POST /{server.token}/next HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).split()[1] == status


def test_work_is_fetched_and_answered(url, desk, folder, page):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    work = Work(
        title="run", task={"inputs": [[2, 3]]}, files=(folder / "a.wasm",), inputs=(values,)
    )
    with asked(lambda: desk.ask(work, wait_s=20, limit_s=20, way_out="")) as answer:
        turn, task = page.work()
        assert page.get(turn, "file", 0) == b"wasm"
        np.testing.assert_array_equal(page.input(turn, task, 0), values)
        for path in ("file/1", "input/1", "file/-1", "file/x", "input/99999999"):
            assert request(f"{url}work/{turn}/{path}")[0] == 409
        assert request(f"{url}work/another/file/0")[0] == 409
        assert page.output(turn, 0, values * 2)[0] == 200
        assert page.done(turn, {"outputs": 1}) == {"state": "taken"}
        words, arrays = answer()
    assert words == {"outputs": 1}
    np.testing.assert_array_equal(arrays[0], values * 2)
    assert page.done(turn, {}) == {"state": "over"}


@pytest.mark.parametrize("path", ["output/0?dims=2,4", "output/0?dims=a", "output/0", "output/x"])
def test_arrays_that_are_none_end_the_work(url, desk, page, path):
    work = Work(title="run of x", task={}, files=(), inputs=(np.zeros((1, 2), np.float32),))
    with asked(lambda: desk.ask(work, wait_s=20, limit_s=20, way_out="")) as answer:
        turn, _ = page.work()
        assert request(f"{url}work/{turn}/{path}", b"1234")[0] == 400
        with pytest.raises(MeasurementError, match="run of x: what the page sent is refused: 4 by"):
            answer()


def test_more_connections_than_it_takes_are_closed(server):
    held = [
        socket.create_connection(("127.0.0.1", server.port), timeout=10)
        for _ in range(MOST_CONNECTIONS + 1)
    ]
    held[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with suppress(ConnectionResetError):
        assert held[-1].recv(100) == b""
    for connection in held:
        connection.close()


def test_after_close_nobody_listens():
    server = Server(Desk(), {}, host="127.0.0.1", port=0)
    server.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


FORKING = """
import os, urllib.error, urllib.request
from tailorbird.measure.devices.browser.desk import Desk
from tailorbird.measure.devices.browser.server import Server

server = Server(Desk(), {}, host="127.0.0.1", port=0)
child = os.fork()
if child == 0:
    server.close()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=10)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_that_closes_it_neither_hangs_nor_stops_it():
    program = [sys.executable, "-W", "ignore", "-c", FORKING]
    said = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.split() == ["7", "404"]


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(MeasurementError, match=rf"127.0.0.1, port {server.port}: .*give another"):
        Server(Desk(), {}, host="127.0.0.1", port=server.port)


def test_https_with_a_certificate_of_the_users_own(folder):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        f"{program} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-keyout {key} -out {certificate} -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost".split(),
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    pages = {"index.html": folder / "index.html"}
    server = Server(Desk(), pages, host="127.0.0.1", port=0, tls=tls)
    url = url_of("localhost", server.port, server.token, secure=True)
    trusting = ssl.create_default_context(cafile=certificate)
    with socket.create_connection(("127.0.0.1", server.port)):  # one that says nothing
        assert request(url, context=trusting)[1] == b"<p>"
    server.close()


def test_the_address_is_drawn():
    code = qr_code("http://192.0.2.7:8000/token/").splitlines()
    assert len(code) > 10
    assert len({len(line) for line in code}) == 1
    assert set("".join(code)) <= set(" ▀▄█")
