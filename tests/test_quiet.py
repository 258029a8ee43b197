"""What libraries say goes to the run's log, and never between Tailorbird's words."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest
from typer.testing import CliRunner

from tailorbird import quiet
from tailorbird.cli import app, plainly
from tailorbird.errors import StoreError

NOISY = """
import logging, os, sys, warnings
from torch import nn

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, images):
        warnings.warn("a warning from forward")
        logging.getLogger("some.library").warning("a line of a log")
        return self.head(self.body(self.stem(images)))

def noisy():
    print("a printed line", file=sys.stderr)
    os.write(2, b"a line of C code\\n")
    return Noisy()
"""

JOB = """
teacher: {model: "noisy_nets:noisy"}
data: digits
targets: [{name: edge, limits: {latency: 0.9x}}]
house: {epochs: 0.05, teacher_blocks: 2, pruned: 1, minutes: 0.01}
check_teacher: false
run: run
"""

SAID = ("a printed line", "a line of C code", "a warning from forward", "a line of a log")


def say(line: str, stream: TextIO) -> None:
    stream.write(line + "\n")
    stream.flush()


@pytest.mark.filterwarnings("default")
def test_a_run_says_its_own_words_alone_and_its_log_has_the_rest(tmp_path):
    (tmp_path / "noisy_nets.py").write_text(NOISY)
    (tmp_path / "job.yaml").write_text(JOB)
    command = ["run", str(tmp_path / "job.yaml"), "--until", "house", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "tailorbird", *command],
        capture_output=True, text=True, check=False, env=os.environ | {"TAILORBIRD_VERBOSE": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not any(said in done.stdout + done.stderr for said in SAID)
    ours = ("data: ", "code: ", "device ", "target ", "estimate: ", "house: ")
    assert all(line.startswith(ours) for line in done.stderr.splitlines()), done.stderr
    log = tmp_path / "run" / quiet.LOG
    found = log.read_text()
    assert all(said in found for said in SAID)
    again = CliRunner().invoke(app, ["--verbose", *command])
    assert again.exit_code == 0 and SAID[0] in again.stderr  # where it was asked for
    assert log.read_text() == found


def test_a_fault_names_the_log(tmp_path, capfd):
    def command() -> None:
        say("cause unknown to us", sys.stderr)
        quiet.keep(tmp_path)
        say("and another", sys.stderr)
        raise StoreError("the disk is full")

    with pytest.raises(Exception, match="2"):
        plainly(command)()
    said = capfd.readouterr().err
    log = tmp_path / quiet.LOG
    assert said == f"error: the disk is full\nwhat libraries said meanwhile is in {log}\n"
    assert log.read_text().endswith("cause unknown to us\nand another\n")


def test_without_a_run_folder_words_are_dropped_but_for_a_fault_of_ours(capfd):
    plainly(lambda: say("idle talk", sys.stderr))()
    assert capfd.readouterr().err == ""

    def fails() -> None:
        os.write(2, b"why it broke\n")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        plainly(fails)()
    assert capfd.readouterr().err == "why it broke\n"


def test_a_long_log_is_put_away_and_our_words_have_their_stream(tmp_path, monkeypatch, capfd):
    (tmp_path / quiet.LOG).write_bytes(b"x" * (quiet.MOST_BYTES + 1))
    before = sys.stderr
    with quiet.aside() as kept:
        assert kept is not None
        quiet.keep(tmp_path)
        quiet.keep(tmp_path)  # changes nothing
        say("theirs", sys.stderr)
        say("ours", quiet.terminal())
        os.write(quiet.terminal_fd(), b"ours, too\n")
        with quiet.aside() as inner:
            assert inner is None
        assert kept.spoke
    assert sys.stderr is before and quiet.terminal() is before
    assert (tmp_path / quiet.OLDER).stat().st_size == quiet.MOST_BYTES + 1
    assert (tmp_path / quiet.LOG).read_text().count("\n") == 2
    assert sorted(capfd.readouterr().err.splitlines()) == ["ours", "ours, too"]


def test_a_closed_error_stream_or_none_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with quiet.aside() as kept:
        assert kept is None
    memory = io.StringIO()
    monkeypatch.setattr(sys, "stderr", memory)
    with quiet.aside():
        say("ours", quiet.terminal())
        say("theirs", sys.stderr)
    assert memory.getvalue() == "ours\n"


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    with quiet.aside() as kept:
        quiet.keep(Path(tmp_path / "missing"))
        say("theirs", sys.stderr)
        assert kept is None or kept.tail == "theirs\n"


def test_onnx_runtime_leaves_no_trace_of_its_telemetry(tmp_path):
    code = "import tailorbird, onnxruntime"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment["TMPDIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert not list(tmp_path.iterdir())
