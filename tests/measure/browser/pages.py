"""A page that is played by the test, over HTTP as the real one speaks it."""

import json
import secrets
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.client import HTTPResponse
from threading import Thread

import numpy as np

HELLO = {"agent": "Testbrowser 1", "machine": "Testphone", "cores": 4, "isolated": True}


def request(url, body=None, *, headers=None, context=None) -> tuple[int, bytes, HTTPResponse]:
    """Status, body and response of a GET, or of a POST where there is a body."""
    asked = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(asked, timeout=20, context=context) as response:
            return response.status, response.read(), response
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error


class Page:
    """One opened page."""

    def __init__(self, url, **facts):
        self.url = url
        self.hello = {**HELLO, "page": secrets.token_hex(16), **facts}

    def post(self, path, content):
        status, body, _ = request(self.url + path, json.dumps(content).encode())
        assert status == 200, (status, body)
        return json.loads(body)

    def next(self):
        return self.post("next", self.hello)

    def bye(self):
        return self.post("bye", {"page": self.hello["page"]})

    def work(self):
        """The next piece of work, once there is one."""
        for _ in range(20):
            said = self.next()
            if said["state"] == "work":
                return said["turn"], said["task"]
            assert said["state"] == "idle"
            self.hello["shown"] = "idle"
        raise AssertionError("no work came")

    def get(self, turn, kind, number):
        status, body, _ = request(f"{self.url}work/{turn}/{kind}/{number}")
        assert status == 200, (status, body)
        return body

    def input(self, turn, task, number):
        values = np.frombuffer(self.get(turn, "input", number), "<f4")
        return values.reshape(task["inputs"][number])

    def output(self, turn, number, values):
        dims = ",".join(map(str, values.shape))
        path = f"{self.url}work/{turn}/output/{number}?dims={dims}"
        status, body, _ = request(path, values.astype("<f4").tobytes())
        return status, body

    def done(self, turn, answer):
        return self.post(f"work/{turn}/done", answer)


@contextmanager
def asked(call):
    """A call in a thread, and what came of it: its value, or the error that it raised."""
    found = []

    def work():
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()

    def answer():
        thread.join(30)
        assert found, "it did not end"
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    yield answer
    thread.join(30)
