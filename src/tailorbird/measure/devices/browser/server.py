"""The pages' server: a fixed table of files and a few questions, under a secret address."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from tailorbird.errors import MeasurementError
from tailorbird.measure.devices.browser.desk import Desk, Hello
from tailorbird.records import as_record

WORDS_BYTES, ARRAY_BYTES = 8_000_000, 64_000_000
"""What a page may send at once: as JSON, and as numbers."""

MOST_CONNECTIONS = 64
_MOST_DIMS = 8
_IDLE_S = 60
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
_BYTES = "application/octet-stream"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
        "connect-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_ISOLATING = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Browsers give SharedArrayBuffer, which threads need, only to pages that come with these."""


class Server:
    """Serves a desk's pages from daemon threads until it is closed or the process ends.

    Every address begins with a token that is drawn anew each time; whatever does not, is not
    found. Requests are taken only under an IP address, ``localhost`` or the name it serves at, so
    that a web page whose name was made to point here can't ask.

    Args:
        desk: knows the work.
        files: what may be fetched: name in the address -> path.
        host: address to listen on.
        port: 0 for any that is free.
        tls: for https.
        isolating: send the headers that give pages SharedArrayBuffer.

    Raises:
        MeasurementError: when it can't listen there.
    """

    def __init__(
        self,
        desk: Desk,
        files: Mapping[str, Path],
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        isolating: bool = True,
    ) -> None:
        self.token = secrets.token_urlsafe(16)
        try:
            self._http = _Http(host, port)
        except OSError as error:
            raise MeasurementError(
                f"browser device: can't listen on {host}, port {port}: {error.strerror or error}; "
                "give another host or port, or port 0 for any that is free"
            ) from error
        if tls is not None:
            self._http.socket = tls.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._http.desk, self._http.files, self._http.token = desk, dict(files), self.token
        self._http.headers = {**_HEADERS, **(_ISOLATING if isolating else {})}
        self._http.name = host
        self.port = int(self._http.server_address[1])
        self._desk, self._process = desk, os.getpid()
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        ).start()

    def close(self) -> None:
        """Stop; pages find that nobody answers. A forked process only lets go of the address."""
        if os.getpid() != self._process:  # the thread and its connections are not in this one
            self._http.socket.close()
            return
        self._desk.close()
        self._http.shutdown()
        self._http.server_close()


_Socket = Any
_Address = Any


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32
    desk: Desk
    files: dict[str, Path]
    token: str
    headers: dict[str, str]
    name: str

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._open: set[socket.socket] = set()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # the other one asks name servers

    def process_request(self, request: _Socket, client_address: _Address) -> None:
        if not self._places.acquire(blocking=False):
            super().shutdown_request(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: _Socket) -> None:
        super().shutdown_request(request)
        if request in self._open:
            self._open.discard(request)
            self._places.release()

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: _Socket, client_address: _Address) -> None:
        """A connection that breaks is a page that went away; the desk notices."""


class _RefusedError(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tailorbird", ""
    timeout = _IDLE_S
    server: _Http

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the base has it
        """Nothing: addresses hold the token."""

    def _answered(self, call: Callable[[list[str]], None]) -> None:
        try:
            call(self._path())
        except _RefusedError as refused:
            self.close_connection = True  # what it still sends is not read
            self._reply(refused.status, refused.words.encode(), "text/plain; charset=utf-8")

    def _path(self) -> list[str]:
        """The parts of the address behind the token."""
        host = self.headers.get("Host", "")
        if not _is_own(host, self.server.name):
            raise _RefusedError(403, "this name is not served here")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise _RefusedError(403, "pages from elsewhere may not ask here")
        token, *parts = urlsplit(self.path).path.removeprefix("/").split("/")
        if not parts or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _RefusedError(404, "not found")
        return parts

    # what pages fetch ----------------------------------------------------------------------------

    def _get(self, parts: list[str]) -> None:
        name = "/".join(parts) or "index.html"
        if name in self.server.files:
            self._send_file(self.server.files[name], lasting=name.startswith("ort/"))
            return
        match parts:
            case ["work", turn, "file" | "input" as kind, number]:
                work = self.server.desk.work(turn)
                things = () if work is None else work.files if kind == "file" else work.inputs
                if not number.isdecimal() or len(number) > 6 or int(number) >= len(things):
                    raise _RefusedError(409, "this work is out of date")
                thing = things[int(number)]
                if isinstance(thing, Path):
                    self._send_file(thing)
                else:
                    self._reply(200, np.ascontiguousarray(thing, "<f4").tobytes(), _BYTES)
            case _:
                raise _RefusedError(404, "not found")

    def _send_file(self, path: Path, *, lasting: bool = False) -> None:
        try:
            file = path.open("rb")
        except OSError as error:
            raise _RefusedError(404, "the file is gone") from error
        with file:
            size = file.seek(0, 2)
            file.seek(0)
            self._head(200, size, _KINDS.get(path.suffix, _BYTES), lasting=lasting)
            shutil.copyfileobj(file, self.wfile)

    # what pages send -----------------------------------------------------------------------------

    def _post(self, parts: list[str]) -> None:
        desk = self.server.desk
        match parts:
            case ["next"]:
                hello = as_record(Hello, self._json())
                if hello is None:
                    raise _RefusedError(
                        400, "this is no page of this server; open the address again"
                    )
                self._say(desk.next(hello))
            case ["bye"]:
                desk.bye(str(self._json().get("page"))[:32])
                self._say({})
            case ["work", turn, "alive"]:
                self._json()
                self._say({"state": "work" if desk.alive(turn) else "over"})
            case ["work", turn, "output", number]:
                self._took(self._turned(turn, lambda: self._output(turn, number)))
            case ["work", turn, "done"]:
                self._took(self._turned(turn, lambda: desk.done(turn, self._json())))
            case _:
                raise _RefusedError(404, "not found")

    def _took(self, wanted: bool) -> None:
        self._say({"state": "taken" if wanted else "over"})

    def _turned(self, turn: str, call: Callable[[], bool]) -> bool:
        """What is wrong with what a page sends of its work ends that work."""
        try:
            return call()
        except _RefusedError as refused:
            self.server.desk.fail(turn, f"what the page sent is refused: {refused.words}")
            raise

    def _output(self, turn: str, number: str) -> bool:
        dims = parse_qs(urlsplit(self.path).query).get("dims", [""])[0].split(",")
        right = all(one.isdecimal() and len(one) < 10 for one in [number, *dims])
        body = self._body(ARRAY_BYTES)
        shape = [int(one) for one in dims] if right else []
        if not right or len(shape) > _MOST_DIMS or prod(shape) * 4 != len(body):
            raise _RefusedError(
                400, f"{len(body)} bytes are no float32 array of shape {dims}"[:200]
            )
        values = np.frombuffer(body, "<f4").reshape(shape)
        return self.server.desk.output(turn, int(number), values)

    def _json(self) -> dict[str, Any]:
        try:
            found = json.loads(self._body(WORDS_BYTES))
        except (ValueError, RecursionError) as error:
            raise _RefusedError(400, "expected JSON") from error
        if not isinstance(found, dict):
            raise _RefusedError(400, "expected a JSON object")
        return found

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _RefusedError(411, "expected a Content-Length")
        if len(length) > 12 or int(length) > limit:
            raise _RefusedError(413, f"expected at most {limit:,} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise _RefusedError(400, "the connection ended early")
        return body

    # replies -------------------------------------------------------------------------------------

    def _say(self, answer: Mapping[str, object]) -> None:
        self._reply(200, json.dumps(answer).encode(), "application/json")

    def _reply(self, status: int, body: bytes, kind: str) -> None:
        self._head(status, len(body), kind)
        self.wfile.write(body)

    def _head(self, status: int, length: int, kind: str, *, lasting: bool = False) -> None:
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "private, max-age=86400" if lasting else "no-store")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def _is_own(host: str, name: str) -> bool:
    """Whether a request's Host is an IP address or a name that this server goes by.

    Example:
        >>> [_is_own(host, "box.lan") for host in ("10.0.0.2:80", "[::1]:80", "box.lan", "evil.io")]
        [True, True, True, False]
    """
    try:
        found = urlsplit(f"//{host}").hostname
        if found in {"localhost", name.lower()}:
            return True
        ipaddress.ip_address(found or "")
    except ValueError:
        return False
    return True
