import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tailorbird.device import Latency
from tailorbird.errors import MeasurementError
from tailorbird.measure.apart import Process


@dataclass(frozen=True)
class Board:
    """Each file's latency is the number of the process that timed it; names say what goes wrong."""

    time_limit_s: float = 60.0

    @classmethod
    def load(cls):
        pass

    def timed(self, models, *, group_bytes):
        os.write(1, b"what a library prints is no answer\n")
        for one in models:
            if one.name == "crash":
                os.write(2, b"a word\na last word\n")
                os.kill(os.getpid(), signal.SIGSEGV)
            if one.name == "leave":
                os.write(2, b"a last word\n")
                os._exit(7)
            if one.name == "hang":
                time.sleep(600)
            if one.name == "seen":
                assert one.is_file()
            if one.name == "refuse":
                raise MeasurementError(f"{one}: no\nsuch thing")
            if one.name == "fault":
                raise ZeroDivisionError("of a library")
        return [
            Latency(median_ms=float(os.getpid()), spread_ms=0.1, runs=group_bytes, warmup=1)
            for _ in models
        ]


class Unloaded(Board):
    @classmethod
    def load(cls):
        import absent_module  # noqa: F401


@pytest.fixture(scope="module", params=[True, False], ids=["forks", "anew"])
def process(request):
    found = Process(Board, forks=request.param)
    yield found
    found.end()


def test_every_call_is_timed_in_a_process_of_its_own(process):
    files = [Path("a"), Path("b")]
    calls = [process.timed(Board(), files, group_bytes=30 + i) for i in range(3)]
    assert [[one.runs for one in call] for call in calls] == [[30, 30], [31, 31], [32, 32]]
    numbers = [{one.median_ms for one in call} for call in calls]
    assert [len(one) for one in numbers] == [1, 1, 1]
    assert len(set.union(*numbers, {float(os.getpid())})) == 4


def test_files_are_named_from_where_the_asking_process_is(process, tmp_path, monkeypatch):
    (tmp_path / "seen").touch()
    monkeypatch.chdir(tmp_path)
    assert len(process.timed(Board(), [Path("seen")], group_bytes=1)) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "crash",
            "the process that times files ended by SIGSEGV: a last word; measure them one by",
        ),
        ("leave", "the process that times files ended with status 7: a last word"),
        ("refuse", "refuse: no\nsuch thing"),
        ("fault", "ZeroDivisionError: of a library"),
    ],
)
def test_what_goes_wrong_there_is_one_error_and_the_next_call_works(process, name, words):
    with pytest.raises(MeasurementError, match=words):
        process.timed(Board(), [Path("a"), Path(name)], group_bytes=1)
    assert len(process.timed(Board(), [Path("a")], group_bytes=1)) == 1


def test_what_hangs_is_killed(process):
    with pytest.raises(MeasurementError, match=r"did not end within 1\.5 s; see whether"):
        process.timed(Board(time_limit_s=1.5), [Path("hang")], group_bytes=1)
    assert len(process.timed(Board(), [Path("a")], group_bytes=1)) == 1


def test_a_process_that_can_not_start_says_why():
    with pytest.raises(MeasurementError, match="status 1: ModuleNotFoundError: No module named 'a"):
        Process(Unloaded).timed(Unloaded(), [Path("a")], group_bytes=1)


def test_what_is_printed_when_an_interpreter_starts_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('hello'); print('[1]'); print('{}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = Process(Board)
    for runs in (5, 6):
        (found,) = process.timed(Board(), [Path("a")], group_bytes=runs)
        assert found.runs == runs
    process.end()


def test_odd_surroundings_are_no_hindrance(tmp_path, monkeypatch):
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    away.rmdir()
    monkeypatch.setattr(sys, "path", [*sys.path, Path("of no string")])
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    process = Process(Board)
    try:
        (found,) = process.timed(Board(np.float64(60.0)), [Path("a")], group_bytes=np.int64(5))
    finally:
        signal.signal(signal.SIGCHLD, before)
        process.end()
    assert found.runs == 5


def test_an_interrupted_call_leaves_nothing_for_the_next_one(process):
    def interrupt():
        time.sleep(1.0)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        process.timed(Board(), [Path("hang")], group_bytes=1)
    (found,) = process.timed(Board(), [Path("a")], group_bytes=77)
    assert found.runs == 77


ASKS = """
import json, sys
from pathlib import Path
from tailorbird.measure.apart import Process
from tests.measure.test_apart import Board
process = Process(Board, forks=True)
process.timed(Board(), [Path("a")], group_bytes=1)
print(process._running.pid, flush=True)
process.timed(Board(), [Path("hang")], group_bytes=1)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are told by Linux")
def test_it_ends_with_whoever_asks():
    def group(number):
        """Processes of a process group."""
        stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
        return [line for line in stats if line.rpartition(")")[2].split()[2] == str(number)]

    asks = subprocess.Popen([sys.executable, "-c", ASKS], stdout=subprocess.PIPE, text=True)
    started = int(json.loads(asks.stdout.readline()))
    until = time.monotonic() + 60
    while len(group(started)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert len(group(started)) == 2
    asks.kill()
    asks.communicate()
    while group(started) and time.monotonic() < until:
        time.sleep(0.02)
    assert group(started) == []
