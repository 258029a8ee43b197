"""Devices are reached, and what they do is what is found."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tailorbird.device import ONNX, Description, Latency
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.measure.check import Checked, check_device_at, check_devices
from tailorbird.targets import Place, Target
from tests.fakes import FakeDevice, FakeExporter

HERE = Description(
    machine="a board", system="Linux 6", runtime="Runtime", version="1.2", cores=4,
    memory_mb=512.0, governor="performance", temperature_c=41.0,
)  # fmt: skip


@dataclass(kw_only=True)
class Board:
    """A device that says what it is and does what a test wants of it."""

    key: str = "board"
    precisions: tuple = ("float32", "int8")
    ms: dict = field(default_factory=lambda: {"float32": 2.0, "int8": 1.0})
    refuses: tuple = ()
    drift: float | None = 0.0
    threads: int = 1
    format = ONNX
    time_limit_s = 5.0
    sessions: list = field(default_factory=list)

    def measure(self, models):
        self.sessions.append([model.stem for model in models])
        found = []
        for model in models:
            precision = model.stem.removeprefix("small-")
            if precision in self.refuses:
                raise MeasurementError(f"{model.name}: no kernels")
            found.append(
                Latency(
                    median_ms=self.ms[precision], spread_ms=0.1, runs=9, warmup=1, drift=self.drift
                )
            )
        return found

    def describe(self):
        return HERE

    def run(self, artifact, images):
        return np.zeros((len(images), 10), np.float32)


def made(_format, _precision):
    return FakeExporter()


def looked_at(device, exporters=made, **more):
    return check_device_at(device, exporters=exporters, **more)


def test_a_device_that_answers_says_what_it_is_and_runs():
    board, ticks = Board(), iter([1.0, 1.25, 2.0])
    found = looked_at(board, name="pi", now=lambda: next(ticks))
    assert found.answers and found.fault == "" and found.notes == ()
    assert (found.name, found.kind, found.key) == ("pi", "Board", "board")
    assert found.description == HERE
    assert found.answered_ms == 250.0
    assert [(one.precision, one.latency.median_ms) for one in found.tried] == [
        ("float32", 2.0),
        ("int8", 1.0),
    ]
    assert board.sessions == [["small-float32", "small-int8"]]  # they take turns


def test_what_a_device_does_not_say_is_not_known():
    found = looked_at(FakeDevice())
    assert found.answers and found.name == "fake"
    assert found.description is None and found.answered_ms is None
    assert [one.precision for one in found.tried] == ["float32"]


def test_a_precision_that_fails_costs_only_itself():
    board = Board(refuses=("int8",))
    found = looked_at(board)
    plain, int8 = found.tried
    assert found.answers and plain.latency.median_ms == 2.0
    assert int8.latency is None and "no kernels" in int8.fault
    assert board.sessions[1:] == [["small-float32"], ["small-int8"]]

    def none_in_int8(_format, precision):
        if precision == "int8":
            raise ExportError("files in int8 are not made here")
        return FakeExporter()

    _, int8 = looked_at(Board(), exporters=none_in_int8).tried
    assert int8.fault == "files in int8 are not made here"


def test_a_session_that_failed_late_is_not_tried_again():
    board, ticks = Board(refuses=("int8",)), iter([0.0, 0.0, 0.0, 100.0])
    found = looked_at(board, now=lambda: next(ticks))
    assert len(board.sessions) == 1
    assert not found.answers and found.fault == found.tried[0].fault == found.tried[1].fault


def test_a_device_whose_files_answer_otherwise_runs_nothing():
    found = looked_at(Board(precisions=("float32",)), lambda *_: FakeExporter(passes=False))
    assert not found.answers
    assert found.fault.startswith("it answers otherwise than PyTorch: by 0")


class Hanging(Board):
    time_limit_s = 0.05

    def describe(self):
        threading.Event().wait(10)


class Gone(Board):
    def describe(self):
        raise OSError("no route to host")


class Strange(Board):
    def describe(self):
        return "a board"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (Hanging(), "device board: describe did not end within 0.05 s"),
        (Gone(), r"describe raised OSError('no route to host')"),
        (Strange(), "describe gave 'a board', expected a tailorbird.device.Description"),
        (Board(precisions=("int4",)), "its precisions are ('int4',), expected a tuple"),
        (Board(precisions=("float32",), refuses=("float32",)), "no kernels"),
    ],
)
def test_a_device_that_does_not_answer_costs_only_itself(device, said):
    device.key = "board"
    targets = [
        Target("a", Place(name="bad", device=device), {"macs": 1}),
        Target("b", FakeDevice(), {"macs": 1}),
    ]
    bad, good = check_devices(targets, exporters=made)
    assert good.answers and not bad.answers
    assert said in bad.fault


def test_what_is_odd_is_said():
    slow = looked_at(Board(ms={"float32": 1.0, "int8": 1.0}))
    assert slow.notes == ("int8 slower than float32 on this device",)
    hot = looked_at(Board(drift=0.25, precisions=("float32",)))
    assert "float32: the last third of the session took +25% of the time" in hot.notes[0]
    (busy,) = looked_at(Board(threads=8)).notes
    assert busy == "device board: 8 threads on 4 cores wait for each other; give fewer"


def test_each_device_is_asked_once_and_tables_are_left_out():
    board = Board()
    place = Place(name="box", device=board)
    targets = [
        Target("a", place, {"macs": 1}),
        Target("b", place.batched(8), {"macs": 1}),
        Target("c", Place(name="phone", table=Path("phone.yaml")), {"latency_ms": 1}),
        Target("d", FakeDevice(), {"macs": 1}),
    ]
    found = check_devices(targets, exporters=made)
    assert [one.name for one in found] == ["box", "d"]
    assert len(board.sessions) == 1
    with pytest.raises(ConfigError, match="none has a device to reach; latency tables measure"):
        check_devices(targets[2:3])


def test_nothing_run_is_no_answer():
    assert not Checked(name="a", kind="b", key="c").answers
